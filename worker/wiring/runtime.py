"""What a process works with, built from the settings: database, providers, rate limiter, email and webhooks."""

from __future__ import annotations

from typing import Final

import structlog

from core.catalog import plans as plan_catalog
from core.common.clock import utc_now
from core.compare.desired_state import Policy
from core.db.database import Database
from core.flow_control.rate_limiter import Limit, Limits, LocalQuota, Quota
from core.flow_control.request_gate import Gates
from core.ports.provider import Biller
from core.ports.spec import Provider
from core.reconcile.account_guard import Accounts
from core.reconcile.reconciler import Sync
from core.webhooks.dispatcher import Courier, Lanes
from core.webhooks.signing import Signer
from providers.lago.provider import LagoBiller
from providers.stripe.provider import StripeBiller
from providers.webhooks.http import WebhookHttp
from tasks.base import Runtime
from worker.config.settings import Settings, SettingsError
from worker.shared.rate_limiter import SharedQuota
from worker.wiring.email import open_post

log = structlog.get_logger()


# One call to a biller, the last byte included; ``core.reconcile.attempt.CALL`` leaves room for bridged blips on top.
CALL_SECONDS: Final = 10.0

# Of the published limits. Stripe's buckets forgive a burst (stripe.md 3); Lago's window of one second does not (lago.md
# 2), so there the share leaves room for requests that were let through evenly and arrive in a crowd.
STRIPE_ACCOUNT: Final = 100.0
STRIPE_TEST_ACCOUNT: Final = 25.0
STRIPE_SHARE: Final = 0.98
LAGO_SHARE: Final = 0.9


def open_runtime(settings: Settings) -> Runtime:
    """Raises ``SettingsError``, ``CatalogError`` or ``DatabaseError``: nothing is started half."""
    plans = plan_catalog.load(settings.plans_file, settings.charged_by)
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


def open_billers(settings: Settings, plans: plan_catalog.Catalog) -> dict[Provider, Biller]:
    """Both billers, at the addresses that the settings name. Raises ``SettingsError`` where they name none."""
    stripe, lago = open_both(settings, plans, CALL_SECONDS)
    return {"stripe": stripe, "lago": lago}


def open_both(settings: Settings, plans: plan_catalog.Catalog, call_seconds: float) -> tuple[StripeBiller, LagoBiller]:
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
