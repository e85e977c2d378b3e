"""What a business had in Stripe keeps its terms after its adoption, with and without our marks.

Each is sold in another way: at the catalog's price, at a price without a lookup key, several times, with a coupon, in a
trial, or with keys of the merchant's own that look like those of our earlier versions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import pytest

from core.db.models.billing_links import MarksState
from core.ports.errors import RejectedError
from core.ports.spec import LastKnown
from core.reconcile import commands
from providers.stripe.marks import SCHEDULED_PLAN_NEEDS_MARKS
from providers.stripe.metadata import ORG_ID_KEY
from tests.support.adopted import PAYER, Adopted, adopt_at_stripe
from tests.support.drift_harness import DriftHarness, assert_repaired, price_of
from tests.support.in_memory_attempt import InMemoryAttempt
from tests.support.provider_webhooks import check_after_webhook
from tests.support.sync_world import SyncWorld

OWN_AMOUNT = 3700
CHANGE_SUBSCRIPTION = "POST /v1/subscriptions/{id}"
READS = ["GET /v1/customers/{id}", "GET /v1/subscriptions/{id}"]
OWN_ORG_ID = {"org_id": "42", "plan": "gold"}
KINDS: dict[str, dict[str, Any]] = {
    "the catalog's price": {},
    "an own price": {"own": True},
    "an own price three times": {"own": True, "quantity": 3},
    "the catalog's price three times": {"quantity": 3},
    "a coupon": {"coupon": True},
    "a trial": {"trial_period_days": 60},
    "the merchant's keys": {"own": True, "metadata": OWN_ORG_ID},
}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["none", "due"])
def marks(request: pytest.FixtureRequest) -> MarksState:
    return "none" if request.param == "none" else "due"


def adopt(world: SyncWorld, kind: str = "an own price", marks: MarksState = "none") -> str:
    world.set_charging_provider("stripe")
    fields = dict(KINDS[kind])
    price_id = own_price(world) if fields.pop("own", False) else price_of(world, "professional")
    if fields.pop("coupon", False):
        coupon = world.sandbox.create("stripe", "coupons", percent_off=20, duration="forever")
        fields["discounts"] = [{"coupon": coupon["id"]}]
    return adopt_at_stripe(world, Adopted(marks=marks), price_id, **fields)


def own_price(world: SyncWorld) -> str:
    (made,) = world.sandbox.preload_stripe_prices(
        [
            {
                "currency": "usd",
                "unit_amount": OWN_AMOUNT,
                "recurring": {"interval": "month"},
                "product_data": {"name": "as agreed"},
            }
        ]
    )
    return str(made["id"])


def subscription(world: SyncWorld) -> dict[str, Any]:
    (found,) = [each for each in world.stripe_objects("subscriptions") if each["status"] != "canceled"]
    return found


def item_of(found: dict[str, Any]) -> dict[str, Any]:
    (item,) = found["items"]["data"]
    return dict(item)


def terms(world: SyncWorld) -> tuple[object, ...]:
    """What is charged, when and how."""
    found = subscription(world)
    item = item_of(found)
    return (
        item["price"]["id"],
        item["quantity"],
        item["current_period_end"],
        found["discounts"],
        found["trial_end"],
        found["collection_method"],
    )


def tier_and_quantity(world: SyncWorld) -> tuple[str | None, object]:
    """By what the next invoice charges."""
    item = item_of(subscription(world))
    return world.catalog.tier_of("stripe", item["price"]["lookup_key"]), item["quantity"]


def metadata(world: SyncWorld) -> tuple[dict[str, str], dict[str, str]]:
    """Of the customer and of the subscription."""
    (customer,) = world.stripe_objects("customers")
    of_customer: Any = customer["metadata"]
    return of_customer, subscription(world)["metadata"]


def writes_to_stripe(world: SyncWorld) -> list[str]:
    return [call.operation for call in world.sandbox.calls("stripe") if call.method != "GET"]


def charges(world: SyncWorld) -> list[dict[str, Any]]:
    """In Stripe. In Lago nobody pays."""
    return [dict(each) for each in world.sandbox.charges() if each["provider"] == "stripe" and each["amount"]]


def settle(world: SyncWorld, org_id: str) -> None:
    world.reconcile_until_idle(org_id)
    world.wait(10)
    assert world.is_in_sync(org_id)


def test_nothing_changes_that_nobody_asked_for(
    world: SyncWorld, drift_harness: DriftHarness, kind: str, marks: MarksState
) -> None:
    org_id = adopt(world, kind, marks)
    before, charged = terms(world), charges(world)
    check_after_webhook(world, org_id, "stripe")
    assert drift_harness.findings() == []
    assert writes_to_stripe(world) == ([] if marks == "none" else ["POST /v1/customers/{id}", CHANGE_SUBSCRIPTION])
    world.change(org_id, commands.retry)
    settle(world, org_id)
    assert (terms(world), charges(world)) == (before, charged)
    assert drift_harness.findings() == []


def test_without_marks_no_update_sends_any(world: SyncWorld, kind: str) -> None:
    org_id = adopt(world, kind)
    before = metadata(world)
    world.rename(org_id, "Umbra GmbH")
    settle(world, org_id)
    world.change(org_id, commands.retry)
    settle(world, org_id)
    (customer,) = world.stripe_objects("customers")
    assert (customer["name"], metadata(world)) == ("Umbra GmbH", before)
    assert not any(ORG_ID_KEY in call.body for call in world.sandbox.calls("stripe"))


def test_an_upgrade_keeps_how_often_it_is_sold(world: SyncWorld, drift_harness: DriftHarness, kind: str) -> None:
    org_id = adopt(world, kind)
    quantity = KINDS[kind].get("quantity", 1)
    discounts = subscription(world)["discounts"]
    world.change_plan(org_id, "enterprise")
    settle(world, org_id)
    assert tier_and_quantity(world) == ("enterprise", quantity)
    assert subscription(world)["discounts"] == discounts
    assert drift_harness.findings() == []


def test_a_downgrade_is_scheduled_and_taken_back_to_the_price_that_is_paid(
    world: SyncWorld, drift_harness: DriftHarness, kind: str
) -> None:
    org_id = adopt(world, kind)
    before, charged = terms(world), charges(world)
    world.change_plan(org_id, "starter")
    settle(world, org_id)
    assert tier_and_quantity(world) == ("starter", KINDS[kind].get("quantity", 1))
    assert world.organization(org_id).plan_tier == "professional"
    check_after_webhook(world, org_id, "stripe")
    assert drift_harness.findings() == []
    world.change_plan(org_id, "professional")
    settle(world, org_id)
    assert (terms(world), charges(world)) == (before, charged)
    assert drift_harness.findings() == []


def test_a_downgrade_takes_effect_at_the_end_of_the_period(world: SyncWorld, kind: str, marks: MarksState) -> None:
    org_id = adopt(world, kind, marks)
    world.change_plan(org_id, "starter")
    settle(world, org_id)
    world.advance_time(days=62)
    check_after_webhook(world, org_id, "stripe")
    settle(world, org_id)
    assert world.organization(org_id).plan_tier == "starter"
    assert tier_and_quantity(world) == ("starter", KINDS[kind].get("quantity", 1))
    remove_marks(world, org_id)
    assert metadata(world) == ({}, KINDS[kind].get("metadata", {}))


def test_a_second_downgrade_replaces_the_first_and_is_taken_back(world: SyncWorld, kind: str) -> None:
    org_id = adopt(world, kind)
    before = terms(world)
    for tier in ("starter", "founders_friend", "professional"):
        world.change_plan(org_id, tier)
        settle(world, org_id)
    assert terms(world) == before


@pytest.mark.parametrize("is_stored", [True, False])
def test_an_upgrade_whose_answer_is_lost_is_made_once(world: SyncWorld, kind: str, *, is_stored: bool) -> None:
    org_id = adopt(world, kind)
    world.sandbox.add_fault("stripe", CHANGE_SUBSCRIPTION, "lost_answer" if is_stored else "reset")
    world.change_plan(org_id, "enterprise")
    settle(world, org_id)
    assert tier_and_quantity(world) == ("enterprise", KINDS[kind].get("quantity", 1))
    billed = charges(world)
    world.change(org_id, commands.retry)
    settle(world, org_id)
    assert charges(world) == billed


def test_the_deletion_ends_it(world: SyncWorld, marks: MarksState) -> None:
    org_id = adopt(world, "the merchant's keys", marks)
    world.change_status(org_id, "deleted")
    settle(world, org_id)
    assert [each["status"] for each in world.stripe_objects("subscriptions")] == ["canceled"]


def pause(world: SyncWorld) -> None:
    patch(world, pause_collection={"behavior": "void"})


def plan_an_end(world: SyncWorld) -> None:
    patch(world, cancel_at_period_end=True)


def patch(world: SyncWorld, **fields: object) -> None:
    world.sandbox.patch("stripe", "subscriptions", subscription(world)["id"], **fields)


@pytest.mark.parametrize("arrange", [pause, plan_an_end])
def test_one_that_is_arranged_is_left_and_its_plan_is_an_operators_decision(
    world: SyncWorld, arrange: Callable[[SyncWorld], None]
) -> None:
    org_id = adopt(world)
    arrange(world)
    before = terms(world)
    world.rename(org_id, "Umbra GmbH")
    settle(world, org_id)
    world.change_plan(org_id, "enterprise")
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "stripe").error_code == "arranged_at_provider"
    assert terms(world) == before


def test_a_subscription_with_the_merchants_keys_is_no_other_organizations(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    """The merchant's own org_id is the id of another organization here."""
    world.set_charging_provider("stripe")
    other_id = world.create("Globex", "founders_friend")
    world.reconcile_until_idle(other_id)
    keys = {"org_id": other_id, "plan": "professional"}
    adopt_at_stripe(world, Adopted(), own_price(world), metadata=keys)
    assert drift_harness.findings() == []


