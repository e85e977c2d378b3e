"""A comparison costs little, survives everything, and believes no page of a list alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import func, select

from core.db.models.billing_links import BillingLink
from core.db.models.drift import DriftListing, DriftReportRecord
from core.db.models.providers import ProviderStatus
from core.drift import report_store
from core.drift.report_store import DriftRunTakenOverError
from core.ports.errors import MisconfiguredError, UnavailableError
from tests.support.drift_harness import DriftHarness, in_sync, synced_organization
from tests.support.sync_world import SyncWorld


def lists(world: SyncWorld) -> tuple[int, int]:
    """Pages that were asked for since last asked."""
    counters = world.sandbox.counters()
    world.sandbox.reset_calls()
    pages = ("customers", "subscriptions")
    return (
        sum(counters.stripe.of(f"GET /v1/{object_type}") for object_type in pages),
        sum(counters.lago.of(f"GET /api/v1/{object_type}") for object_type in pages),
    )


def unlinked(world: SyncWorld) -> SyncWorld:
    return replace(world, policy=replace(world.policy, sends_payer_to_lago=False))


@pytest.mark.slow
def test_a_thousand_that_have_not_drifted_cost_forty_calls_at_most(world: SyncWorld) -> None:
    drift_harness = DriftHarness(unlinked(world))
    in_sync(world, 1000)
    plan = drift_harness.check()
    assert (plan.counts.compared, plan.counts.drifted) == (1000, 0)
    assert sum(world.count_requests()) <= 40


@pytest.mark.slow
def test_a_run_that_died_goes_on_where_it_was(world: SyncWorld) -> None:
    drift_harness = DriftHarness(unlinked(world))
    org_ids = in_sync(world, 450)
    world.sandbox.patch("stripe", "customers", f"cus_{org_ids[-1]}", name="Mallory")
    whole = drift_harness.check()
    listed = lists(world)
    for stop_after in (2, 5, 7):
        planner = drift_harness.detector
        run = planner.resume()
        for _ in range(stop_after):
            planner.step(run)
    again = drift_harness.check()
    assert again.id == whole.id
    assert again.counts == whole.counts
    assert lists(world) == listed


def test_a_run_that_somebody_else_goes_on_with_stops(world: SyncWorld, drift_harness: DriftHarness) -> None:
    synced_organization(world)
    mine, theirs = drift_harness.detector, drift_harness.detector
    run = mine.resume()
    mine.step(run)
    theirs.resume()
    with pytest.raises(DriftRunTakenOverError, match="another drift check"):
        mine.step(run)


def test_a_page_that_fails_once_is_asked_for_again_and_an_outage_can_be_gone_on_from(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    synced_organization(world)
    world.sandbox.add_fault("stripe", "GET /v1/customers", "html_502")
    world.sandbox.add_fault("lago", "GET /api/v1/customers", "html_502")
    assert drift_harness.findings() == []
    world.sandbox.add_fault("lago", "GET /api/v1/customers", "html_502", times=0)
    with pytest.raises(UnavailableError):
        drift_harness.check()
    world.sandbox.clear_faults()
    world.sandbox.reset_calls()
    assert drift_harness.findings() == []
    assert world.sandbox.counters().stripe.of("GET /v1/customers") == 0


def test_a_refused_key_ends_it_at_once(world: SyncWorld, drift_harness: DriftHarness) -> None:
    synced_organization(world)
    world.sandbox.settings(revoked_keys=["sandbox"])
    before = world.now
    with pytest.raises(MisconfiguredError):
        drift_harness.check()
    assert world.now == before


def test_a_key_of_another_account_is_told_and_nothing_else_of_that_biller(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    org_id = synced_organization(world)
    world.sandbox.patch("stripe", "customers", str(world.link(org_id, "stripe").customer_id), name="Mallory")
    with world.database.write() as session:
        session.get_one(ProviderStatus, "stripe").account_id = "acct_former"
    plan = drift_harness.check()
    (drift,) = drift_harness.drifts(plan)
    (finding,) = drift.findings
    assert (finding.kind, finding.provider, drift.org_id) == ("wrong_account", "stripe", None)
    assert "acct_former" in finding.advice
    assert "acct_sandbox" in finding.advice
    assert plan.counts.excluded_providers == ["stripe"]
    assert drift_harness.check().id == plan.id


def test_a_key_that_was_put_right_meanwhile_has_the_comparison_begin_anew(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    org_id = synced_organization(world)
    world.sandbox.patch("stripe", "customers", str(world.link(org_id, "stripe").customer_id), name="Mallory")
    world.sandbox.settings(stripe_account="acct_theirs", lago_organization="another-organization")
    planner = drift_harness.detector
    planner.step(planner.resume())
    world.sandbox.settings(stripe_account="acct_sandbox")
    plan = drift_harness.check()
    assert plan.counts.excluded_providers == ["lago"]
    assert plan.counts.kinds == {"wrong_account": 1, "renamed": 1}


def test_ids_of_another_account_are_told_of_their_organization(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced_organization(world)
    with world.database.write() as session:
        session.get_one(BillingLink, (org_id, "lago")).account_id = "another-organization"
    (finding,) = drift_harness.findings()
    assert (finding.kind, finding.provider, finding.ours) == ("wrong_account", "lago", "another-organization")


def test_what_a_list_showed_is_looked_at_again_before_it_is_told(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced_organization(world)
    customer = str(world.link(org_id, "stripe").customer_id)
    world.sandbox.patch("stripe", "customers", customer, name="Mallory")
    planner = drift_harness.detector
    run = planner.resume()
    while run.stage != "organizations":
        planner.step(run)
    world.sandbox.patch("stripe", "customers", customer, name="Acme")
    while run.stage is not None:
        planner.step(run)
    assert drift_harness.drifts(planner.finish(run)) == []


def test_an_organization_that_changes_while_it_is_looked_at_counts_as_behind(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    org_id = synced_organization(world)
    world.sandbox.patch("stripe", "customers", str(world.link(org_id, "stripe").customer_id), name="Mallory")
    planner = drift_harness.detector
    run = planner.resume()
    while run.stage != "organizations":
        planner.step(run)
    world.rename(org_id, "Acme GmbH")
    while run.stage is not None:
        planner.step(run)
    plan = planner.finish(run)
    assert (plan.counts.drifted, plan.counts.in_flux) == (0, 1)


def test_the_same_findings_have_the_same_id_and_nothing_listed_is_kept(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    org_id = synced_organization(world)
    world.sandbox.patch("stripe", "customers", str(world.link(org_id, "stripe").customer_id), name="Mallory")
    first, second = drift_harness.check(), drift_harness.check()
    assert first.id == second.id
    with world.database.read() as session:
        assert session.scalar(select(func.count()).select_from(DriftReportRecord)) == 1
        assert session.scalar(select(func.count()).select_from(DriftListing)) == 0
        assert [each.id for each in report_store.find_by_prefix(session, first.id[:8])] == [first.id]


@pytest.mark.slow
def test_a_customer_that_a_list_turned_by_and_that_is_gone_does_not_break_it(world: SyncWorld) -> None:
    drift_harness = DriftHarness(unlinked(world))
    in_sync(world, 250)
    planner = drift_harness.detector
    run = planner.resume()
    planner.step(run)
    assert run.cursor is not None
    world.sandbox.delete("stripe", "customers", run.cursor)
    gone = run.cursor
    while run.stage is not None:
        planner.step(run)
    drifts = drift_harness.drifts(planner.finish(run))
    assert drifts == []  # it was there when it was listed
    (finding,) = drift_harness.findings()
    assert (finding.kind, finding.ours) == ("deleted", gone)


def test_a_schedule_begins_when_its_time_has_come_and_leaves_a_persons_run_alone(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    synced_organization(world)
    day = timedelta(days=1)

    def due() -> bool:
        with world.database.read() as session:
            return report_store.is_due(session, day, world.now)

    assert due()
    planner = drift_harness.detector
    planner.step(planner.resume())
    assert not due()
    world.advance_time(minutes=3)
    assert due()
    assert drift_harness.detector.run_for(60) is not None
    assert not due()
    world.advance_time(days=1)
    assert due()


def test_a_schedule_works_in_slices(world: SyncWorld, drift_harness: DriftHarness) -> None:
    synced_organization(world)
    slices = 1
    while drift_harness.detector.run_for(0) is None and slices < 50:
        slices += 1
        run = drift_harness.detector.resume()
        if run.stage is not None:
            drift_harness.detector.step(run)
    assert 1 < slices < 50
