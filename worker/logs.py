"""Logging for our processes: one line an event, constant names and fields, to standard error.

Task and organization ids only; the SDKs' own loggers stay at WARNING: their INFO lines hold emails (stripe.md 1.7).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog
from celery import current_task
from celery.signals import setup_logging

from worker.settings import Settings

QUIET = ("stripe", "httpx", "httpcore", "urllib3", "requests", "amqp", "kombu", "asyncio", "alembic")


def configure(settings: Settings) -> None:
    """Once a process, by its entry point."""
    chain: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _with_task,
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
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))
    structlog.configure(
        processors=[*chain, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    setup_logging.connect(_keep_ours, weak=False)


def _keep_ours(**_: object) -> None:
    """Celery configures no logging of its own where somebody listens to this signal."""


def _with_task(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if current_task and current_task.request.id:
        event.setdefault("task", current_task.name)
        event.setdefault("task_id", current_task.request.id)
    return event
