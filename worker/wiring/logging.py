"""Logging of all processes: one line per event, with constant names and fields, to standard error.

Lines contain only ids of tasks and organizations. The SDKs' loggers stay at WARNING, because their INFO lines contain
email addresses (stripe.md 1.7). For a message that Celery drops, the line has the reason and not the content.

An idle process writes nothing at INFO: Celery's own lines about periodic tasks count as DEBUG.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

from tasks.routing import PERIODIC_TASKS
from worker.config.settings import Settings

# The DEBUG lines of celery.pool contain the arguments of each task.
QUIET_LOGGERS = (
    "stripe",
    "httpx",
    "httpcore",
    "urllib3",
    "requests",
    "amqp",
    "kombu",
    "asyncio",
    "alembic",
    "celery.pool",
)
# What these write at INFO for each message is routine if the task is periodic.
CELERY_TASK_LOGGERS = ("celery.worker.strategy", "celery.app.trace", "celery.beat")


def configure(settings: Settings) -> None:
    """Called once per process, by its entry point."""
    chain: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_task,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=chain,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=settings.log_level, force=True)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))
    for name in CELERY_TASK_LOGGERS:
        logging.getLogger(name).addFilter(is_written)
    structlog.configure(
        processors=[*chain, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def is_written(record: logging.LogRecord) -> bool:
    """Whether Celery's line is written. A routine one becomes DEBUG: if the task did something, a line of ours says so.

    The line about a task that was ignored is routine, too: ``link_waits`` gives the reason.
    """
    if record.levelno != logging.INFO or not _is_routine(str(record.msg), record.args):
        return True
    record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
    return logging.getLogger().isEnabledFor(logging.DEBUG)


def _is_routine(message: str, arguments: object) -> bool:
    if message.startswith("Scheduler: Sending due task"):
        return True
    if not isinstance(arguments, Mapping):
        return False
    is_ordinary = message.endswith("received") or " succeeded in " in message
    return arguments.get("description") == "ignored" or (is_ordinary and arguments.get("name") in PERIODIC_TASKS)


def _add_task(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    celery = sys.modules.get("celery")  # a command that runs no task starts without importing it
    task = celery.current_task if celery is not None else None
    if task and task.request.id:
        event.setdefault("task", task.name)
        event.setdefault("task_id", task.request.id)
    return event
