"""The first sign-in makes one organization, whoever signs in at the same moment; every later one makes none."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Barrier

import pytest
from sqlalchemy import func, select

from core.access import users
from core.access.users import UserProfile
from core.catalog.plans import Catalog
from core.db.database import Database
from core.db.models.access import User
from core.db.models.organizations import Membership, Organization
from core.events.event_types import ChangeContext
from core.organizations import memberships

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
LATER = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
ALICE = UserProfile(user_id="alice", name="Alice", email="alice@example.test")


def sign_in(database: Database, plans: Catalog, profile: UserProfile, now: datetime = NOW) -> Organization | None:
    with database.write() as session:
        return users.sign_in(ChangeContext(session, now), profile, plans)


def test_the_first_sign_in_makes_an_organization_with_the_person_as_owner(database: Database, plans: Catalog) -> None:
    made = sign_in(database, plans, ALICE)
    assert made is not None
    assert (made.name, made.plan_tier, made.billing_email) == (
        "Alice's Organization",
        "founders_friend",
        "alice@example.test",
    )
    with database.read() as session:
        assert session.get_one(Membership, (made.id, "alice")).role == "owner"


def test_a_later_sign_in_notes_who_the_person_is_now_and_makes_nothing(database: Database, plans: Catalog) -> None:
    assert sign_in(database, plans, ALICE) is not None
    assert sign_in(database, plans, UserProfile(user_id="alice", name="Alice B."), LATER) is None
    with database.read() as session:
        user = session.get_one(User, "alice")
        assert (user.name, user.email) == ("Alice B.", None)
        assert (user.first_seen_at, user.last_seen_at) == (NOW, LATER)
        assert session.scalar(select(func.count(Organization.id))) == 1


def test_of_sign_ins_at_the_same_moment_one_makes_the_organization(database: Database, plans: Catalog) -> None:
    together = Barrier(6)

    def once(_: int) -> bool:
        together.wait()
        return sign_in(database, plans, ALICE) is not None

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(once, range(6))) == [False] * 5 + [True]
    with database.read() as session:
        assert session.scalar(select(func.count(Organization.id))) == 1


def test_somebody_who_was_added_before_gets_none(database: Database, plans: Catalog) -> None:
    made = sign_in(database, plans, ALICE)
    assert made is not None
    with database.write() as session:
        memberships.add(ChangeContext(session, NOW), session.get_one(Organization, made.id), "bob", "member")
    assert sign_in(database, plans, UserProfile(user_id="bob", name="Bob")) is None


def test_two_people_of_one_name_have_two_organizations(database: Database, plans: Catalog) -> None:
    first = sign_in(database, plans, ALICE)
    second = sign_in(database, plans, UserProfile(user_id="alice-2", name="alice"))
    assert first is not None
    assert second is not None
    assert second.name.startswith("alice's Organization ")


@pytest.mark.parametrize(
    ("profile", "name"),
    [
        (UserProfile(user_id="u", name=" \n "), "Somebody's Organization"),
        (UserProfile(user_id="u", email="carol@example.test"), "carol's Organization"),
        (UserProfile(user_id="u", name="A\x00\nB"), "A B's Organization"),
        (UserProfile(user_id="u", name="\u202eA\u200bB\u2028C\ufeff"), "AB C's Organization"),
        (
            UserProfile(user_id="u", name="\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645's Organization",
        ),
        (UserProfile(user_id="u", name="ب\u200c" * 250), "ب\u200c" * 88 + "ب's Organization"),
        (UserProfile(user_id="u", name="x" * 500), f"{'x' * 178}'s Organization"),
        (UserProfile(user_id="u", name="D", email="no address"), "D's Organization"),
    ],
)
def test_any_name_that_a_sign_in_service_sends_will_do(
    database: Database, plans: Catalog, profile: UserProfile, name: str
) -> None:
    made = sign_in(database, plans, profile)
    assert made is not None
    assert made.name == name


def test_whoever_changes_something_is_known_by_a_verified_address(database: Database) -> None:
    for profile, now in (
        (UserProfile(user_id="bob"), NOW),
        (UserProfile(user_id="bob", name="Bob", email="bob@example.test"), NOW),
        (UserProfile(user_id="bob"), LATER),
    ):
        with database.write() as session:
            users.upsert(ChangeContext(session, now), profile)
    with database.read() as session:
        bob = session.get_one(User, "bob")
        assert (bob.name, bob.email, bob.last_seen_at) == ("Bob", "bob@example.test", NOW)
    with database.write() as session:
        users.upsert(ChangeContext(session, LATER), UserProfile(user_id="bob", email="no address"))
    with database.read() as session:
        assert session.get_one(User, "bob").email is None  # the remembered one may be somebody else's


def test_many_first_changes_of_one_person_at_once_do_each_other_no_harm(database: Database) -> None:
    together = Barrier(6)

    def once(_: int) -> None:
        together.wait()
        with database.write() as session:
            users.upsert(ChangeContext(session, NOW), ALICE)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(once, range(6)))
    with database.read() as session:
        assert session.get_one(User, "alice").email == ALICE.email