def known_of(world: SyncWorld, org_id: str) -> LastKnown:
    link = world.link(org_id, "stripe")
    return LastKnown(
        customer_id=link.customer_id, confirmed=True, subscription_id=link.subscription_id, is_adopted=True
    )


def write_marks(world: SyncWorld, org_id: str) -> list[str]:
    """The requests."""
    attempt = InMemoryAttempt()
    world.providers["stripe"].write_marks(known_of(world, org_id), org_id, "professional", attempt)
    return attempt.operations


def remove_marks(world: SyncWorld, org_id: str) -> list[str]:
    attempt = InMemoryAttempt()
    world.providers["stripe"].remove_marks(known_of(world, org_id), org_id, attempt)
    return attempt.operations


def test_marks_are_metadata_and_nothing_else_and_are_written_once(world: SyncWorld, kind: str) -> None:
    org_id = adopt(world, kind, "due")
    before, charged = terms(world), charges(world)
    theirs = KINDS[kind].get("metadata", {})
    write_marks(world, org_id)
    ours = {"billing_sync_org_id": org_id, "billing_sync_database_id": "database_1"}
    assert metadata(world) == (ours, {**theirs, **ours, "billing_sync_plan": "professional"})
    sent = [set(parse_qs(call.body)) for call in world.sandbox.calls("stripe") if call.method == "POST"]
    of_customer = {f"metadata[{key}]" for key in ours}
    assert sent == [of_customer, {*of_customer, "metadata[billing_sync_plan]", "proration_behavior"}]
    assert write_marks(world, org_id) == READS
    assert (terms(world), charges(world)) == (before, charged)


