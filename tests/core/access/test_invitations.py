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
from tests.support.clocks import SetClock

Work = Callable[[ChangeContext, Organization], object]


class InvitationHarness:
    """One organization: Olga owns it, Bill is its billing admin. Bob is invited."""

    def __init__(self, database: Database, catalog: Catalog, clock: SetClock) -> None:
        self.database, self.clock = database, clock
        with database.write() as session:
            change = ChangeContext(session, clock())
            organization = commands.create(change, NewOrganization(name="Club", plan_tier="starter"), catalog)
            memberships.add(change, organization, "olga", "owner")
            memberships.add(change, organization, "bill", "billing_admin")
        self.org_id = organization.id
        self.add_user("bob")

    def add_user(self, user_id: str, email: str | None = "given") -> None:
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
def harness(database: Database, plans: Catalog, clock: SetClock) -> InvitationHarness:
    return InvitationHarness(database, plans, clock)


def test_whoever_is_invited_joins_with_the_role_and_it_is_on_record(harness: InvitationHarness) -> None:
    token = harness.invite("Bob@Club.TEST", "billing_admin")
    assert harness.accept(token) == harness.role() == "billing_admin"
    with harness.database.read() as session:
        event = session.scalars(select(Event).order_by(Event.seq.desc()).limit(1)).one()
        [invitation] = session.scalars(select(Invitation))
    assert (event.type, event.actor, event.data) == (
        "membership.added",
        "bob",
        {"user_id": "bob", "role": "billing_admin"},
    )
    assert (invitation.state, invitation.closed_at) == ("accepted", harness.clock())


def test_an_invitation_is_good_once(harness: InvitationHarness) -> None:
    token = harness.invite()
    harness.accept(token)
    assert harness.obstacle(token) == "used"


def test_it_is_for_the_invited_address_alone(harness: InvitationHarness) -> None:
    token = harness.invite()
    harness.add_user("eve")
    harness.add_user("nobody", None)
    assert harness.obstacle(token, "eve") == "not-yours"
    assert harness.obstacle(token, "nobody") == "unverified"
    assert harness.obstacle(token, "never seen") == "unverified"
    assert harness.obstacle("x" * 43) == "unknown"
    assert harness.accept(token) == "member"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_address_that_only_looks_like_the_invited_one_opens_nothing(harness: InvitationHarness) -> None:
    kelvin = "\N{KELVIN SIGN}"
    assert kelvin.lower() == "k"
    harness.add_user("eve", f"{kelvin}ate@club.test")
    assert harness.obstacle(harness.invite("kate@club.test"), "eve") == "not-yours"


def test_whom_it_is_not_for_does_not_learn_how_it_stands(harness: InvitationHarness) -> None:
    token = harness.invite()
    harness.accept(token)
    harness.add_user("eve")
    assert harness.obstacle(token, "eve") == "not-yours"


def test_it_ends_after_seven_days_and_a_new_mail_begins_them_anew(harness: InvitationHarness) -> None:
    first = harness.invite()
    harness.clock.advance(days=6)
    second = harness.invite(role="owner")
    harness.clock.advance(days=1, seconds=1)
    assert harness.obstacle(first) == "expired"
    assert harness.accept(second) == "owner"
    assert harness.obstacle(first) == "used"


def test_one_that_has_ended_can_be_sent_anew(harness: InvitationHarness) -> None:
    first = harness.invite()
    harness.clock.advance(days=8)
    assert harness.obstacle(first) == "expired"
    second = harness.invite()
    assert harness.obstacle(first) == "expired"
    assert harness.accept(second) == "member"
    with harness.database.read() as session:
        [invitation] = session.scalars(select(Invitation))
        assert invitation.emails_sent == 2


def test_one_that_is_taken_back_opens_nothing(harness: InvitationHarness) -> None:
    token = harness.invite()
    with harness.database.write() as session:
        [invitation] = invitations.list_pending(session, harness.org_id, harness.clock())
        assert not invitations.revoke(ChangeContext(session, harness.clock()), "org_other", invitation.id)
        assert invitations.revoke(ChangeContext(session, harness.clock()), harness.org_id, invitation.id)
        assert not invitations.revoke(ChangeContext(session, harness.clock()), harness.org_id, invitation.id)
    assert harness.obstacle(token) == "revoked"
    assert harness.accept(harness.invite()) == "member"


