"""Invitations by email to join an organization with a role.

The token that accepts an invitation is created when its email is sent. It is in that email only; we store its hash.
It works once and for seven days, for the user who signs in with the invited address, and only while the member who
invited may still do so.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal
from uuid import uuid4

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.common import email_addresses
from core.common.validation import InvalidChangeError, one_of
from core.db.models.access import Invitation, InvitationToken, User
from core.db.models.events import Event
from core.db.models.organizations import MEMBERSHIP_ROLES, Membership, MembershipRole, Organization
from core.emails import queue
from core.events.event_types import ChangeContext
from core.organizations import commands, memberships
from core.organizations.memberships import AlreadyMemberError

INVITATION_LIFETIME: Final = timedelta(days=7)
MAX_PENDING_INVITATIONS: Final = 50
INVITATION_EMAIL_WINDOW: Final = timedelta(hours=24)
MAX_INVITATION_EMAILS_PER_DAY: Final = 100
MAX_INVITATION_EMAILS_PER_DAY_TO_ONE_ADDRESS: Final = 5

InvitationProblem = Literal["unknown", "unverified", "not-yours", "used", "revoked", "expired", "deleted", "void"]


class TooManyInvitationsError(InvalidChangeError):
    """Raised at a limit on invitation emails, since the recipients may not want them."""


class InvitationError(Exception):
    """The invitation cannot be accepted. The message says why and what to do."""

    def __init__(self, problem: InvitationProblem, message: str) -> None:
        super().__init__(message)
        self.problem = problem


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedInvitation:
    organization: Organization
    role: MembershipRole


def invite(
    change: ChangeContext, organization: Organization, email: str, role: str, invited_by: str | None
) -> Invitation:
    """Invites an address. If an invitation is pending, it gets another email and is valid for seven more days.

    ``invited_by`` is a user id; ``None``: a service account. Expects the organization's row to be locked. Raises
    ``InvalidChangeError``.
    """
    checked_role = one_of("role", role, MEMBERSHIP_ROLES)
    if not email_addresses.is_mailable(email):
        raise InvalidChangeError("email", "email must be a single ASCII address of the form name@host.tld")
    _refuse_existing_member(change.session, organization, email)
    _refuse_too_many(change, organization, email)
    invitation = _lock_pending(change.session, organization.id, email)
    if invitation is None:
        invitation = Invitation(
            id=f"inv_{uuid4()}",
            org_id=organization.id,
            email=email,
            email_key=email_addresses.comparison_key(email),
            state="pending",
            emails_sent=0,
            created_at=change.now,
        )
        change.session.add(invitation)
    invitation.role, invitation.invited_by = checked_role, invited_by
    invitation.expires_at = change.now + INVITATION_LIFETIME
    invitation.emails_sent += 1
    change.session.flush()
    queue.enqueue_invitation(change, invitation)
    return invitation


def list_pending(session: Session, org_id: str, now: datetime) -> list[Invitation]:
    """Invitations that can still be accepted, oldest first; at most ``MAX_PENDING_INVITATIONS``."""
    is_pending = (Invitation.org_id == org_id, Invitation.state == "pending", Invitation.expires_at > now)
    return list(session.scalars(select(Invitation).where(*is_pending).order_by(Invitation.created_at, Invitation.id)))


def revoke(change: ChangeContext, org_id: str, invitation_id: str) -> bool:
    """Revokes the invitation as of the commit. False: no such invitation is pending."""
    is_pending = (Invitation.org_id == org_id, Invitation.state == "pending", Invitation.expires_at > change.now)
    query = select(Invitation).where(Invitation.id == invitation_id, *is_pending).with_for_update()
    invitation = change.session.scalars(query).one_or_none()
    if invitation is None:
        return False
    invitation.state, invitation.closed_at = "revoked", change.now
    return True


def new_token(session: Session, invitation_id: str) -> tuple[Invitation, str]:
    """Creates another token; the email with it is sent once its hash is committed. It expires with the invitation."""
    invitation = session.get_one(Invitation, invitation_id)
    token = secrets.token_urlsafe(32)
    row = InvitationToken(token_hash=_hash(token), invitation_id=invitation_id, expires_at=invitation.expires_at)
    session.add(row)
    return invitation, token


def accept(change: ChangeContext, token: str, user_id: str) -> AcceptedInvitation:
    """Adds the user and marks the invitation as used. Raises ``InvitationError``, ``AlreadyMemberError``.

    Of two simultaneous calls the second waits for the lock on the organization's row, and finds the invitation used.
    """
    found = change.session.execute(
        select(Invitation.id, Invitation.org_id, InvitationToken.expires_at)
        .join(InvitationToken, InvitationToken.invitation_id == Invitation.id)
        .where(InvitationToken.token_hash == _hash(token))
    ).one_or_none()
    if found is None:
        raise InvitationError("unknown", "Invitation not found. Check that you copied the whole token.")
    invitation_id, org_id, expires_at = found
    organization = commands.lock(change.session, org_id)
    invitation = change.session.get(Invitation, invitation_id, with_for_update=True)
    if organization is None or invitation is None:
        raise InvitationError("unknown", "Invitation not found.")
    _refuse_wrong_user(change.session, invitation, user_id)
    _refuse_closed(change, organization, invitation, expires_at)
    _refuse_removed_member(change.session, invitation, user_id)
    memberships.add(change, organization, user_id, invitation.role)
    invitation.state, invitation.closed_at = "accepted", change.now
    return AcceptedInvitation(organization=organization, role=one_of("role", invitation.role, MEMBERSHIP_ROLES))


def _refuse_wrong_user(session: Session, invitation: Invitation, user_id: str) -> None:
    """Checked first, so that only the invited user learns anything about the invitation."""
    user = session.get(User, user_id)
    if user is None or user.email is None:
        message = (
            "Your email address is not verified. Verify it with the sign-in service, sign in again, then accept the "
            "invitation."
        )
        raise InvitationError("unverified", message)
    if email_addresses.comparison_key(user.email) != invitation.email_key:
        message = "The invitation was sent to a different email address. Sign in with that address."
        raise InvitationError("not-yours", message)


def _refuse_closed(
    change: ChangeContext, organization: Organization, invitation: Invitation, token_expires_at: datetime
) -> None:
    if invitation.state == "accepted":
        raise InvitationError("used", "The invitation has already been used.")
    if invitation.state == "revoked":
        raise InvitationError("revoked", "The invitation has been revoked. Ask for a new one.")
    if min(token_expires_at, invitation.expires_at) <= change.now:
        message = "The invitation has expired. Use the most recent email, or ask for a new invitation."
        raise InvitationError("expired", message)
    if organization.status == "deleted":
        raise InvitationError("deleted", "The organization has been deleted.")
    if not _may_still_invite(change.session, invitation):
        message = "The member who invited you may no longer do so. Ask an owner to invite you again."
        raise InvitationError("void", message)


def _refuse_removed_member(session: Session, invitation: Invitation, user_id: str) -> None:
    """A user who joined in another way and was removed may still have an old invitation. It must not work."""
    since = invitation.expires_at - INVITATION_LIFETIME
    removed = select(Event.seq).where(
        Event.org_id == invitation.org_id,
        Event.type == "membership.removed",
        Event.occurred_at > since,
        Event.data["user_id"].as_string() == user_id,
    )
    if session.scalar(removed.limit(1)) is not None:
        message = "You were removed from the organization after you were invited. Ask an owner to invite you again."
        raise InvitationError("void", message)


def _may_still_invite(session: Session, invitation: Invitation) -> bool:
    """Whether the inviting member may still grant the role. An invitation by a service account stays valid."""
    if invitation.invited_by is None:
        return True
    inviter = session.get(Membership, (invitation.org_id, invitation.invited_by))
    allowed_roles = {"owner"} if invitation.role == "owner" else {"owner", "billing_admin"}
    return inviter is not None and inviter.role in allowed_roles


def _refuse_existing_member(session: Session, organization: Organization, email: str) -> None:
    """Members whose address is unknown are not found."""
    member = (
        select(Membership.user_id)
        .join(User, User.user_id == Membership.user_id)
        .where(Membership.org_id == organization.id, func.lower(User.email) == email_addresses.comparison_key(email))
    )
    if session.scalar(member.limit(1)) is not None:
        raise AlreadyMemberError("email", "a user with this email address is already a member")


def _refuse_too_many(change: ChangeContext, organization: Organization, email: str) -> None:
    is_pending = (
        Invitation.org_id == organization.id,
        Invitation.state == "pending",
        Invitation.expires_at > change.now,
    )
    others = select(func.count()).where(*is_pending, Invitation.email_key != email_addresses.comparison_key(email))
    if (change.session.scalar(others) or 0) >= MAX_PENDING_INVITATIONS:
        message = f"{MAX_PENDING_INVITATIONS} invitations are pending; revoke some, or wait until they expire"
        raise TooManyInvitationsError("email", message)
    emails_by_address = queue.count_invitations_since(
        change.session, organization.id, change.now - INVITATION_EMAIL_WINDOW
    )
    to_same_address = sum(
        count
        for address, count in emails_by_address.items()
        if email_addresses.comparison_key(address) == email_addresses.comparison_key(email)
    )
    if to_same_address >= MAX_INVITATION_EMAILS_PER_DAY_TO_ONE_ADDRESS:
        message = f"{to_same_address} invitation emails were sent to this address within 24 hours; try again tomorrow"
        raise TooManyInvitationsError("email", message)
    if sum(emails_by_address.values()) >= MAX_INVITATION_EMAILS_PER_DAY:
        message = (
            f"the organization has sent {MAX_INVITATION_EMAILS_PER_DAY} invitations within 24 hours; try again tomorrow"
        )
        raise TooManyInvitationsError("email", message)


def _lock_pending(session: Session, org_id: str, email: str) -> Invitation | None:
    """The invitation for this address that is neither used nor revoked. It may have expired."""
    query = select(Invitation).where(
        Invitation.org_id == org_id,
        Invitation.email_key == email_addresses.comparison_key(email),
        Invitation.state == "pending",
    )
    return session.scalars(query.with_for_update()).one_or_none()


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
