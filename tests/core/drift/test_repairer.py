"""A plan is applied as it says or not at all, by the usual rounds, once."""

from __future__ import annotations

import json

import pytest

from core.db.models.providers import ProviderStatus
from core.drift import report_store
from core.drift.repairer import ChangedSinceReportError
from core.drift.report_store import DriftReport
from core.organizations.links import SWEEP_GRACE
from core.reconcile import due_links
from core.reconcile.account_guard import WrongAccountError
from core.reconcile.low_priority_reader import MAX_READ_FAILURES
from tests.support.drift_harness import DriftHarness, synced_organization
from tests.support.sync_world import SyncWorld, WorkerDiedError, kill_worker

REFUSED = json.dumps({"error": {"type": "invalid_request_error", "code": "email_invalid", "message": "no"}})


def rename_at_provider(world: SyncWorld, *org_ids: str) -> None:
    for org_id in org_ids:
        world.sandbox.patch("stripe", "customers", str(world.link(org_id, "stripe").customer_id), name="Mallory")


def assert_refused(world: SyncWorld, drift_harness: DriftHarness, plan: DriftReport) -> None:
    """And nothing was sent."""
    world.sandbox.reset_calls()
    with pytest.raises(ChangedSinceReportError):
        drift_harness.repair(plan)
    assert drift_harness.sent_writes() == []


def test_only_what_the_plan_lists_is_touched(world: SyncWorld, drift_harness: DriftHarness) -> None:
    acme, other = synced_organization(world), synced_organization(world, name="Other")
    rename_at_provider(world, acme)
    plan = drift_harness.check()
    rename_at_provider(world, other)
    before = world.link(other, "stripe").synced_at
    assert drift_harness.repair(plan).organizations == 1
    assert world.link(other, "stripe").synced_at == before
    assert [each.kind for each in drift_harness.findings()] == ["renamed"]


def test_the_other_biller_is_not_asked_for_a_repair(world: SyncWorld, drift_harness: DriftHarness) -> None:
    acme = synced_organization(world)
    rename_at_provider(world, acme)
    plan = drift_harness.check()
    before = (world.link(acme, "lago").applied_version, world.organization(acme).version)
    drift_harness.repair(plan)
    assert (world.link(acme, "lago").applied_version, world.organization(acme).version) == before


def test_it_is_refused_when_ours_moved(world: SyncWorld, drift_harness: DriftHarness) -> None:
    acme = synced_organization(world)
    rename_at_provider(world, acme)
    plan = drift_harness.check()
    world.rename(acme, "Acme GmbH")
    assert_refused(world, drift_harness, plan)


def test_it_is_refused_when_theirs_moved(world: SyncWorld, drift_harness: DriftHarness) -> None:
    acme, other = synced_organization(world), synced_organization(world, name="Other")
    rename_at_provider(world, acme, other)
    plan = drift_harness.check()
    world.sandbox.patch("stripe", "customers", str(world.link(other, "stripe").customer_id), name="Mallory & Sons")
    assert_refused(world, drift_harness, plan)
    assert len(drift_harness.drifts(drift_harness.check())) == 2


@pytest.mark.parametrize("fault", [None, "500_before"])
def test_what_moves_while_others_are_repaired_is_left_alone(
    world: SyncWorld, drift_harness: DriftHarness, fault: str | None
) -> None:
    acme, other = synced_organization(world), synced_organization(world, name="Other")
    rename_at_provider(world, acme, other)
    plan = drift_harness.check()
    done: list[str] = []

    def meanwhile(org_id: str) -> None:
        if not done:
            (late,) = {acme, other} - {org_id}
            customer = str(world.link(late, "stripe").customer_id)
            if fault is None:
                world.sandbox.patch("stripe", "customers", customer, name="Mallory & Sons")
            else:
                world.sandbox.add_fault("stripe", "GET /v1/customers/{id}", fault, match=customer, times=9)
        done.append(org_id)

    applied = drift_harness.repairer.repair(plan, on_repaired=meanwhile)
    (left,) = applied.not_repaired
    assert (left.org_id, left.parked, applied.organizations) == (done[1], False, 2)
    assert "was not repaired" in (left.reason or "")
    assert world.link(done[1], "stripe").customer_fingerprint


