"""What Stripe needs to collect: an address to mail to, a payment method to charge, nothing if it is free."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.ports.errors import RejectedError
from core.ports.provider import Subscription
from core.ports.spec import LastKnown, SubscriptionSpec
from providers.stripe.collection import CollectionPolicy
from providers.stripe.provider import StripeProvider
from sandbox.server import Sandbox
from tests.support.in_memory_attempt import InMemoryAttempt
from tests.support.stripe_world import ENDING, StripeCallRecorder, StripeWorld

ORG = "org_1"
ADDRESS = {"email": "ap@acme.test"}
CREATE = "POST /v1/subscriptions"
UPDATE = "POST /v1/subscriptions/{id}"
READ_CUSTOMER = "GET /v1/customers/{id}"


@pytest.fixture(autouse=True)
def plans_on_sale(world: StripeWorld) -> None:
    world.sell_all()


@pytest.fixture
def charging(world: StripeWorld, sandbox: tuple[Sandbox, StripeCallRecorder]) -> Iterator[StripeProvider]:
    """Our provider with the setting that charges automatically."""
    policy = CollectionPolicy(method="charge_automatically")
    provider = StripeProvider("sk_test_provider", sandbox[0].url, ending=ENDING, collection=policy, clock=world.now)
    yield provider
    provider.close()


def customer(world: StripeWorld, **fields: str) -> str:
    made = str(world.post("/v1/customers", {"name": "Acme", "metadata[billing_sync_org_id]": ORG, **fields})["id"])
    world.clear_calls()
    return made


def ensure(
    provider: StripeProvider, customer_id: str, plan: str, made: Subscription | None = None, *, has_email: bool = False
) -> Subscription:
    spec = SubscriptionSpec(org_id=ORG, customer_id=customer_id, plan_code=plan, has_billing_email=has_email)
    last_known = LastKnown(customer_id=customer_id, confirmed=True, subscription_id=made.id if made else None)
    return provider.ensure_subscription(spec, last_known, InMemoryAttempt())


def test_paid_plan_without_an_address_is_refused_before_the_create(world: StripeWorld) -> None:
    made = customer(world)
    with pytest.raises(RejectedError, match=f"`billing-sync set {ORG} --billing-email ADDRESS`") as refused:
        ensure(world.provider, made, "starter")
    assert refused.value.code == "no_billing_email"
    assert READ_CUSTOMER in world.calls()
    assert CREATE not in world.calls()


def test_customer_with_an_address_at_stripe_needs_none_in_our_row(world: StripeWorld) -> None:
    made = customer(world, **ADDRESS)
    assert ensure(world.provider, made, "starter").plan_code == "starter"


def test_address_of_our_row_costs_no_read(world: StripeWorld) -> None:
    ensure(world.provider, customer(world, **ADDRESS), "starter", has_email=True)
    assert READ_CUSTOMER not in world.calls()


def test_address_that_was_removed_at_stripe_is_named_after_the_refusal(world: StripeWorld) -> None:
    with pytest.raises(RejectedError) as refused:
        ensure(world.provider, customer(world), "starter", has_email=True)
    assert refused.value.code == "no_billing_email"


def test_free_plan_needs_no_address_and_no_payment_method(world: StripeWorld) -> None:
    made = customer(world)
    ensure(world.provider, made, "founders_friend")
    (there,) = world.subscriptions(made)
    assert (there["status"], there["collection_method"]) == ("active", "charge_automatically")
    assert READ_CUSTOMER not in world.calls()


def test_free_plan_that_becomes_paid_is_mailed_from_its_first_invoice_on(world: StripeWorld) -> None:
    made = customer(world, **ADDRESS)
    free = ensure(world.provider, made, "founders_friend")
    world.clear_calls()
    assert ensure(world.provider, made, "starter", free).plan_code == "starter"
    assert world.calls().count(UPDATE) == 2
    (there,) = world.subscriptions(made)
    assert (there["status"], there["collection_method"], there["days_until_due"]) == ("active", "send_invoice", 30)
    paid = world.invoices(made)[0]
    assert (paid["collection_method"], paid["total"]) == ("send_invoice", 1900)


def test_free_plan_that_becomes_paid_without_an_address_stays_free(world: StripeWorld) -> None:
    made = customer(world)
    free = ensure(world.provider, made, "founders_friend")
    with pytest.raises(RejectedError) as refused:
        ensure(world.provider, made, "starter", free)
    assert refused.value.code == "no_billing_email"
    assert ensure(world.provider, made, "founders_friend", free) == free


def test_other_setting_leaves_an_existing_subscription_alone(world: StripeWorld, charging: StripeProvider) -> None:
    made = customer(world, **ADDRESS)
    sent = ensure(world.provider, made, "starter")
    ensure(charging, made, "professional", sent)
    (there,) = world.subscriptions(made)
    assert there["collection_method"] == "send_invoice"


def test_automatic_charge_without_a_payment_method_is_refused_before_the_create(
    world: StripeWorld, charging: StripeProvider
) -> None:
    made = customer(world, **ADDRESS)
    with pytest.raises(RejectedError, match="no default payment method") as refused:
        ensure(charging, made, "starter")
    assert refused.value.code == "no_payment_method"
    assert CREATE not in world.calls()


def test_automatic_charge_takes_the_default_payment_method(world: StripeWorld, charging: StripeProvider) -> None:
    made = customer(world, **{"invoice_settings[default_payment_method]": "pm_1"})
    ensure(charging, made, "starter")
    (there,) = world.subscriptions(made)
    assert (there["status"], there["collection_method"]) == ("active", "charge_automatically")