def test_whoever_is_taken_out_does_not_come_back_by_an_invitation_from_before(harness: InvitationHarness) -> None:
    def take_out(change: ChangeContext, organization: Organization) -> None:
        membership = memberships.lock(change.session, organization.id, "bob")
        assert membership is not None
        memberships.remove(change, membership)

    token = harness.invite(role="owner")
    harness.change(lambda change, organization: memberships.add(change, organization, "bob", "member"))
    harness.clock.advance(hours=1)
    harness.change(take_out)
    assert harness.obstacle(token) == "void"
    harness.clock.advance(hours=1)
    assert harness.accept(harness.invite()) == "member"


def test_a_deleted_organization_takes_nobody_in(harness: InvitationHarness) -> None:
    token = harness.invite()
    harness.change(lambda change, found: commands.change_status(change, found, "deleted"))
    assert harness.obstacle(token) == "deleted"


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
    harness: InvitationHarness, role: MembershipRole, inviter: str | None, then: MembershipRole | None, *, good: bool
) -> None:
    token = harness.invite(role=role, by=inviter)
    if inviter is not None and then is not None:
        harness.give(inviter, then)
    elif inviter is not None:
        with harness.database.write() as session:
            session.delete(session.get_one(Membership, (harness.org_id, inviter)))
    if good:
        assert harness.accept(token) == role
    else:
        assert harness.obstacle(token) == "void"
        assert harness.role() is None


def test_a_member_is_not_invited_and_accepts_nothing(harness: InvitationHarness) -> None:
    token = harness.invite()
    harness.change(lambda change, found: memberships.add(change, found, "bob", "billing_admin"))
    with pytest.raises(AlreadyMemberError):
        harness.accept(token)
    with pytest.raises(AlreadyMemberError):
        harness.invite("BOB@club.test")
    assert harness.role() == "billing_admin"


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
def test_what_is_no_address_is_refused(harness: InvitationHarness, email: str) -> None:
    with pytest.raises(InvalidChangeError, match="email must be a single ASCII address"):
        harness.invite(email)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_nobody_is_mailed_without_end(harness: InvitationHarness) -> None:
    for _ in range(invitations.MAX_INVITATION_EMAILS_PER_DAY_TO_ONE_ADDRESS):
        harness.invite()
    with pytest.raises(TooManyInvitationsError, match="5 invitation emails were sent to this address"):
        harness.invite("Bob@club.test")
    with harness.database.write() as session:
        [invitation] = invitations.list_pending(session, harness.org_id, harness.clock())
        invitations.revoke(ChangeContext(session, harness.clock()), harness.org_id, invitation.id)
    with pytest.raises(TooManyInvitationsError, match="within 24 hours"):
        harness.invite()
    harness.clock.advance(days=1, seconds=1)
    harness.invite()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_organization_invites_so_many_at_once_and_so_many_a_day(harness: InvitationHarness) -> None:
    for number in range(invitations.MAX_PENDING_INVITATIONS):
        harness.invite(f"u{number}@club.test")
    with pytest.raises(TooManyInvitationsError, match="50 invitations are pending"):
        harness.invite()
    harness.invite("u0@club.test")
    with harness.database.write() as session:
        session.execute(update(Invitation).values(state="revoked"))
    for number in range(invitations.MAX_INVITATION_EMAILS_PER_DAY - invitations.MAX_PENDING_INVITATIONS - 1):
        harness.invite(f"v{number}@club.test")
        with harness.database.write() as session:
            session.execute(update(Invitation).values(state="revoked"))
    with pytest.raises(TooManyInvitationsError, match="100 invitations within 24 hours"):
        harness.invite()


def test_of_two_who_accept_at_the_same_moment_one_joins_and_the_other_is_told(harness: InvitationHarness) -> None:
    for _ in range(5):
        token, together = harness.invite(), Barrier(2)

        def accept(_: int, token: str = token, together: Barrier = together) -> str:
            together.wait()
            try:
                return harness.accept(token)
            except InvitationError as error:
                return error.problem

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(accept, range(2))) == ["member", "used"]
        with harness.database.write() as session:
            session.delete(session.get_one(Membership, (harness.org_id, "bob")))
            session.execute(update(Email).values(created_at=harness.clock.now.replace(year=2020)))


def test_of_two_who_invite_the_same_at_the_same_moment_both_have_the_one_invitation(harness: InvitationHarness) -> None:
    together = Barrier(2)

    def invite(_: int) -> str:
        together.wait()
        return harness.invite()

    with ThreadPoolExecutor(2) as pool:
        tokens = list(pool.map(invite, range(2)))
    with harness.database.read() as session:
        [invitation] = session.scalars(select(Invitation))
        assert invitation.emails_sent == 2
        assert len(session.scalars(select(Email)).all()) == 2
    assert harness.accept(tokens[0]) == "member"
    assert harness.obstacle(tokens[1]) == "used"
