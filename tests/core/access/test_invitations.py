"""Invitations: for one address, once, for a week, as long as it is not taken back and whoever invited still may."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import delete, select, update

from core.access import invitations, limits, received_invitations, users
from core.access.invitations import Invitee, OwnersInvitationError
from core.access.limits import TooManyInvitationsError, TooManyOrganizationsError, UserLimits
from core.access.received_invitations import InvitationError
from core.access.users import UserProfile
from core.catalog.plans import Catalog
from core.common.validation import InvalidChangeError
from core.db.database import Database
from core.db.models.access import Invitation, SentInvitation
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
        self.catalog = catalog
        self.limits = UserLimits(invitations=1000, invitations_to_recipient=1000)
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
            change = ChangeContext(session, self.clock())
            made = invitations.invite(change, organization, Invitee(email=email), role, by, self.limits)
            return invitations.new_token(session, made.id)[1]

    def invite_user(
        self, user_id: str = "bob", role: MembershipRole = "member", by: str | None = "olga", org_id: str | None = None
    ) -> str:
        """Returns the id of the invitation."""
        with self.database.write() as session:
            organization = commands.lock(session, org_id or self.org_id)
            assert organization is not None
            change = ChangeContext(session, self.clock())
            return invitations.invite(change, organization, Invitee(user_id=user_id), role, by, self.limits).id

    def received(self, user_id: str = "bob") -> list[str]:
        with self.database.read() as session:
            email = users.verified_email(session, UserProfile(user_id=user_id))
            return [each.id for each in received_invitations.list_received(session, user_id, email, self.clock())]

    def accept_received(self, invitation_id: str, user_id: str = "bob") -> str:
        """The role, or the problem."""
        try:
            with self.database.write() as session:
                change = ChangeContext(session, self.clock(), Cause(actor=user_id))
                return received_invitations.accept(change, invitation_id, user_id).role
        except InvitationError as error:
            return error.problem

    def revoke(self, invitation_id: str, by: str | None = "olga") -> bool:
        with self.database.write() as session:
            return invitations.revoke(ChangeContext(session, self.clock()), self.org_id, invitation_id, by)

    def accept(self, token: str, user_id: str = "bob") -> MembershipRole:
        with self.database.write() as session:
            change = ChangeContext(session, self.clock(), Cause(actor=user_id))
            return received_invitations.accept_by_token(change, token, user_id).role

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
        assert not invitations.revoke(ChangeContext(session, harness.clock()), "org_other", invitation.id, "olga")
        assert invitations.revoke(ChangeContext(session, harness.clock()), harness.org_id, invitation.id, "olga")
        assert not invitations.revoke(ChangeContext(session, harness.clock()), harness.org_id, invitation.id, "olga")
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
    harness.change(lambda change, found: memberships.add(change, found, "otto", "owner"))
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
    for _ in range(limits.MAX_INVITATIONS_PER_DAY_TO_ONE_RECIPIENT):
        harness.invite()
    with pytest.raises(TooManyInvitationsError, match="5 invitations were sent to this recipient"):
        harness.invite("Bob@club.test")
    with harness.database.write() as session:
        [invitation] = invitations.list_pending(session, harness.org_id, harness.clock())
        invitations.revoke(ChangeContext(session, harness.clock()), harness.org_id, invitation.id, "olga")
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
    for number in range(limits.MAX_INVITATIONS_PER_DAY - invitations.MAX_PENDING_INVITATIONS - 1):
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
            session.execute(delete(SentInvitation))


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


def test_an_invited_user_is_no_member_before_accepting_and_then_has_the_role(harness: InvitationHarness) -> None:
    invitation_id = harness.invite_user("never-seen/1", "billing_admin")
    assert harness.role("never-seen/1") is None
    assert harness.received("never-seen/1") == [invitation_id]
    assert harness.received("eve") == []
    assert harness.accept_received(invitation_id, "eve") == "unknown"
    assert harness.accept_received(invitation_id, "never-seen/1") == harness.role("never-seen/1") == "billing_admin"
    assert harness.accept_received(invitation_id, "never-seen/1") == "used"
    assert harness.received("never-seen/1") == []


def test_an_invitation_to_an_address_is_seen_and_accepted_by_its_user_without_a_token(
    harness: InvitationHarness,
) -> None:
    harness.invite("Bob@Club.test")
    [invitation_id] = harness.received()
    assert harness.accept_received(invitation_id) == "member"


def test_a_declined_invitation_cannot_be_accepted(harness: InvitationHarness) -> None:
    token = harness.invite()
    [invitation_id] = harness.received()
    with harness.database.write() as session:
        received_invitations.decline(ChangeContext(session, harness.clock()), invitation_id, "bob")
    assert (harness.obstacle(token), harness.accept_received(invitation_id)) == ("void", "void")
    assert harness.received() == []
    assert harness.accept(harness.invite()) == "member"


@pytest.mark.parametrize(
    "close",
    [
        lambda harness: harness.clock.advance(days=8),
        lambda harness: harness.change(lambda change, found: commands.change_status(change, found, "suspended")),
        lambda harness: harness.change(lambda change, found: commands.change_status(change, found, "deleted")),
        lambda harness: (harness.give("bill", "owner"), harness.give("olga", "member")),
        lambda harness: harness.revoke(harness.received()[0]),
    ],
    ids=["expired", "suspended", "deleted", "inviter demoted", "revoked"],
)
def test_what_cannot_be_accepted_is_not_offered(
    harness: InvitationHarness, close: Callable[[InvitationHarness], object]
) -> None:
    invitation_id = harness.invite_user()
    assert harness.received() == [invitation_id]
    close(harness)
    assert harness.received() == []
    assert harness.accept_received(invitation_id) in {"expired", "suspended", "deleted", "void", "revoked"}
    assert harness.role() is None


def test_a_first_sign_in_with_an_invitation_creates_no_organization(harness: InvitationHarness) -> None:
    harness.invite("new@club.test")
    harness.invite_user("other")

    def sign_in(user_id: str) -> Organization | None:
        profile = UserProfile(user_id=user_id, name=user_id, email=f"{user_id}@club.test")
        with harness.database.write() as session:
            return users.sign_in(ChangeContext(session, harness.clock()), profile, harness.catalog)

    assert sign_in("new") is None
    assert sign_in("other") is None
    assert sign_in("third") is not None


def test_an_address_that_is_not_verified_any_more_accepts_nothing(harness: InvitationHarness) -> None:
    token = harness.invite()
    with harness.database.write() as session:
        profile = UserProfile(user_id="bob", name="bob", is_email_unverified=True)
        users.upsert(ChangeContext(session, harness.clock()), profile)
    assert harness.obstacle(token) == "unverified"
    assert harness.received() == []


@pytest.mark.parametrize("by", ["olga", None])
def test_a_billing_admin_neither_replaces_nor_revokes_the_invitation_of_an_owner_or_a_service(
    harness: InvitationHarness, by: str | None
) -> None:
    invitation_id = harness.invite_user(role="billing_admin", by=by)
    with pytest.raises(OwnersInvitationError):
        harness.invite_user(role="member", by="bill")
    with pytest.raises(OwnersInvitationError):
        harness.revoke(invitation_id, by="bill")
    assert harness.accept_received(invitation_id) == "billing_admin"
    own = harness.invite_user("carol", by="bill")
    assert harness.revoke(own, by="bill")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_inviter_and_a_recipient_have_a_limit_across_organizations(harness: InvitationHarness) -> None:
    harness.limits = UserLimits(invitations=2, invitations_to_recipient=3)
    with harness.database.write() as session:
        change = ChangeContext(session, harness.clock())
        other = commands.create(change, NewOrganization(name="Other", plan_tier="starter"), harness.catalog)
        memberships.add(change, other, "olga", "owner")
        memberships.add(change, other, "otto", "owner")
    harness.invite_user("u1")
    harness.invite_user("u1", org_id=other.id)
    with pytest.raises(TooManyInvitationsError, match="you have sent 2 invitations within an hour"):
        harness.invite_user("u2")
    harness.invite_user("u1", by="otto", org_id=other.id)
    with pytest.raises(TooManyInvitationsError, match="this recipient was invited too often"):
        harness.invite_user("u1", by="otto", org_id=other.id)
    with harness.database.write() as session:
        limits.delete_expired(session, harness.clock())
        assert len(session.scalars(select(SentInvitation)).all()) == 3
    harness.clock.advance(hours=1)
    harness.invite_user("u2")
    harness.clock.advance(days=1)
    with harness.database.write() as session:
        limits.delete_expired(session, harness.clock())
        assert session.scalars(select(SentInvitation)).all() == []


def test_a_user_creates_so_many_organizations_an_hour_also_at_the_same_moment(harness: InvitationHarness) -> None:
    user_limits, together = UserLimits(organizations=2), Barrier(4)

    def create(number: int) -> bool:
        together.wait()
        try:
            with harness.database.write() as session:
                change = ChangeContext(session, harness.clock(), Cause(actor="bob"))
                limits.refuse_too_many_organizations(change, "bob", user_limits)
                commands.create(change, NewOrganization(name=f"Mine {number}", plan_tier="starter"), harness.catalog)
        except TooManyOrganizationsError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(create, range(4))) == [False, False, True, True]


def test_an_expired_invitation_of_an_owner_blocks_nobody(harness: InvitationHarness) -> None:
    harness.invite(by="olga")
    harness.clock.advance(days=8)
    assert harness.accept(harness.invite(by="bill")) == "member"


def test_many_void_invitations_hide_no_good_one(harness: InvitationHarness) -> None:
    for number in range(received_invitations.MAX_RECEIVED_INVITATIONS + 1):
        with harness.database.write() as session:
            change = ChangeContext(session, harness.clock())
            other = commands.create(
                change, NewOrganization(name=f"Void {number}", plan_tier="starter"), harness.catalog
            )
            memberships.add(change, other, "eve", "owner")
            memberships.add(change, other, "otto", "owner")
        harness.invite_user(by="eve", org_id=other.id)
        with harness.database.write() as session:
            session.delete(session.get_one(Membership, (other.id, "eve")))
    good = harness.invite_user()
    assert harness.received() == [good]
    harness.change(lambda change, found: memberships.add(change, found, "bob", "member"))
    assert harness.received() == []


def test_an_address_never_stands_for_a_user_id(harness: InvitationHarness) -> None:
    invitation_id = harness.invite_user("a@club.test")
    harness.add_user("eve", "user:a@club.test")
    harness.add_user("mallory", "a@club.test")
    for user_id in ("eve", "mallory"):
        assert harness.accept_received(invitation_id, user_id) == "unknown"
    assert harness.accept_received(invitation_id, "a@club.test") == "member"


def test_a_verified_address_that_cannot_be_used_replaces_the_remembered_one(harness: InvitationHarness) -> None:
    token = harness.invite()
    harness.add_user("bob", "new address@club.test")
    assert harness.obstacle(token) == "unverified"


def test_a_user_who_declined_before_the_first_sign_in_gets_an_organization(harness: InvitationHarness) -> None:
    invitation_id = harness.invite_user("new")
    profile = UserProfile(user_id="new", name="New")
    with harness.database.write() as session:
        change = ChangeContext(session, harness.clock())
        users.upsert(change, profile)
        received_invitations.decline(change, invitation_id, "new")
    for is_first in (True, False):
        with harness.database.write() as session:
            created = users.sign_in(ChangeContext(session, harness.clock()), profile, harness.catalog)
        assert (created is not None) == is_first
        with harness.database.write() as session:
            session.execute(delete(Membership).where(Membership.user_id == "new"))
