"""Drops a message that does not have the form of a task, so that the worker goes on.

Celery itself does so only for the errors that it expects. Any other error ends the worker, and the message was not
acknowledged, so it would end every next worker too (celery/worker/consumer/consumer.py, read in 5.7.0). An error
outside the task, in a thread of the pool, is lost: the message is never acknowledged and blocks its thread's place for
good (celery/concurrency/thread.py). So what Celery uses there is checked first.

Celery's own lines about such messages contain the whole message. Ours has the reason only.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any, Final

import structlog
from celery.app.task import Context
from celery.worker.consumer import Consumer
from celery.worker.strategy import default
from kombu import Message
from vine.promises import promise as Promise  # noqa: N812 - it is a class

log = structlog.get_logger()

# What Celery raises for a part of a wrong type or form. An error of the broker's connection is none of these.
_FORM_ERRORS: Final = (AttributeError, LookupError, RecursionError, TypeError, ValueError)
_TASK_NAME_PATTERN: Final = re.compile(r"[a-zA-Z_.]{1,100}")
_SIGNATURE_LISTS: Final = ("callbacks", "errbacks", "chain")
_SIGNATURE_PARTS: Final[dict[str, type]] = {"task": str, "args": list, "kwargs": dict, "options": dict}


class DroppingConsumer(Consumer):
    """For ``worker_consumer``: every message that cannot be a task of ours is rejected, and not given back."""

    connection_errors: tuple[type[Exception], ...]  # the published types leave it out

    def create_task_handler(self, promise: type[Promise] = Promise) -> Callable[..., Any]:
        handle = super().create_task_handler(promise)

        def handle_or_drop(message: Message) -> None:
            try:
                handle(message)
            except _FORM_ERRORS as error:
                self._drop(message, "malformed", type(error).__name__)

        return handle_or_drop

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        self._drop(message, "not_decoded", type(exc).__name__)

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:  # noqa: ARG002 - Celery's signature
        self._drop(message, "invalid_task", type(exc).__name__)

    def on_unknown_message(self, body: object, message: Message) -> None:  # noqa: ARG002 - Celery's signature
        self._drop(message, "unknown_message", None)

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:  # noqa: ARG002 - Celery's signature
        name = exc.args[0] if exc.args else None
        self._drop(message, "unknown_task", name if _TASK_NAME_PATTERN.fullmatch(str(name)) else None)

    def _drop(self, message: Message, reason: str, error: str | None) -> None:
        """``error``: the class of an error, or the name of a task that there is not. Nothing else of the message."""
        log.error("message_dropped", reason=reason, error=error)
        if not message.acknowledged:
            message.reject_log_error(logging.getLogger(__name__), self.connection_errors)


def check_form_first(task: object, app: object, consumer: object) -> Callable[..., None]:
    """For ``task_annotations``: Celery's default strategy, after a check of what the threads of the pool use."""
    handle_message = default(task, app, consumer)

    def check_and_handle(message: Message, *others: object) -> None:
        _check_form(message.payload)
        for headers in (message.headers, message.payload):
            if isinstance(headers, dict):
                _replace_senseless_numbers(headers)
        handle_message(message, *others)

    return check_and_handle


def _replace_senseless_numbers(headers: dict[str, Any]) -> None:
    """Celery counts with them outside of everything that expects errors. The message itself may be good."""
    retries, timelimit = headers.get("retries"), headers.get("timelimit")
    if "retries" in headers and not (type(retries) is int and retries >= 0):
        headers["retries"] = 0
    is_pair = isinstance(timelimit, list | tuple) and len(timelimit) == len(("hard", "soft"))
    if timelimit is not None and not (is_pair and all(isinstance(each, int | float | None) for each in timelimit)):
        headers["timelimit"] = None


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