def test_our_marks_are_removed_and_nothing_else(world: SyncWorld, kind: str) -> None:
    org_id = adopt(world, kind, "due")
    before = (terms(world), metadata(world), charges(world))
    write_marks(world, org_id)
    remove_marks(world, org_id)
    assert (terms(world), metadata(world), charges(world)) == before
    assert remove_marks(world, org_id) == [*reversed(READS)]


def test_marks_of_another_organization_are_neither_replaced_nor_removed(world: SyncWorld) -> None:
    org_id = adopt(world, "an own price", "due")
    world.sandbox.patch("stripe", "customers", PAYER, metadata={ORG_ID_KEY: "org_other"})
    with pytest.raises(RejectedError, match="marked as organization org_other"):
        write_marks(world, org_id)
    remove_marks(world, org_id)
    assert metadata(world)[0] == {ORG_ID_KEY: "org_other"}
    assert writes_to_stripe(world) == []


def test_marks_stay_while_they_say_what_is_paid(world: SyncWorld, marks: MarksState) -> None:
    org_id = adopt(world, "an own price", marks)
    world.change_plan(org_id, "starter")
    settle(world, org_id)
    before = metadata(world)
    with pytest.raises(RejectedError, match="goes on to starter") as refused:
        remove_marks(world, org_id)
    assert refused.value.code == SCHEDULED_PLAN_NEEDS_MARKS
    write_marks(world, org_id)
    assert metadata(world)[1]["billing_sync_next_plan"] == world.catalog.plan("starter").code("stripe")
    assert metadata(world)[1]["billing_sync_plan"] == before[1]["billing_sync_plan"]
    world.change_plan(org_id, "professional")
    settle(world, org_id)
    remove_marks(world, org_id)
    assert metadata(world) == ({}, {})


def test_one_that_has_ended_or_was_deleted_needs_no_marks(world: SyncWorld) -> None:
    org_id = adopt(world, "an own price", "due")
    world.sandbox.delete("stripe", "subscriptions", subscription(world)["id"])
    world.sandbox.delete("stripe", "customers", PAYER)
    assert write_marks(world, org_id) == READS
    assert remove_marks(world, org_id) == [*reversed(READS)]


def test_a_repair_counts_the_price_that_was_sold_as_its_plan(world: SyncWorld, drift_harness: DriftHarness) -> None:
    """Somebody has taken back in Stripe what was scheduled. The repair schedules it again and changes no plan."""
    org_id = adopt(world)
    before = item_of(subscription(world))["price"]["id"]
    world.change_plan(org_id, "starter")
    settle(world, org_id)
    found = subscription(world)
    items = [{"id": item_of(found)["id"], "price": before, "quantity": 1}]
    patch(world, items=items, metadata=dict.fromkeys(found["metadata"], ""), proration_behavior="none")
    assert assert_repaired(world, drift_harness).field == "next_plan"
