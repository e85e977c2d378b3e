"""The rows alone say what is due; whatever the broker forgot is handed over again, and never too often."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from sqlalchemy import select, text, update

from core.catalog.plans import Catalog
from core.db import job_locks
from core.db.database import Database
from core.db.models import billing_links
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import commands, plan_changes
from core.organizations.commands import NewOrganization
from core.organizations.links import SWEEP_GRACE
from core.reconcile import due_links, lease, outcomes
from core.reconcile.attempt import ApplyResult, SyncAttempt
from core.reconcile.outcomes import FollowUps
from tests.support.clocks import SetClock


def create(database: Database, plans: Catalog, clock: SetClock, count: int = 1) -> list[str]:
    with database.write() as session:
        change = ChangeContext(session, clock())
        return [
            commands.create(change, NewOrganization(name=f"Company {n}", plan_tier="professional"), plans).id
            for n in range(count)
        ]


def dispatch(database: Database, clock: SetClock, limit: int = 100) -> list[str]:
    with database.write() as session:
        return due_links.dispatch(session, "lago", limit, clock())


def test_a_link_is_swept_once_its_grace_is_over_and_not_again_for_a_while(
    database: Database, plans: Catalog, clock: SetClock
) -> None:
    org_ids = create(database, plans, clock, 3)
    assert dispatch(database, clock) == []
    clock.now += SWEEP_GRACE
    assert sorted(dispatch(database, clock)) == sorted(org_ids)
    assert dispatch(database, clock) == []
    clock.now += due_links.REDISPATCH_LINK_AFTER
    assert len(dispatch(database, clock, limit=2)) == 2


@pytest.mark.parametrize("limit", [2, 8])
def test_a_change_whose_ring_was_lost_does_not_stand_behind_an_import(
    database: Database, plans: Catalog, clock: SetClock, limit: int
) -> None:
    old = create(database, plans, clock, 40)
    clock.now += SWEEP_GRACE
    with database.write() as session:
        change = ChangeContext(session, clock())
        new = commands.create(change, NewOrganization(name="Today", plan_tier="professional"), plans).id
    clock.now += SWEEP_GRACE
    taken = dispatch(database, clock, limit=limit)
    assert (taken[0] in old, new in taken, len(set(taken))) == (True, True, limit)
    assert len(dispatch(database, clock, limit=40)) == 41 - limit


@pytest.mark.parametrize(
    "values",
    [
        {"state": "parked"},
        {"state": "on_hold"},
        {"applied_version": 1},
        {"lease_until": "later"},
    ],
)
def test_what_is_parked_in_sync_or_in_hand_is_left_alone(
    database: Database, plans: Catalog, clock: SetClock, values: dict[str, object]
) -> None:
    create(database, plans, clock)
    clock.now += SWEEP_GRACE
    put = {name: clock() + timedelta(seconds=30) if value == "later" else value for name, value in values.items()}
    with database.write() as session:
        session.execute(update(BillingLink).values(**put))
    assert dispatch(database, clock) == []


def test_an_unfinished_create_is_due_even_in_sync(database: Database, plans: Catalog, clock: SetClock) -> None:
    (org_id,) = create(database, plans, clock)
    clock.now += SWEEP_GRACE
    with database.write() as session:
        session.execute(update(BillingLink).values(applied_version=1, intent={"operation": "create_customer"}))
    assert dispatch(database, clock) == [org_id]


def test_a_downgrade_is_asked_for_when_its_moment_has_come_and_in_minutes_from_then(
    database: Database, plans: Catalog, clock: SetClock
) -> None:
    (org_id,) = create(database, plans, clock)
    with database.write() as session:
        organization = session.get_one(Organization, org_id)
        plan_changes.change_plan(ChangeContext(session, clock()), organization, "starter", plans)
        organization.plan_effective_at = organization.downgrade_recheck_at = clock() + timedelta(days=3)
        before = organization.version
    assert due_links.recheck_due_downgrades(database, 10, clock(), "manage") == 0
    clock.advance(days=3)
    assert due_links.recheck_due_downgrades(database, 10, clock(), "manage") == 1
    # The provider is read, and its billing job has not run yet: it reports the same date, which has passed.
    attempt = lease.acquire(database, clock, org_id, "lago")
    assert isinstance(attempt, SyncAttempt)
    date = attempt.organization.plan_effective_at
    outcomes.complete(attempt, ApplyResult(), FollowUps(scheduled_plan_at=date))
    clock.advance(minutes=4)
    assert due_links.recheck_due_downgrades(database, 10, clock(), "manage") == 0
    with database.read() as session:
        assert session.get_one(Organization, org_id).plan_effective_at == date == clock() - timedelta(minutes=4)
    clock.advance(minutes=1)
    assert due_links.recheck_due_downgrades(database, 10, clock(), "manage") == 1
    with database.read() as session:
        assert session.get_one(Organization, org_id).version == before + 2
    clock.advance(days=1)
    assert due_links.recheck_due_downgrades(database, 10, clock(), "manage") == 1
    clock.advance(minutes=59)
    assert due_links.recheck_due_downgrades(database, 10, clock(), "manage") == 0
    clock.advance(minutes=1)
    assert due_links.recheck_due_downgrades(database, 10, clock(), "manage") == 1


def test_an_early_check_of_a_downgrade_frees_nothing_that_is_parked(
    database: Database, plans: Catalog, clock: SetClock
) -> None:
    (org_id,) = create(database, plans, clock)
    with database.write() as session:
        organization = session.get_one(Organization, org_id)
        plan_changes.change_plan(ChangeContext(session, clock()), organization, "starter", plans)
        organization.plan_effective_at, organization.downgrade_recheck_at = clock() + timedelta(days=3), clock()
        session.execute(update(BillingLink).values(state="parked"))
    due_links.recheck_due_downgrades(database, 10, clock(), "manage")
    with database.read() as session:
        assert set(session.scalars(select(BillingLink.state))) == {"parked"}
    clock.advance(days=4)
    due_links.recheck_due_downgrades(database, 10, clock(), "manage")
    with database.read() as session:
        assert set(session.scalars(select(BillingLink.state))) == {"active"}


def test_a_job_is_run_by_one_of_many(database: Database, clock: SetClock) -> None:
    taken: list[bool] = []
    gate = threading.Barrier(6)

    def take() -> None:
        gate.wait()
        with database.write() as session:
            taken.append(job_locks.acquire(session, "sweep", 4, clock()))

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [False] * 5 + [True]
    clock.advance(seconds=5)
    with database.write() as session:
        assert job_locks.acquire(session, "sweep", 4, clock())


def test_finding_what_is_due_reads_the_index_of_what_is_due(
    database: Database, plans: Catalog, clock: SetClock
) -> None:
    create(database, plans, clock, 200)
    with database.write() as session:
        session.execute(update(BillingLink).values(applied_version=1))
    explain = "EXPLAIN" if not database.is_sqlite else "EXPLAIN QUERY PLAN"
    with database.read() as session:
        if not database.is_sqlite:
            session.execute(text("SET LOCAL enable_seqscan = off"))
        plan = session.execute(
            text(
                f"{explain} SELECT org_id FROM billing_links"  # noqa: S608 - our own words
                f" WHERE provider = 'lago' AND {billing_links.LINK_IS_ACTIVE_WITH_WORK}"
                " AND next_sweep_at <= '2027-01-01' ORDER BY next_sweep_at LIMIT 100"
            )
        ).all()
    assert "ix_billing_links_due" in str(plan)
