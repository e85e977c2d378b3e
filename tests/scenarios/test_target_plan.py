"""An operator moves a link to another code of its plan: at once, or at the end of the period."""

from __future__ import annotations

import pytest

from core.catalog.plans import ChargingProvider
from core.db.models.billing_links import BillingLink
from core.flow_control.payment_brake import PaymentLimit
from core.organizations.links import mark_for_sync
from core.reconcile import payment_holds
from tests.support.drift_harness import DriftHarness
from tests.support.former_codes import NEW, SOLD, give_new_code, plans_at, sold
from tests.support.sync_world import SyncWorld

pytestmark = pytest.mark.slow


@pytest.fixture(params=["lago", "stripe"])
def charges(request: pytest.FixtureRequest, world: SyncWorld) -> ChargingProvider:
    provider: ChargingProvider = request.param
    if provider == "stripe":
        world.set_charging_provider("stripe")
    return provider


def move(
    world: SyncWorld, org_id: str, provider: ChargingProvider, code: str = NEW, *, at_period_end: bool = False
) -> None:
    with world.database.write() as session:
        link = session.get_one(BillingLink, (org_id, provider))
        link.target_plan, link.target_at_period_end = code, at_period_end
    world.change(org_id, mark_for_sync)


def paid_in_stripe(world: SyncWorld) -> list[int]:
    """The amounts of all invoices; one of 0 is made when the price changes without proration."""
    amounts = [each["amount"] for each in world.sandbox.charges() if each["provider"] == "stripe"]
    return [int(amount) for amount in amounts if amount]


def test_it_changes_at_once_and_is_then_what_was_sold(
    world: SyncWorld, charges: ChargingProvider, drift_harness: DriftHarness
) -> None:
    org_id = sold(world)
    give_new_code(world)
    move(world, org_id, charges)
    world.reconcile_until_idle(org_id)
    assert plans_at(world, org_id, charges) == (NEW, None)
    link = world.link(org_id, charges)
    assert (link.sold_plan, link.target_plan) == (NEW, None)
    world.rename(org_id, "Globex")
    world.reconcile_until_idle(org_id)
    assert plans_at(world, org_id, charges) == (NEW, None)
    world.advance_time(minutes=5)
    assert drift_harness.findings() == []


def test_it_is_on_hold_beyond_the_limit_and_released_takes_no_place(
    world: SyncWorld, charges: ChargingProvider
) -> None:
    org_id = sold(world)
    give_new_code(world)
    world.payment_limit = PaymentLimit(changes=0)
    move(world, org_id, charges)
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, charges).error_code == "plan_change_on_hold"
    assert plans_at(world, org_id, charges) == (SOLD[charges], None)
    world.change(org_id, lambda change, found: payment_holds.release(change, found, world.catalog, "it is meant"))
    world.reconcile_until_idle(org_id)
    assert plans_at(world, org_id, charges) == (NEW, None)


def test_another_plan_ends_the_move(world: SyncWorld, charges: ChargingProvider) -> None:
    org_id = sold(world)
    give_new_code(world)
    move(world, org_id, charges)
    world.change_plan(org_id, "enterprise")
    world.change_plan(org_id, "professional")
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, charges).target_plan is None
    assert plans_at(world, org_id, charges)[0] != NEW


def test_at_the_end_of_the_period_it_pays_the_old_price_until_then(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    world.set_charging_provider("stripe")
    org_id = sold(world)
    give_new_code(world)
    assert paid_in_stripe(world) == [4900]
    move(world, org_id, "stripe", at_period_end=True)
    world.reconcile_until_idle(org_id)
    assert plans_at(world, org_id, "stripe") == (SOLD["stripe"], NEW)
    assert paid_in_stripe(world) == [4900]
    world.advance_time(minutes=5)
    assert drift_harness.findings() == []
    world.advance_time(days=35)
    assert drift_harness.findings() == []
    with world.database.write() as session:
        session.get_one(BillingLink, (org_id, "stripe")).checks_requested += 1
    world.reconcile_until_idle(org_id)
    link = world.link(org_id, "stripe")
    assert (link.state, link.sold_plan, link.target_plan) == ("active", NEW, None)
    assert plans_at(world, org_id, "stripe") == (NEW, None)
    assert world.organization(org_id).plan_tier == "professional"
    assert paid_in_stripe(world) == [4900, 5400]


def test_lago_schedules_a_lower_price_itself(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = sold(world)
    give_new_code(world, amount_change=-500)
    move(world, org_id, "lago", at_period_end=True)
    world.reconcile_until_idle(org_id)
    assert plans_at(world, org_id, "lago") == (SOLD["lago"], NEW)
    world.advance_time(days=35)
    assert drift_harness.findings() == []
    with world.database.write() as session:
        session.get_one(BillingLink, (org_id, "lago")).checks_requested += 1
    world.reconcile_until_idle(org_id)
    link = world.link(org_id, "lago")
    assert (link.state, link.sold_plan, link.target_plan) == ("active", NEW, None)
    assert plans_at(world, org_id, "lago") == (NEW, None)
