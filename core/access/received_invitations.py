"""Invitations as their recipient sees them: list, accept and decline. Only the recipient learns anything of one.

An invitation to a user is that user's; one to an address is the user's who has signed in with it, verified. The token
of an email accepts, too, but only for that user.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session, aliased

from core.access.invitations import INVITATION_LIFETIME, Invitee, hash_token, may_still_invite
from core.common.validation import one_of
from core.db.models.access import Invitation, InvitationToken, User
from core.db.models.events import Event
from core.db.models.organizations import MEMBERSHIP_ROLES, Membership, MembershipRole, Organization
from core.events.event_types import ChangeContext
from core.organizations import commands, memberships

MAX_RECEIVED_INVITATIONS: Final = 50

InvitationProblem = Literal[
    "unknown", "unverified", "not-yours", "used", "revoked", "expired", "deleted", "suspended", "void"
]


class InvitationError(Exception):
    """The invitation cannot be accepted. The message says why and what to do."""

    def __init__(self, problem: InvitationProblem, message: str) -> None:
        super().__init__(message)
        self.problem = problem


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedInvitation:
    organization: Organization
    role: MembershipRole


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedInvitation:
    """``role``: the one that the recipient gets."""

    id: str
    organization: Organization
    role: MembershipRole
    expires_at: datetime


def list_received(session: Session, user_id: str, email: str | None, now: datetime) -> list[ReceivedInvitation]:
    """Invitations that this user can accept, oldest first; at most ``MAX_RECEIVED_INVITATIONS``.

    ``email``: the user's verified address; ``None``: there is none.
    """
    rows = session.execute(
        select(Invitation, Organization)
        .join(Organization, Organization.id == Invitation.org_id)
        .where(
            Invitation.recipient_key.in_(_keys(user_id, email)),
            Invitation.state == "pending",
            Invitation.expires_at > now,
            Organization.status == "active",
            *_is_open(user_id),
        )
        .order_by(Invitation.created_at, Invitation.id)
        .limit(MAX_RECEIVED_INVITATIONS)
    )
    return [
        ReceivedInvitation(
            id=invitation.id,
            organization=organization,
            role=one_of("role", invitation.role, MEMBERSHIP_ROLES),
            expires_at=invitation.expires_at,
        )
        for invitation, organization in rows
        if not _was_removed_since(session, invitation, user_id)
    ]


def accept_by_token(change: ChangeContext, token: str, user_id: str) -> AcceptedInvitation:
    """Adds the user and marks the invitation as used. Raises ``InvitationError``, ``AlreadyMemberError``.

    Of two simultaneous calls the second waits for the lock on the organization's row, and finds the invitation used.
    """
    found = change.session.execute(
        select(InvitationToken.invitation_id, InvitationToken.expires_at).where(
            InvitationToken.token_hash == hash_token(token)
        )
    ).one_or_none()
    if found is None:
        raise InvitationError("unknown", "Invitation not found. Check that you copied the whole token.")
    invitation_id, expires_at = found
    organization, invitation = _lock(change.session, invitation_id)
    _refuse_wrong_user(change.session, invitation, user_id)
    return _accept(change, organization, invitation, min(expires_at, invitation.expires_at), user_id)


def accept(change: ChangeContext, invitation_id: str, user_id: str) -> AcceptedInvitation:
    """As ``accept_by_token``, by a user to whom the invitation is. Another's is unknown."""
    organization, invitation = _lock_own(change.session, invitation_id, user_id)
    return _accept(change, organization, invitation, invitation.expires_at, user_id)


def decline(change: ChangeContext, invitation_id: str, user_id: str) -> None:
    """The invitation cannot be accepted any more. Raises ``InvitationError`` if it is closed or not this user's."""
    _, invitation = _lock_own(change.session, invitation_id, user_id)
    _refuse_closed(invitation)
    invitation.state, invitation.closed_at = "declined", change.now


