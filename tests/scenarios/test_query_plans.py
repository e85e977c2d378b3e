"""The reads that run every second touch only what is due: held against the plan that each database really chooses."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import insert, text, update
from sqlalchemy.orm import Session

from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.email import Email
from core.db.models.organizations import Organization
from core.emails import queue
from core.events import outbox
from core.organizations import links, queries
from core.organizations.queries import OrganizationCursor, OrganizationFilter
from core.reconcile import due_links
from tests.support.query_plans import FEW, MANY, NOW, _email, _organization, plans_of


def test_the_sweep_reads_only_links_that_are_behind(large: Database) -> None:
    swept: list[str] = []
    later = NOW + links.SWEEP_GRACE
    plans = plans_of(large, lambda session: swept.extend(due_links.dispatch(session, "lago", 100, later)))
    assert len(swept) == FEW
    assert "ix_billing_links_due" in plans
    assert "Seq Scan" not in plans


def test_what_is_managed_again_is_found_among_the_observed_links(large: Database) -> None:
    """However many are theirs: a list of those would be searched from its start for each link."""
    with large.write() as session:
        ids = [f"org_{number}" for number in range(MANY - 25 * FEW, MANY)]
        session.execute(update(BillingLink).where(BillingLink.org_id.in_(ids)).values(state="observed"))
        theirs = update(BillingLink).where(BillingLink.org_id.in_(ids[FEW:]), BillingLink.provider == "stripe")
        session.execute(theirs.values(ownership="theirs"))
    with large.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    resumed: list[int] = []
    plans = plans_of(large, lambda session: resumed.append(due_links.resume_managed(session, 100, NOW)))
    assert resumed == [2 * FEW]
    assert "ix_billing_links_observed" in plans
    for walk in ("SubPlan", "Seq Scan on billing_links", "LIST SUBQUERY", "SCAN billing_links_1"):
        assert walk not in plans


def test_what_is_observed_first_is_looked_for_in_a_part_of_the_links_at_a_time(large: Database) -> None:
    requested, parts, org_id = 0, 0, ""
    while parts == 0 or org_id:
        walked: list[due_links.FirstObservations] = []

        def walk(session: Session, begin: str = org_id, found: list[due_links.FirstObservations] = walked) -> None:
            found.append(due_links.request_first_observations(session, 1500, NOW, begin, max_reads=2000))

        plans = plans_of(large, walk)
        assert "Seq Scan on billing_links" not in plans
        assert "SCAN billing_links'" not in plans
        ((found, org_id),) = walked
        requested, parts = requested + found, parts + 1
    assert requested == 2 * (MANY - FEW)
    assert 13 <= parts <= 15


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
        session.execute(insert(Email), [_email(number) for number in range(MANY)])
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
    asked = plans_of(database, lambda session: queue.last_digest(session, "ops@acme.test"))
    assert "ix_emails_org_id" in asked
