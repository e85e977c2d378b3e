"""``organization.synced``: said once of each version that both billers came to hold, and never too early."""

from __future__ import annotations

import pytest
from sqlalchemy import event, select

from core.db.models.events import Event
from core.events.event_types import ChangeContext
from core.ports.spec import Provider
from core.reconcile import commands
from tests.support.sync_world import SyncWorld

BOTH_PROVIDERS: tuple[Provider, ...] = ("stripe", "lago")
both = pytest.mark.parametrize("provider", BOTH_PROVIDERS)


def synced_versions(world: SyncWorld, org_id: str) -> list[int]:
    """The versions of which it was said, in their order."""
    with world.database.read() as session:
        told = select(Event.data).where(Event.org_id == org_id, Event.type == "organization.synced")
        return [data["version"] for data in session.scalars(told.order_by(Event.seq))]


def version(world: SyncWorld, org_id: str) -> int:
    return world.organization(org_id).version


def test_it_is_said_when_the_second_of_both_billers_holds_the_change(world: SyncWorld) -> None:
    org_id = world.create()
    world.run(org_id, "stripe")
    assert synced_versions(world, org_id) == []
    world.reconcile_until_idle(org_id)
    assert synced_versions(world, org_id) == [version(world, org_id)]


@both
def test_one_biller_alone_is_not_in_sync(world: SyncWorld, provider: Provider) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    before = synced_versions(world, org_id)
    world.rename(org_id, "Acme GmbH")
    world.wait(10)
    world.run(org_id, provider)
    assert synced_versions(world, org_id) == before


def test_each_version_that_is_reached_is_said_once_and_in_order(world: SyncWorld) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    for name in ("Acme GmbH", "Acme AG"):
        world.rename(org_id, name)
        world.wait(10)
        world.reconcile_until_idle(org_id)
    through = synced_versions(world, org_id)
    assert len(through) == 3
    assert through == sorted(set(through))
    assert through[-1] == version(world, org_id)


@both
def test_a_round_that_repeats_a_version_says_nothing_new(world: SyncWorld, provider: Provider) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    before = synced_versions(world, org_id)
    with world.database.write() as session:
        assert commands.repair(
            ChangeContext(session, world.now), org_id, provider, ["customer_repaired", "plan_repaired"]
        )
    world.wait(10)
    assert world.run(org_id, provider).kind == "synced"
    assert synced_versions(world, org_id) == before


def test_a_change_in_mid_turn_is_said_only_with_its_own_version(world: SyncWorld) -> None:
    org_id = world.create()
    world.run(org_id, "stripe")
    world.providers["lago"].after_customer = lambda: world.rename(org_id, "Acme GmbH")
    world.reconcile_until_idle(org_id)
    assert synced_versions(world, org_id) == []
    world.wait(10)
    world.reconcile_until_idle(org_id)
    assert synced_versions(world, org_id) == [version(world, org_id)]


def test_a_biller_that_was_told_more_meanwhile_is_waited_for(world: SyncWorld) -> None:
    """Stripe comes after Lago: the payer is news to Lago, so nothing is in sync when Stripe's round ends."""
    org_id = world.create()
    world.sandbox.add_fault(provider="stripe", operation="POST /v1/customers", kind="500_before", times=1)
    world.reconcile_until_idle(org_id)
    assert synced_versions(world, org_id)[-1] == version(world, org_id)
    assert len(synced_versions(world, org_id)) == len(set(synced_versions(world, org_id)))


def test_an_end_is_said_too(world: SyncWorld) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    world.change_status(org_id, "deleted")
    world.wait(10)
    world.reconcile_until_idle(org_id)
    assert synced_versions(world, org_id)[-1] == version(world, org_id)


def test_a_parked_biller_keeps_it_unsaid(world: SyncWorld) -> None:
    org_id = world.create(plan_tier="professional")
    world.catalog = world.catalog.model_copy(
        update={"plans": {tier: plan for tier, plan in world.catalog.plans.items() if tier != "professional"}}
    )
    world.reconcile_until_idle(org_id)
    assert synced_versions(world, org_id) == []


def test_a_round_that_completes_nothing_costs_no_statement_more(world: SyncWorld) -> None:
    """The question is part of the write that ends the turn; only the answer yes costs the event's own row."""
    written: list[str] = []
    org_id = world.create()
    event.listen(world.database.engine, "before_cursor_execute", lambda *args: written.append(args[2]))
    world.run(org_id, "stripe")
    first = len(written)
    assert not [statement for statement in written if "INSERT INTO events" in statement]
    assert first > 0
    written.clear()
    world.reconcile_until_idle(org_id)
    assert len([statement for statement in written if "INSERT INTO events" in statement]) == 1
    assert not [statement for statement in written if statement.startswith("NOTIFY")]
