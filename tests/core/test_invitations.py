"""Invitations: for one address, once, for a week, as long as it is not taken back and whoever invited still may."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import select, update

from core.access import invitations, users
from core.access.invitations import InvitationError, TooManyInvitationsError
from core.access.users import UserProfile
from core.catalog.plans import Catalog
from core.common.validation import InvalidChangeError
from core.db.database import Database
from core.db.models.access import Invitation
from core.db.models.email import Email
from core.db.models.events import Event
from core.db.models.organizations import Membership, MembershipRole, Organization
from core.events.event_types import Cause, ChangeContext
from core.organizations import commands, memberships
from core.organizations.commands import NewOrganization
from core.organizations.memberships import AlreadyMemberError
from tests.conftest import SetClock

Work = Callable[[ChangeContext, Organization], object]


class Club:
    """One organization: Olga owns it, Bill is its billing admin. Bob is invited."""

    def __init__(self, database: Database, catalog: Catalog, clock: SetClock) -> None:
        self.database, self.clock = database, clock
        with database.write() as session:
            change = ChangeContext(session, clock())
            organization = commands.create(change, NewOrganization(name="Club", plan_tier="starter"), catalog)
            memberships.add(change, organization, "olga", "owner")
            memberships.add(change, organization, "bill", "billing_admin")
        self.org_id = organization.id
        self.know("bob")

    def know(self, user_id: str, email: str | None = "given") -> None:
        profile = UserProfile(
            user_id=user_id, name=user_id, email=f"{user_id}@club.test" if email == "given" else email
        )
        with self.database.write() as session:
            users.upsert(ChangeContext(session, self.clock()), profile)

    def change(self, work: Work) -> None:
        with self.database.write() as session:
            organization = commands.lock(session, self.org_id)
            assert organization is not None
            work(ChangeContext(session, self.clock()), organization)

    def invite(self, email: str = "bob@club.test", role: MembershipRole = "member", by: str | None = "olga") -> str:
        """Returns the token of the mail."""
        with self.database.write() as session:
            organization = commands.lock(session, self.org_id)
            assert organization is not None
            made = invitations.invite(ChangeContext(session, self.clock()), organization, email, role, by)
            return invitations.new_token(session, made.id)[1]

    def accept(self, token: str, user_id: str = "bob") -> MembershipRole:
        with self.database.write() as session:
            return invitations.accept(ChangeContext(session, self.clock(), Cause(actor=user_id)), token, user_id).role

    def obstacle(self, token: str, user_id: str = "bob") -> str:
        with pytest.raises(InvitationError) as caught:
            self.accept(token, user_id)
        return caught.value.problem

    def role(self, user_id: str = "bob") -> str | None:
        with self.database.read() as session:
            membership = session.get(Membership, (self.org_id, user_id))
            return membership.role if membership else None

    def give(self, user_id: str, role: MembershipRole) -> None:
        def work(change: ChangeContext, organization: Organization) -> None:
            membership = memberships.lock(change.session, organization.id, user_id)
            assert membership is not None
            memberships.change_role(change, membership, role)

        self.change(work)


@pytest.fixture
def club(database: Database, plans: Catalog, clock: SetClock) -> Club:
    return Club(database, plans, clock)


def test_whoever_is_invited_joins_with_the_role_and_it_is_on_record(club: Club) -> None:
    token = club.invite("Bob@Club.TEST", "billing_admin")
    assert club.accept(token) == club.role() == "billing_admin"
    with club.database.read() as session:
        event = session.scalars(select(Event).order_by(Event.seq.desc()).limit(1)).one()
        [invitation] = session.scalars(select(Invitation))
    assert (event.type, event.actor, event.data) == (
        "membership.added",
        "bob",
        {"user_id": "bob", "role": "billing_admin"},
    )
    assert (invitation.state, invitation.closed_at) == ("accepted", club.clock())


def test_an_invitation_is_good_once(club: Club) -> None:
    token = club.invite()
    club.accept(token)
    assert club.obstacle(token) == "used"


def test_it_is_for_the_invited_address_alone(club: Club) -> None:
    token = club.invite()
    club.know("eve")
    club.know("nobody", None)
    assert club.obstacle(token, "eve") == "not-yours"
    assert club.obstacle(token, "nobody") == "unverified"
    assert club.obstacle(token, "never seen") == "unverified"
    assert club.obstacle("x" * 43) == "unknown"
    assert club.accept(token) == "member"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_address_that_only_looks_like_the_invited_one_opens_nothing(club: Club) -> None:
    kelvin = "\N{KELVIN SIGN}"
    assert kelvin.lower() == "k"
    club.know("eve", f"{kelvin}ate@club.test")
    assert club.obstacle(club.invite("kate@club.test"), "eve") == "not-yours"


def test_whom_it_is_not_for_does_not_learn_how_it_stands(club: Club) -> None:
    token = club.invite()
    club.accept(token)
    club.know("eve")
    assert club.obstacle(token, "eve") == "not-yours"


def test_it_ends_after_seven_days_and_a_new_mail_begins_them_anew(club: Club) -> None:
    first = club.invite()
    club.clock.advance(days=6)
    second = club.invite(role="owner")
    club.clock.advance(days=1, seconds=1)
    assert club.obstacle(first) == "expired"
    assert club.accept(second) == "owner"
    assert club.obstacle(first) == "used"


def test_one_that_has_ended_can_be_sent_anew(club: Club) -> None:
    first = club.invite()
    club.clock.advance(days=8)
    assert club.obstacle(first) == "expired"
    second = club.invite()
    assert club.obstacle(first) == "expired"
    assert club.accept(second) == "member"
    with club.database.read() as session:
        [invitation] = session.scalars(select(Invitation))
        assert invitation.emails_sent == 2


def test_one_that_is_taken_back_opens_nothing(club: Club) -> None:
    token = club.invite()
    with club.database.write() as session:
        [invitation] = invitations.list_pending(session, club.org_id, club.clock())
        assert not invitations.revoke(ChangeContext(session, club.clock()), "org_other", invitation.id)
        assert invitations.revoke(ChangeContext(session, club.clock()), club.org_id, invitation.id)
        assert not invitations.revoke(ChangeContext(session, club.clock()), club.org_id, invitation.id)
    assert club.obstacle(token) == "revoked"
    assert club.accept(club.invite()) == "member"


def test_whoever_is_taken_out_does_not_come_back_by_an_invitation_from_before(club: Club) -> None:
    def take_out(change: ChangeContext, organization: Organization) -> None:
        membership = memberships.lock(change.session, organization.id, "bob")
        assert membership is not None
        memberships.remove(change, membership)

    token = club.invite(role="owner")
    club.change(lambda change, organization: memberships.add(change, organization, "bob", "member"))
    club.clock.advance(hours=1)
    club.change(take_out)
    assert club.obstacle(token) == "void"
    club.clock.advance(hours=1)
    assert club.accept(club.invite()) == "member"


def test_a_deleted_organization_takes_nobody_in(club: Club) -> None:
    token = club.invite()
    club.change(lambda change, found: commands.change_status(change, found, "deleted"))
    assert club.obstacle(token) == "deleted"


@pytest.mark.parametrize(
    ("role", "inviter", "then", "good"),
    [
        ("owner", "olga", "owner", True),
        ("owner", "olga", "billing_admin", False),
        ("member", "olga", "billing_admin", True),
        ("member", "olga", "member", False),
        ("billing_admin", "bill", "billing_admin", True),
        ("billing_admin", "bill", None, False),
        ("owner", None, None, True),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_somebody_may_give_is_looked_at_when_it_is_taken(
    club: Club, role: MembershipRole, inviter: str | None, then: MembershipRole | None, *, good: bool
) -> None:
    token = club.invite(role=role, by=inviter)
    if inviter is not None and then is not None:
        club.give(inviter, then)
    elif inviter is not None:
        with club.database.write() as session:
            session.delete(session.get_one(Membership, (club.org_id, inviter)))
    if good:
        assert club.accept(token) == role
    else:
        assert club.obstacle(token) == "void"
        assert club.role() is None


def test_a_member_is_not_invited_and_accepts_nothing(club: Club) -> None:
    token = club.invite()
    club.change(lambda change, found: memberships.add(change, found, "bob", "billing_admin"))
    with pytest.raises(AlreadyMemberError):
        club.accept(token)
    with pytest.raises(AlreadyMemberError):
        club.invite("BOB@club.test")
    assert club.role() == "billing_admin"


@pytest.mark.parametrize(
    "email",
    [
        "",
        "bob",
        "bob@club",
        "b ob@club.test",
        "bob@club.test\nBcc: x@y.z",
        "böb@club.test",
        # The code of mail headers: it would be read as another address, or as none.
        "=?utf-8?q?eve=40evil.test=2C?=@club.test",
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_is_no_address_is_refused(club: Club, email: str) -> None:
    with pytest.raises(InvalidChangeError, match="email must be one address"):
        club.invite(email)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_nobody_is_mailed_without_end(club: Club) -> None:
    for _ in range(invitations.MAX_INVITATION_EMAILS_PER_DAY_TO_ONE_ADDRESS):
        club.invite()
    with pytest.raises(TooManyInvitationsError, match="this address was mailed 5"):
        club.invite("Bob@club.test")
    with club.database.write() as session:
        [invitation] = invitations.list_pending(session, club.org_id, club.clock())
        invitations.revoke(ChangeContext(session, club.clock()), club.org_id, invitation.id)
    with pytest.raises(TooManyInvitationsError, match="within a day"):
        club.invite()
    club.clock.advance(days=1, seconds=1)
    club.invite()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_organization_invites_so_many_at_once_and_so_many_a_day(club: Club) -> None:
    for number in range(invitations.MAX_PENDING_INVITATIONS):
        club.invite(f"u{number}@club.test")
    with pytest.raises(TooManyInvitationsError, match="50 invitations are pending"):
        club.invite()
    club.invite("u0@club.test")
    with club.database.write() as session:
        session.execute(update(Invitation).values(state="revoked"))
    for number in range(invitations.MAX_INVITATION_EMAILS_PER_DAY - invitations.MAX_PENDING_INVITATIONS - 1):
        club.invite(f"v{number}@club.test")
        with club.database.write() as session:
            session.execute(update(Invitation).values(state="revoked"))
    with pytest.raises(TooManyInvitationsError, match="100 invitations within a day"):
        club.invite()


def test_of_two_who_accept_at_the_same_moment_one_joins_and_the_other_is_told(club: Club) -> None:
    for _ in range(5):
        token, together = club.invite(), Barrier(2)

        def accept(_: int, token: str = token, together: Barrier = together) -> str:
            together.wait()
            try:
                return club.accept(token)
            except InvitationError as error:
                return error.problem

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(accept, range(2))) == ["member", "used"]
        with club.database.write() as session:
            session.delete(session.get_one(Membership, (club.org_id, "bob")))
            session.execute(update(Email).values(created_at=club.clock.now.replace(year=2020)))


def test_of_two_who_invite_the_same_at_the_same_moment_both_have_the_one_invitation(club: Club) -> None:
    together = Barrier(2)

    def invite(_: int) -> str:
        together.wait()
        return club.invite()

    with ThreadPoolExecutor(2) as pool:
        tokens = list(pool.map(invite, range(2)))
    with club.database.read() as session:
        [invitation] = session.scalars(select(Invitation))
        assert invitation.emails_sent == 2
        assert len(session.scalars(select(Email)).all()) == 2
    assert club.accept(tokens[0]) == "member"
    assert club.obstacle(tokens[1]) == "used"
