"""The Celery app: settings as ``facts`` of the broker ask, tasks registered, the runtime wired on first use.

JSON only, no result backend: the rows are the truth. Late acknowledgement, one message a slot, bounded sockets.
"""

from __future__ import annotations

from typing import Any, Final

import structlog
from celery.signals import worker_process_shutdown, worker_shutdown
from kombu import Exchange, Queue

from core import catalog
from core.accounts import Accounts
from core.clock import utc_now
from core.courier import Courier, Lanes
from core.database import Database
from core.gate import Gates
from core.gateways import Biller, Provider
from core.quota import Limit, Limits, LocalQuota, Quota
from core.signing import Signer
from core.sync import Sync
from core.wishes import Policy
from providers.lago import LagoBiller
from providers.stripe_biller import StripeBiller
from providers.webhook_http import WebhookHttp
from tasks import drift, mails
from tasks.base import BillingApp, Runtime
from tasks.routing import MAILS, PLAN, QUEUE_OF, QUEUES, SWEEP
from worker.post import open_post
from worker.settings import Settings, SettingsError
from worker.shared_quota import SharedQuota

log = structlog.get_logger()


# One call to a biller, the last byte included; ``core.turns.CALL`` leaves room for bridged blips on top.
CALL_SECONDS: Final = 10.0
TASK_MODULES: Final = [
    f"tasks.{noun}" for noun in ("customers", "deliveries", "drift", "events", "hints", "mails", "sweep")
]
SWEEP_EVERY: Final = 5.0

# Of the published limits. Stripe's buckets forgive a burst (stripe.md 3); Lago's window of one second does not (lago.md
# 2), so there the share leaves room for requests that were let through evenly and arrive in a crowd.
STRIPE_ACCOUNT: Final = 100.0
STRIPE_TEST_ACCOUNT: Final = 25.0
STRIPE_SHARE: Final = 0.98
LAGO_SHARE: Final = 0.9

# The visibility timeout must outlast the longest countdown and the longest task, else both run again (celery.md 0.2).
REDIS_OPTIONS: Final[dict[str, Any]] = {
    "visibility_timeout": 300,
    "unacked_restore_interval": 10,
    "unacked_restore_throttle": 1,
    "socket_timeout": 5,
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
    "health_check_interval": 25,
    "max_connections": 200,
}
AMQP_OPTIONS: Final[dict[str, Any]] = {"confirm_publish": True, "read_timeout": 5, "write_timeout": 5}
MEMORY_OPTIONS: Final[dict[str, Any]] = {"polling_interval": 0.01}


def build(settings: Settings) -> BillingApp:
    """An app for this process; nothing is opened before the first task or publish."""
    app = BillingApp("billing-sync", open_runtime=lambda: open_runtime(settings), set_as_current=True)
    app.conf.update(_configuration(settings))
    app.set_default()
    worker_shutdown.connect(_close(app), weak=False)
    worker_process_shutdown.connect(_close(app), weak=False)
    return app


def open_runtime(settings: Settings) -> Runtime:
    """Raises ``SettingsError``, ``CatalogError`` or ``DatabaseError``: nothing is started half."""
    plans = catalog.load(settings.plans_file, settings.charged_by)
    billers = open_billers(settings, plans)
    database = Database(settings.database, pool_size=settings.worker_concurrency + 4)
    database.prepare()
    policy = Policy(links_payer=bool(settings.lago_stripe_provider_code))
    quota = open_quota(settings)
    courier = open_courier(settings, database)

    def close() -> None:
        if courier is not None:
            courier.wire.close()
        for biller in billers.values():
            biller.close()
        database.close()
        if isinstance(quota, SharedQuota):
            quota.close()

    accounts = Accounts(database=database, billers=billers, clock=utc_now)
    sync = Sync(
        database=database,
        billers=billers,
        catalog=plans,
        policy=policy,
        clock=utc_now,
        accounts=accounts,
        gates=Gates(quota, settings.worker_concurrency),
    )
    post = open_post(settings, database, plans)
    return Runtime(database=database, sync=sync, catalog=plans, clock=utc_now, close=close, post=post, courier=courier)


def open_signer(settings: Settings) -> Signer | None:
    """None: no secret is set, so nobody is told by webhook."""
    secret = settings.webhook_signing_secret
    return None if secret is None else Signer(secret.get_secret_value())


