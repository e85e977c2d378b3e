"""Members come, change and go, each with its event; no biller hears of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Barrier

import pytest
from sqlalchemy import select

from core.catalog.plans import Catalog
from core.common.validation import InvalidChangeError
from core.db.database import Database
from core.db.models.events import Event, EventData
from core.db.models.organizations import Membership, Organization
from core.events.event_types import ChangeContext
from core.organizations import commands, memberships
from core.organizations.commands import NewOrganization
from core.organizations.memberships import LastOwnerError

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.fixture
def org_id(database: Database, plans: Catalog) -> str:
    with database.write() as session:
        new = NewOrganization(name="Acme", plan_tier="starter")
        return commands.create(ChangeContext(session, NOW), new, plans).id


def add(database: Database, org_id: str, user_id: str, role: str = "member") -> None:
    with database.write() as session:
        organization = commands.lock(session, org_id)
        assert organization is not None
        memberships.add(ChangeContext(session, NOW), organization, user_id, role)


def events(database: Database) -> list[tuple[str, EventData]]:
    with database.read() as session:
        return [(event.type, event.data) for event in session.scalars(select(Event).order_by(Event.seq))][1:]


def test_each_change_records_its_event_and_raises_no_version(database: Database, org_id: str) -> None:
    add(database, org_id, "u1")
    with database.write() as session:
        member = memberships.lock(session, org_id, "u1")
        assert member is not None
        memberships.change_role(ChangeContext(session, NOW), member, "billing_admin")
        memberships.change_role(ChangeContext(session, NOW), member, "billing_admin")
    with database.write() as session:
        member = memberships.lock(session, org_id, "u1")
        assert member is not None
        memberships.remove(ChangeContext(session, NOW), member)
    assert events(database) == [
        ("membership.added", {"user_id": "u1", "role": "member"}),
        ("membership.role_changed", {"user_id": "u1", "from": "member", "to": "billing_admin"}),
        ("membership.removed", {"user_id": "u1"}),
    ]
    with database.read() as session:
        assert session.get_one(Organization, org_id).version == 1
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


@pytest.mark.parametrize("leaving", ["removed", "demoted"])
def test_of_two_owners_who_leave_at_the_same_moment_one_stays(database: Database, org_id: str, leaving: str) -> None:
    add(database, org_id, "u1", "owner")
    add(database, org_id, "u2", "owner")
    together = Barrier(2)

    def leave(user_id: str) -> bool:
        together.wait()
        try:
            with database.write() as session:
                commands.lock(session, org_id)
                member = memberships.lock(session, org_id, user_id)
                assert member is not None
                change = ChangeContext(session, NOW)
                if leaving == "removed":
                    memberships.remove(change, member)
                else:
                    memberships.change_role(change, member, "member")
        except LastOwnerError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(leave, ["u1", "u2"])) == [False, True]
    with database.read() as session:
        roles = session.scalars(select(Membership.role).where(Membership.org_id == org_id)).all()
    assert list(roles).count("owner") == 1


@pytest.mark.parametrize("status", ["active", "suspended", "deleted"])
def test_a_member_who_is_no_owner_may_always_leave_and_the_last_owner_never(
    database: Database, org_id: str, status: str
) -> None:
    add(database, org_id, "u1", "member")
    add(database, org_id, "u2", "owner")
    with database.write() as session:
        organization = commands.lock(session, org_id)
        assert organization is not None
        commands.change_status(ChangeContext(session, NOW), organization, status)

    def leave(user_id: str) -> None:
        with database.write() as session:
            member = memberships.lock(session, org_id, user_id)
            assert member is not None
            memberships.remove(ChangeContext(session, NOW), member)

    leave("u1")
    with pytest.raises(LastOwnerError):
        leave("u2")
    with database.read() as session:
        assert session.scalars(select(Membership.user_id)).all() == ["u2"]
