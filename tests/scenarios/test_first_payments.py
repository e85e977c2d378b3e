"""A Lago subscription that waits for its first payment is seen, shown and found, and nothing is sold or undone on it.

It is ``incomplete`` in Lago: by itself, or as an upgrade that leaves the old plan active meanwhile (lago.md 5.4).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from core.drift import conflict_resolver
from core.inbox import provider_webhooks
from core.inbox.provider_webhooks import ParsedWebhook
from core.ports import arrangement
from core.ports.arrangement import Arrangement
from core.reconcile import commands
from sandbox.http import JsonDocument
from tests.support.drift_harness import DriftHarness, conflict_resolver_of
from tests.support.sync_world import SyncWorld

pytestmark = pytest.mark.slow  # many cases of one kind

Sell = Callable[[SyncWorld], str]

OPEN_PAYMENT = Arrangement(waits_for_payment=True)
RULES = [{"type": "payment", "timeout_hours": 48}]


def subscriptions(world: SyncWorld) -> list[JsonDocument]:
    return list(world.lago_objects("subscriptions"))


def living(world: SyncWorld) -> list[tuple[str, str]]:
    alive = [each for each in subscriptions(world) if each["status"] not in {"terminated", "canceled"}]
    return sorted((each["plan_code"], each["status"]) for each in alive)


def sell(world: SyncWorld, org_id: str, plan_code: str) -> None:
    """Somebody sells it in Lago with an activation rule."""
    world.sandbox.preload_lago_subscription(org_id, plan_code, org_id, activation_rules=RULES)


def pay(world: SyncWorld, org_id: str, status: str = "succeeded") -> None:
    world.sandbox.patch("lago", "subscriptions", org_id, first_payment=status)


def synced(world: SyncWorld, plan_tier: str = "professional") -> str:
    org_id = world.create("Acme", plan_tier)
    world.reconcile_until_idle(org_id)
    world.wait(10)
    return org_id


def sold_again(world: SyncWorld, plan_code: str = "professional") -> str:
    """Ours is ended in Lago, and the same is sold again there with a rule."""
    org_id = synced(world)
    world.sandbox.delete("lago", "subscriptions", org_id)
    sell(world, org_id, plan_code)
    return org_id


def upgraded_there(world: SyncWorld) -> str:
    org_id = synced(world)
    sell(world, org_id, "enterprise")
    return org_id


def check(world: SyncWorld, org_id: str) -> None:
    """Lago tells of it, and the webhook is processed to its end."""
    webhook = ParsedWebhook(
        provider="lago",
        id=f"evt_{world.now.timestamp()}",
        type="subscription.incomplete",
        effect="check",
        customer_id=world.link(org_id, "lago").customer_id,
        org_id=org_id,
    )
    with world.database.write() as session:
        provider_webhooks.store(session, webhook, world.now)
    provider_webhooks.process(world.database, world.clock)
    world.reconcile_until_idle(org_id)
    world.wait(10)


def arranged(world: SyncWorld, org_id: str) -> Arrangement | None:
    return arrangement.from_json(world.link(org_id, "lago").arrangement)


EACH_WAY = pytest.mark.parametrize("in_lago", [sold_again, upgraded_there], ids=["by itself", "upgrade"])


@EACH_WAY
def test_it_is_shown_and_found_and_its_link_stays_in_sync(
    world: SyncWorld, drift_harness: DriftHarness, in_lago: Sell
) -> None:
    org_id = in_lago(world)
    before = subscriptions(world)
    check(world, org_id)
    assert (world.is_in_sync(org_id), arranged(world, org_id)) == (True, OPEN_PAYMENT)
    world.advance_time(minutes=5)
    report = drift_harness.check()
    ((finding,),) = [each.findings for each in drift_harness.drifts(report)]
    assert (finding.kind, finding.provider, finding.repairable) == ("arrangement", "lago", False)
    assert finding.theirs == "an open first payment"
    world.change(org_id, commands.retry)
    world.reconcile_until_idle(org_id)
    drift_harness.repair(report)
    assert (world.is_in_sync(org_id), arranged(world, org_id)) == (True, OPEN_PAYMENT)
    assert subscriptions(world) == before


@EACH_WAY
@pytest.mark.parametrize("tier", ["enterprise", "starter"])
def test_a_plan_change_is_on_hold_until_the_payment_is_decided(world: SyncWorld, in_lago: Sell, tier: str) -> None:
    org_id = in_lago(world)
    before = subscriptions(world)
    world.change_plan(org_id, tier)
    world.reconcile_until_idle(org_id)
    for _ in range(2):
        link = world.link(org_id, "lago")
        assert (link.state, link.error_code) == ("on_hold", "arranged_at_provider")
        assert "waits for its first payment" in (link.error_message or "")
        conflict_resolver.keep_ours(world.database, world.clock, org_id, "lago")
        world.reconcile_until_idle(org_id)
    assert subscriptions(world) == before
    pay(world, org_id, "failed")
    conflict_resolver.keep_ours(world.database, world.clock, org_id, "lago")
    world.reconcile_until_idle(org_id)
    assert (world.is_in_sync(org_id), arranged(world, org_id)) == (True, None)
    assert all(status != "incomplete" for _, status in living(world))


@EACH_WAY
def test_theirs_gives_the_organization_the_plan_that_it_has_there(world: SyncWorld, in_lago: Sell) -> None:
    org_id = in_lago(world)
    before = subscriptions(world)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    conflict_resolver_of(world).take_theirs(org_id, "lago")
    world.reconcile_until_idle(org_id)
    organization = world.organization(org_id)
    assert (organization.plan_tier, organization.pending_plan_tier) == ("professional", None)
    assert (world.is_in_sync(org_id), arranged(world, org_id)) == (True, OPEN_PAYMENT)
    assert subscriptions(world) == before


@EACH_WAY
@pytest.mark.parametrize("payment", ["succeeded", "failed", "none"])
def test_a_deleted_organization_is_ended_as_soon_as_the_wait_is_over(
    world: SyncWorld, in_lago: Sell, payment: str
) -> None:
    org_id = in_lago(world)
    world.change_status(org_id, "deleted")
    for _ in range(3):
        result = world.run(org_id, "lago")
        world.advance_time(seconds=(result.requeue_after or 0) + 1)
    link = world.link(org_id, "lago")
    assert (link.state, link.error_kind, world.is_in_sync(org_id)) == ("active", "not_yet_allowed", False)
    assert "first payment" in (link.error_message or "")
    assert "incomplete" in {status for _, status in living(world)}
    if payment == "none":
        world.advance_time(hours=49)
    else:
        pay(world, org_id, payment)
        world.advance_time(hours=1)
    world.reconcile_until_idle(org_id)
    assert (living(world), world.is_in_sync(org_id)) == ([], True)


def test_a_paid_one_is_like_any_other(world: SyncWorld) -> None:
    org_id = sold_again(world)
    check(world, org_id)
    pay(world, org_id)
    check(world, org_id)
    assert (world.is_in_sync(org_id), arranged(world, org_id)) == (True, None)
    world.change_plan(org_id, "enterprise")
    world.reconcile_until_idle(org_id)
    assert (world.is_in_sync(org_id), living(world)) == (True, [("enterprise", "active")])


def test_one_of_a_new_organization_is_not_taken_for_ours_without_a_word(world: SyncWorld) -> None:
    """Its customer exists in Lago already, with a subscription that waits on another plan."""
    org_id = world.create("Acme", "professional")
    link = {"payment_provider": "stripe", "payment_provider_code": "stripe_main", "provider_customer_id": "cus_1"}
    world.sandbox.preload_stripe_customers([{"id": "cus_1", "name": "Acme"}])
    world.sandbox.preload_lago_customers([{"external_id": org_id, "name": "Acme", "billing_configuration": link}])
    sell(world, org_id, "enterprise")
    world.reconcile_until_idle(org_id)
    assert living(world) == [("enterprise", "incomplete")]
    assert world.link(org_id, "lago").state != "active"
