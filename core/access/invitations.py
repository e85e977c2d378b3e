"""Invitations to join an organization with a role, to an email address or to a user. Nobody joins without accepting.

The token that accepts an invitation by email is created when its email is sent. It is in that email only; we store its
hash. It works once and for seven days, for the user who signs in with the invited address. A user who is signed in also
sees and accepts the invitations to themself without a token. Either works only while the member who invited may still
do so.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import uuid4

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.access import limits
from core.access.limits import TooManyInvitationsError, UserLimits
from core.common import email_addresses
from core.common.validation import InvalidChangeError, one_of
from core.db.models.access import Invitation, InvitationToken, User
from core.db.models.organizations import MEMBERSHIP_ROLES, Membership, Organization
from core.emails import queue
from core.events.event_types import ChangeContext
from core.organizations.memberships import AlreadyMemberError
from core.organizations.validation import checked_user_id

INVITATION_LIFETIME: Final = timedelta(days=7)
MAX_PENDING_INVITATIONS: Final = 50


class OwnersInvitationError(Exception):
    """Only an owner may replace or revoke the invitation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitee:
    """Exactly one of the two is set."""

    email: str | None = None
    user_id: str | None = None

    @property
    def key(self) -> str:
        """No address has a space."""
        if self.email is not None:
            return email_addresses.comparison_key(self.email)
        return f"user {self.user_id}"


def invite(  # noqa: PLR0913, PLR0917 - who is invited as what, by whom, and how often that may be
    change: ChangeContext,
    organization: Organization,
    invitee: Invitee,
    role: str,
    invited_by: str | None,
    user_limits: UserLimits,
) -> Invitation:
    """Invites an address or a user. A pending invitation is valid for seven more days, and its address gets another
    email.

    ``invited_by`` is a user id; ``None``: a service account. Expects the organization's row to be locked. Raises
    ``InvalidChangeError``, and ``OwnersInvitationError`` if it would replace one that only an owner may replace.
    """
    checked_role = one_of("role", role, MEMBERSHIP_ROLES)
    _refuse_unusable(change.session, organization, invitee)
    _refuse_too_many_pending(change, organization, invitee)
    invitation = _lock_pending(change.session, organization.id, invitee)
    if invitation is not None and invitation.expires_at > change.now:
        _refuse_owners_invitation(change.session, invitation, invited_by)
    limits.count_invitation(change, organization.id, invitee.key, invited_by, user_limits)
    if invitation is None:
        invitation = Invitation(
            id=f"inv_{uuid4()}",
            org_id=organization.id,
            email=invitee.email or "",
            user_id=invitee.user_id,
            recipient_key=invitee.key,
            state="pending",
            emails_sent=0,
            created_at=change.now,
        )
        change.session.add(invitation)
    invitation.role, invitation.invited_by = checked_role, invited_by
    invitation.expires_at = change.now + INVITATION_LIFETIME
    if invitee.email is not None:
        invitation.emails_sent += 1
    change.session.flush()
    if invitee.email is not None:
        queue.enqueue_invitation(change, invitation)
    return invitation


def list_pending(session: Session, org_id: str, now: datetime) -> list[Invitation]:
    """Invitations that can still be accepted, oldest first; at most ``MAX_PENDING_INVITATIONS``."""
    is_pending = (Invitation.org_id == org_id, Invitation.state == "pending", Invitation.expires_at > now)
    return list(session.scalars(select(Invitation).where(*is_pending).order_by(Invitation.created_at, Invitation.id)))


def revoke(change: ChangeContext, org_id: str, invitation_id: str, revoked_by: str | None) -> bool:
    """Revokes the invitation as of the commit. False: no such invitation is pending.

    ``revoked_by`` as in ``invite``. Raises ``OwnersInvitationError``.
    """
    is_pending = (Invitation.org_id == org_id, Invitation.state == "pending", Invitation.expires_at > change.now)
    query = select(Invitation).where(Invitation.id == invitation_id, *is_pending).with_for_update()
    invitation = change.session.scalars(query).one_or_none()
    if invitation is None:
        return False
    _refuse_owners_invitation(change.session, invitation, revoked_by)
    invitation.state, invitation.closed_at = "revoked", change.now
    return True


def new_token(session: Session, invitation_id: str) -> tuple[Invitation, str]:
    """Creates another token; the email with it is sent once its hash is committed. It expires with the invitation."""
    invitation = session.get_one(Invitation, invitation_id)
    token = secrets.token_urlsafe(32)
    row = InvitationToken(token_hash=hash_token(token), invitation_id=invitation_id, expires_at=invitation.expires_at)
    session.add(row)
    return invitation, token


def hash_token(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def may_still_invite(session: Session, invitation: Invitation) -> bool:
    """Whether the inviting member may still grant the role. An invitation by a service account stays valid."""
    if invitation.invited_by is None:
        return True
    inviter = session.get(Membership, (invitation.org_id, invitation.invited_by))
    allowed_roles = {"owner"} if invitation.role == "owner" else {"owner", "billing_admin"}
    return inviter is not None and inviter.role in allowed_roles


def _refuse_owners_invitation(session: Session, invitation: Invitation, user_id: str | None) -> None:
    """What an owner or a service granted, only an owner or a service may change."""
    if user_id is None or _is_owner(session, invitation.org_id, user_id):
        return
    if (
        invitation.role == "owner"
        or invitation.invited_by is None
        or _is_owner(session, invitation.org_id, invitation.invited_by)
    ):
        message = "An owner or a service sent this invitation: only an owner can send it again or revoke it."
        raise OwnersInvitationError(message)


def _is_owner(session: Session, org_id: str, user_id: str) -> bool:
    membership = session.get(Membership, (org_id, user_id))
    return membership is not None and membership.role == "owner"


def _refuse_unusable(session: Session, organization: Organization, invitee: Invitee) -> None:
    """Members whose address is unknown are not found by it."""
    if invitee.email is None:
        user_id = checked_user_id("user_id", invitee.user_id or "")
        if session.get(Membership, (organization.id, user_id)) is not None:
            raise AlreadyMemberError("user_id", f"User {user_id} already in organization {organization.id}")
        return
    if not email_addresses.is_mailable(invitee.email):
        raise InvalidChangeError("email", "email must be a single ASCII address of the form name@host.tld")
    member = (
        select(Membership.user_id)
        .join(User, User.user_id == Membership.user_id)
        .where(Membership.org_id == organization.id, func.lower(User.email) == invitee.key)
    )
    if session.scalar(member.limit(1)) is not None:
        raise AlreadyMemberError("email", "a user with this email address is already a member")


def _refuse_too_many_pending(change: ChangeContext, organization: Organization, invitee: Invitee) -> None:
    others = select(func.count()).where(
        Invitation.org_id == organization.id,
        Invitation.state == "pending",
        Invitation.expires_at > change.now,
        Invitation.recipient_key != invitee.key,
    )
    if (change.session.scalar(others) or 0) >= MAX_PENDING_INVITATIONS:
        message = f"{MAX_PENDING_INVITATIONS} invitations are pending; revoke some, or wait until they expire"
        raise TooManyInvitationsError("email", message)


def _lock_pending(session: Session, org_id: str, invitee: Invitee) -> Invitation | None:
    """The invitation of this invitee that is not closed. It may have expired."""
    query = select(Invitation).where(
        Invitation.org_id == org_id, Invitation.recipient_key == invitee.key, Invitation.state == "pending"
    )
    return session.scalars(query.with_for_update()).one_or_none()