def test_a_biller_that_goes_away_meanwhile_is_not_asked_for_each_that_is_left(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    org_ids = [synced_organization(world, name=f"Company {number}") for number in range(4)]
    rename_at_provider(world, *org_ids)
    plan = drift_harness.check()
    done: list[str] = []

    def meanwhile(org_id: str) -> None:
        if not done:
            world.sandbox.add_fault("stripe", "GET /v1/customers/{id}", "500_before", times=999)
            world.count_requests()
        done.append(org_id)

    applied = drift_harness.repairer.repair(plan, on_repaired=meanwhile)
    assert (applied.organizations, sorted(each.org_id for each in applied.not_repaired)) == (4, sorted(done[1:]))
    assert world.count_requests()[0] <= MAX_READ_FAILURES
    assert all(world.link(org_id, "stripe").customer_fingerprint for org_id in done[1:])


def test_it_is_refused_when_somebody_put_it_right_meanwhile(world: SyncWorld, drift_harness: DriftHarness) -> None:
    acme = synced_organization(world)
    rename_at_provider(world, acme)
    plan = drift_harness.check()
    world.sandbox.patch("stripe", "customers", str(world.link(acme, "stripe").customer_id), name="Acme")
    assert_refused(world, drift_harness, plan)


def test_it_is_refused_the_second_time(world: SyncWorld, drift_harness: DriftHarness) -> None:
    acme = synced_organization(world)
    rename_at_provider(world, acme)
    plan = drift_harness.check()
    drift_harness.repair(plan)
    with world.database.read() as session:
        (again,) = report_store.find_by_prefix(session, plan.id)
    assert_refused(world, drift_harness, again)


def test_it_is_refused_with_a_key_of_another_account(world: SyncWorld, drift_harness: DriftHarness) -> None:
    acme = synced_organization(world)
    rename_at_provider(world, acme)
    plan = drift_harness.check()
    with world.database.write() as session:
        session.get_one(ProviderStatus, "stripe").account_id = "acct_former"
    with pytest.raises(WrongAccountError):
        drift_harness.repair(plan)


def test_what_the_biller_refuses_is_parked_and_told(world: SyncWorld, drift_harness: DriftHarness) -> None:
    acme, other = synced_organization(world), synced_organization(world, name="Other")
    rename_at_provider(world, acme, other)
    plan = drift_harness.check()
    customer = str(world.link(acme, "stripe").customer_id)
    world.sandbox.add_fault("stripe", "POST /v1/customers/{id}", "status", match=customer, status=400, body=REFUSED)
    applied = drift_harness.repair(plan)
    (left,) = applied.not_repaired
    assert (left.org_id, left.provider, left.parked) == (acme, "stripe", True)
    assert left.reason
    assert applied.organizations == 2


def test_what_a_crash_leaves_behind_the_sweep_brings_home(world: SyncWorld, drift_harness: DriftHarness) -> None:
    acme = synced_organization(world)
    rename_at_provider(world, acme)
    plan = drift_harness.check()
    world.providers["stripe"].before_customer = kill_worker
    with pytest.raises(WorkerDiedError):
        drift_harness.repair(plan)
    world.expire_lease()
    world.wait(SWEEP_GRACE.total_seconds())
    with world.database.write() as session:
        assert due_links.dispatch(session, "stripe", 10, world.now) == [acme]
    world.reconcile_until_idle(acme)
    assert drift_harness.findings() == []


def test_a_payer_that_is_removed_during_the_repair_of_a_name_is_not_given_again(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    acme = synced_organization(world)
    world.sandbox.patch("lago", "customers", acme, name="Mallory")
    plan = drift_harness.check()

    def remove_payer() -> None:
        world.sandbox.patch("lago", "customers", acme, billing_configuration={"payment_provider": None})

    world.providers["lago"].before_customer = remove_payer
    drift_harness.repair(plan)
    (customer,) = world.sandbox.state()["lago"]["customers"]
    assert "provider_customer_id" not in customer["billing_configuration"]
    assert (world.link(acme, "lago").state, world.link(acme, "lago").error_code) == ("on_hold", "payer_changed")
