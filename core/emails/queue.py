"""Email queue: one row for each email, written once for its cause. ``core.emails.sender`` sends the emails.

The emails of an event are written in the transaction in which the relay marks the event as published, which happens
once. The email of an invitation is written in the invitation's own transaction. An email about a plan waits until both
providers have applied the change. An email that is no longer true when it is due is not sent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import uuid4

from sqlalchemy import ColumnElement, TextClause, and_, delete, func, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core.catalog.plans import Catalog
from core.common import email_addresses
from core.db import leases
from core.db.models.access import Invitation, User
from core.db.models.billing_links import BillingLink
from core.db.models.email import Email, EmailKind, EmailState
from core.db.models.events import Event
from core.db.models.organizations import Management, Membership, Organization
from core.events.event_types import RESOLVE_SOURCE, ChangeContext
from core.events.outbox import PendingEvent
from core.organizations import management
from core.ports.spec import PROVIDERS
from core.reconcile import link_status
from core.reporting import problems

# Longer than a session with the SMTP server may take, connecting included (``providers.emails.smtp``).
EMAIL_LEASE: Final = timedelta(minutes=2)
# At most this many owners and billing admins get an email about the plan: those who joined first.
MAX_TEAM_RECIPIENTS: Final = 50
EMAIL_BATCH_SIZE: Final = 100
MIN_RELEASE_CHECK_DELAY: Final = timedelta(seconds=1)
MAX_RELEASE_CHECK_DELAY: Final = timedelta(minutes=1)
FAILED_EMAILS_SHOWN_FOR: Final = timedelta(days=30)
# After this time a closed email is deleted, and the address with it. This is safe: no event that old is published
# again, and no invitation email that old is queued again.
EMAIL_RETENTION: Final = timedelta(days=30)
EMAIL_DELETE_BATCH_SIZE: Final = 500
# The organization of an operations digest.
NO_ORGANIZATION: Final = ""
_DIGEST_CAUSE_PREFIX: Final = "after:"
# A digest is written at most this long before it counts as sent. What begins meanwhile may be in two digests.
_DIGEST_OVERLAP: Final = EMAIL_LEASE
_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=UTC)

_EMAILED_EVENT_TYPES: Final = frozenset({"organization.plan_changed", "membership.added"})
# Written out, not bound: SQLite uses a partial index only where it reads the index's own condition.
_IS_PENDING: Final = text("emails.state = 'pending'")
_IS_FAILED: Final = text("emails.state = 'failed'")
_IS_CLOSED: Final = text("emails.state <> 'pending'")
_IS_DIGEST: Final = and_(Email.org_id == NO_ORGANIZATION, Email.kind == "operations_digest")


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedEmail:
    """An email that is to be sent now, by the holder of ``lease_token``."""

    id: str
    kind: EmailKind
    cause: str
    recipient: str
    org_id: str
    invitation_id: str | None
    attempts: int
    lease_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCounts:
    """``reason``: why an email that is retried has not been sent yet."""

    waiting: int
    waiting_since: datetime | None
    reason: str | None
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedEmail:
    id: str
    kind: str
    org_id: str
    recipient: str
    reason: str | None
    failed_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _EventToEmail:
    event: Event
    organization: Organization
    kind: EmailKind


def enqueue_for_events(
    session: Session,
    published: Collection[PendingEvent],
    catalog: Catalog,
    now: datetime,
    installation: Management = "manage",
) -> None:
    """Queues the emails of published events. Call it in the transaction that marks them, with the events it marked.

    An observed organization gets none: what they would say has not been done. ``installation``: its mode.
    """
    seqs = [event.seq for event in published if event.type in _EMAILED_EVENT_TYPES]
    if not seqs:
        return
    to_email = _events_to_email(session, seqs, catalog, installation)
    _insert(
        session,
        [
            _row(each.event.id, each.kind, each.organization.id, recipient, now)
            | {"after_version": None if each.kind == "welcome" else each.organization.version}
            for each, recipients in zip(to_email, _recipients(session, to_email), strict=True)
            for recipient in _without_duplicates(recipients)
        ],
    )


def enqueue_invitation(change: ChangeContext, invitation: Invitation) -> None:
    """Queues the newest email of the invitation. An earlier one that is still unsent becomes stale."""
    row = _row(_invitation_cause(invitation), "invitation", invitation.org_id, invitation.email, change.now)
    _insert(change.session, [row | {"invitation_id": invitation.id}])


def last_digest(session: Session, recipient: str) -> Email | None:
    """The newest operations digest to this address, sent or not; ``None``: there was none in ``EMAIL_RETENTION``."""
    digests = select(Email).where(_IS_DIGEST, Email.recipient == recipient)
    return session.scalars(digests.order_by(Email.created_at.desc()).limit(1)).one_or_none()


def enqueue_digest(session: Session, after: Email | None, recipient: str, due_at: datetime, now: datetime) -> None:
    """Queues the digest that follows ``after``; two calls with the same predecessor queue one."""
    cause = f"{_DIGEST_CAUSE_PREFIX}{after.id if after else ''}"
    _insert(session, [_row(cause, "operations_digest", NO_ORGANIZATION, recipient, now) | {"next_attempt_at": due_at}])


def any_digest_to_others(session: Session, recipient: str | None) -> bool:
    """Whether a digest is queued to another address than this one."""
    return session.scalar(select(Email.id).where(*_is_digest_to_others(recipient)).limit(1)) is not None


def close_digests_to_others(session: Session, recipient: str | None, now: datetime) -> None:
    """They were queued before the setting was changed. One that is being sent now is sent."""
    session.execute(
        update(Email)
        .where(*_is_digest_to_others(recipient), leases.is_free(Email, now))
        .values(state="stale", closed_at=now)
        .execution_options(synchronize_session=False)
    )


def covered_until(digest: Email | None) -> datetime:
    """What began before this time was in this digest, or was over when it was due."""
    if digest is None or digest.closed_at is None or digest.state == "failed":
        return _LONG_AGO
    return digest.closed_at - _DIGEST_OVERLAP


def any_due(session: Session, now: datetime) -> bool:
    """Whether any email may be due: a cheap query without a lock."""
    return session.scalar(select(Email.id).where(_IS_PENDING, Email.next_attempt_at <= now).limit(1)) is not None


def release_ready(session: Session, now: datetime, installation: Management = "manage") -> None:
    """Releases waiting emails whose version both providers have applied. The others are checked again later.

    Those of an observed organization become stale: applied weeks later, the change would be told as if it were new.
    """
    waiting = session.scalars(
        select(Email)
        .where(_IS_PENDING, Email.after_version.is_not(None), Email.next_attempt_at <= now)
        .order_by(Email.next_attempt_at)
        .limit(EMAIL_BATCH_SIZE)
        .with_for_update(skip_locked=True)
    ).all()
    links: dict[str, list[BillingLink]] = {email.org_id: [] for email in waiting}
    for link in session.scalars(select(BillingLink).where(BillingLink.org_id.in_(links))):
        links[link.org_id].append(link)
    organizations = session.scalars(select(Organization).where(Organization.id.in_(links))).all()
    observed_ids = management.observed_ids(session, organizations, installation)
    for email in waiting:
        if email.org_id in observed_ids:
            email.state, email.closed_at = "stale", now
            continue
        version = email.after_version or 0
        if sum(link_status.is_synced(link, version) for link in links[email.org_id]) == len(PROVIDERS):
            email.after_version = None
        else:
            email.next_attempt_at = now + min(
                MAX_RELEASE_CHECK_DELAY, max(MIN_RELEASE_CHECK_DELAY, (now - email.created_at) / 4)
            )


def lease_next(session: Session, now: datetime) -> LeasedEmail | None:
    """Leases the email that has been due longest; ``None``: no email is due. Closes emails that are stale."""
    due = (
        select(Email)
        .where(
            _IS_PENDING,
            Email.after_version.is_(None),
            Email.next_attempt_at <= now,
            leases.is_free(Email, now),
        )
        .order_by(Email.next_attempt_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    for _ in range(EMAIL_BATCH_SIZE):
        email = session.scalars(due).one_or_none()
        if email is None:
            return None
        if _is_still_true(session, email, now):
            return _lease(email, now)
        email.state, email.closed_at = "stale", now
        session.flush()
    return None


def mark_sent(session: Session, email: LeasedEmail, now: datetime) -> None:
    _close(session, email, "sent", now, error=None)


def fail(session: Session, email: LeasedEmail, reason: str, now: datetime) -> None:
    """The email cannot be sent. ``reason`` contains neither an address nor a name."""
    _close(session, email, "failed", now, error=reason)


def reschedule(session: Session, email: LeasedEmail, reason: str, until: datetime, *, count_attempt: bool) -> None:
    """The email is retried later. ``count_attempt``: this email caused the failure, not the SMTP server."""
    _update_leased(
        session,
        email,
        error=reason,
        next_attempt_at=until,
        attempts=email.attempts + (1 if count_attempt else 0),
    )


def counts(session: Session, now: datetime) -> QueueCounts:
    waiting = session.execute(select(func.count(), func.min(Email.created_at)).where(_IS_PENDING)).one()
    reason = session.scalar(select(Email.error).where(_IS_PENDING, Email.error.is_not(None)).limit(1))
    failed = session.scalar(select(func.count()).where(_IS_FAILED, Email.created_at >= now - FAILED_EMAILS_SHOWN_FOR))
    return QueueCounts(waiting=waiting[0], waiting_since=waiting[1], reason=reason, failed=failed or 0)


def delete_expired(session: Session, now: datetime) -> int:
    """Deletes a batch of emails that were closed long ago; returns how many."""
    expired = select(Email.id).where(_IS_CLOSED, Email.closed_at < now - EMAIL_RETENTION).order_by(Email.closed_at)
    deleted = session.scalars(
        delete(Email)
        .where(Email.id.in_(expired.limit(EMAIL_DELETE_BATCH_SIZE)))
        .returning(Email.id)
        .execution_options(synchronize_session=False)
    )
    return len(deleted.all())


def list_failed(session: Session, now: datetime, limit: int) -> list[FailedEmail]:
    """Failed emails of the last 30 days, newest first."""
    rows = session.scalars(
        select(Email)
        .where(_IS_FAILED, Email.created_at >= now - FAILED_EMAILS_SHOWN_FOR)
        .order_by(Email.created_at.desc(), Email.id)
        .limit(limit)
    )
    return [
        FailedEmail(
            id=row.id,
            kind=row.kind,
            org_id=row.org_id,
            recipient=row.recipient,
            reason=row.error,
            failed_at=row.closed_at,
        )
        for row in rows
    ]


def retry(session: Session, email_id: str, now: datetime) -> bool:
    """Send a failed email again, under the same Message-ID; returns whether it had failed.

    If it is not true any more when it is due, it becomes stale instead.
    """
    retried = session.scalars(
        update(Email)
        .where(Email.id == email_id, _IS_FAILED)
        .values(state="pending", attempts=0, error=None, closed_at=None, next_attempt_at=now, **leases.RELEASED)
        .returning(Email.id)
        .execution_options(synchronize_session=False)
    )
    return bool(retried.all())


def _email_kind(event: Event, organization: Organization, catalog: Catalog) -> EmailKind | None:
    """``None``: the event causes no email."""
    if event.type == "membership.added":
        # An owner who was added at the moment the organization was created has registered it.
        is_registration = event.data.get("role") == "owner" and event.occurred_at == organization.created_at
        return "welcome" if is_registration else None
    before, after = catalog.plans.get(str(event.data.get("from"))), catalog.plans.get(str(event.data.get("to")))
    if event.data.get("at") == "period_end":
        return "downgrade_scheduled"
    if event.data.get("from") == event.data.get("to"):
        return "downgrade_taken_back"
    lower = before is not None and after is not None and after.rank < before.rank
    if lower and event.source == RESOLVE_SOURCE:
        return None  # an operator took over what a provider had; no paid period has ended
    return "downgrade_took_effect" if lower else "plan_upgraded"


def _team_addresses(session: Session, org_ids: Collection[str]) -> Mapping[str, list[str]]:
    """Verified addresses of the owners and billing admins, in the order of joining."""
    rows = session.execute(
        select(Membership.org_id, User.email)
        .join(User, User.user_id == Membership.user_id)
        .where(
            Membership.org_id.in_(org_ids),
            Membership.role.in_(["owner", "billing_admin"]),
            User.email.is_not(None),
        )
        .order_by(Membership.joined_at, Membership.user_id)
    )
    teams: dict[str, list[str]] = {}
    for org_id, email in rows:
        team = teams.setdefault(org_id, [])
        if email is not None and len(team) < MAX_TEAM_RECIPIENTS:
            team.append(email)
    return teams


def _member_user_id(event: Event) -> str:
    return str(event.data.get("user_id"))


def _events_to_email(
    session: Session, seqs: Collection[int], catalog: Catalog, installation: Management
) -> list[_EventToEmail]:
    events = session.scalars(select(Event).where(Event.seq.in_(seqs)).order_by(Event.seq)).all()
    query = select(Organization).where(Organization.id.in_({event.org_id for event in events}))
    organizations = {row.id: row for row in session.scalars(query) if row.status != "deleted"}
    for org_id in management.observed_ids(session, organizations.values(), installation):
        del organizations[org_id]
    return [
        _EventToEmail(event=event, organization=organization, kind=kind)
        for event in events
        if (organization := organizations.get(event.org_id)) is not None
        and (kind := _email_kind(event, organization, catalog)) is not None
    ]


def _recipients(session: Session, to_email: Sequence[_EventToEmail]) -> Iterator[list[str]]:
    """Who gets each email: the owner, or else the billing address, is welcomed; all who manage billing get the rest."""
    owners = _owner_addresses(session, {_member_user_id(each.event) for each in to_email if each.kind == "welcome"})
    teams = _team_addresses(session, {each.organization.id for each in to_email if each.kind != "welcome"})
    for each in to_email:
        billing_addresses = [each.organization.billing_email] if each.organization.billing_email else []
        if each.kind == "welcome":
            yield owners.get(_member_user_id(each.event), billing_addresses)
        else:
            yield [*teams.get(each.organization.id, []), *billing_addresses]


def _owner_addresses(session: Session, user_ids: Collection[str]) -> dict[str, list[str]]:
    """The verified address of each user who has one."""
    rows = session.execute(select(User.user_id, User.email).where(User.user_id.in_(user_ids)))
    return {row[0]: [row[1]] for row in rows if row[1] is not None}


def _is_digest_to_others(recipient: str | None) -> list[ColumnElement[bool] | TextClause]:
    is_other = [] if recipient is None else [Email.recipient != recipient]
    return [_IS_DIGEST, _IS_PENDING, *is_other]


def _without_duplicates(recipients: Iterable[str]) -> list[str]:
    return list({email_addresses.comparison_key(recipient): recipient for recipient in recipients}.values())


def _row(cause: str, kind: EmailKind, org_id: str, recipient: str, now: datetime) -> dict[str, object]:
    return {
        "id": str(uuid4()),
        "cause": cause,
        "kind": kind,
        "recipient": recipient,
        "org_id": org_id,
        "invitation_id": None,
        "after_version": None,
        "state": "pending",
        "attempts": 0,
        "next_attempt_at": now,
        "created_at": now,
    }


def _insert(session: Session, rows: list[dict[str, object]]) -> None:
    """Leaves existing rows as they are, so that a duplicate cannot keep the relay from marking its events."""
    if rows:
        dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
        session.execute(dialect.insert(Email).on_conflict_do_nothing(), rows)


def _invitation_cause(invitation: Invitation) -> str:
    return f"{invitation.id}#{invitation.emails_sent}"


def _is_still_true(session: Session, email: Email, now: datetime) -> bool:
    if email.kind == "operations_digest":
        before = session.get(Email, email.cause.removeprefix(_DIGEST_CAUSE_PREFIX))
        return problems.any_since(session, covered_until(before))
    organization = session.get_one(Organization, email.org_id)
    if organization.status == "deleted":
        return False
    if email.invitation_id is not None:
        invitation = session.get_one(Invitation, email.invitation_id)
        return (
            invitation.state == "pending"
            and invitation.expires_at > now
            and email.cause == _invitation_cause(invitation)
        )
    return email.kind == "welcome" or _plan_is_as_written(session, email, organization)


def _plan_is_as_written(session: Session, email: Email, organization: Organization) -> bool:
    event_data = session.scalar(select(Event.data).where(Event.id == email.cause)) or {}
    if email.kind == "downgrade_scheduled":
        return organization.pending_plan_tier == event_data.get("to")
    if email.kind == "downgrade_taken_back":
        return (organization.plan_tier, organization.pending_plan_tier) == (event_data.get("to"), None)
    return organization.plan_tier == event_data.get("to")


def _lease(email: Email, now: datetime) -> LeasedEmail:
    lease_token = leases.new_token()
    email.lease_token, email.lease_until = lease_token, now + EMAIL_LEASE
    return LeasedEmail(
        id=email.id,
        kind=email.kind,
        cause=email.cause,
        recipient=email.recipient,
        org_id=email.org_id,
        invitation_id=email.invitation_id,
        attempts=email.attempts,
        lease_token=lease_token,
    )


def _close(session: Session, email: LeasedEmail, state: EmailState, now: datetime, *, error: str | None) -> None:
    _update_leased(session, email, state=state, closed_at=now, error=error)


def _update_leased(session: Session, email: LeasedEmail, **values: object) -> None:
    """A sender that lost its lease changes nothing: another sender has sent the email again and records the result."""
    session.execute(
        update(Email)
        .where(Email.id == email.id, leases.is_mine(Email, email.lease_token))
        .values(**values, **leases.RELEASED)
        .execution_options(synchronize_session=False)
    )