def _is_open(user_id: str) -> list[ColumnElement[bool]]:
    """The inviter may still invite, as ``may_still_invite`` says, and the user is no member yet. In the query, so that
    many void invitations hide no other one."""
    member, inviter = aliased(Membership), aliased(Membership)
    is_member = select(member.org_id).where(member.org_id == Invitation.org_id, member.user_id == user_id)
    may_invite = select(inviter.org_id).where(
        inviter.org_id == Invitation.org_id,
        inviter.user_id == Invitation.invited_by,
        or_(inviter.role == "owner", and_(inviter.role == "billing_admin", Invitation.role != "owner")),
    )
    return [~is_member.exists(), or_(Invitation.invited_by.is_(None), may_invite.exists())]


def _keys(user_id: str, email: str | None) -> list[str]:
    keys = [Invitee(user_id=user_id).key]
    return keys if email is None else [*keys, Invitee(email=email).key]


def _verified_email(session: Session, user_id: str) -> str | None:
    user = session.get(User, user_id)
    return None if user is None else user.email


def _lock(session: Session, invitation_id: str) -> tuple[Organization, Invitation]:
    org_id = session.scalar(select(Invitation.org_id).where(Invitation.id == invitation_id))
    organization = commands.lock(session, org_id) if org_id is not None else None
    invitation = session.get(Invitation, invitation_id, with_for_update=True)
    if organization is None or invitation is None:
        raise InvitationError("unknown", "Invitation not found.")
    return organization, invitation


def _lock_own(session: Session, invitation_id: str, user_id: str) -> tuple[Organization, Invitation]:
    organization, invitation = _lock(session, invitation_id)
    if invitation.recipient_key not in _keys(user_id, _verified_email(session, user_id)):
        raise InvitationError("unknown", "Invitation not found.")
    return organization, invitation


def _accept(
    change: ChangeContext, organization: Organization, invitation: Invitation, expires_at: datetime, user_id: str
) -> AcceptedInvitation:
    _refuse_closed(invitation)
    _refuse_void(change, organization, invitation, expires_at)
    if _was_removed_since(change.session, invitation, user_id):
        message = "You were removed from the organization after you were invited. Ask an owner to invite you again."
        raise InvitationError("void", message)
    memberships.add(change, organization, user_id, invitation.role, is_chosen=True)
    invitation.state, invitation.closed_at = "accepted", change.now
    return AcceptedInvitation(organization=organization, role=one_of("role", invitation.role, MEMBERSHIP_ROLES))


def _refuse_wrong_user(session: Session, invitation: Invitation, user_id: str) -> None:
    """Checked first, so that only the invited user learns anything about the invitation."""
    email = _verified_email(session, user_id)
    if email is None:
        message = (
            "Your email address is not verified. Verify it with the sign-in service, sign in again, then accept the "
            "invitation."
        )
        raise InvitationError("unverified", message)
    if invitation.recipient_key not in _keys(user_id, email):
        message = "The invitation was sent to a different email address. Sign in with that address."
        raise InvitationError("not-yours", message)


def _refuse_closed(invitation: Invitation) -> None:
    match invitation.state:
        case "accepted":
            raise InvitationError("used", "The invitation has already been used.")
        case "revoked":
            raise InvitationError("revoked", "The invitation has been revoked. Ask for a new one.")
        case "declined":
            raise InvitationError("void", "You have declined the invitation. Ask for a new one.")
        case "pending":
            return


def _refuse_void(
    change: ChangeContext, organization: Organization, invitation: Invitation, expires_at: datetime
) -> None:
    if expires_at <= change.now:
        message = "The invitation has expired. Use the most recent email, or ask for a new invitation."
        raise InvitationError("expired", message)
    if organization.status == "deleted":
        raise InvitationError("deleted", "The organization has been deleted.")
    if organization.status == "suspended":
        raise InvitationError("suspended", "The organization is suspended. Accept when it is active again.")
    if not may_still_invite(change.session, invitation):
        message = "The member who invited you may no longer do so. Ask an owner to invite you again."
        raise InvitationError("void", message)


def _was_removed_since(session: Session, invitation: Invitation, user_id: str) -> bool:
    """A user who joined in another way and was removed may still have an old invitation. It must not work."""
    since = invitation.expires_at - INVITATION_LIFETIME
    removed = select(Event.seq).where(
        Event.org_id == invitation.org_id,
        Event.type == "membership.removed",
        Event.occurred_at > since,
        Event.data["user_id"].as_string() == user_id,
    )
    return session.scalar(removed.limit(1)) is not None
