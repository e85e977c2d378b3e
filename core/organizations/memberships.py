"""Changes to memberships. Each records the event it causes; none affects billing."""

from __future__ import annotations

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from core.common.validation import InvalidChangeError, one_of
from core.db.database import insert_once
from core.db.models.events import EventData
from core.db.models.organizations import MEMBERSHIP_ROLES, Membership, Organization
from core.events import outbox
from core.events.event_types import ChangeContext

MAX_USER_ID_LENGTH = 255

# Built once, because building a statement costs more than sending it.
_LOCK_MEMBERSHIP = (
    select(Membership)
    .where(Membership.org_id == bindparam("org_id"), Membership.user_id == bindparam("user_id"))
    .with_for_update()
)


class AlreadyMemberError(InvalidChangeError):
    pass


class LastOwnerError(InvalidChangeError):
    """Raised when the change would remove the last owner."""


def lock(session: Session, org_id: str, user_id: str) -> Membership | None:
    return session.scalars(_LOCK_MEMBERSHIP, {"org_id": org_id, "user_id": user_id}).one_or_none()


def add(change: ChangeContext, organization: Organization, user_id: str, role: str) -> None:
    """Expects the organization's row to be locked, so that nobody joins one that is being deleted."""
    checked = one_of("role", role, MEMBERSHIP_ROLES)
    if not user_id.strip() or len(user_id) > MAX_USER_ID_LENGTH:
        raise InvalidChangeError("user_id", f"user_id must be 1 to {MAX_USER_ID_LENGTH} characters long")
    if not user_id.isprintable():
        raise InvalidChangeError("user_id", "user_id contains control characters; use one line of plain text")
    row = {"org_id": organization.id, "user_id": user_id, "role": checked, "joined_at": change.now}
    if not insert_once(change.session, Membership, row):
        raise AlreadyMemberError("user_id", f"User {user_id} already in organization {organization.id}")
    outbox.record(change, "membership.added", organization.id, {"user_id": user_id, "role": checked})


def remove(change: ChangeContext, membership: Membership) -> None:
    change.session.delete(membership)
    outbox.record(change, "membership.removed", membership.org_id, {"user_id": membership.user_id})


def change_role(change: ChangeContext, membership: Membership, role: str) -> None:
    checked = one_of("role", role, MEMBERSHIP_ROLES)
    if checked == membership.role:
        return
    data: EventData = {"user_id": membership.user_id, "from": membership.role, "to": checked}
    membership.role = checked
    outbox.record(change, "membership.role_changed", membership.org_id, data)


def refuse_removing_last_owner(session: Session, membership: Membership) -> None:
    """Called before an owner leaves or gets another role. Raises ``LastOwnerError`` if there is no other owner.

    Expects the organization's row to be locked, so that of two owners who leave at the same moment one stays.
    """
    owners = select(func.count()).where(Membership.org_id == membership.org_id, Membership.role == "owner")
    if membership.role == "owner" and (session.scalar(owners) or 0) <= 1:
        message = f"{membership.user_id} is the last owner of {membership.org_id}: make another member an owner first"
        raise LastOwnerError("user_id", message)
