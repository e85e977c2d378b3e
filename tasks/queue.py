"""Sends sync requests to the broker: one message, now or after a delay, or many in one pipeline.

A publish that raised may have been delivered all the same (celery.md 0.5). Publishing twice does no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, cast

from celery import Celery
from kombu import Producer

from tasks.routing import SyncRequest

PUBLISH_BATCH_SIZE = 500
PRODUCER_ACQUIRE_SECONDS = 5.0


class _BatchingProducer(Protocol):
    """kombu 5.7's producer; its published stubs are older."""

    def batch(self, max_size: int) -> AbstractContextManager[object]: ...


def publish(app: Celery, requests: Sequence[SyncRequest]) -> None:
    """Send all to the broker. Returns only if the broker accepted them, and raises if it may not have."""
    if not requests:
        return
    with (
        app.producer_pool.acquire(block=True, timeout=PRODUCER_ACQUIRE_SECONDS) as producer,
        cast("_BatchingProducer", producer).batch(max_size=PUBLISH_BATCH_SIZE),
    ):
        for request in requests:
            send(app, request, producer=producer)


def send(app: Celery, request: SyncRequest, producer: Producer | None = None) -> None:
    """Send one to the broker."""
    app.send_task(
        request.task,
        args=[request.org_id],
        kwargs={"bulk": True} if request.bulk else None,
        argsrepr=f"({request.org_id})",
        queue=request.queue,
        countdown=countdown(app, request.delay_seconds) or None,
        producer=producer,
    )


def countdown(app: Celery, seconds: float) -> float:
    """The countdown for a delay of so many seconds: RabbitMQ's delays begin at one second (celery.md 1.4)."""
    delays_in_broker = str(app.conf.broker_url).startswith(("amqp", "pyamqp"))
    return max(1.0, seconds) if delays_in_broker and seconds > 0 else seconds
