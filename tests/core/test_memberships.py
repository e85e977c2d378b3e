"""Members come, change and go, each with its event; no biller hears of it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import select

from core import memberships, organizations
from core.catalog import Catalog
from core.database import Database
from core.events import Change
from core.models import Event, EventData, Membership, Organization
from core.organizations import InvalidChangeError, NewOrganization

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.fixture
def org_id(database: Database, plans: Catalog) -> str:
    with database.write() as session:
        new = NewOrganization(name="Acme", plan_tier="starter")
        return organizations.create(Change(session, NOW), new, plans).id


def add(database: Database, org_id: str, user_id: str, role: str = "member") -> None:
    with database.write() as session:
        organization = organizations.lock(session, org_id)
        assert organization is not None
        memberships.add(Change(session, NOW), organization, user_id, role)


def events(database: Database) -> list[tuple[str, EventData]]:
    with database.read() as session:
        return [(event.type, event.data) for event in session.scalars(select(Event).order_by(Event.seq))][1:]


def test_each_change_records_its_event_and_raises_no_version(database: Database, org_id: str) -> None:
    add(database, org_id, "u1")
    with database.write() as session:
        member = memberships.find(session, org_id, "u1")
        assert member is not None
        memberships.change_role(Change(session, NOW), member, "owner")
        memberships.change_role(Change(session, NOW), member, "owner")
    with database.write() as session:
        member = memberships.find(session, org_id, "u1")
        assert member is not None
        memberships.remove(Change(session, NOW), member)
    assert events(database) == [
        ("membership.added", {"user_id": "u1", "role": "member"}),
        ("membership.role_changed", {"user_id": "u1", "from": "member", "to": "owner"}),
        ("membership.removed", {"user_id": "u1"}),
    ]
    with database.read() as session:
        assert session.get_one(Organization, org_id).billing_version == 1
        assert session.scalars(select(Membership)).all() == []


@pytest.mark.parametrize("user_id", ["", " ", "x" * 256, "a\x00", "a\nb", "a\ud800"])
def test_a_user_that_cannot_be_kept_is_refused(database: Database, org_id: str, user_id: str) -> None:
    with pytest.raises(InvalidChangeError, match="user_id"):
        add(database, org_id, user_id)


def test_who_is_there_already_and_an_unknown_role_are_refused_and_leave_nothing(
    database: Database, org_id: str
) -> None:
    add(database, org_id, "u1", "owner")
    with pytest.raises(InvalidChangeError, match="User u1 already in organization"):
        add(database, org_id, "u1")
    with pytest.raises(InvalidChangeError, match="role must be one of owner, billing_admin, member; got 'boss'"):
        add(database, org_id, "u2", "boss")
    assert len(events(database)) == 1
