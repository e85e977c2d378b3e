"""Whether the loop of a worker or of beat goes on. A process whose loop stands still stores no heartbeat.

A loop that waits for its broker goes on: it does what it can.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import structlog
from celery.apps.worker import Worker
from celery.beat import PersistentScheduler
from kombu import Connection

from core.db.database import cause_name

log = structlog.get_logger()

LOOP_MARK_SECONDS: Final = 5.0
# What blocks a loop for a while, such as a publish to a broker that hangs, has a shorter time limit.
MAX_STANDSTILL_SECONDS: Final = 60.0
# Celery's own names for the states before the end.
_STATES_BEFORE_END: Final = ("initializing", "running")


class LoopWatch:
    """``mark`` is called from the loop, ``is_stalled`` from another thread."""

    def __init__(self, max_standstill: float = MAX_STANDSTILL_SECONDS) -> None:
        self._max_standstill = max_standstill
        self._marked_at = time.monotonic()

    def mark(self) -> None:
        self._marked_at = time.monotonic()

    def is_stalled(self) -> bool:
        return time.monotonic() - self._marked_at > self._max_standstill


class WorkerLoopWatch(LoopWatch):
    """A timer of the loop itself marks it. Without a connection there is no loop, and the worker tries to connect.

    A worker that shuts down has no connection either, and must end.
    """

    def __init__(self, worker: Worker, max_standstill: float = MAX_STANDSTILL_SECONDS) -> None:
        super().__init__(max_standstill)
        controller: Any = worker  # the published types have neither the timer's methods nor the consumer
        controller.timer.call_repeatedly(LOOP_MARK_SECONDS, self.mark)
        self._controller = controller

    def is_stalled(self) -> bool:
        is_ending = self._controller.blueprint.human_state() not in _STATES_BEFORE_END
        if self._controller.consumer.connection is None and not is_ending:
            self.mark()
        return super().is_stalled()


class WatchedScheduler(PersistentScheduler):
    """Beat's own. ``on_progress`` is called at each tick, and for each attempt to reach the broker."""

    on_progress: Callable[[], None] | None = None

    def tick(self, *args: Any, **options: Any) -> float:  # noqa: ANN401 - Celery's own
        self._mark()
        return super().tick(*args, **options)

    def _ensure_connected(self) -> Connection:
        def wait(error: Exception, seconds: float) -> None:
            log.warning("beat_waits_for_broker", error=cause_name(error), seconds=seconds)
            self._mark()

        return self.connection.ensure_connection(wait, self.app.conf.broker_connection_max_retries)

    def _mark(self) -> None:
        if self.on_progress is not None:
            self.on_progress()
