"""A comparison costs little, survives everything, and believes no page of a list alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import func, select

from core.db.models.billing_links import BillingLink
from core.db.models.drift import DriftPlan, DriftSighting
from core.db.models.providers import BillerStanding
from core.drift import report_store
from core.drift.report_store import RunTakenOverError
from core.events.event_types import Change
from core.organizations import commands
from core.organizations.commands import NewOrganization
from core.ports.errors import MisconfiguredError, UnavailableError
from tests.core.drift.conftest import Audit
from tests.core.drift.test_findings import settled
from tests.core.fakes import World


def in_sync(world: World, count: int) -> list[str]:
    """Organizations that both billers hold as they should, made there by hand: a round each would take minutes."""
    org_ids = [f"org_{number:06}" for number in range(count)]
    names = [f"Acme {number}" for number in range(count)]
    rows = list(zip(org_ids, names, strict=True))
    for start in range(0, count, 1000):
        part = rows[start : start + 1000]
        world.sandbox.preload_stripe_customers(
            [{"id": f"cus_{org}", "name": name, "metadata": {"org_id": org}} for org, name in part]
        )
        world.sandbox.preload_lago_customers(
            [{"external_id": org, "lago_id": f"lago_{org}", "name": name} for org, name in part]
        )
        for org_id, _ in part:
            world.sandbox.preload_lago_subscription(org_id, "starter", org_id)
    with world.database.write() as session:
        for org_id, name in rows:
            new = NewOrganization(name=name, plan_tier="starter", org_id=org_id)
            commands.create(Change(session, world.now), new, world.catalog)
        session.flush()
        for link in session.scalars(select(BillingLink)):
            at = "cus" if link.provider == "stripe" else "lago"
            link.customer_id, link.applied_version, link.applied_customer = f"{at}_{link.org_id}", 1, "made"
            link.applied_plan = "starter" if link.provider == "lago" else None
    world.sandbox.reset_calls()
    return org_ids


def lists(world: World) -> tuple[int, int]:
    """Pages that were asked for since last asked."""
    counters = world.sandbox.counters()
    world.sandbox.reset_calls()
    pages = ("customers", "subscriptions")
    return (
        sum(counters.stripe.of(f"GET /v1/{noun}") for noun in pages),
        sum(counters.lago.of(f"GET /api/v1/{noun}") for noun in pages),
    )


def unlinked(world: World) -> World:
    return replace(world, policy=replace(world.policy, links_payer=False))


def test_a_thousand_that_have_not_drifted_cost_forty_calls_at_most(world: World) -> None:
    audit = Audit(unlinked(world))
    in_sync(world, 1000)
    plan = audit.plan()
    assert (plan.counts.compared, plan.counts.drifted) == (1000, 0)
    assert sum(world.calls()) <= 40


def test_a_run_that_died_goes_on_where_it_was(world: World) -> None:
    audit = Audit(unlinked(world))
    org_ids = in_sync(world, 450)
    world.sandbox.patch("stripe", "customers", f"cus_{org_ids[-1]}", name="Mallory")
    whole = audit.plan()
    listed = lists(world)
    for stop_after in (2, 5, 7):
        planner = audit.planner
        run = planner.take_up()
        for _ in range(stop_after):
            planner.step(run)
    again = audit.plan()
    assert again.id == whole.id
    assert again.counts == whole.counts
    assert lists(world) == listed


def test_a_run_that_somebody_else_goes_on_with_stops(world: World, audit: Audit) -> None:
    settled(world)
    mine, theirs = audit.planner, audit.planner
    run = mine.take_up()
    mine.step(run)
    theirs.take_up()
    with pytest.raises(RunTakenOverError, match="another comparison"):
        mine.step(run)


def test_a_page_that_fails_once_is_asked_for_again_and_an_outage_can_be_gone_on_from(
    world: World, audit: Audit
) -> None:
    settled(world)
    world.sandbox.add_fault("stripe", "GET /v1/customers", "html_502")
    world.sandbox.add_fault("lago", "GET /api/v1/customers", "html_502")
    assert audit.findings() == []
    world.sandbox.add_fault("lago", "GET /api/v1/customers", "html_502", times=0)
    with pytest.raises(UnavailableError):
        audit.plan()
    world.sandbox.clear_faults()
    world.sandbox.reset_calls()
    assert audit.findings() == []
    assert world.sandbox.counters().stripe.of("GET /v1/customers") == 0


def test_a_refused_key_ends_it_at_once(world: World, audit: Audit) -> None:
    settled(world)
    world.sandbox.settings(revoked_keys=["sandbox"])
    before = world.now
    with pytest.raises(MisconfiguredError):
        audit.plan()
    assert world.now == before


def test_a_key_of_another_account_is_told_and_nothing_else_of_that_biller(world: World, audit: Audit) -> None:
    org_id = settled(world)
    world.sandbox.patch("stripe", "customers", str(world.link(org_id, "stripe").customer_id), name="Mallory")
    with world.database.write() as session:
        session.get_one(BillerStanding, "stripe").account_id = "acct_former"
    plan = audit.plan()
    (drift,) = audit.drifts(plan)
    (finding,) = drift.findings
    assert (finding.kind, finding.provider, drift.org_id) == ("wrong_account", "stripe", None)
    assert "acct_former" in finding.to_do
    assert "acct_sandbox" in finding.to_do
    assert plan.counts.left_out == ["stripe"]
    assert audit.plan().id == plan.id


def test_a_key_that_was_put_right_meanwhile_has_the_comparison_begin_anew(world: World, audit: Audit) -> None:
    org_id = settled(world)
    world.sandbox.patch("stripe", "customers", str(world.link(org_id, "stripe").customer_id), name="Mallory")
    world.sandbox.settings(stripe_account="acct_theirs", lago_organization="another-organization")
    planner = audit.planner
    planner.step(planner.take_up())
    world.sandbox.settings(stripe_account="acct_sandbox")
    plan = audit.plan()
    assert plan.counts.left_out == ["lago"]
    assert plan.counts.kinds == {"wrong_account": 1, "renamed": 1}


def test_ids_of_another_account_are_told_of_their_organization(world: World, audit: Audit) -> None:
    org_id = settled(world)
    with world.database.write() as session:
        session.get_one(BillingLink, (org_id, "lago")).account_id = "another-organization"
    (finding,) = audit.findings()
    assert (finding.kind, finding.provider, finding.ours) == ("wrong_account", "lago", "another-organization")


def test_what_a_list_showed_is_looked_at_again_before_it_is_told(world: World, audit: Audit) -> None:
    org_id = settled(world)
    customer = str(world.link(org_id, "stripe").customer_id)
    world.sandbox.patch("stripe", "customers", customer, name="Mallory")
    planner = audit.planner
    run = planner.take_up()
    while run.stage != "organizations":
        planner.step(run)
    world.sandbox.patch("stripe", "customers", customer, name="Acme")
    while run.stage is not None:
        planner.step(run)
    assert audit.drifts(planner.finish(run)) == []


def test_an_organization_that_changes_while_it_is_looked_at_counts_as_behind(world: World, audit: Audit) -> None:
    org_id = settled(world)
    world.sandbox.patch("stripe", "customers", str(world.link(org_id, "stripe").customer_id), name="Mallory")
    planner = audit.planner
    run = planner.take_up()
    while run.stage != "organizations":
        planner.step(run)
    world.rename(org_id, "Acme GmbH")
    while run.stage is not None:
        planner.step(run)
    plan = planner.finish(run)
    assert (plan.counts.drifted, plan.counts.behind) == (0, 1)


def test_the_same_findings_have_the_same_id_and_nothing_listed_is_kept(world: World, audit: Audit) -> None:
    org_id = settled(world)
    world.sandbox.patch("stripe", "customers", str(world.link(org_id, "stripe").customer_id), name="Mallory")
    first, second = audit.plan(), audit.plan()
    assert first.id == second.id
    with world.database.read() as session:
        assert session.scalar(select(func.count()).select_from(DriftPlan)) == 1
        assert session.scalar(select(func.count()).select_from(DriftSighting)) == 0
        assert [each.id for each in report_store.named(session, first.id[:8])] == [first.id]


def test_a_customer_that_a_list_turned_by_and_that_is_gone_does_not_break_it(world: World) -> None:
    audit = Audit(unlinked(world))
    in_sync(world, 250)
    planner = audit.planner
    run = planner.take_up()
    planner.step(run)
    assert run.cursor is not None
    world.sandbox.delete("stripe", "customers", run.cursor)
    gone = run.cursor
    while run.stage is not None:
        planner.step(run)
    drifts = audit.drifts(planner.finish(run))
    assert drifts == []  # it was there when it was listed
    (finding,) = audit.findings()
    assert (finding.kind, finding.ours) == ("deleted", gone)


def test_a_schedule_begins_when_its_time_has_come_and_leaves_a_persons_run_alone(world: World, audit: Audit) -> None:
    settled(world)
    day = timedelta(days=1)

    def due() -> bool:
        with world.database.read() as session:
            return report_store.is_due(session, day, world.now)

    assert due()
    planner = audit.planner
    planner.step(planner.take_up())
    assert not due()
    world.pass_time(minutes=3)
    assert due()
    assert audit.planner.go_on(60) is not None
    assert not due()
    world.pass_time(days=1)
    assert due()


def test_a_schedule_works_in_slices(world: World, audit: Audit) -> None:
    settled(world)
    slices = 1
    while audit.planner.go_on(0) is None and slices < 50:
        slices += 1
        run = audit.planner.take_up()
        if run.stage is not None:
            audit.planner.step(run)
    assert 1 < slices < 50
