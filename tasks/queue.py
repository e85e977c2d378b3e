"""The broker, as those use it who ring it: one message, perhaps for later, or many in one pipeline.

A publish that raised may have been delivered all the same (celery.md 0.5); whoever rings twice does no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, cast

from celery import Celery
from kombu import Producer

from tasks.routing import Ring

AT_ONCE = 500
ACQUIRE_SECONDS = 5.0


class _Batching(Protocol):
    """kombu 5.7's producer; its published stubs are older."""

    def batch(self, max_size: int) -> AbstractContextManager[object]: ...


def publish(app: Celery, rings: Sequence[Ring]) -> None:
    """Hand all to the broker; returns only when it took them, raises when it may not have."""
    if not rings:
        return
    with (
        app.producer_pool.acquire(block=True, timeout=ACQUIRE_SECONDS) as producer,
        cast("_Batching", producer).batch(max_size=AT_ONCE),
    ):
        for ring in rings:
            send(app, ring, producer=producer)


def send(app: Celery, ring: Ring, producer: Producer | None = None) -> None:
    """Hand one to the broker."""
    app.send_task(
        ring.task,
        args=[ring.org_id],
        kwargs={"bulk": True} if ring.bulk else None,
        argsrepr=f"({ring.org_id})",
        queue=ring.queue,
        countdown=wait(app, ring.after) or None,
        producer=producer,
    )


def wait(app: Celery, seconds: float) -> float:
    """What a countdown of so many seconds must be: RabbitMQ's delays begin at one (celery.md 1.4)."""
    native = str(app.conf.broker_url).startswith(("amqp", "pyamqp"))
    return max(1.0, seconds) if native and seconds > 0 else seconds
