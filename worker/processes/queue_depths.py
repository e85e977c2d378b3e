"""The number of messages in each queue, read from the broker at each scrape: Redis, RabbitMQ or the one in memory.

A message that a worker has taken is not counted. While the broker is unavailable there is no number, and none is made
up.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, cast

import structlog
from celery import Celery
from kombu import Connection
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tasks.routing import QUEUES
from worker.processes.relay import BROKER_UNAVAILABLE_ERRORS

log = structlog.get_logger()


class _DeclaredQueue(Protocol):
    message_count: int


class _QueueChannel(Protocol):
    """A channel of kombu; its published types leave this out."""

    def queue_declare(self, queue: str, *, passive: bool) -> _DeclaredQueue: ...

    def close(self) -> None: ...


class QueueDepths(Collector):
    def __init__(self, app: Celery) -> None:
        self._app = app

    def describe(self) -> Iterable[Metric]:
        """So that registering it asks no broker."""
        return [_family()]

    def collect(self) -> Iterable[Metric]:
        family = _family()
        try:
            with self._app.connection_for_read() as connection:
                for queue in QUEUES:
                    family.add_metric([queue], _depth(connection, queue))
        except BROKER_UNAVAILABLE_ERRORS as error:
            # Only the error's class is logged: its text may contain the URL with the password.
            log.warning("queue_depths_unknown", error=type(error).__name__)
            return []
        return [family]


def _family() -> GaugeMetricFamily:
    return GaugeMetricFamily(
        "billing_sync_queue_depth", "Messages that wait in a queue of the broker.", labels=["queue"]
    )


def _depth(connection: Connection, queue: str) -> int:
    """An empty queue does not exist in Redis, and in RabbitMQ none exists before the first worker."""
    channel = cast("_QueueChannel", connection.channel())
    try:
        return channel.queue_declare(queue, passive=True).message_count
    except connection.channel_errors:
        return 0
    finally:
        channel.close()
