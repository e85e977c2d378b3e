"""Each request passes its quota under the name that the biller counts by, and a create before it is written ahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from core.catalog import plans as plan_catalog
from core.catalog import publishing
from core.catalog.plans import Catalog
from core.ports.errors import MustWaitError
from core.ports.provider import BillingProvider
from core.ports.spec import CustomerSpec, LastKnown, SubscriptionSpec
from providers.lago.provider import LagoProvider
from providers.stripe.provider import StripeProvider
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.support.in_memory_attempt import InMemoryAttempt

SPEC = CustomerSpec(org_id="org_1", name="Acme")

Open = Callable[[str, Catalog], BillingProvider]


def stripe(url: str, plans: Catalog) -> BillingProvider:
    return StripeProvider("sk_test_1", url, ending=plans.ending)


def lago(url: str, plans: Catalog) -> BillingProvider:
    return LagoProvider(url, "key", payment_provider_code="stripe_main", ending=plans.ending)


@pytest.mark.parametrize("opened", [stripe, lago])
def test_every_request_is_held_under_the_name_the_biller_counts_by(
    opened: Open, sandbox: SandboxClient, sandbox_server: Sandbox
) -> None:
    plans = plan_catalog.load(charged_by="stripe")
    provider = opened(sandbox_server.url, plans)
    publishing.publish(plans, [provider])
    low, high = (
        offer.code for plan, offer in publishing.expected_prices(plans, provider.provider) if plan.rank in {1, 2}
    )
    sandbox.reset_calls()
    attempt = InMemoryAttempt()
    made = provider.ensure_customer(SPEC, LastKnown(), attempt)
    attempt.stored = None
    known = LastKnown(customer_id=made.id)
    provider.ensure_customer(replace(SPEC, name="Acme & Co"), known, attempt)
    known = replace(known, confirmed=True)
    provider.ensure_customer(replace(SPEC, email="a@acme.test"), known, attempt)
    wanted = SubscriptionSpec(org_id="org_1", customer_id=made.id, plan_code=low)
    there = provider.ensure_subscription(wanted, known, attempt)
    attempt.stored = None
    known = replace(known, subscription_id=there.id, plan_code=low)
    provider.ensure_subscription(replace(wanted, plan_code=high), known, attempt)
    provider.end_subscription(known, "org_1", attempt)
    assert attempt.operations == [call.operation for call in sandbox.calls()]
    assert len(set(attempt.operations)) > 3
    provider.close()


def test_a_create_that_must_wait_has_written_nothing(
    sandbox: SandboxClient, sandbox_server: Sandbox, plans: Catalog
) -> None:
    class Crowded(InMemoryAttempt):
        def acquire_permit_ahead(self, operation: str) -> None:
            super().acquire_permit_ahead(operation)
            raise MustWaitError(1.0, reserved=True)

    provider = stripe(sandbox_server.url, plans)
    attempt = Crowded()
    with pytest.raises(MustWaitError):
        provider.ensure_customer(SPEC, LastKnown(), attempt)
    assert (attempt.recorded, attempt.operations, sandbox.calls()) == ([], [], [])
    begun = InMemoryAttempt()
    resent = Crowded(begun.record_intent("create_customer", {"name": "Acme"}))
    with pytest.raises(MustWaitError):
        provider.ensure_customer(SPEC, LastKnown(), resent)
    assert (resent.resent, sandbox.calls()) == ([], [])
    provider.close()
