"""Logging for our processes: one line an event, constant names and fields, to standard error.

Task and organization ids only; the SDKs' own loggers stay at WARNING: their INFO lines hold emails (stripe.md 1.7).
Of a message that Celery throws away, its log line says why, and not what was in it.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog
from celery import current_task
from celery.signals import setup_logging

from worker.config.settings import Settings

# celery.pool's DEBUG lines hold the arguments of each task.
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
CELERY_CONSUMER_LOGGER = "celery.worker.consumer.consumer"
TASK_NAME_PATTERN = re.compile(r"[a-zA-Z_.]{1,100}")


def configure(settings: Settings) -> None:
    """Once a process, by its entry point."""
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
    logging.getLogger(CELERY_CONSUMER_LOGGER).addFilter(_hide_dropped_message)
    structlog.configure(
        processors=[*chain, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    setup_logging.connect(_keep_our_logging, weak=False)


def _hide_dropped_message(record: logging.LogRecord) -> bool:
    """Celery writes out the whole message that it throws away, and the error's own text may quote it."""
    if "body" in str(record.msg):
        error = record.args[0] if isinstance(record.args, tuple) and record.args else None
        task_name = error.args[0] if isinstance(error, KeyError) and error.args else ""
        shown = task_name if TASK_NAME_PATTERN.fullmatch(str(task_name)) else type(error).__name__
        record.msg, record.args = "message_thrown_away: %s, %s", (record.funcName.removeprefix("on_"), shown)
        record.exc_info = record.exc_text = None
    return True


def _keep_our_logging(**_: object) -> None:
    """Celery configures no logging of its own where somebody listens to this signal."""


def _add_task(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if current_task and current_task.request.id:
        event.setdefault("task", current_task.name)
        event.setdefault("task_id", current_task.request.id)
    return event
