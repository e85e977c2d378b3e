"""How a worker begins with a message: one that is not formed as a task is thrown away, and the worker lives on.

Celery itself does so only with what it expects to be wrong. Anything else ends the worker, and since the message was
not acknowledged it would end the next one too, for ever (celery/worker/strategy.py, read in 5.7.0).
"""

from __future__ import annotations

from collections.abc import Callable

from celery.exceptions import InvalidTaskError
from celery.worker.strategy import default


def drop_malformed(task: object, app: object, consumer: object) -> Callable[..., None]:
    """For ``task_annotations``: the usual strategy, whose every failure to form a request refuses the message."""
    handle_message = default(task, app, consumer)

    def handle_or_drop(*message: object) -> None:
        try:
            handle_message(*message)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidTaskError(type(error).__name__) from error

    return handle_or_drop
