"""How much one user may start within an hour: each organization is a customer at both providers, and each invitation
reaches somebody who may not want it. Services have no such limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import Session

from core.common.validation import InvalidChangeError
from core.db.database import acquire_advisory_locks
from core.db.models.access import SentInvitation
from core.db.models.events import Event
from core.events.event_types import ChangeContext

USER_LIMIT_WINDOW: Final = timedelta(hours=1)
ORGANIZATION_LIMIT_WINDOW: Final = timedelta(hours=24)
MAX_INVITATIONS_PER_DAY: Final = 100
MAX_INVITATIONS_PER_DAY_TO_ONE_RECIPIENT: Final = 5
SENT_INVITATION_DELETE_BATCH_SIZE: Final = 500


class TooManyOrganizationsError(InvalidChangeError):
    """A user has made too many organizations within an hour."""


class TooManyInvitationsError(InvalidChangeError):
    """Raised at a limit on invitations, since the recipients may not want them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserLimits:
    """Within an hour: ``invitations_to_recipient`` counts those of all organizations to one address or user."""

    organizations: int = 10
    invitations: int = 50
    invitations_to_recipient: int = 10


def refuse_too_many_organizations(change: ChangeContext, user_id: str, limits: UserLimits) -> None:
    """Raises ``TooManyOrganizationsError``. Of two requests of one user the second waits for the first."""
    acquire_advisory_locks(change.session, f"creator:{user_id}")
    made = select(func.count()).where(
        Event.actor == user_id,
        Event.type == "organization.created",
        Event.occurred_at > change.now - USER_LIMIT_WINDOW,
    )
    if (change.session.scalar(made) or 0) >= limits.organizations:
        message = f"you have created {limits.organizations} organizations within an hour; try again later"
        raise TooManyOrganizationsError("name", message)


def count_invitation(
    change: ChangeContext, org_id: str, recipient_key: str, invited_by: str | None, limits: UserLimits
) -> None:
    """Counts one more invitation. Raises ``TooManyInvitationsError``, and then counts none.

    ``invited_by`` None: a service invites, which only the limits of the organization bound. Two inviters of one
    recipient wait for each other.
    """
    locks = [f"invited:{recipient_key}", *([] if invited_by is None else [f"inviter:{invited_by}"])]
    acquire_advisory_locks(change.session, *locks)
    hour, day = change.now - USER_LIMIT_WINDOW, change.now - ORGANIZATION_LIMIT_WINDOW
    of_organization = SentInvitation.org_id == org_id
    to_recipient = SentInvitation.recipient_key == recipient_key
    already_sent = _count(change.session, of_organization, to_recipient, SentInvitation.sent_at > day)
    if already_sent >= MAX_INVITATIONS_PER_DAY_TO_ONE_RECIPIENT:
        message = f"{already_sent} invitations were sent to this recipient within 24 hours; try again tomorrow"
        raise TooManyInvitationsError("email", message)
    if _count(change.session, of_organization, SentInvitation.sent_at > day) >= MAX_INVITATIONS_PER_DAY:
        message = f"the organization has sent {MAX_INVITATIONS_PER_DAY} invitations within 24 hours; try again tomorrow"
        raise TooManyInvitationsError("email", message)
    if invited_by is not None:
        by_inviter = SentInvitation.invited_by == invited_by
        if _count(change.session, by_inviter, SentInvitation.sent_at > hour) >= limits.invitations:
            message = f"you have sent {limits.invitations} invitations within an hour; try again later"
            raise TooManyInvitationsError("email", message)
        if _count(change.session, to_recipient, SentInvitation.sent_at > hour) >= limits.invitations_to_recipient:
            message = "this recipient was invited too often within an hour; try again later"
            raise TooManyInvitationsError("email", message)
    change.session.add(
        SentInvitation(org_id=org_id, recipient_key=recipient_key, invited_by=invited_by, sent_at=change.now)
    )


def delete_expired(session: Session, now: datetime) -> None:
    """Deletes a batch of what no limit counts any more."""
    expired = select(SentInvitation.id).where(SentInvitation.sent_at <= now - ORGANIZATION_LIMIT_WINDOW)
    session.execute(
        delete(SentInvitation)
        .where(SentInvitation.id.in_(expired.limit(SENT_INVITATION_DELETE_BATCH_SIZE)))
        .execution_options(synchronize_session=False)
    )


def _count(session: Session, *conditions: ColumnElement[bool]) -> int:
    return session.scalar(select(func.count()).select_from(SentInvitation).where(*conditions)) or 0
