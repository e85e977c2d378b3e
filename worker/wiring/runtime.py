"""Builds the runtime of a process from its settings: database, providers, rate limiter, emails and webhooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import structlog

from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.compare.desired_state import PayerPolicy
from core.db.database import Database
from core.flow_control.rate_limiter import LocalRateLimiter, ProviderRateLimits, RateLimit, RateLimiter
from core.flow_control.request_gate import RequestGates
from core.ports.errors import RejectedError
from core.ports.inventory import Inventory
from core.ports.provider import BillingProvider
from core.ports.spec import Provider
from core.reconcile.account_guard import AccountGuard
from core.reconcile.low_priority_reader import LowPriorityReader
from core.reconcile.reconciler import Reconciler
from core.webhooks.dispatcher import Dispatcher, PerEndpointSlots
from core.webhooks.signing import Signer
from providers.lago.client import LagoClient
from providers.lago.inventory import LagoInventory
from providers.lago.minor_units import LAGO_UNITS
from providers.lago.provider import LagoProvider
from providers.outbound_webhooks.http import WebhookHttpSender
from providers.stripe.client import StripeClient
from providers.stripe.collection import CollectionPolicy
from providers.stripe.inventory import StripeInventory
from providers.stripe.minor_units import STRIPE_UNITS
from providers.stripe.provider import StripeProvider
from tasks.base import Runtime
from worker.config.settings import Settings, SettingsError
from worker.shared.rate_limiter import RedisRateLimiter
from worker.wiring import catalog
from worker.wiring.database import connect
from worker.wiring.email import open_email_sender

log = structlog.get_logger()


# One request to a provider, including the last byte. ``core.reconcile.attempt.MAX_CALL_DURATION`` also leaves time for
# inline retries.
WORKER_CALL_SECONDS: Final = 10.0

# The published limits, and the share of them that is used. Stripe's buckets allow a burst (stripe.md 3). Lago's window
# of one second does not (lago.md 2), so its share leaves room for requests that were sent evenly and arrive in a burst.
STRIPE_LIVE_RATE_LIMIT: Final = 100.0
STRIPE_TEST_RATE_LIMIT: Final = 25.0
STRIPE_RATE_LIMIT_SHARE: Final = 0.98
LAGO_RATE_LIMIT_SHARE: Final = 0.9


def open_runtime(settings: Settings) -> Runtime:
    """Open everything or nothing. Raises ``SettingsError``, ``CatalogError`` or ``DatabaseError``."""
    plans = catalog.load(settings)
    stripe, lago = open_stripe_and_lago(settings, plans, WORKER_CALL_SECONDS)
    providers: dict[Provider, BillingProvider] = {"stripe": stripe, "lago": lago}
    database = connect(settings, pool_size=settings.worker_concurrency + 4)
    database.ensure_schema()
    policy = PayerPolicy(sends_payer_to_lago=bool(settings.lago_connection))
    rate_limiter = open_rate_limiter(settings)
    dispatcher = open_dispatcher(settings, database)

    def close() -> None:
        if dispatcher is not None:
            dispatcher.sender.close()
        for billing_provider in providers.values():
            billing_provider.close()
        database.close()
        if isinstance(rate_limiter, RedisRateLimiter):
            rate_limiter.close()

    account_guard = AccountGuard(database=database, providers=providers, clock=utc_now)
    reconciler = Reconciler(
        database=database,
        providers=providers,
        catalog=plans,
        policy=policy,
        clock=utc_now,
        account_guard=account_guard,
        management=settings.management,
        payment_limit=settings.payment_limit,
        request_gates=RequestGates(rate_limiter, settings.worker_concurrency),
    )
    email_sender = open_email_sender(settings, database, plans)
    return Runtime(
        database=database,
        reconciler=reconciler,
        inventories={"stripe": stripe.inventory, "lago": lago.inventory},
        catalog=plans,
        clock=utc_now,
        close=close,
        history_retention=timedelta(days=settings.history_retention_days),
        event_reader=stripe.event_reader,
        check_lago_every=timedelta(hours=settings.lago_check_every_hours),
        email_sender=email_sender,
        operations_email=settings.operations_email,
        webhook_dispatcher=dispatcher,
        allowed_event_sources=settings.allowed_event_sources,
    )


def open_signer(settings: Settings) -> Signer | None:
    """``None`` if no signing secret is set: outbound webhooks are then disabled."""
    secret = settings.webhook_signing_secret
    return None if secret is None else Signer(secret.get_secret_value())


def open_dispatcher(settings: Settings, database: Database) -> Dispatcher | None:
    """Other services' servers may be slow, so all endpoints together use at most a quarter of the threads."""
    signer = open_signer(settings)
    if signer is None:
        return None
    return Dispatcher(
        database=database,
        clock=utc_now,
        signer=signer,
        sender=WebhookHttpSender(allow_private=settings.webhook_allow_private),
        slots=PerEndpointSlots(max(1, settings.worker_concurrency // 4)),
    )


def check_accounts(runtime: Runtime) -> None:
    """Check the provider accounts when a worker starts. Raises ``WrongAccountError``; other errors are logged."""
    for error in runtime.reconciler.account_guard.start():
        log.warning("account_check_skipped", provider=error.provider, reason=error.message)


def open_rate_limiter(settings: Settings) -> RateLimiter:
    """Shared through Redis if there is one. Otherwise each process keeps to the limits on its own."""
    test_mode = settings.stripe_secret_key is not None and "_test_" in settings.stripe_secret_key.get_secret_value()
    account = settings.stripe_rate_limit or (STRIPE_TEST_RATE_LIMIT if test_mode else STRIPE_LIVE_RATE_LIMIT)
    limits: dict[Provider, ProviderRateLimits] = {
        "stripe": ProviderRateLimits(_stripe_limit(account), _stripe_limit(settings.stripe_operation_rate_limit)),
        # A new organization takes two requests, a customer and a subscription; three if its id came from outside. Lago
        # has one limit for all requests.
        "lago": ProviderRateLimits(
            RateLimit(settings.lago_rate_limit * LAGO_RATE_LIMIT_SHARE, burst=2), calls_per_reconcile=2
        ),
    }
    if settings.redis is not None:
        return RedisRateLimiter(limits, settings.redis)
    if not settings.is_embedded:
        log.warning(
            "redis_fallback_active",
            component="rate_limiter",
            reason="REDIS_URL is not set, so every process uses the full rate limit",
        )
    return LocalRateLimiter(limits)


def _stripe_limit(published: float) -> RateLimit:
    return RateLimit(published * STRIPE_RATE_LIMIT_SHARE, burst=max(1, int(published / 5)))


def open_providers(settings: Settings, plans: Catalog) -> dict[Provider, BillingProvider]:
    """Both providers. Raises ``SettingsError`` if none is configured, or if Lago could not charge."""
    stripe, lago = open_stripe_and_lago(settings, plans, WORKER_CALL_SECONDS)
    return {"stripe": stripe, "lago": lago}


def open_stripe_and_lago(
    settings: Settings, plans: Catalog, call_seconds: float
) -> tuple[StripeProvider, LagoProvider]:
    """Raises as ``open_providers`` does."""
    access = _provider_access(settings)
    _refuse_lago_without_payer(settings, plans)
    _refuse_different_units(settings, plans)
    stripe = StripeProvider(
        access.stripe_key,
        access.stripe_url,
        ending=plans.ending,
        collection=CollectionPolicy(
            method=settings.stripe_collection_method, days_until_due=settings.stripe_days_until_due
        ),
        timeout=call_seconds,
        account_id=settings.stripe_context,
        may_write=settings.management == "manage",
    )
    lago = LagoProvider(
        access.lago_url,
        access.lago_key,
        payment_provider_code=settings.lago_connection,
        payment_methods=settings.payment_methods,
        billing_entity_code=settings.lago_billing_entity_code,
        ending=plans.ending,
        timeout=call_seconds,
        may_write=settings.management == "manage",
    )
    return stripe, lago


@contextmanager
def open_inventory_reader(settings: Settings, purpose: str) -> Iterator[LowPriorityReader[Inventory]]:
    """Reads both accounts, also where there is no plan catalog yet. Raises ``SettingsError``."""
    access = _provider_access(settings)
    stripe = StripeClient(access.stripe_key, access.stripe_url, WORKER_CALL_SECONDS, settings.stripe_context)
    lago = LagoClient(access.lago_url, access.lago_key, WORKER_CALL_SECONDS)
    rate_limiter = open_rate_limiter(settings)
    inventories: dict[Provider, Inventory] = {"stripe": StripeInventory(stripe), "lago": LagoInventory(lago)}
    try:
        yield LowPriorityReader(readers=inventories, purpose=purpose, gates=RequestGates(rate_limiter))
    finally:
        stripe.close()
        lago.close()
        if isinstance(rate_limiter, RedisRateLimiter):
            rate_limiter.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _ProviderAccess:
    stripe_key: str = field(repr=False)
    stripe_url: str
    lago_key: str = field(repr=False)
    lago_url: str


def _provider_access(settings: Settings) -> _ProviderAccess:
    stripe_key, stripe_url = settings.stripe_secret_key, settings.stripe_api_base
    lago_key, lago_url = settings.lago_api_key, settings.lago_api_url
    if stripe_key is None or stripe_url is None or lago_key is None or lago_url is None:
        message = (
            "no provider is configured: set STRIPE_SECRET_KEY, STRIPE_API_BASE, LAGO_API_KEY and LAGO_API_URL, "
            "or run `billing-sync up`, which starts its own sandbox"
        )
        raise SettingsError(message)
    return _ProviderAccess(
        stripe_key=stripe_key.get_secret_value(),
        stripe_url=stripe_url,
        lago_key=lago_key.get_secret_value(),
        lago_url=lago_url,
    )


def _refuse_lago_without_payer(settings: Settings, plans: Catalog) -> None:
    """Lago takes a customer without a payment provider, makes its invoices, and never charges them."""
    tiers = [tier for tier in plans.tiers() if plans.plan(tier).charged_by == "lago"]
    if settings.lago_connection or settings.lago_manual_payments or settings.is_sandbox_key or not tiers:
        return
    message = (
        f"LAGO_STRIPE_PROVIDER_CODE is not set, so Lago would charge nobody for {', '.join(tiers)}: set it to the code "
        "of Lago's Stripe connection, or set LAGO_MANUAL_PAYMENTS=true if its invoices are paid outside"
    )
    raise SettingsError(message)


def _refuse_different_units(settings: Settings, plans: Catalog) -> None:
    """Lago passes the number of its own amount on to Stripe (lago.md 4), which may count the currency otherwise."""
    for plan in plans.plans.values():
        if plan.charged_by != "lago" or settings.lago_connection is None:
            continue
        try:
            if LAGO_UNITS.decimals_of(plan.currency) == STRIPE_UNITS.decimals_of(plan.currency):
                continue
            problem = f"Lago and Stripe count {plan.currency} in different units, and Lago does not convert"
        except RejectedError as error:
            problem = error.message
        message = (
            f"plans.{plan.tier}: {problem}, so the amount charged would be wrong: let Stripe charge (`charged_by`)"
        )
        raise SettingsError(message)
