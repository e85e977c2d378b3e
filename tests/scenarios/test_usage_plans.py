"""Where Stripe charges, Lago has a plan of amount 0, so it makes no invoice that nobody pays (decision 0031).

Stripe's period ends on the tenth of the month, and Lago's on its first.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from core.catalog import publishing
from core.db.models.billing_links import BillingLink
from core.drift.conflict_resolver import CannotResolveError
from core.events.event_types import ChangeContext
from core.flow_control.payment_brake import PaymentLimit
from core.organizations import usage_plans
from core.ports.spec import Provider
from core.reconcile import commands, due_links
from sandbox.server import Sandbox
from tests.support.adoption_harness import AdoptionHarness
from tests.support.drift_harness import DriftHarness, conflict_resolver_of, price_of
from tests.support.provider_webhooks import check_after_webhook, receive_webhook
from tests.support.sync_world import SyncWorld, kill_worker

SOLD_AT = datetime(2031, 3, 10, 12, tzinfo=UTC)
LAGOS_MONTH_ENDED = datetime(2031, 4, 5, tzinfo=UTC)
STRIPES_MONTH_ENDED = datetime(2031, 4, 10, 12, 5, tzinfo=UTC)
NEXT_MONTH_ENDED = datetime(2031, 5, 11, 12, tzinfo=UTC)
TIERS = ("starter", "professional", "enterprise")


@pytest.fixture
def stripe_world(world: SyncWorld) -> SyncWorld:
    """Stripe charges for all plans."""
    world.now = SOLD_AT
    world.sandbox.set_clock(SOLD_AT)
    world.set_charging_provider("stripe")
    return world


def give_usage_plans(world: SyncWorld, *tiers: str) -> None:
    plans = {
        tier: plan.model_copy(update={"lago_usage_plan_code": f"{tier}_usage"}) if tier in (tiers or TIERS) else plan
        for tier, plan in world.catalog.plans.items()
    }
    world.catalog = world.catalog.model_copy(update={"plans": plans})
    publishing.publish(world.catalog, world.providers.values())
    world.sandbox.reset_calls()


def sold(world: SyncWorld, tier: str = "professional", name: str = "Acme") -> str:
    org_id = world.create(name, plan_tier=tier)
    world.reconcile_until_idle(org_id)
    return org_id


def change(world: SyncWorld, org_id: str, tier: str) -> None:
    world.wait(30)
    world.change_plan(org_id, tier)
    world.reconcile_until_idle(org_id)


def live_until(world: SyncWorld, org_id: str, moment: datetime) -> None:
    world.advance_time(seconds=(moment - world.now).total_seconds())
    due_links.recheck_due_downgrades(world.database, 10, world.now, world.management)
    world.reconcile_until_idle(org_id)


def in_lago(world: SyncWorld) -> tuple[object, object]:
    (active,) = [each for each in world.lago_objects("subscriptions") if each["status"] == "active"]
    return active["plan_code"], active["next_plan_code"]


def unpaid(world: SyncWorld) -> list[object]:
    """The prices of what Lago billed."""
    return [each["price"] for each in world.sandbox.charges() if each["provider"] == "lago" and each["price"]]


def assert_settled(world: SyncWorld, org_id: str, drift_harness: DriftHarness) -> None:
    assert [world.link(org_id, provider).error_message for provider in ("stripe", "lago")] == [None, None]
    assert world.is_in_sync(org_id)
    world.advance_time(minutes=5)
    assert drift_harness.findings() == []


def test_a_new_organization_costs_nothing_in_lago(stripe_world: SyncWorld, drift_harness: DriftHarness) -> None:
    give_usage_plans(stripe_world)
    org_id = sold(stripe_world)
    assert in_lago(stripe_world) == ("professional_usage", None)
    live_until(stripe_world, org_id, NEXT_MONTH_ENDED)
    assert unpaid(stripe_world) == []
    assert_settled(stripe_world, org_id, drift_harness)


def test_where_lago_charges_the_plan_of_amount_0_is_not_used(world: SyncWorld) -> None:
    give_usage_plans(world)
    sold(world)
    assert in_lago(world) == ("professional", None)
    assert "professional_usage" not in [each["code"] for each in world.lago_objects("plans")]


def test_an_upgrade_applies_at_once_at_both(stripe_world: SyncWorld, drift_harness: DriftHarness) -> None:
    give_usage_plans(stripe_world)
    org_id = sold(stripe_world, "starter")
    change(stripe_world, org_id, "enterprise")
    assert in_lago(stripe_world) == ("enterprise_usage", None)
    assert unpaid(stripe_world) == []
    assert_settled(stripe_world, org_id, drift_harness)


@pytest.mark.parametrize("lower", ["starter", "founders_friend"])
def test_a_downgrade_reaches_lago_on_the_day_on_which_stripe_switches(
    stripe_world: SyncWorld, drift_harness: DriftHarness, lower: str
) -> None:
    give_usage_plans(stripe_world)
    org_id = sold(stripe_world)
    change(stripe_world, org_id, lower)
    assert in_lago(stripe_world) == ("professional_usage", None)
    assert_settled(stripe_world, org_id, drift_harness)
    live_until(stripe_world, org_id, LAGOS_MONTH_ENDED)
    assert in_lago(stripe_world) == ("professional_usage", None)
    live_until(stripe_world, org_id, STRIPES_MONTH_ENDED)
    assert stripe_world.organization(org_id).plan_tier == lower
    assert in_lago(stripe_world) == ("starter_usage" if lower == "starter" else lower, None)
    assert unpaid(stripe_world) == []
    assert_settled(stripe_world, org_id, drift_harness)


@pytest.mark.parametrize("first", [(), ("lago",)])
def test_lago_follows_also_if_only_stripe_was_read_since(
    stripe_world: SyncWorld, drift_harness: DriftHarness, first: tuple[Provider, ...]
) -> None:
    """A webhook of Stripe tells of the switch, or the attempt at Lago came before the one at Stripe."""
    give_usage_plans(stripe_world)
    org_id = sold(stripe_world)
    change(stripe_world, org_id, "starter")
    stripe_world.advance_time(seconds=(STRIPES_MONTH_ENDED - stripe_world.now).total_seconds())
    if first:
        due_links.recheck_due_downgrades(stripe_world.database, 10, stripe_world.now, stripe_world.management)
    else:
        receive_webhook(stripe_world, org_id, "stripe")
    for provider in first:
        stripe_world.run(org_id, provider)
    result = stripe_world.run(org_id, "stripe")
    assert (result.also_requeue, in_lago(stripe_world)) == (("lago",), ("professional_usage", None))
    stripe_world.wait(30)
    stripe_world.run(org_id, "lago")
    assert in_lago(stripe_world) == ("starter_usage", None)
    assert stripe_world.run(org_id, "stripe").kind == "idle"
    assert_settled(stripe_world, org_id, drift_harness)


def test_a_downgrade_that_is_taken_back_never_reaches_lago(
    stripe_world: SyncWorld, drift_harness: DriftHarness
) -> None:
    give_usage_plans(stripe_world)
    org_id = sold(stripe_world)
    stripe_world.sandbox.reset_calls()
    change(stripe_world, org_id, "starter")
    change(stripe_world, org_id, "professional")
    live_until(stripe_world, org_id, NEXT_MONTH_ENDED)
    assert in_lago(stripe_world) == ("professional_usage", None)
    assert "POST /api/v1/subscriptions" not in [call.operation for call in stripe_world.sandbox.calls("lago")]
    assert_settled(stripe_world, org_id, drift_harness)


def test_whoever_was_sold_the_full_plan_keeps_it(stripe_world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = sold(stripe_world)
    give_usage_plans(stripe_world)
    stripe_world.rename(org_id, "Globex")
    stripe_world.reconcile_until_idle(org_id)
    assert in_lago(stripe_world) == ("professional", None)
    assert_settled(stripe_world, org_id, drift_harness)


def test_from_the_full_plan_a_downgrade_is_scheduled_in_lago_as_ever(
    stripe_world: SyncWorld, drift_harness: DriftHarness
) -> None:
    org_id = sold(stripe_world)
    give_usage_plans(stripe_world)
    change(stripe_world, org_id, "starter")
    assert in_lago(stripe_world) == ("professional", "starter_usage")
    live_until(stripe_world, org_id, STRIPES_MONTH_ENDED)
    assert in_lago(stripe_world) == ("starter_usage", None)
    assert_settled(stripe_world, org_id, drift_harness)


def test_an_upgrade_from_the_full_plan_waits_for_the_end_of_lagos_month(
    stripe_world: SyncWorld, drift_harness: DriftHarness
) -> None:
    """Lago lowers a price only then. Until then nothing else is scheduled there, whatever the organization does."""
    org_id = sold(stripe_world, "starter")
    give_usage_plans(stripe_world)
    change(stripe_world, org_id, "enterprise")
    assert in_lago(stripe_world) == ("starter", "enterprise_usage")
    assert_settled(stripe_world, org_id, drift_harness)
    stripe_world.rename(org_id, "Globex")
    change(stripe_world, org_id, "professional")
    assert in_lago(stripe_world) == ("starter", "enterprise_usage")
    live_until(stripe_world, org_id, LAGOS_MONTH_ENDED)
    assert in_lago(stripe_world) == ("enterprise_usage", None)
    live_until(stripe_world, org_id, STRIPES_MONTH_ENDED)
    assert in_lago(stripe_world) == ("professional_usage", None)
    assert_settled(stripe_world, org_id, drift_harness)


def test_a_lower_tier_that_has_no_such_plan_follows_on_stripes_day(
    stripe_world: SyncWorld, drift_harness: DriftHarness
) -> None:
    give_usage_plans(stripe_world, "professional")
    org_id = sold(stripe_world)
    change(stripe_world, org_id, "starter")
    live_until(stripe_world, org_id, LAGOS_MONTH_ENDED)
    assert in_lago(stripe_world) == ("professional_usage", None)
    live_until(stripe_world, org_id, STRIPES_MONTH_ENDED)
    assert in_lago(stripe_world) == ("starter", None)
    assert_settled(stripe_world, org_id, drift_harness)


def test_a_second_downgrade_after_the_first_is_made_follows_too(
    stripe_world: SyncWorld, drift_harness: DriftHarness
) -> None:
    give_usage_plans(stripe_world)
    org_id = sold(stripe_world, "enterprise")
    change(stripe_world, org_id, "professional")
    live_until(stripe_world, org_id, STRIPES_MONTH_ENDED)
    change(stripe_world, org_id, "starter")
    assert in_lago(stripe_world) == ("professional_usage", None)
    live_until(stripe_world, org_id, NEXT_MONTH_ENDED)
    assert in_lago(stripe_world) == ("starter_usage", None)
    assert unpaid(stripe_world) == []
    assert_settled(stripe_world, org_id, drift_harness)


def test_an_organization_that_moves_to_lagos_charging_pays_the_full_plan(
    stripe_world: SyncWorld, drift_harness: DriftHarness
) -> None:
    give_usage_plans(stripe_world)
    stripe_world.set_charging_provider("lago", "enterprise")
    org_id = sold(stripe_world)
    change(stripe_world, org_id, "enterprise")
    assert in_lago(stripe_world) == ("enterprise", None)
    assert stripe_world.link(org_id, "lago").payer_id == stripe_world.link(org_id, "stripe").customer_id
    assert unpaid(stripe_world) == [stripe_world.catalog.plan("enterprise").amount]
    assert_settled(stripe_world, org_id, drift_harness)


def test_only_who_charges_changes_and_lago_sells_the_full_plan_of_the_same_tier(
    stripe_world: SyncWorld, drift_harness: DriftHarness
) -> None:
    give_usage_plans(stripe_world)
    org_id = sold(stripe_world)
    stripe_world.set_charging_provider("lago")
    stripe_world.change(org_id, commands.retry)
    stripe_world.reconcile_until_idle(org_id)
    assert in_lago(stripe_world) == ("professional", None)
    assert [each["status"] for each in stripe_world.stripe_objects("subscriptions")] == ["canceled"]
    assert_settled(stripe_world, org_id, drift_harness)


def move_all(world: SyncWorld) -> int:
    tiers = usage_plans.tiers_with_usage_plan(world.catalog)
    with world.database.read() as session:
        org_ids = usage_plans.next_org_ids(session, world.catalog, tiers, "", 100)
    with world.database.write() as session:
        change = ChangeContext(session, world.now)
        return sum(usage_plans.move(change, org_id, world.catalog) for org_id in org_ids)


def test_whoever_is_moved_costs_nothing_in_lago_from_its_next_period_on(
    stripe_world: SyncWorld, drift_harness: DriftHarness
) -> None:
    org_id = sold(stripe_world)
    give_usage_plans(stripe_world)
    assert move_all(stripe_world) == 1
    stripe_world.reconcile_until_idle(org_id)
    assert in_lago(stripe_world) == ("professional", "professional_usage")
    assert move_all(stripe_world) == 0
    assert_settled(stripe_world, org_id, drift_harness)
    stripe_world.rename(org_id, "Globex")
    stripe_world.change(org_id, commands.retry)
    change(stripe_world, org_id, "starter")
    change(stripe_world, org_id, "professional")
    assert in_lago(stripe_world) == ("professional", "professional_usage")
    billed = unpaid(stripe_world)
    live_until(stripe_world, org_id, LAGOS_MONTH_ENDED)
    assert in_lago(stripe_world) == ("professional_usage", None)
    assert move_all(stripe_world) == 0
    assert_settled(stripe_world, org_id, drift_harness)
    change(stripe_world, org_id, "starter")
    live_until(stripe_world, org_id, NEXT_MONTH_ENDED)
    assert in_lago(stripe_world) == ("starter_usage", None)
    assert unpaid(stripe_world) == billed
    assert_settled(stripe_world, org_id, drift_harness)


@pytest.mark.parametrize("tier", ["starter", "enterprise"])
@pytest.mark.parametrize("moment", ["before_subscription", "after_subscription"])
def test_a_move_that_a_kill_interrupts_is_finished_whatever_the_organization_does_then(
    stripe_world: SyncWorld, drift_harness: DriftHarness, moment: str, tier: str
) -> None:
    org_id = sold(stripe_world)
    give_usage_plans(stripe_world)
    move_all(stripe_world)
    stripe_world.wait(30)
    setattr(stripe_world.providers["lago"], moment, kill_worker)
    stripe_world.run_until_killed(org_id, "lago")
    stripe_world.expire_lease()
    stripe_world.change_plan(org_id, tier)
    stripe_world.reconcile_until_idle(org_id)
    assert_settled(stripe_world, org_id, drift_harness)
    live_until(stripe_world, org_id, STRIPES_MONTH_ENDED)
    assert in_lago(stripe_world) == (f"{tier}_usage", None)
    assert_settled(stripe_world, org_id, drift_harness)


def test_a_move_over_a_scheduled_downgrade_ends_on_the_lower_plan(
    stripe_world: SyncWorld, drift_harness: DriftHarness
) -> None:
    org_id = sold(stripe_world)
    change(stripe_world, org_id, "starter")
    assert in_lago(stripe_world) == ("professional", "starter")
    give_usage_plans(stripe_world)
    move_all(stripe_world)
    stripe_world.reconcile_until_idle(org_id)
    assert in_lago(stripe_world) == ("professional", "professional_usage")
    assert_settled(stripe_world, org_id, drift_harness)
    live_until(stripe_world, org_id, STRIPES_MONTH_ENDED)
    assert in_lago(stripe_world) == ("starter_usage", None)
    assert_settled(stripe_world, org_id, drift_harness)


def test_a_move_takes_no_place_at_the_payment_brake(stripe_world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = sold(stripe_world)
    give_usage_plans(stripe_world)
    stripe_world.payment_limit = PaymentLimit(changes=0)
    move_all(stripe_world)
    stripe_world.reconcile_until_idle(org_id)
    assert in_lago(stripe_world) == ("professional", "professional_usage")
    assert_settled(stripe_world, org_id, drift_harness)


def test_who_is_parked_on_hold_deleted_or_charged_by_lago_is_not_moved(stripe_world: SyncWorld) -> None:
    parked, deleted, in_order = [sold(stripe_world, name=name) for name in ("Acme", "Globex", "Initech")]
    stripe_world.change_status(deleted, "deleted")
    with stripe_world.database.write() as session:
        session.get_one(BillingLink, (parked, "lago")).state = "parked"
    give_usage_plans(stripe_world)
    with stripe_world.database.read() as session:
        found = usage_plans.count(session, stripe_world.catalog, TIERS)
    assert (dict(found.moved), dict(found.left)) == ({"professional": 1}, {"professional": 1})
    assert move_all(stripe_world) == 1
    assert stripe_world.link(in_order, "lago").target_plan == "professional_usage"
    stripe_world.set_charging_provider("lago")
    assert usage_plans.tiers_with_usage_plan(stripe_world.catalog) == []


def test_the_move_to_lagos_charging_takes_a_place_before_lagos_price_rises(stripe_world: SyncWorld) -> None:
    give_usage_plans(stripe_world)
    stripe_world.set_charging_provider("lago", "enterprise")
    org_id = sold(stripe_world)
    stripe_world.payment_limit = PaymentLimit(changes=0)
    change(stripe_world, org_id, "enterprise")
    assert in_lago(stripe_world) == ("professional_usage", None)
    assert stripe_world.link(org_id, "stripe").error_kind == "payment_brake"
    assert [each["status"] for each in stripe_world.stripe_objects("subscriptions")] == ["active"]


def test_an_observed_organization_shows_the_plan_of_amount_0(stripe_world: SyncWorld) -> None:
    give_usage_plans(stripe_world)
    stripe_world.management = "observe"
    org_id = sold(stripe_world)
    steps = stripe_world.observation(org_id, "lago").steps
    (step,) = [each for each in steps if each.kind == "create_subscription"]
    assert (step.after, step.price_after and step.price_after.amount) == ("professional_usage", 0)


def test_who_is_put_on_it_in_lago_by_hand_where_lago_charges_goes_back_to_the_full_plan(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    give_usage_plans(world)
    world.set_charging_provider("lago")
    org_id = sold(world)
    world.wait(10)
    world.sandbox.patch("lago", "subscriptions", org_id, plan_code="professional_usage")
    check_after_webhook(world, org_id, "lago")
    assert world.link(org_id, "lago").is_conflict
    with pytest.raises(CannotResolveError, match="the plan of professional for the case that Stripe charges"):
        conflict_resolver_of(world).take_theirs(org_id, "lago")
    world.keep_ours(org_id)
    world.reconcile_until_idle(org_id)
    assert (in_lago(world), world.is_in_sync(org_id)) == (("professional", None), True)


@pytest.fixture
def theirs(world: SyncWorld, sandbox_server: Sandbox) -> Iterator[AdoptionHarness]:
    harness = AdoptionHarness(world=world, url=sandbox_server.url)
    yield harness
    harness.close()


def test_who_is_on_it_already_is_adopted_as_its_tier(theirs: AdoptionHarness, drift_harness: DriftHarness) -> None:
    world = theirs.world
    world.set_charging_provider("stripe")
    give_usage_plans(world)
    customer = theirs.stripe_customer()
    world.sandbox.preload_stripe_subscription(customer, price_of(world, "professional"))
    lago = theirs.lago_customer(payer=None, plan="professional_usage")
    result = theirs.adopt(theirs.row(stripe=customer, lago=lago))
    assert (result.kind, theirs.writes()) == ("adopted", [])
    world.reconcile_until_idle(str(result.org_id))
    assert in_lago(world) == ("professional_usage", None)
    assert_settled(world, str(result.org_id), drift_harness)


def test_where_lago_charges_nobody_is_adopted_on_it(theirs: AdoptionHarness) -> None:
    theirs.world.set_charging_provider("stripe")
    give_usage_plans(theirs.world)
    theirs.world.set_charging_provider("lago")
    lago = theirs.lago_customer(plan="professional_usage")
    row = theirs.row(stripe=theirs.stripe_customer(), lago=lago, action="adopt-keep-price")
    result = theirs.adopt(row)
    assert result.kind != "adopted"
    assert "the plan of professional for the case that Stripe charges" in str(result)
