"""What cannot be known from an answer alone: each ends with one live customer, or parked with what a person must do."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.ports.spec import Provider
from tests.support.sync_world import SyncWorld

CREATE = "POST /v1/customers"
DAY_AND_HOUR = {"hours": 25.0}


def rename_and_move(world: SyncWorld, org_id: str) -> None:
    def move(change: ChangeContext, organization: Organization) -> None:
        commands.rename(change, organization, "Acme GmbH")
        commands.change_billing_details(change, organization, world.catalog, billing_email="new@acme.test")

    world.change(org_id, move)


def assert_one_customer(world: SyncWorld, org_id: str, name: str, email: str) -> None:
    """One alive, ours, with what was said last; and the search, which lags, was not believed."""
    [customer] = world.stripe_objects("customers")
    assert (customer["name"], customer["email"]) == (name, email)
    assert f"'billing_sync_org_id': '{org_id}'" in str(customer["metadata"])
    assert world.link(org_id, "stripe").customer_id == customer["id"]
    assert world.sandbox.counters().stripe.of("GET /v1/customers/search") == 0


@pytest.mark.parametrize("lost", ["lost_answer", "500_after", "500_stored", "500_before", "reset", "hang"])
def test_a_key_that_was_forgotten_while_name_and_email_changed_leaves_one_customer(world: SyncWorld, lost: str) -> None:
    world.sandbox.settings(search_lag_seconds=3600)
    world.sandbox.add_fault("stripe", CREATE, lost, seconds=0.3)
    org_id = world.create(email="old@acme.test")
    world.run(org_id, "stripe")
    rename_and_move(world, org_id)
    world.advance_time(**DAY_AND_HOUR)
    world.reconcile_until_idle(org_id)
    assert_one_customer(world, org_id, "Acme GmbH", "new@acme.test")


@pytest.mark.parametrize("lost", ["lost_answer", "500_after", "500_stored"])
def test_an_answer_that_is_lost_again_and_again_leaves_one_customer(world: SyncWorld, lost: str) -> None:
    world.sandbox.settings(search_lag_seconds=3600)
    world.sandbox.add_fault("stripe", CREATE, lost, times=3)
    org_id = world.create(email="old@acme.test")
    for _ in range(4):
        world.run(org_id, "stripe")
        rename_and_move(world, org_id)
        world.advance_time(hours=12)
    world.reconcile_until_idle(org_id)
    assert_one_customer(world, org_id, "Acme GmbH", "new@acme.test")


@pytest.mark.parametrize("provider", ["stripe", "lago"])
def test_one_message_delivered_five_times_at_once_is_one_turn(world: SyncWorld, provider: Provider) -> None:
    org_id = world.create()
    if provider == "lago":
        world.run(org_id, "stripe")
    world.sandbox.reset_calls()
    at_once(5, lambda: world.run(org_id, provider))
    world.reconcile_until_idle(org_id)
    assert (
        len(world.stripe_objects("customers")),
        len(world.lago_objects("customers")),
        len(world.lago_objects("subscriptions")),
    ) == (1, 1, 1)
    made = world.sandbox.counters()
    assert made.stripe.of(CREATE) + made.lago.of("POST /api/v1/subscriptions") <= 2


def test_a_customer_that_somebody_deleted_is_parked_with_the_way_out_and_never_made_again(world: SyncWorld) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    customer_id = str(world.link(org_id, "stripe").customer_id)
    world.sandbox.delete("stripe", "customers", customer_id)
    world.advance_time(hours=1)
    world.rename(org_id, "Acme GmbH")
    world.run(org_id, "stripe")
    link = world.link(org_id, "stripe")
    assert link.state == "parked"
    for words in (customer_id, "was deleted", "billing-sync set-customer-id"):
        assert words in str(link.error_message)
    assert [customer.get("deleted", False) for customer in world.stripe_objects("customers")] == [True]


def test_the_email_of_somebody_elses_customer_joins_nobody(world: SyncWorld) -> None:
    world.sandbox.preload_stripe_customers([{"id": "cus_other", "name": "Acme", "email": "shared@acme.test"}])
    org_id = world.create("Acme", email="shared@acme.test")
    world.sandbox.add_fault("stripe", CREATE, "lost_answer")
    world.run(org_id, "stripe")
    world.advance_time(**DAY_AND_HOUR)
    world.reconcile_until_idle(org_id)
    ours = world.link(org_id, "stripe").customer_id
    assert ours not in {None, "cus_other"}
    other, mine = sorted(world.stripe_objects("customers"), key=lambda customer: customer["id"] == ours)
    assert other["metadata"] == {}
    assert f"'billing_sync_org_id': '{org_id}'" in str(mine["metadata"])


def at_once(times: int, run: Callable[[], object]) -> None:
    together = threading.Barrier(times)

    def go() -> None:
        together.wait()
        run()

    threads = [threading.Thread(target=go) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
