"""A plan is applied as it says or not at all, by the usual rounds, once."""

from __future__ import annotations

import json

import pytest

from core.db.models.providers import BillerStanding
from core.drift import report_store
from core.drift.provider_reader import FAILURES
from core.drift.repairer import MovedError
from core.drift.report_store import Plan
from core.organizations.links import SWEEP_GRACE
from core.reconcile import due_links
from core.reconcile.account_guard import WrongAccountError
from tests.core.drift.conftest import Audit
from tests.core.drift.test_findings import settled
from tests.core.fakes import WorkerDiedError, World, die

REFUSED = json.dumps({"error": {"type": "invalid_request_error", "code": "email_invalid", "message": "no"}})


def renamed_there(world: World, *org_ids: str) -> None:
    for org_id in org_ids:
        world.sandbox.patch("stripe", "customers", str(world.link(org_id, "stripe").customer_id), name="Mallory")


def assert_refused(world: World, audit: Audit, plan: Plan) -> None:
    """And nothing was sent."""
    world.sandbox.reset_calls()
    with pytest.raises(MovedError):
        audit.apply(plan)
    assert audit.writes() == []


def test_only_what_the_plan_lists_is_touched(world: World, audit: Audit) -> None:
    acme, other = settled(world), settled(world, name="Other")
    renamed_there(world, acme)
    plan = audit.plan()
    renamed_there(world, other)
    before = world.link(other, "stripe").synced_at
    assert audit.apply(plan).organizations == 1
    assert world.link(other, "stripe").synced_at == before
    assert [each.kind for each in audit.findings()] == ["renamed"]


def test_the_other_biller_is_not_asked_for_a_repair(world: World, audit: Audit) -> None:
    acme = settled(world)
    renamed_there(world, acme)
    plan = audit.plan()
    before = (world.link(acme, "lago").applied_version, world.organization(acme).billing_version)
    audit.apply(plan)
    assert (world.link(acme, "lago").applied_version, world.organization(acme).billing_version) == before


def test_it_is_refused_when_ours_moved(world: World, audit: Audit) -> None:
    acme = settled(world)
    renamed_there(world, acme)
    plan = audit.plan()
    world.rename(acme, "Acme GmbH")
    assert_refused(world, audit, plan)


def test_it_is_refused_when_theirs_moved(world: World, audit: Audit) -> None:
    acme, other = settled(world), settled(world, name="Other")
    renamed_there(world, acme, other)
    plan = audit.plan()
    world.sandbox.patch("stripe", "customers", str(world.link(other, "stripe").customer_id), name="Mallory & Sons")
    assert_refused(world, audit, plan)
    assert len(audit.drifts(audit.plan())) == 2


@pytest.mark.parametrize("fault", [None, "500_before"])
def test_what_moves_while_others_are_repaired_is_left_alone(world: World, audit: Audit, fault: str | None) -> None:
    acme, other = settled(world), settled(world, name="Other")
    renamed_there(world, acme, other)
    plan = audit.plan()
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

    applied = audit.applier.apply(plan, on_round=meanwhile)
    (left,) = applied.left
    assert (left.org_id, left.parked, applied.organizations) == (done[1], False, 2)
    assert "was left alone" in (left.why or "")
    assert world.link(done[1], "stripe").applied_customer


def test_a_biller_that_goes_away_meanwhile_is_not_asked_for_each_that_is_left(world: World, audit: Audit) -> None:
    org_ids = [settled(world, name=f"Company {number}") for number in range(4)]
    renamed_there(world, *org_ids)
    plan = audit.plan()
    done: list[str] = []

    def meanwhile(org_id: str) -> None:
        if not done:
            world.sandbox.add_fault("stripe", "GET /v1/customers/{id}", "500_before", times=999)
            world.calls()
        done.append(org_id)

    applied = audit.applier.apply(plan, on_round=meanwhile)
    assert (applied.organizations, sorted(each.org_id for each in applied.left)) == (4, sorted(done[1:]))
    assert world.calls()[0] <= FAILURES
    assert all(world.link(org_id, "stripe").applied_customer for org_id in done[1:])


def test_it_is_refused_when_somebody_put_it_right_meanwhile(world: World, audit: Audit) -> None:
    acme = settled(world)
    renamed_there(world, acme)
    plan = audit.plan()
    world.sandbox.patch("stripe", "customers", str(world.link(acme, "stripe").customer_id), name="Acme")
    assert_refused(world, audit, plan)


def test_it_is_refused_the_second_time(world: World, audit: Audit) -> None:
    acme = settled(world)
    renamed_there(world, acme)
    plan = audit.plan()
    audit.apply(plan)
    with world.database.read() as session:
        (again,) = report_store.named(session, plan.id)
    assert_refused(world, audit, again)


def test_it_is_refused_with_a_key_of_another_account(world: World, audit: Audit) -> None:
    acme = settled(world)
    renamed_there(world, acme)
    plan = audit.plan()
    with world.database.write() as session:
        session.get_one(BillerStanding, "stripe").account_id = "acct_former"
    with pytest.raises(WrongAccountError):
        audit.apply(plan)


def test_what_the_biller_refuses_is_parked_and_told(world: World, audit: Audit) -> None:
    acme, other = settled(world), settled(world, name="Other")
    renamed_there(world, acme, other)
    plan = audit.plan()
    customer = str(world.link(acme, "stripe").customer_id)
    world.sandbox.add_fault("stripe", "POST /v1/customers/{id}", "status", match=customer, status=400, body=REFUSED)
    applied = audit.apply(plan)
    (left,) = applied.left
    assert (left.org_id, left.provider, left.parked) == (acme, "stripe", True)
    assert left.why
    assert applied.organizations == 2


def test_what_a_crash_leaves_behind_the_sweep_brings_home(world: World, audit: Audit) -> None:
    acme = settled(world)
    renamed_there(world, acme)
    plan = audit.plan()
    world.billers["stripe"].before_customer = die
    with pytest.raises(WorkerDiedError):
        audit.apply(plan)
    world.outlive_the_lease()
    world.wait(SWEEP_GRACE.total_seconds())
    with world.database.write() as session:
        assert due_links.links(session, "stripe", 10, world.now) == [acme]
    world.settle(acme)
    assert audit.findings() == []
