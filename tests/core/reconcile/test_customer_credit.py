"""Credit at Stripe is seen where its customer is read anyway, and is listed where no invoice will use it."""

from __future__ import annotations

import pytest

from core.common.clock import utc_now
from core.organizations import provider_ids
from core.reporting import overview
from tests.support.drift_harness import DriftHarness
from tests.support.sync_world import SyncWorld


@pytest.fixture(autouse=True)
def charged_by_stripe(world: SyncWorld) -> None:
    world.set_charging_provider("stripe", "starter", "professional")


def synced(world: SyncWorld) -> str:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    world.advance_time(days=3)
    world.count_requests()
    return org_id


def set_balance(world: SyncWorld, org_id: str, amount: int) -> None:
    """As somebody does in Stripe's dashboard."""
    customer_id = world.link(org_id, "stripe").customer_id
    assert customer_id is not None
    world.sandbox.patch("stripe", "customers", customer_id, balance=amount)


def known_credit(world: SyncWorld, org_id: str) -> tuple[int | None, str | None]:
    link = world.link(org_id, "stripe")
    return link.credit_amount, link.credit_currency


def listed(world: SyncWorld) -> list[str]:
    with world.database.read() as session:
        page = overview.list_organizations(session, utc_now(), plan=None, search=None, limit=10, links=["credit"])
        summary = overview.summarize(session).providers
    assert (summary["stripe"].credit_left, summary["lago"].credit_left) == (page.total, 0)
    return [each.id for each in page.organizations]


def test_credit_of_a_deleted_organization_is_listed_until_a_drift_check_sees_it_gone(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    org_id = synced(world)
    set_balance(world, org_id, -1500)
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    assert known_credit(world, org_id) == (1500, "USD")
    assert listed(world) == [org_id]
    world.advance_time(minutes=5)
    drift_harness.check()
    assert listed(world) == [org_id]
    set_balance(world, org_id, 0)
    world.advance_time(minutes=5)
    drift_harness.check()
    assert known_credit(world, org_id) == (0, None)
    assert listed(world) == []


def test_credit_that_is_used_up_by_the_next_invoice_is_known_and_not_listed(world: SyncWorld) -> None:
    org_id = synced(world)
    set_balance(world, org_id, -1500)
    world.rename(org_id, "Acme GmbH")
    world.reconcile_until_idle(org_id)
    assert known_credit(world, org_id) == (1500, "USD")
    assert listed(world) == []


def test_credit_of_an_organization_that_moved_to_lago_is_listed_at_once(world: SyncWorld) -> None:
    org_id = synced(world)
    set_balance(world, org_id, -1500)
    world.change_plan(org_id, "enterprise")
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "stripe").subscription_id is None
    assert listed(world) == [org_id]


def test_no_request_is_made_for_the_credit(world: SyncWorld) -> None:
    org_id = synced(world)
    world.rename(org_id, "Acme GmbH")
    world.reconcile_until_idle(org_id)
    assert world.count_requests() == (1, 1)
    assert known_credit(world, org_id) == (None, None)


def test_credit_that_nobody_here_gave_is_found_by_a_drift_check(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced(world)
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    set_balance(world, org_id, -700)
    world.advance_time(minutes=5)
    assert drift_harness.findings() == []
    assert (known_credit(world, org_id), listed(world)) == ((700, "USD"), [org_id])


def test_a_listing_that_began_before_does_not_undo_what_was_seen_since(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    org_id = synced(world)
    world.advance_time(minutes=5)
    detector = drift_harness.detector
    run = detector.resume()
    while run.stage != "organizations":
        detector.step(run)
    world.advance_time(minutes=5)
    set_balance(world, org_id, -1500)
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    while run.stage is not None:
        detector.step(run)
    assert listed(world) == [org_id]


def test_since_when_it_is_known_stays_while_it_stays(world: SyncWorld) -> None:
    org_id = synced(world)
    set_balance(world, org_id, -1500)
    world.rename(org_id, "Acme GmbH")
    world.reconcile_until_idle(org_id)
    since = world.link(org_id, "stripe").credit_since
    world.advance_time(minutes=5)
    world.rename(org_id, "Acme AG")
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "stripe").credit_since == since
    set_balance(world, org_id, -900)
    world.rename(org_id, "Acme SE")
    world.reconcile_until_idle(org_id)
    assert known_credit(world, org_id) == (900, "USD")
    assert world.link(org_id, "stripe").credit_since != since


def test_another_customer_has_a_credit_of_its_own(world: SyncWorld) -> None:
    org_id = synced(world)
    set_balance(world, org_id, -1500)
    world.change_plan(org_id, "enterprise")
    world.reconcile_until_idle(org_id)
    world.change(
        org_id,
        lambda change, organization: provider_ids.set_customer_ids(change, organization, {"stripe": "cus_other"}),
    )
    assert (known_credit(world, org_id), listed(world)) == ((None, None), [])
