"""The second wall of observe mode: under permits that may not write, no write of either provider leaves the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial

import pytest

from core.catalog.plans import Catalog
from core.ports.errors import WriteRefusedError
from core.ports.provider import BillingProvider, Intent
from core.ports.spec import PROVIDERS, CustomerSpec, LastKnown, PriceSpec, Provider, SubscriptionSpec
from providers.lago.provider import LagoProvider
from providers.stripe.provider import StripeProvider
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.support.in_memory_attempt import InMemoryAttempt
from tests.support.sync_world import PAYMENT_PROVIDER_CODE

SPEC = CustomerSpec(org_id="org_acme", name="Acme GmbH", email="ap@acme.test")
PRICE = PriceSpec(code="new_monthly_usd", name="New", amount=100, currency="USD", interval="monthly")


@pytest.fixture
def providers(
    sandbox: SandboxClient, sandbox_server: Sandbox, plans: Catalog
) -> Iterator[dict[Provider, BillingProvider]]:
    made: dict[Provider, BillingProvider] = {
        "stripe": StripeProvider("sk_test_sandbox", sandbox_server.url, ending=plans.ending, may_write=False),
        "lago": LagoProvider(
            sandbox_server.url,
            "sandbox",
            payment_provider_code=PAYMENT_PROVIDER_CODE,
            ending=plans.ending,
            may_write=False,
        ),
    }
    writer = StripeProvider("sk_test_sandbox", sandbox_server.url, ending=plans.ending)
    lago_writer = LagoProvider(sandbox_server.url, "sandbox", payment_provider_code=None, ending=plans.ending)
    for provider, price_maker in (("stripe", writer), ("lago", lago_writer)):
        for tier in plans.tiers():
            plan = plans.plan(tier)
            price_maker.create_price(
                PriceSpec(
                    code=plan.code("stripe" if provider == "stripe" else "lago"),
                    name=plan.name,
                    amount=plan.amount,
                    currency=plan.currency,
                    interval=plan.interval,
                )
            )
    writer.close()
    lago_writer.close()
    sandbox.reset_calls()
    yield made
    for each in made.values():
        each.close()


def observing(intent: Intent | None = None) -> InMemoryAttempt:
    attempt = InMemoryAttempt(intent)
    attempt.may_write = False
    return attempt


def intent_of(operation: str) -> Intent:
    return Intent(
        operation=operation,
        generation=1,
        idempotency_key="key",
        body={"name": "Acme"},
        first_sent_at=datetime.now(UTC),
        last_sent_at=datetime.now(UTC),
    )


def refused(sandbox: SandboxClient, provider: Provider, call: Callable[[], object]) -> None:
    with pytest.raises(WriteRefusedError, match="because nothing is written in observe mode"):
        call()
    counters = sandbox.counters()
    operations = counters.stripe.operations if provider == "stripe" else counters.lago.operations
    assert [name for name in operations if not name.startswith("GET ")] == []


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_customer_is_neither_created_nor_updated(
    provider: Provider, providers: dict[Provider, BillingProvider], sandbox: SandboxClient
) -> None:
    to_create = LastKnown()
    refused(sandbox, provider, lambda: providers[provider].ensure_customer(SPEC, to_create, observing()))
    (stripe_customer,) = sandbox.preload_stripe_customers([{"id": "cus_acme", "name": "Acme"}])
    (lago_customer,) = sandbox.preload_lago_customers([{"external_id": "org_acme", "name": "Acme"}])
    customer_id = stripe_customer["id"] if provider == "stripe" else lago_customer["lago_id"]
    to_update = LastKnown(customer_id=customer_id, confirmed=True, applied=True)
    refused(sandbox, provider, lambda: providers[provider].ensure_customer(SPEC, to_update, observing()))


def test_a_create_that_was_sent_before_is_not_sent_again(
    providers: dict[Provider, BillingProvider], sandbox: SandboxClient
) -> None:
    stripe = providers["stripe"]
    customer = intent_of("create_customer")
    refused(sandbox, "stripe", lambda: stripe.ensure_customer(SPEC, LastKnown(), observing(customer)))
    sandbox.preload_stripe_customers([{"id": "cus_acme", "name": "Acme", "email": "ap@acme.test"}])
    spec = SubscriptionSpec(
        org_id="org_acme", customer_id="cus_acme", plan_code="professional_monthly_usd", has_billing_email=True
    )
    subscription = intent_of("create_subscription")
    refused(
        sandbox,
        "stripe",
        lambda: stripe.ensure_subscription(spec, LastKnown(customer_id="cus_acme"), observing(subscription)),
    )


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_subscription_is_neither_created_nor_changed_nor_ended(
    provider: Provider, providers: dict[Provider, BillingProvider], sandbox: SandboxClient, plans: Catalog
) -> None:
    codes = {tier: plans.plan(tier).code(provider) for tier in ("starter", "professional", "enterprise")}
    sandbox.preload_stripe_customers([{"id": "cus_acme", "name": "Acme", "email": "ap@acme.test"}])
    (lago_customer,) = sandbox.preload_lago_customers([{"external_id": "org_acme", "name": "Acme"}])
    customer_id = "cus_acme" if provider == "stripe" else lago_customer["lago_id"]

    def spec(tier: str, next_tier: str | None = None) -> SubscriptionSpec:
        return SubscriptionSpec(
            org_id="org_acme",
            customer_id=customer_id,
            plan_code=codes[tier],
            next_plan_code=codes[next_tier] if next_tier else None,
            has_billing_email=True,
        )

    last_known = LastKnown(customer_id=customer_id, confirmed=True)
    adapter = providers[provider]
    refused(sandbox, provider, lambda: adapter.ensure_subscription(spec("professional"), last_known, observing()))
    if provider == "stripe":
        prices = {each["lookup_key"]: each["id"] for each in sandbox.state()["stripe"]["prices"]}
        made = sandbox.preload_stripe_subscription("cus_acme", prices[codes["professional"]])
        subscription_id = made["id"]
    else:
        made = sandbox.preload_lago_subscription("org_acme", codes["professional"], external_id="org_acme")
        subscription_id = made["lago_id"]
    last_known = LastKnown(
        customer_id=customer_id,
        confirmed=True,
        subscription_id=subscription_id,
        subscription_requested=True,
        plan_code=codes["professional"],
    )
    for desired in (spec("enterprise"), spec("professional", "starter")):
        change = partial(adapter.ensure_subscription, desired, last_known, observing())
        refused(sandbox, provider, change)
    refused(sandbox, provider, lambda: adapter.end_subscription(last_known, "org_acme", observing()))


def test_our_metadata_is_neither_written_nor_removed(
    providers: dict[Provider, BillingProvider], sandbox: SandboxClient
) -> None:
    stripe = providers["stripe"]
    sandbox.preload_stripe_customers([{"id": "cus_acme", "metadata": {}}])
    last_known = LastKnown(customer_id="cus_acme", confirmed=True, is_adopted=True)
    refused(sandbox, "stripe", lambda: stripe.write_marks(last_known, "org_acme", None, observing()))
    sandbox.patch("stripe", "customers", "cus_acme", metadata={"billing_sync_org_id": "org_acme"})
    refused(sandbox, "stripe", lambda: stripe.remove_marks(last_known, "org_acme", observing()))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_no_price_is_created_where_the_installation_is_observed(
    provider: Provider, providers: dict[Provider, BillingProvider], sandbox: SandboxClient
) -> None:
    refused(sandbox, provider, lambda: providers[provider].create_price(PRICE))
