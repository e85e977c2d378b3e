"""What somebody arranged for a subscription at a provider stays, and no plan is sold on it before an operator decides.

An arrangement is a planned end, a pause or a schedule. It is observed, shown and found by a drift check.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from core.drift import conflict_resolver
from core.drift.conflict_resolver import CannotResolveError
from core.ports import arrangement
from core.ports.arrangement import Arrangement
from core.ports.spec import Provider
from core.reconcile import commands, due_links
from sandbox.http import JsonDocument
from tests.support.drift_harness import DriftHarness, conflict_resolver_of, price_of
from tests.support.provider_webhooks import check_after_webhook
from tests.support.sync_world import SyncWorld

pytestmark = pytest.mark.slow  # many cases of one kind

TWENTY_DAYS = timedelta(days=20)


@dataclass(frozen=True, kw_only=True)
class AtStripe:
    """What somebody sets by hand in Stripe, and how it is removed there again."""

    sets: Mapping[str, object]
    removes: Mapping[str, object]
    phrase: str


AT_STRIPE = {
    "end of the period": AtStripe(
        sets={"cancel_at_period_end": True}, removes={"cancel_at_period_end": False}, phrase="a planned end on "
    ),
    "end on a day": AtStripe(sets={"cancel_at": TWENTY_DAYS}, removes={"cancel_at": None}, phrase="a planned end on "),
    "collection paused": AtStripe(
        sets={"pause_collection": {"behavior": "void"}}, removes={"pause_collection": None}, phrase="a pause"
    ),
    "paused": AtStripe(sets={"status": "paused"}, removes={"status": "active"}, phrase="a pause"),
    "schedule": AtStripe(sets={"schedule": "sub_sched_1"}, removes={"schedule": None}, phrase="a schedule"),
}
EACH_AT_STRIPE = pytest.mark.parametrize("by_hand", AT_STRIPE.values(), ids=AT_STRIPE.keys())


def synced(world: SyncWorld, plan_tier: str = "professional") -> str:
    org_id = world.create("Acme", plan_tier)
    world.reconcile_until_idle(org_id)
    world.wait(10)
    world.sandbox.reset_calls()
    return org_id


def charged_in_stripe(world: SyncWorld) -> str:
    world.set_charging_provider("stripe")
    return synced(world)


def stripe_subscription(world: SyncWorld) -> JsonDocument:
    (subscription,) = world.stripe_objects("subscriptions")
    return subscription


def set_in_stripe(world: SyncWorld, fields: Mapping[str, object]) -> None:
    sent = {
        name: int((world.now + each).timestamp()) if isinstance(each, timedelta) else each
        for name, each in fields.items()
    }
    world.sandbox.patch("stripe", "subscriptions", str(stripe_subscription(world)["id"]), **sent)


def arranged(world: SyncWorld, org_id: str, provider: Provider) -> Arrangement | None:
    """What the link shows."""
    return arrangement.from_json(world.link(org_id, provider).arrangement)


def writes(world: SyncWorld, provider: Provider) -> list[str]:
    return [call.operation for call in world.sandbox.calls() if call.method != "GET" and call.provider == provider]


def assert_on_hold(world: SyncWorld, org_id: str, provider: Provider) -> None:
    link = world.link(org_id, provider)
    assert (link.state, link.error_kind, link.error_code) == ("on_hold", "conflict", "arranged_at_provider")


def plan_end_in_lago(world: SyncWorld, org_id: str, ends_at: datetime | None) -> None:
    world.sandbox.patch("lago", "subscriptions", org_id, ending_at=ends_at.isoformat() if ends_at is not None else None)


def payer_in_lago(world: SyncWorld, org_id: str) -> object:
    (customer,) = [each for each in world.lago_objects("customers") if each["external_id"] == org_id]
    configuration = customer["billing_configuration"]
    assert isinstance(configuration, dict)
    return configuration.get("provider_customer_id")


def active_in_lago(world: SyncWorld) -> JsonDocument:
    (active,) = [each for each in world.lago_objects("subscriptions") if each["status"] == "active"]
    return active


@pytest.mark.parametrize("tier", ["enterprise", "starter"])
def test_no_plan_is_changed_in_lago_before_the_planned_end_is_removed_there(world: SyncWorld, tier: str) -> None:
    org_id = synced(world)
    plan_end_in_lago(world, org_id, world.now + TWENTY_DAYS)
    before = active_in_lago(world)
    world.change_plan(org_id, tier)
    world.reconcile_until_idle(org_id)
    assert_on_hold(world, org_id, "lago")
    assert arranged(world, org_id, "lago") is not None
    conflict_resolver.keep_ours(world.database, world.clock, org_id, "lago")
    world.reconcile_until_idle(org_id)
    assert_on_hold(world, org_id, "lago")
    assert world.lago_objects("subscriptions") == [before]
    assert not [each for each in writes(world, "lago") if "subscriptions" in each]
    plan_end_in_lago(world, org_id, None)
    conflict_resolver.keep_ours(world.database, world.clock, org_id, "lago")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    after = active_in_lago(world)
    assert (after["next_plan_code"] if tier == "starter" else after["plan_code"]) == tier


def test_a_planned_end_in_lago_is_shown_found_and_kept(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced(world)
    ends_at = (world.now + TWENTY_DAYS).replace(microsecond=0)
    plan_end_in_lago(world, org_id, ends_at)
    check_after_webhook(world, org_id, "lago")
    assert arranged(world, org_id, "lago") == Arrangement(ends_at=ends_at)
    assert world.is_in_sync(org_id)
    world.advance_time(minutes=5)
    (finding,) = drift_harness.findings()
    assert (finding.kind, finding.provider, finding.repairable) == ("arrangement", "lago", False)
    world.change_plan(org_id, "enterprise")
    world.reconcile_until_idle(org_id)
    conflict_resolver_of(world).take_theirs(org_id, "lago")
    world.reconcile_until_idle(org_id)
    assert (world.organization(org_id).plan_tier, world.is_in_sync(org_id)) == ("professional", True)
    assert arranged(world, org_id, "lago") == Arrangement(ends_at=ends_at)
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    assert {each["status"] for each in world.lago_objects("subscriptions")} == {"terminated"}
    assert arranged(world, org_id, "lago") is None


@EACH_AT_STRIPE
def test_what_is_arranged_in_stripe_is_shown_and_its_link_stays_in_sync(world: SyncWorld, by_hand: AtStripe) -> None:
    org_id = charged_in_stripe(world)
    assert arranged(world, org_id, "stripe") is None
    set_in_stripe(world, by_hand.sets)
    check_after_webhook(world, org_id, "stripe")
    found = arranged(world, org_id, "stripe")
    assert found is not None
    assert found.phrase.startswith(by_hand.phrase)
    assert world.is_in_sync(org_id)
    assert writes(world, "stripe") == []
    set_in_stripe(world, by_hand.removes)
    check_after_webhook(world, org_id, "stripe")
    assert arranged(world, org_id, "stripe") is None


def test_the_planned_end_that_is_shown_is_that_of_stripe(world: SyncWorld) -> None:
    org_id = charged_in_stripe(world)
    set_in_stripe(world, {"cancel_at_period_end": True})
    check_after_webhook(world, org_id, "stripe")
    (item,) = stripe_subscription(world)["items"]["data"]
    ends_at = datetime.fromtimestamp(item["current_period_end"], UTC)
    assert arranged(world, org_id, "stripe") == Arrangement(ends_at=ends_at)


@pytest.mark.parametrize(("kind", "tier"), [*((kind, "enterprise") for kind in AT_STRIPE), ("paused", "starter")])
def test_no_plan_is_changed_in_stripe_before_the_arrangement_is_removed_there(
    world: SyncWorld, kind: str, tier: str
) -> None:
    by_hand = AT_STRIPE[kind]
    org_id = charged_in_stripe(world)
    set_in_stripe(world, by_hand.sets)
    before = stripe_subscription(world)
    world.change_plan(org_id, tier)
    world.reconcile_until_idle(org_id)
    assert_on_hold(world, org_id, "stripe")
    assert by_hand.phrase in (world.link(org_id, "stripe").error_message or "")
    assert arranged(world, org_id, "stripe") is not None
    world.rename(org_id, "Acme GmbH")
    world.reconcile_until_idle(org_id)
    conflict_resolver.keep_ours(world.database, world.clock, org_id, "stripe")
    world.reconcile_until_idle(org_id)
    assert_on_hold(world, org_id, "stripe")
    assert stripe_subscription(world) == before
    assert "POST /v1/subscriptions/{id}" not in writes(world, "stripe")
    set_in_stripe(world, by_hand.removes)
    conflict_resolver.keep_ours(world.database, world.clock, org_id, "stripe")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert arranged(world, org_id, "stripe") is None
    link = world.link(org_id, "stripe")
    sold = world.catalog.plan(tier).stripe_lookup_key
    assert (link.applied_next_plan if tier == "starter" else link.applied_plan) == sold


@pytest.mark.parametrize(("kind", "tier"), [("paused", "enterprise"), ("end of the period", "starter")])
def test_theirs_gives_the_organization_the_plan_that_it_has_and_leaves_the_arrangement(
    world: SyncWorld, kind: str, tier: str
) -> None:
    org_id = charged_in_stripe(world)
    set_in_stripe(world, AT_STRIPE[kind].sets)
    before = stripe_subscription(world)
    world.change_plan(org_id, tier)
    world.reconcile_until_idle(org_id)
    conflict_resolver_of(world).take_theirs(org_id, "stripe")
    world.reconcile_until_idle(org_id)
    organization = world.organization(org_id)
    assert (organization.plan_tier, organization.pending_plan_tier) == ("professional", None)
    link = world.link(org_id, "stripe")
    assert (link.state, link.applied_version) == ("active", link.desired_version)
    assert arranged(world, org_id, "stripe") is not None
    assert stripe_subscription(world) == before


@EACH_AT_STRIPE
def test_an_arranged_subscription_is_not_ended_for_a_plan_that_lago_charges(
    world: SyncWorld, by_hand: AtStripe
) -> None:
    org_id = charged_in_stripe(world)
    world.set_charging_provider("lago", "enterprise")
    set_in_stripe(world, by_hand.sets)
    before = stripe_subscription(world)
    world.change_plan(org_id, "enterprise")
    world.reconcile_until_idle(org_id)
    assert_on_hold(world, org_id, "stripe")
    assert by_hand.phrase in (world.link(org_id, "stripe").error_message or "")
    conflict_resolver.keep_ours(world.database, world.clock, org_id, "stripe")
    world.reconcile_until_idle(org_id)
    assert_on_hold(world, org_id, "stripe")
    assert stripe_subscription(world) == before
    assert payer_in_lago(world, org_id) is None
    set_in_stripe(world, by_hand.removes)
    conflict_resolver.keep_ours(world.database, world.clock, org_id, "stripe")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert stripe_subscription(world)["status"] == "canceled"
    assert payer_in_lago(world, org_id) == world.link(org_id, "stripe").customer_id


@pytest.mark.parametrize("tried_before", [False, True])
def test_what_ends_in_stripe_while_the_move_to_lago_is_on_hold_is_not_sold_again(
    world: SyncWorld, *, tried_before: bool
) -> None:
    """The customer canceled it, perhaps after our own end was not answered. Nobody charges again without a word."""
    org_id = charged_in_stripe(world)
    world.set_charging_provider("lago", "enterprise")
    world.change_plan(org_id, "enterprise")
    if tried_before:
        world.sandbox.add_fault("stripe", "DELETE /v1/subscriptions/{id}", "500_before", times=0)
        world.run(org_id, "stripe")
        assert world.link(org_id, "stripe").plan_state == "ending"
        world.sandbox.clear_faults()
        world.wait(60)
    set_in_stripe(world, {"cancel_at_period_end": True})
    world.reconcile_until_idle(org_id)
    assert_on_hold(world, org_id, "stripe")
    world.advance_time(days=40)
    assert stripe_subscription(world)["status"] == "canceled"
    world.set_charging_provider("stripe", "enterprise")
    conflict_resolver.keep_ours(world.database, world.clock, org_id, "stripe")
    world.reconcile_until_idle(org_id)
    assert stripe_subscription(world)["status"] == "canceled"
    assert "not by us, so it is not charged again" in (world.link(org_id, "stripe").error_message or "")


@pytest.mark.parametrize(("kind", "held"), [*((kind, False) for kind in AT_STRIPE), ("schedule", True)])
def test_a_deleted_organization_ends_its_arranged_subscription(world: SyncWorld, kind: str, *, held: bool) -> None:
    org_id = charged_in_stripe(world)
    set_in_stripe(world, AT_STRIPE[kind].sets)
    if held:
        world.change_plan(org_id, "enterprise")
        world.reconcile_until_idle(org_id)
        assert_on_hold(world, org_id, "stripe")
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    assert stripe_subscription(world)["status"] == "canceled"
    assert world.is_in_sync(org_id)
    assert arranged(world, org_id, "stripe") is None


def test_a_retry_of_an_arranged_subscription_reads_and_changes_nothing(world: SyncWorld) -> None:
    org_id = charged_in_stripe(world)
    set_in_stripe(world, {"status": "paused", "schedule": "sub_sched_1"})
    before = stripe_subscription(world)
    world.change(org_id, commands.retry)
    world.reconcile_until_idle(org_id)
    assert stripe_subscription(world) == before
    assert world.is_in_sync(org_id)
    assert arranged(world, org_id, "stripe") == Arrangement(is_paused=True, has_schedule=True)


def test_a_note_of_ours_about_a_plan_that_took_effect_waits_and_holds_nothing(world: SyncWorld) -> None:
    """The next change would clear the note. To a subscription that somebody arranged it is not worth a request."""
    org_id = charged_in_stripe(world)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    world.advance_time(days=32)
    due_links.recheck_due_downgrades(world.database, 10, world.now, world.management)
    world.reconcile_until_idle(org_id)
    assert world.organization(org_id).plan_tier == "starter"
    world.wait(10)
    set_in_stripe(world, {"cancel_at_period_end": True})
    before = stripe_subscription(world)
    world.change(org_id, commands.retry)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert stripe_subscription(world) == before


@pytest.mark.parametrize("tier", ["enterprise", "founders_friend"])
def test_a_change_after_a_plan_that_took_effect_is_on_hold_and_not_lost(world: SyncWorld, tier: str) -> None:
    """The note of the plan that took effect is still there, and looked like the answer to the change."""
    org_id = charged_in_stripe(world)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    world.advance_time(days=32)
    due_links.recheck_due_downgrades(world.database, 10, world.now, world.management)
    world.reconcile_until_idle(org_id)
    world.wait(10)
    set_in_stripe(world, {"schedule": "sub_sched_1"})
    world.change_plan(org_id, tier)
    world.reconcile_until_idle(org_id)
    organization = world.organization(org_id)
    assert tier in {organization.plan_tier, organization.pending_plan_tier}
    assert_on_hold(world, org_id, "stripe")


@pytest.mark.parametrize("by_hand", [AT_STRIPE["end on a day"], AT_STRIPE["schedule"]], ids=["end", "schedule"])
def test_an_arrangement_in_stripe_is_a_finding_that_no_repair_touches(
    world: SyncWorld, drift_harness: DriftHarness, by_hand: AtStripe
) -> None:
    charged_in_stripe(world)
    world.advance_time(minutes=5)
    set_in_stripe(world, by_hand.sets)
    report = drift_harness.check()
    ((finding,),) = [each.findings for each in drift_harness.drifts(report)]
    assert (finding.kind, finding.provider, finding.repairable) == ("arrangement", "stripe", False)
    assert (finding.theirs or "").startswith(by_hand.phrase)
    before = stripe_subscription(world)
    drift_harness.sent_writes()
    drift_harness.repair(report)
    assert (stripe_subscription(world), drift_harness.sent_writes()) == (before, [])


def test_a_cheaper_price_with_a_planned_end_is_not_repaired(world: SyncWorld, drift_harness: DriftHarness) -> None:
    charged_in_stripe(world)
    world.advance_time(minutes=5)
    (item,) = stripe_subscription(world)["items"]["data"]
    cheaper = {"id": item["id"], "price": price_of(world, "starter"), "quantity": 1}
    set_in_stripe(world, {"cancel_at_period_end": True, "items": [cheaper]})
    findings = {each.field: each for each in drift_harness.findings()}
    assert set(findings) == {"arrangement", "plan"}
    assert not findings["plan"].repairable
    assert "a planned end on " in findings["plan"].advice


def test_theirs_is_refused_for_a_plan_that_is_not_in_the_catalog(world: SyncWorld) -> None:
    org_id = charged_in_stripe(world)
    set_in_stripe(world, {"pause_collection": {"behavior": "void"}})
    world.change_plan(org_id, "enterprise")
    world.reconcile_until_idle(org_id)
    world.catalog = world.catalog.model_copy(
        update={"plans": {tier: plan for tier, plan in world.catalog.plans.items() if tier != "professional"}}
    )
    with pytest.raises(CannotResolveError, match=r"cannot be taken over.*no plan in the catalog"):
        conflict_resolver_of(world).take_theirs(org_id, "stripe")
    assert_on_hold(world, org_id, "stripe")
