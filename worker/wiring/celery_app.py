"""The Celery app: configuration, queues and the beat schedule.

Messages are JSON. There is no result backend, because the database is the source of truth. A message is acknowledged
after its task, a worker prefetches one message per thread, and socket operations have timeouts.
"""

from __future__ import annotations

from typing import Any, Final

from celery.signals import setup_logging, worker_process_shutdown, worker_shutdown
from kombu import Exchange, Queue

from tasks import backups, drift, emails, missed_webhooks
from tasks.base import BillingApp
from tasks.routing import (
    CHECK_DRIFT,
    FIND_MISSED_WEBHOOKS,
    QUEUE_BY_TASK,
    QUEUES,
    SEND_EMAILS,
    SWEEP,
    TAKE_BACKUP,
)
from worker.config import broker
from worker.config.settings import Settings
from worker.wiring import redis_transport
from worker.wiring.runtime import open_runtime

TASK_MODULES: Final = [
    f"tasks.{module}"
    for module in (
        "backups",
        "drift",
        "emails",
        "missed_webhooks",
        "provider_sync",
        "provider_webhooks",
        "service_events",
        "sweep",
        "webhook_deliveries",
    )
]
SWEEP_INTERVAL_SECONDS: Final = 5.0
# Bounds the scheduled messages that wait for a worker. With the interval of a few seconds as the limit, a worker that
# is always a little late would never run them.
SCHEDULED_MESSAGE_EXPIRES_SECONDS: Final = 60.0


def build(settings: Settings) -> BillingApp:
    """Build the app of this process. Connections are opened by the first task or publish."""
    redis_transport.register()
    app = BillingApp("billing-sync", open_runtime=lambda: open_runtime(settings), set_as_current=True)
    app.conf.update(_configuration(settings))
    app.set_default()
    worker_shutdown.connect(_close(app), weak=False)
    worker_process_shutdown.connect(_close(app), weak=False)
    return app


def keep_our_logging() -> None:
    """Call it where ``wiring.logging`` is configured: Celery would else configure a logging of its own."""
    setup_logging.connect(_configure_no_logging, weak=False)


def _configure_no_logging(**_: object) -> None:
    """Celery leaves logging to the receivers of its signal."""


def _configuration(settings: Settings) -> dict[str, Any]:
    # A direct queue needs only its name to be published to, so a wiped Redis loses no binding (celery.md 1.2).
    # RabbitMQ's quorum queues keep countdowns in the broker, which requires a topic exchange (celery.md 1.4).
    amqp = settings.broker.startswith("amqp")
    queue_arguments = {"x-queue-type": "quorum"} if amqp else None
    exchange = Exchange("billing-sync", type="topic" if amqp else "direct")
    queues = [Queue(name, exchange, routing_key=name, queue_arguments=queue_arguments) for name in QUEUES]
    return {
        "imports": TASK_MODULES,
        "broker_url": settings.broker,
        "broker_use_ssl": settings.broker_tls,
        "broker_transport_options": broker.transport_options(settings.broker),
        "broker_connection_timeout": 4,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # A full Redis refuses a write as an error of the channel, which would else end the worker.
        "broker_channel_error_retry": True,
        "broker_pool_limit": 10,
        "broker_pool_acquire_timeout": 5,
        "result_backend": None,
        "task_ignore_result": True,
        "task_annotations": {"*": {"Strategy": "tasks.malformed_messages:check_form_first"}},
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_queues": queues,
        "task_routes": {task: {"queue": queue} for task, queue in QUEUE_BY_TASK.items()},
        "task_default_queue": "events",
        "task_default_exchange": exchange.name,
        "task_default_exchange_type": exchange.type,
        "task_default_routing_key": "events",
        "task_create_missing_queues": False,
        "task_acks_late": True,
        "task_acks_on_failure": True,
        "task_acks_on_timeout": True,
        "task_publish_retry_policy": {"max_retries": 1, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.5},
        "task_repr_maxlevels": 2,
        "task_send_sent_event": True,
        "timezone": "UTC",
        "enable_utc": True,
        **_worker_configuration(settings),
        "beat_schedule": _beat_schedule(settings),
    }


def _worker_configuration(settings: Settings) -> dict[str, Any]:
    return {
        "worker_consumer": "tasks.malformed_messages:DroppingConsumer",
        "worker_prefetch_multiplier": 1,
        # No worker_eta_task_limit: in kombu a countdown does not raise the prefetch count above this limit, but each
        # countdown that ends lowers it. After a burst of countdowns a worker would process one message at a time for
        # good. ``MAX_QUEUE_DELAY_SECONDS`` bounds the countdowns.
        "worker_send_task_events": True,
        "worker_enable_remote_control": settings.celery_remote_control,
        "beat_enable_remote_control": settings.celery_remote_control,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
    }


def _beat_schedule(settings: Settings) -> dict[str, Any]:
    """A scheduled message that expires loses nothing: later ones do the same work."""
    options = {"expires": SCHEDULED_MESSAGE_EXPIRES_SECONDS}
    entries: dict[str, Any] = {
        "sweep": {"task": SWEEP, "schedule": SWEEP_INTERVAL_SECONDS, "options": options},
        "missed_webhooks": {
            "task": FIND_MISSED_WEBHOOKS,
            "schedule": missed_webhooks.FIND_MISSED_SECONDS,
            "options": options,
        },
        "emails": {
            "task": SEND_EMAILS,
            "schedule": emails.EMAIL_TICK_SECONDS,
            "options": options,
        },
    }
    if settings.plan_every_hours is not None:
        seconds = settings.plan_every_hours * 3600
        entries["drift_check"] = {
            "task": CHECK_DRIFT,
            "schedule": drift.DRIFT_TICK_SECONDS,
            "args": [seconds],
            "options": options,
        }
    if settings.backup_dir is not None:
        entries["backup"] = {
            "task": TAKE_BACKUP,
            "schedule": backups.BACKUP_TICK_SECONDS,
            "args": [str(settings.backup_dir.absolute()), settings.backup_every_hours, settings.backup_keep],
            "options": options,
        }
    return entries


def _close(app: BillingApp) -> Any:  # noqa: ANN401 - Celery's signals take any callable
    def close(**_: object) -> None:
        app.close_runtime()

    return close
