"""Drops a message that does not have the form of a task, so that the worker goes on.

Celery itself does so only for the errors that it expects. Any other error ends the worker. The message was not
acknowledged, so it would end every next worker too (celery/worker/strategy.py, read in 5.7.0).
"""

from __future__ import annotations

from collections.abc import Callable

from celery.exceptions import InvalidTaskError
from celery.worker.strategy import default


def drop_malformed(task: object, app: object, consumer: object) -> Callable[..., None]:
    """For ``task_annotations``: Celery's default strategy, but every failure to build a request rejects the message."""
    handle_message = default(task, app, consumer)

    def handle_or_drop(*message: object) -> None:
        try:
            handle_message(*message)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidTaskError(type(error).__name__) from error

    return handle_or_drop
