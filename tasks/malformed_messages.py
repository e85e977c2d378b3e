"""Drops a message that does not have the form of a task, so that the worker goes on.

Celery itself does so only for the errors that it expects. Any other error ends the worker, and the message was not
acknowledged, so it would end every next worker too (celery/worker/strategy.py, read in 5.7.0). An error outside the
task, in a thread of the pool, is lost: the message is never acknowledged and blocks its thread's place for good
(celery/concurrency/thread.py). So what Celery uses there is checked first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from celery.app.task import Context
from celery.exceptions import InvalidTaskError
from celery.worker.strategy import default
from kombu import Message

_SIGNATURE_LISTS: Final = ("callbacks", "errbacks", "chain")
_SIGNATURE_PARTS: Final[dict[str, type]] = {"task": str, "args": list, "kwargs": dict, "options": dict}


def drop_malformed(task: object, app: object, consumer: object) -> Callable[..., None]:
    """For ``task_annotations``: Celery's default strategy, but every failure to build a request rejects the message."""
    handle_message = default(task, app, consumer)

    def handle_or_drop(message: Message, *others: object) -> None:
        try:
            _check_form(message.payload)
            handle_message(message, *others)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidTaskError(type(error).__name__) from error

    return handle_or_drop


def _check_form(payload: Any) -> None:  # noqa: ANN401 - any JSON value
    """Raises ``TypeError`` or ``ValueError``. An object is a task of Celery's first protocol, a list of its second."""
    if isinstance(payload, dict):
        args, kwargs = payload.get("args", []), payload.get("kwargs", {})
        embed = {name: payload.get(name) for name in (*_SIGNATURE_LISTS, "chord")}
    else:
        args, kwargs, embed = payload
    if not (isinstance(args, list) and isinstance(kwargs, dict) and isinstance(embed or {}, dict)):
        message = "a task has a list of arguments, and objects"
        raise TypeError(message)
    for name, value in (embed or {}).items():
        if not _is_embeddable(name, value):
            message = "what follows the task is not a list of tasks"
            raise TypeError(message)


def _is_embeddable(name: str, value: Any) -> bool:  # noqa: ANN401 - any JSON value
    """``value``: the tasks that follow this one. Under other names it may not replace what the worker itself knows."""
    if not value and name in {*_SIGNATURE_LISTS, "chord"}:
        return True
    if name in _SIGNATURE_LISTS:
        return isinstance(value, list) and all(map(_is_signature, value))
    return _is_signature(value) if name == "chord" else not hasattr(Context, name)


def _is_signature(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    return isinstance(value, dict) and all(
        isinstance(value.get(part), required) for part, required in _SIGNATURE_PARTS.items()
    )
