"""The reads that run every second touch only what is due: held against the plan that each database really chooses."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, text
from sqlalchemy.orm import Session

from core.catalog.plans import Catalog
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.email import Email
from core.db.models.events import Event
from core.db.models.organizations import Membership, Organization
from core.emails import queue
from core.events import outbox
from core.organizations import links, queries
from core.organizations.links import new_link
from core.organizations.queries import OrganizationCursor, OrganizationFilter
from core.organizations.validation import name_key
from core.reconcile import due_links

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
MANY = 10_000
FEW = 20


@pytest.fixture
def large(database: Database, plans: Catalog) -> Database:
    """Ten thousand organizations, all in sync but a few."""
    assert plans
    ids = [f"org_{number}" for number in range(MANY)]
    with database.write() as session:
        session.execute(insert(Organization), [_organization(org_id) for org_id in ids])
        for provider in ("stripe", "lago"):
            done = [{"applied_version": 1 if number >= FEW else 0} for number in range(MANY)]
            rows = [new_link(org_id, provider, NOW) for org_id in ids]
            session.execute(insert(BillingLink), [row | extra for row, extra in zip(rows, done, strict=True)])
        seats = [{"org_id": org_id, "user_id": f"user_{number % 3000}"} for number, org_id in enumerate(ids)]
        session.execute(insert(Membership), [{**seat, "role": "member", "joined_at": NOW} for seat in seats])
        session.execute(insert(Event), [_event(number, org_id) for number, org_id in enumerate(ids)])
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    return database


def _organization(org_id: str) -> dict[str, object]:
    return {
        "id": org_id,
        "name": org_id,
        "name_key": name_key(org_id),
        "plan_tier": "starter",
        "status": "active",
        "created_at": NOW,
        "updated_at": NOW,
        "version": 1,
    }


def _event(number: int, org_id: str) -> dict[str, object]:
    return {
        "id": f"e{number}",
        "type": "organization.created",
        "org_id": org_id,
        "actor": "system",
        "source": "test",
        "data": {},
        "occurred_at": NOW,
        "published_at": NOW if number >= FEW else None,
    }


def plans_of(database: Database, work: Callable[[Session], object]) -> str:
    """The plans of all statements of the work, with the values that they really ran with."""
    sent: list[tuple[str, Any]] = []

    def note(_connection: Connection, _cursor: object, statement: str, parameters: Any, *_: object) -> None:  # noqa: ANN401 - the driver's own
        if statement.startswith(("SELECT", "UPDATE", "WITH")):
            sent.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        with database.write() as session:
            work(session)
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
    explain = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
    with database.engine.connect() as connection:
        found = [connection.exec_driver_sql(explain + statement, values).all() for statement, values in sent]
    assert found
    return str(found)


def test_the_sweep_reads_only_links_that_are_behind(large: Database) -> None:
    swept: list[str] = []
    later = NOW + links.SWEEP_GRACE
    plans = plans_of(large, lambda session: swept.extend(due_links.dispatch(session, "lago", 100, later)))
    assert len(swept) == FEW
    assert "ix_billing_links_due" in plans
    assert "Seq Scan" not in plans


def test_counting_what_is_behind_reads_only_that(large: Database) -> None:
    plans = plans_of(large, due_links.count_behind)
    assert "ix_billing_links_due" in plans


def test_the_relay_reads_only_events_that_are_pending(large: Database) -> None:
    leased: list[object] = []
    plans = plans_of(large, lambda session: leased.extend(outbox.lease_batch(session, 100, NOW)[1]))
    assert len(leased) == FEW
    assert "ix_events_unpublished" in plans
    assert "ix_events_unpublished" in plans_of(large, outbox.has_pending)


def test_a_member_is_looked_up_and_a_persons_seats_are_found_without_a_walk(large: Database) -> None:
    found: list[object] = []
    plans = plans_of(large, lambda session: found.append(queries.find_organization(session, "org_7", "user_7")))
    plans += plans_of(large, lambda session: found.append(len(queries.memberships_of_user(session, "user_7"))))
    assert found[0] is not None
    assert found[1] == 4
    assert "ix_memberships_user_id" in plans
    for table in ("organizations", "memberships", "billing_links"):
        assert f"Seq Scan on {table}" not in plans
        assert f"SCAN {table}'" not in plans


def test_a_page_of_all_begins_at_its_cursor_however_deep(large: Database) -> None:
    found: list[int] = []
    deep = OrganizationFilter(after=OrganizationCursor(created_at=NOW, org_id="org_9"))
    plans = plans_of(large, lambda session: found.append(len(queries.list_organizations(session, deep, 50))))
    assert found == [50]
    assert "ix_organizations_created_at" in plans
    assert "Sort Key: organizations" not in plans
    assert "TEMP B-TREE FOR ORDER BY" not in plans


def test_mails_are_read_only_where_they_are_due(database: Database) -> None:
    with database.write() as session:
        session.execute(insert(Organization), [_organization("org_0")])
        session.execute(insert(Email), [_mail(number) for number in range(MANY)])
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    reads: list[Callable[[Session], object]] = [
        lambda session: queue.any_due(session, NOW),
        lambda session: queue.release_ready(session, NOW),
        lambda session: queue.lease_next(session, NOW),
    ]
    for read in reads:
        plans = plans_of(database, read)
        assert "ix_emails_due" in plans
        assert "Seq Scan on emails" not in plans
        assert "SCAN emails" not in plans.replace("SCAN emails USING INDEX ix_emails_due", "")
    asked = plans_of(database, lambda session: queue.count_invitations_since(session, "org_1", NOW))
    assert "ix_emails_org_id" in asked


def _mail(number: int) -> dict[str, object]:
    return {
        "id": f"m{number}",
        "cause": f"e{number}",
        "kind": "welcome",
        "recipient": "a@acme.test",
        "org_id": f"org_{number}" if number >= FEW else "org_0",
        "after_version": 1 if number == 1 else None,
        "state": "sent" if number >= FEW else "active",
        "attempts": 0,
        "next_attempt_at": NOW,
        "created_at": NOW,
    }
