"""What drifts where Stripe charges: there the subscription is Stripe's, and Lago must have no payer."""

from __future__ import annotations

import httpx
import pytest

from sandbox.server import Sandbox
from tests.support.drift_harness import (
    DriftHarness,
    assert_needs_an_operator,
    assert_repaired,
    price_of,
    single_finding,
)
from tests.support.sync_world import SyncWorld

pytestmark = pytest.mark.slow  # many cases of one kind


@pytest.fixture(autouse=True)
def stripe_charges(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")


def synced_organization(world: SyncWorld, plan_tier: str = "professional") -> tuple[str, str]:
    """The organization, and its Stripe subscription."""
    org_id = world.create(plan_tier=plan_tier)
    world.reconcile_until_idle(org_id)
    world.advance_time(minutes=5)
    world.count_requests()
    return org_id, str(world.link(org_id, "stripe").subscription_id)


def sold_as(world: SyncWorld, subscription: str, tier: str) -> None:
    """Somebody moves the subscription to another price in the dashboard."""
    (found,) = [each for each in world.stripe_objects("subscriptions") if each["id"] == subscription]
    items = found["items"]
    assert isinstance(items, dict)
    price = {"id": items["data"][0]["id"], "price": price_of(world, tier), "quantity": 1}
    world.sandbox.patch("stripe", "subscriptions", subscription, items=[price])


def test_nothing_has_drifted_where_nobody_touched_anything(world: SyncWorld, drift_harness: DriftHarness) -> None:
    synced_organization(world)
    assert drift_harness.findings() == []


def test_a_downgrade_that_waits_has_not_drifted_nor_has_one_that_came(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    org_id, _ = synced_organization(world)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    world.advance_time(minutes=5)
    assert drift_harness.findings() == []
    world.advance_time(days=32)
    assert drift_harness.findings() == []


def test_a_cheaper_price_is_put_right(world: SyncWorld, drift_harness: DriftHarness) -> None:
    _, subscription = synced_organization(world)
    sold_as(world, subscription, "starter")
    finding = assert_repaired(world, drift_harness)
    assert (finding.kind, finding.field, finding.provider) == ("wrong_plan", "plan", "stripe")
    assert finding.theirs == world.catalog.plan("starter").stripe_lookup_key


def test_a_cheaper_price_beside_a_downgrade_that_waits_is_put_right(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    org_id, subscription = synced_organization(world)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    world.advance_time(minutes=5)
    sold_as(world, subscription, "founders_friend")
    finding = assert_repaired(world, drift_harness)
    assert finding.field == "next_plan"


def test_a_dearer_price_is_lowered_by_no_machine(world: SyncWorld, drift_harness: DriftHarness) -> None:
    _, subscription = synced_organization(world)
    sold_as(world, subscription, "enterprise")
    assert assert_needs_an_operator(world, drift_harness).kind == "wrong_plan"


def test_a_subscription_that_somebody_ended_is_for_a_person(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id, subscription = synced_organization(world)
    world.sandbox.delete("stripe", "subscriptions", subscription)
    finding = assert_needs_an_operator(world, drift_harness)
    assert (finding.kind, finding.object_id) == ("missing", subscription)
    assert f"retry {org_id}" in finding.advice
    assert finding.their_write is not None
    assert finding.their_write.by == "not us"


def test_a_subscription_beside_ours_is_for_a_person(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id, subscription = synced_organization(world)
    rogue = world.sandbox.preload_stripe_subscription(
        str(world.link(org_id, "stripe").customer_id), price_of(world, "starter")
    )
    finding = assert_needs_an_operator(world, drift_harness)
    assert (finding.kind, finding.object_id) == ("foreign_subscription", rogue["id"])
    assert [each["id"] for each in world.stripe_objects("subscriptions") if each["status"] == "active"].count(
        subscription
    ) == 1


def test_a_payer_at_lago_is_a_second_payer(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id, _ = synced_organization(world)
    configuration = {
        "payment_provider": "stripe",
        "payment_provider_code": "stripe_main",
        "provider_customer_id": world.link(org_id, "stripe").customer_id,
    }
    world.sandbox.patch("lago", "customers", org_id, billing_configuration=configuration)
    finding = assert_needs_an_operator(world, drift_harness)
    assert (finding.kind, finding.provider) == ("double_charging", "lago")


def test_a_plan_changed_in_lago_is_put_right_though_stripe_charges(
    world: SyncWorld, drift_harness: DriftHarness, sandbox_server: Sandbox
) -> None:
    org_id, _ = synced_organization(world, "starter")
    httpx.delete(
        f"{sandbox_server.url}/api/v1/subscriptions/{org_id}",
        headers={"Authorization": "Bearer sandbox"},
        trust_env=False,
    ).raise_for_status()
    world.sandbox.preload_lago_subscription(org_id, "founders_friend", org_id)
    assert assert_repaired(world, drift_harness).provider == "lago"


def test_a_price_without_our_plan_is_for_a_person(world: SyncWorld, drift_harness: DriftHarness) -> None:
    _, subscription = synced_organization(world)
    (special,) = world.sandbox.preload_stripe_prices(
        [
            {
                "lookup_key": "special_deal",
                "currency": "usd",
                "unit_amount": 100,
                "recurring": {"interval": "month"},
                "product_data": {"name": "Special"},
            }
        ]
    )
    (found,) = [each for each in world.stripe_objects("subscriptions") if each["id"] == subscription]
    items = found["items"]
    assert isinstance(items, dict)
    price = {"id": items["data"][0]["id"], "price": special["id"], "quantity": 1}
    world.sandbox.patch("stripe", "subscriptions", subscription, items=[price])
    finding, _, _ = single_finding(drift_harness)
    assert (finding.theirs, finding.repairable) == ("special_deal", False)
