"""Celery's thread pool for a worker in one process. It starts nothing once it stops.

Without an event loop, which the broker in memory does not have, Celery counts down in a thread of its own. It goes on
while the pool waits for its running tasks, and Celery would log a traceback for each countdown that ends in that time.
"""

from __future__ import annotations

from typing import Any

from celery.concurrency.thread import TaskPool
from celery.exceptions import TaskRevokedError


class ThreadPool(TaskPool):
    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as Celery calls it
        super().__init__(*args, **kwargs)
        self._is_stopping = False

    def on_stop(self) -> None:
        self._is_stopping = True
        super().on_stop()

    def on_apply(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as Celery calls it
        """Celery drops the message of a revoked task that a pool refuses; it is not acknowledged."""
        try:
            return super().on_apply(*args, **kwargs)
        except RuntimeError as error:
            if not self._is_stopping:
                raise
            raise TaskRevokedError from error