def open_courier(settings: Settings, database: Database) -> Courier | None:
    """Other services' servers may be slow: they have a quarter of the threads at most."""
    signer = open_signer(settings)
    if signer is None:
        return None
    return Courier(
        database=database,
        clock=utc_now,
        signer=signer,
        wire=WebhookHttp(private=settings.webhook_allow_private),
        lanes=Lanes(max(1, settings.worker_concurrency // 4)),
    )


def start_accounts(runtime: Runtime) -> None:
    """At the start of a process that does the work. Raises ``WrongAccountError``; a biller may be away."""
    for error in runtime.sync.accounts.start():
        log.warning("account_not_asked", provider=error.provider, reason=error.message)


def open_quota(settings: Settings) -> Quota:
    """Shared through Redis where there is one; else each process keeps within the limits by itself."""
    test_mode = settings.stripe_secret_key is not None and "_test_" in settings.stripe_secret_key.get_secret_value()
    account = settings.stripe_rate_limit or (STRIPE_TEST_ACCOUNT if test_mode else STRIPE_ACCOUNT)
    limits: dict[Provider, Limits] = {
        "stripe": Limits(_stripe_limit(account), _stripe_limit(settings.stripe_operation_rate_limit)),
        # A new organization there is a customer and a subscription, and Lago counts all requests together.
        "lago": Limits(Limit(settings.lago_rate_limit * LAGO_SHARE, burst=2), round_takes=2),
    }
    if settings.redis is not None:
        return SharedQuota(limits, settings.redis)
    if not settings.is_embedded:
        log.warning("quota_is_not_shared", reason="REDIS_URL is not set: every process takes the whole of it")
    return LocalQuota(limits)


def _stripe_limit(published: float) -> Limit:
    return Limit(published * STRIPE_SHARE, burst=max(1, int(published / 5)))


def open_billers(settings: Settings, plans: catalog.Catalog) -> dict[Provider, Biller]:
    """Both billers, at the addresses that the settings name. Raises ``SettingsError`` where they name none."""
    stripe, lago = open_both(settings, plans, CALL_SECONDS)
    return {"stripe": stripe, "lago": lago}


def open_both(settings: Settings, plans: catalog.Catalog, call_seconds: float) -> tuple[StripeBiller, LagoBiller]:
    """Raises as ``open_billers`` does."""
    stripe_key, stripe_base = settings.stripe_secret_key, settings.stripe_api_base
    lago_key, lago_url = settings.lago_api_key, settings.lago_api_url
    if stripe_key is None or stripe_base is None or lago_key is None or lago_url is None:
        message = (
            "no biller is named: set STRIPE_SECRET_KEY, STRIPE_API_BASE, LAGO_API_KEY and LAGO_API_URL, "
            "or run `billing-sync up`, which brings its own sandbox"
        )
        raise SettingsError(message)
    stripe = StripeBiller(
        stripe_key.get_secret_value(),
        stripe_base,
        ending=plans.ending,
        days_until_due=settings.stripe_days_until_due,
        timeout=call_seconds,
    )
    lago = LagoBiller(
        lago_url,
        lago_key.get_secret_value(),
        payment_provider_code=settings.lago_stripe_provider_code,
        ending=plans.ending,
        timeout=call_seconds,
    )
    return stripe, lago


def _configuration(settings: Settings) -> dict[str, Any]:
    # Direct queues are published to by their name alone, so a wiped Redis loses no binding (celery.md 1.2). RabbitMQ's
    # quorum queues hold countdowns in the broker, which asks for a topic exchange (celery.md 1.4).
    amqp = settings.broker.startswith("amqp")
    kind = {"x-queue-type": "quorum"} if amqp else None
    exchange = Exchange("billing-sync", type="topic" if amqp else "direct")
    queues = [Queue(name, exchange, routing_key=name, queue_arguments=kind) for name in QUEUES]
    return {
        "imports": TASK_MODULES,
        "broker_url": settings.broker,
        "broker_transport_options": _transport_options(settings.broker),
        "broker_connection_timeout": 4,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_pool_limit": 10,
        "broker_pool_acquire_timeout": 5,
        "result_backend": None,
        "task_ignore_result": True,
        "task_annotations": {"*": {"Strategy": "tasks.strategy:form_or_refuse"}},
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_queues": queues,
        "task_routes": {task: {"queue": queue} for task, queue in QUEUE_OF.items()},
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
        "worker_prefetch_multiplier": 1,
        # No worker_eta_task_limit: kombu lets no wait raise the prefetch count beyond it, but lets every one that ends
        # lower it, so after a crowd of waits a worker takes one message at a time for good. LONGEST_RETRY bounds them.
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "beat_schedule": _schedule(settings),
        "beat_enable_remote_control": True,
    }


def _schedule(settings: Settings) -> dict[str, Any]:
    """A ring that is late is worth nothing: the next one does its work."""
    rings: dict[str, Any] = {
        "sweep": {"task": SWEEP, "schedule": SWEEP_EVERY, "options": {"expires": SWEEP_EVERY}},
        "mails": {"task": MAILS, "schedule": mails.RING_EVERY, "options": {"expires": mails.RING_EVERY}},
    }
    if settings.plan_every_hours is not None:
        seconds = settings.plan_every_hours * 3600
        options = {"expires": drift.RING_EVERY}
        rings["plan"] = {"task": PLAN, "schedule": drift.RING_EVERY, "args": [seconds], "options": options}
    return rings


def _transport_options(broker: str) -> dict[str, Any]:
    # Without "://" there is no scheme, and what stands before the colon may be a password.
    scheme = broker.split("://", 1)[0] if "://" in broker else "nothing of the kind"
    if scheme in {"redis", "rediss"}:
        return REDIS_OPTIONS
    if scheme in {"amqp", "amqps", "pyamqp"}:
        return AMQP_OPTIONS
    if scheme == "memory":
        return MEMORY_OPTIONS
    message = (
        f"the broker's address (CELERY_BROKER_URL, else REDIS_URL) begins with {scheme}; "
        "use redis://, rediss://, amqp:// or amqps://"
    )
    raise SettingsError(message)


def _close(app: BillingApp) -> Any:  # noqa: ANN401 - Celery's signals take any callable
    def close(**_: object) -> None:
        app.close_runtime()

    return close
