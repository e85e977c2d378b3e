"""The broker, as those use it who ring it: many messages in one pipeline, and a look at how long a queue is.

A publish that raised may have been delivered all the same (celery.md 0.5); whoever rings twice does no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, cast

from celery import Celery

from tasks.routing import Ring

AT_ONCE = 500
ACQUIRE_SECONDS = 5.0


class _Batching(Protocol):
    """kombu 5.7's producer; its published stubs are older."""

    def batch(self, max_size: int) -> AbstractContextManager[object]: ...


class _Declared(NamedTuple):
    queue: str
    message_count: int
    consumer_count: int


class _Declarable(Protocol):
    def queue_declare(self, *, passive: bool) -> _Declared: ...


def publish(app: Celery, rings: Sequence[Ring]) -> None:
    """Hand all to the broker; returns only when it took them, raises when it may not have."""
    if not rings:
        return
    with (
        app.producer_pool.acquire(block=True, timeout=ACQUIRE_SECONDS) as producer,
        cast("_Batching", producer).batch(max_size=AT_ONCE),
    ):
        for ring in rings:
            app.send_task(ring.task, args=[ring.org_id], argsrepr=f"({ring.org_id})", producer=producer)


def length(app: Celery, queue: str) -> int:
    """Messages that wait in the queue, those that a worker holds not counted. The queue is made if it is not there."""
    with app.connection_for_write() as connection, connection.channel() as channel:
        bound = app.amqp.queues[queue](channel)
        bound.declare()
        # Not passively: on Redis an empty queue is a list that does not exist, and that would raise.
        return cast("_Declarable", bound).queue_declare(passive=False).message_count
