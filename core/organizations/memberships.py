"""Changes to memberships. Each records the event it causes; none affects billing.

An organization keeps its last owner, whoever asks: else nobody could manage it any more. A deleted one, too, because it
may become active again.
"""

from __future__ import annotations

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from core.common.validation import InvalidChangeError, one_of
from core.db.database import insert_once
from core.db.models.events import EventData
from core.db.models.organizations import MEMBERSHIP_ROLES, Membership, Organization
from core.events import outbox
from core.events.event_types import ChangeContext
from core.organizations.validation import checked_user_id

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


def add(change: ChangeContext, organization: Organization, user_id: str, role: str, *, is_chosen: bool = False) -> None:
    """Expects the organization's row to be locked, so that nobody joins one that is being deleted.

    ``is_chosen``: the user asked for it, and it may be the organization of a request that names none.

    Raises ``AlreadyMemberError``, ``InvalidChangeError``.
    """
    checked = one_of("role", role, MEMBERSHIP_ROLES)
    checked_user_id("user_id", user_id)
    key = {"org_id": organization.id, "user_id": user_id}
    values = {"role": checked, "joined_at": change.now, "is_chosen": is_chosen}
    if not insert_once(change.session, Membership, {**key, **values}):
        raise AlreadyMemberError("user_id", f"User {user_id} already in organization {organization.id}")
    outbox.record(change, "membership.added", organization.id, {"user_id": user_id, "role": checked})


def remove(change: ChangeContext, membership: Membership) -> None:
    """Raises ``LastOwnerError``."""
    _refuse_losing_last_owner(change.session, membership)
    change.session.delete(membership)
    outbox.record(change, "membership.removed", membership.org_id, {"user_id": membership.user_id})


def change_role(change: ChangeContext, membership: Membership, role: str) -> None:
    """Raises ``LastOwnerError``, ``InvalidChangeError``."""
    checked = one_of("role", role, MEMBERSHIP_ROLES)
    if checked == membership.role:
        return
    _refuse_losing_last_owner(change.session, membership)
    data: EventData = {"user_id": membership.user_id, "from": membership.role, "to": checked}
    membership.role = checked
    outbox.record(change, "membership.role_changed", membership.org_id, data)


def _refuse_losing_last_owner(session: Session, membership: Membership) -> None:
    """Called before a member leaves or gets another role.

    Locks the organization's row, so that of two owners who leave at the same moment one stays.
    """
    if membership.role != "owner":
        return
    session.get_one(Organization, membership.org_id, with_for_update=True)
    owners = select(func.count()).where(Membership.org_id == membership.org_id, Membership.role == "owner")
    if (session.scalar(owners) or 0) <= 1:
        message = f"{membership.user_id} is the last owner of {membership.org_id}: make another member an owner first"
        raise LastOwnerError("user_id", message)
