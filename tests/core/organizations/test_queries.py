"""Pages of organizations neither repeat nor hide a row, and show a person only where that person belongs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from core.catalog.plans import Catalog
from core.db.database import Database
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import commands, memberships, queries
from core.organizations.commands import NewOrganization
from core.organizations.queries import OrganizationCursor, OrganizationFilter, OrganizationRow

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.fixture
def ids(database: Database, plans: Catalog) -> list[str]:
    """Ten organizations, two and two made at the same moment; "u1" owns the even ones, joining the last first."""
    made = []
    with database.write() as session:
        for number in range(10):
            change = ChangeContext(session, NOW + timedelta(seconds=number // 2))
            plan = "starter" if number % 5 else "professional"
            new = NewOrganization(name=f"Team {number}", plan_tier=plan, org_id=f"org_{number}")
            organization = commands.create(change, new, plans)
            if number % 2 == 0:
                joining = ChangeContext(session, NOW + timedelta(days=1, seconds=-number))
                memberships.add(joining, organization, "u1", "owner")
            made.append(organization.id)
    return made


def walk(database: Database, wanted: OrganizationFilter, size: int) -> list[str]:
    found: list[str] = []
    after: OrganizationCursor | None = None
    while True:
        with database.read() as session:
            page = queries.list_organizations(session, OrganizationFilter(user_id=wanted.user_id, after=after), size)
        if not page:
            return found
        found += [entry.organization.id for entry in page]
        last = page[-1].organization
        after = OrganizationCursor(created_at=last.created_at, org_id=last.id)


@pytest.mark.parametrize("size", [1, 3, 10, 11])
def test_pages_of_any_size_name_each_organization_once(database: Database, ids: list[str], size: int) -> None:
    assert walk(database, OrganizationFilter(), size) == ids
    assert walk(database, OrganizationFilter(user_id="u1"), size) == ids[::2]
    assert walk(database, OrganizationFilter(user_id="nobody"), size) == []


def names(entries: list[OrganizationRow]) -> list[str]:
    return [entry.organization.name for entry in entries]


def test_a_page_is_narrowed_by_name_and_plan_and_shows_no_deleted_one(database: Database, ids: list[str]) -> None:
    with database.write() as session:
        commands.change_status(ChangeContext(session, NOW), session.get_one(Organization, ids[5]), "deleted")
    with database.read() as session:
        assert names(queries.list_organizations(session, OrganizationFilter(search=" team 3"), 10)) == ["Team 3"]
        assert names(queries.list_organizations(session, OrganizationFilter(search="%"), 10)) == []
        assert names(queries.list_organizations(session, OrganizationFilter(plan="professional"), 10)) == ["Team 0"]
        assert "Team 5" not in names(queries.list_organizations(session, OrganizationFilter(), 10))


def test_a_persons_seats_come_in_the_order_of_joining(database: Database, ids: list[str]) -> None:
    with database.read() as session:
        seats = queries.memberships_of_user(session, "u1")
    assert [seat.organization.id for seat in seats] == ids[::2][::-1]
    assert {(seat.role, seat.team_size) for seat in seats} == {("owner", 1)}


def test_one_entry_is_there_for_a_member_and_for_nobody_else(database: Database, ids: list[str]) -> None:
    with database.read() as session:
        mine = queries.find_organization(session, ids[0], "u1")
        assert mine is not None
        assert mine.role == "owner"
        assert queries.find_organization(session, ids[1], "u1") is None
        assert queries.find_organization(session, "org_no") is None
        for_service = queries.find_organization(session, ids[1])
        assert for_service is not None
        assert (for_service.role, for_service.team_size, for_service.stripe_customer_id) == (None, 0, None)


def test_members_come_page_by_page_with_how_many_there_are(database: Database, ids: list[str]) -> None:
    with database.write() as session:
        organization = commands.lock(session, ids[1])
        assert organization is not None
        for number in range(3):
            memberships.add(
                ChangeContext(session, NOW + timedelta(seconds=number)), organization, f"m{number}", "member"
            )
    with database.read() as session:
        first, total = queries.list_members(session, ids[1], 2)
        assert ([member.user_id for member in first], total) == (["m0", "m1"], 3)
        assert [member.user_id for member in queries.list_members(session, ids[1], 2, 2)[0]] == ["m2"]
        assert queries.count_roles(session, ids[1]) == {"owner": 0, "billing_admin": 0, "member": 3}
