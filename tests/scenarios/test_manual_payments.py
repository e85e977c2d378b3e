"""A subscription that is paid manually in Lago is charged by nobody: this is shown, and stays so with the next plan."""

from __future__ import annotations

import pytest

from core.inbox import provider_webhooks
from core.inbox.provider_webhooks import ParsedWebhook
from core.reconcile.link_status import link_report
from tests.support.sync_world import SyncWorld
from worker.cli import descriptions


def synced(world: SyncWorld) -> str:
    org_id = world.create("Acme", "professional")
    world.reconcile_until_idle(org_id)
    world.wait(10)
    return org_id


def set_in_lago(world: SyncWorld, org_id: str, kind: str) -> None:
    """Lago tells of it, and the webhook is processed to its end."""
    world.sandbox.patch("lago", "subscriptions", org_id, payment_method={"payment_method_type": kind})
    webhook = ParsedWebhook(
        provider="lago",
        id=f"evt_{world.now.timestamp()}",
        type="subscription.updated",
        effect="check",
        customer_id=world.link(org_id, "lago").customer_id,
        org_id=org_id,
    )
    with world.database.write() as session:
        provider_webhooks.store(session, webhook, world.now)
    provider_webhooks.process(world.database, world.clock)
    world.reconcile_until_idle(org_id)
    world.wait(10)


def test_a_subscription_that_is_paid_manually_is_shown_until_it_is_charged_again(world: SyncWorld) -> None:
    org_id = synced(world)
    set_in_lago(world, org_id, "manual")
    link = world.link(org_id, "lago")
    assert (link.payment_status, world.is_in_sync(org_id)) == ("manual", True)
    shown = descriptions.payment_text(link_report(link, world.now), org_id, world.now)
    assert "paid manually, so Lago charges nobody automatically" in (shown or "")
    set_in_lago(world, org_id, "provider")
    assert world.link(org_id, "lago").payment_status is None


def test_where_stripe_charges_it_says_nothing(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    org_id = synced(world)
    set_in_lago(world, org_id, "manual")
    assert world.link(org_id, "lago").payment_status is None


@pytest.mark.parametrize("tier", ["enterprise", "starter"])
def test_a_plan_change_charges_nobody_who_pays_manually(world: SyncWorld, tier: str) -> None:
    org_id = synced(world)
    set_in_lago(world, org_id, "manual")
    world.change_plan(org_id, tier)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    kinds = {
        each["plan_code"]: each["payment_method"]["payment_method_type"]
        for each in world.sandbox.state()["lago"]["subscriptions"]
        if each["status"] in {"active", "pending"}
    }
    assert kinds[tier] == "manual"
