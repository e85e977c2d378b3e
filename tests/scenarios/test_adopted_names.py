"""Names and addresses of adopted customers stay as they are at the providers until ours change."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from core.reconcile import commands
from sandbox.server import Sandbox
from tests.support.adopted import Adopted, adopt_at_lago
from tests.support.adoption_harness import AdoptionHarness
from tests.support.drift_harness import DriftHarness
from tests.support.sync_world import SyncWorld

LAGO_ADDRESSES = "bill@acme.test,cfo@acme.test"
NAMES_THERE = [("Acme at Stripe", "pay@acme.test"), ("Acme at Lago", LAGO_ADDRESSES)]


@pytest.fixture
def org_id(world: SyncWorld, sandbox_server: Sandbox) -> str:
    """It has another name and address at each provider, and Lago's are ours."""
    harness = AdoptionHarness(world=world, url=sandbox_server.url)
    lago = harness.lago_customer(plan="professional", email=LAGO_ADDRESSES)
    result = harness.adopt(harness.row(stripe=harness.stripe_customer(), lago=lago))
    harness.close()
    world.reconcile_until_idle(str(result.org_id))
    world.advance_time(minutes=10)
    return str(result.org_id)


def names_there(world: SyncWorld) -> list[tuple[object, object]]:
    customers = [*world.stripe_objects("customers"), *world.lago_objects("customers")]
    return [(each["name"], each["email"]) for each in customers]


def retry(world: SyncWorld, org_id: str) -> None:
    world.change(org_id, commands.retry)


def rename_and_back(world: SyncWorld, org_id: str) -> None:
    world.rename(org_id, "Acme Holding")
    world.rename(org_id, "Acme at Lago")
    world.change(org_id, commands.retry)


@pytest.mark.parametrize("change", [retry, rename_and_back])
def test_what_makes_the_customer_unknown_renames_nobody(
    world: SyncWorld, org_id: str, change: Callable[[SyncWorld, str], None]
) -> None:
    assert names_there(world) == NAMES_THERE
    change(world, org_id)
    world.reconcile_until_idle(org_id)
    assert names_there(world) == NAMES_THERE
    assert world.is_in_sync(org_id)


def test_a_drift_check_lists_no_name_that_stays(world: SyncWorld, org_id: str, drift_harness: DriftHarness) -> None:
    assert world.is_in_sync(org_id)
    assert drift_harness.findings() == []


def test_a_rename_is_written_at_both_and_leaves_the_other_addresses(world: SyncWorld, org_id: str) -> None:
    world.rename(org_id, "Acme Holding")
    world.reconcile_until_idle(org_id)
    assert names_there(world) == [("Acme Holding", "bill@acme.test"), ("Acme Holding", LAGO_ADDRESSES)]
    world.advance_time(minutes=10)
    world.rename(org_id, "Acme at Lago")
    world.reconcile_until_idle(org_id)
    assert [name for name, _ in names_there(world)] == ["Acme at Lago", "Acme at Lago"]


def test_an_attempt_that_only_read_and_lost_its_lease_makes_nothing_unknown(world: SyncWorld) -> None:
    """The organization is managed from now on while an attempt observes it."""
    org_id = adopt_at_lago(world, Adopted(external_customer_id="acme"))
    world.set_mode(org_id, "observe")
    world.rename(org_id, "Umbra GmbH")
    world.providers["lago"].before_customer = lambda: world.set_mode(org_id, "manage")
    assert world.run(org_id, "lago").kind == "waiting"
    link = world.link(org_id, "lago")
    assert (link.customer_state, link.plan_state) == ("applied", "applied")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
