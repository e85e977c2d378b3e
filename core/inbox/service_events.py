"""What other services send, taken once each: applied, refused with the reason, or waiting for its organization.

The verdict and the change commit together, so a repeat finds the verdict and does nothing. A message that comes before
its organization or its member waits for it; one that is older than what the same source has said since changes nothing.
A reason names the field, never what was in it: the message itself is kept beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar

from sqlalchemy import Select, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core.catalog.plans import Catalog
from core.common.clock import Clock
from core.common.validation import InvalidChangeError
from core.db.database import Database, acquire_advisory_locks, insert_once
from core.db.models.inbox import ServiceEvent, ServiceEventStatus
from core.db.models.organizations import Organization
from core.events.event_types import CHANGE_TYPES, Cause, ChangeContext
from core.inbox.event_schemas import (
    BillingDetailsChangedData,
    InvalidEventError,
    MembershipAddedData,
    MembershipRemovedData,
    MembershipRoleChangedData,
    OrganizationCreatedData,
    OrganizationRenamedData,
    PlanChangedData,
    ServiceEventData,
    ServiceEventMessage,
    StatusChangedData,
    parse,
    storage_problem,
)
from core.organizations import commands, memberships, plan_changes
from core.organizations.commands import NameTakenError, NewOrganization

UNKNOWN_EVENT_SOURCE = "(no source)"
# One message of the far future would make all that its source says until then look old.
MAX_EVENT_CLOCK_SKEW = timedelta(days=1)
MAX_WAITING_EVENTS = 500
MAX_EVENT_KEY_LENGTH = 255
WAITING_SUBJECTS_BATCH: Final = 500
_MAX_CONFLICT_TRIES: Final = 3

T = TypeVar("T")


class SubjectMissingError(InvalidChangeError):
    """What the message is about may be on its way: a member whose addition has not come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandledEvent:
    """``repeated``: the verdict is an earlier one's, nothing was done now."""

    status: ServiceEventStatus
    reason: str | None
    org_id: str | None
    repeated: bool = False


def handle(database: Database, catalog: Catalog, clock: Clock, raw: object) -> HandledEvent:
    """Take one message, whatever it is; never raises for what is in it.

    A database that is away is the caller's to outlast, and so is a deadlock: two organizations that swap their names.
    ``IntegrityError``, the caller's too: others kept putting in the same at the same moments.
    """
    now = clock()
    try:
        envelope, _, data = parse(raw)
    except InvalidEventError as error:
        return _store_rejected(database, raw, str(error), now)

    try:
        return _with_conflict_retry(partial(_handle_in_transaction, database, catalog, envelope, data, now))
    except InvalidChangeError as error:
        return _store_rejected(database, raw, _reason(error), now)


def reject(database: Database, clock: Clock, raw: object, reason: str) -> HandledEvent:
    """Keep that something came which is no message, under what it holds; the reason repeats nothing of it."""
    return _store_rejected(database, raw, reason, clock())


def apply_waiting(database: Database, catalog: Catalog, clock: Clock) -> None:
    """After an import: what other services said before of organizations and members that it brought."""
    last_subject = ""
    while subjects := _subjects_with_waiting_events(database, last_subject):
        for last_subject in subjects:
            _with_conflict_retry(partial(_apply_waiting_in_transaction, database, catalog, clock, last_subject))


def subject_lock_key(org_id: str) -> str:
    """The word for ``acquire_advisory_locks`` under which messages about an organization are judged, and it is
    imported.
    """
    return f"subject:{org_id}"


def storable_text(value: object) -> str | None:
    """A text that fits its column. A longer one is not cut: it could then be taken for another one's name."""
    fits = isinstance(value, str) and 0 < len(value) <= MAX_EVENT_KEY_LENGTH and storage_problem(value) is None
    return str(value) if fits else None


def _with_conflict_retry(work: Callable[[], T]) -> T:
    """Another, an import above all, may put in the same name or member at the same moment: then it is there to see."""
    for _ in range(_MAX_CONFLICT_TRIES - 1):
        try:
            return work()
        except IntegrityError:
            continue
    return work()


def _subjects_with_waiting_events(database: Database, after: str) -> list[str]:
    """Of organizations that are here, in order, from the one behind ``last`` on."""
    with database.read() as session:
        organization_exists = select(Organization.id).where(Organization.id == ServiceEvent.subject).exists()
        query = (
            select(ServiceEvent.subject)
            .where(ServiceEvent.status == "waiting", ServiceEvent.subject > after, organization_exists)
            .distinct()
            .order_by(ServiceEvent.subject)
            .limit(WAITING_SUBJECTS_BATCH)
        )
        return [subject for subject in session.scalars(query) if subject is not None]


def _handle_in_transaction(
    database: Database, catalog: Catalog, envelope: ServiceEventMessage, data: ServiceEventData, now: datetime
) -> HandledEvent:
    with database.write() as session:
        return _handle_event(session, catalog, envelope, data, now)


def _apply_waiting_in_transaction(database: Database, catalog: Catalog, clock: Clock, org_id: str) -> None:
    with database.write() as session:
        acquire_advisory_locks(session, subject_lock_key(org_id))
        _apply_waiting(session, clock(), catalog, org_id)


def _handle_event(
    session: Session, catalog: Catalog, envelope: ServiceEventMessage, data: ServiceEventData, now: datetime
) -> HandledEvent:
    row = ServiceEvent(
        source=envelope.source,
        id=envelope.id,
        type=envelope.type,
        subject=envelope.subject,
        occurred_at=envelope.time,
        received_at=now,
        status="applied",
        data=envelope.data,
    )
    # Messages about one organization are judged one after the other, also while its row is not there to lock.
    acquire_advisory_locks(session, subject_lock_key(envelope.subject))
    if (earlier := _store_or_find_earlier(session, row)) is not None:
        return earlier
    if envelope.time is not None and envelope.time > now + MAX_EVENT_CLOCK_SKEW:
        return _record_status(
            session, row, "rejected", "time: lies in the future; send the moment at which it happened"
        )
    change = ChangeContext(session, now, Cause(actor="service", source=envelope.source, caused_by=envelope.reference))
    organization = commands.lock(session, envelope.subject)
    if organization is not None:
        # An import may have brought what they waited for; without times, who came first is judged first.
        _apply_waiting(session, now, catalog, organization.id)
    if isinstance(data, OrganizationCreatedData):
        return _handle_organization_created(change, catalog, row, data, organization)
    if organization is None:
        return _wait_for_subject(session, row, f"subject: {envelope.subject} is not known yet")
    try:
        handled = _apply_if_current(change, organization, row, data, catalog)
    except SubjectMissingError as error:
        return _wait_for_subject(session, row, _reason(error))
    if isinstance(data, MembershipAddedData):
        _apply_waiting(session, now, catalog, organization.id)
    return handled


def _apply_if_current(
    change: ChangeContext, organization: Organization, row: ServiceEvent, data: ServiceEventData, catalog: Catalog
) -> HandledEvent:
    current_data = _without_superseded(change.session, row, data)
    if current_data is None:
        reason = "time: the same source has sent a later one of this type"
        return _record_status(change.session, row, "superseded", reason)
    _apply_change(change, organization, current_data, catalog)
    return _record_status(change.session, row, "applied", None)


def _wait_for_subject(session: Session, row: ServiceEvent, reason: str) -> HandledEvent:
    waiting_count = _waiting_events_of(row.subject).with_only_columns(func.count())
    if (session.scalar(waiting_count) or 0) >= MAX_WAITING_EVENTS:
        return _record_status(
            session, row, "rejected", f"{reason}, and {MAX_WAITING_EVENTS} messages wait for it already"
        )
    return _record_status(session, row, "waiting", reason)


def _handle_organization_created(
    change: ChangeContext,
    catalog: Catalog,
    row: ServiceEvent,
    data: OrganizationCreatedData,
    existing: Organization | None,
) -> HandledEvent:
    subject = row.subject or ""
    if existing is not None and existing.name != data.name.strip():
        return _record_status(change.session, row, "rejected", f"subject: {subject} exists already under another name")
    if existing is not None:
        return _record_status(change.session, row, "applied", "existed already")
    _create_organization(change, subject, data, catalog)
    _apply_waiting(change.session, change.now, catalog, subject)
    return _record_status(change.session, row, "applied", None)


def _create_organization(change: ChangeContext, org_id: str, data: OrganizationCreatedData, catalog: Catalog) -> None:
    _reject_unknown_plan(data.plan_tier, catalog)
    new = NewOrganization(
        name=data.name,
        plan_tier=data.plan_tier,
        org_id=org_id,
        billing_email=data.billing_email,
        currency=data.currency,
    )
    organization = commands.create(change, new, catalog)
    if data.owner_user_id is not None:
        try:
            memberships.add(change, organization, data.owner_user_id, "owner")
        except InvalidChangeError as error:
            raise InvalidChangeError("owner_user_id", str(error)) from None


def _apply_change(change: ChangeContext, organization: Organization, data: ServiceEventData, catalog: Catalog) -> None:
    match data:
        case OrganizationRenamedData():
            commands.rename(change, organization, data.name)
        case PlanChangedData():
            _reject_unknown_plan(data.plan_tier, catalog)
            plan_changes.change_plan(change, organization, data.plan_tier, catalog)
        case StatusChangedData():
            commands.change_status(change, organization, data.status)
        case BillingDetailsChangedData():
            commands.change_billing_details(
                change, organization, billing_email=data.billing_email, currency=data.currency
            )
        case MembershipAddedData() | MembershipRemovedData() | MembershipRoleChangedData():
            _apply_membership_change(change, organization, data)


def _reject_unknown_plan(tier: str, catalog: Catalog) -> None:
    """Like every change does, without repeating what was sent."""
    if tier not in catalog.plans:
        raise InvalidChangeError("plan_tier", f"must be one of {', '.join(catalog.tiers())}")


def _apply_membership_change(
    change: ChangeContext,
    organization: Organization,
    data: MembershipAddedData | MembershipRemovedData | MembershipRoleChangedData,
) -> None:
    membership = memberships.lock(change.session, organization.id, data.user_id)
    if isinstance(data, MembershipAddedData):
        if organization.status == "deleted":
            raise InvalidChangeError("user_id", f"{organization.id} is deleted and takes no new members")
        if membership is None:
            memberships.add(change, organization, data.user_id, data.role)
        else:
            memberships.change_role(change, membership, data.role)
    elif membership is None:
        if isinstance(data, MembershipRoleChangedData):
            raise SubjectMissingError("user_id", f"this user is not in organization {organization.id}")
    elif isinstance(data, MembershipRemovedData):
        memberships.remove(change, membership)
    else:
        memberships.change_role(change, membership, data.role)


def _waiting_events_of(subject: str | None) -> Select[ServiceEvent]:
    # The types are named because the index has them before the verdict; what waits is always of a known one.
    return select(ServiceEvent).where(
        ServiceEvent.subject == subject, ServiceEvent.type.in_(CHANGE_TYPES), ServiceEvent.status == "waiting"
    )


def _apply_waiting(session: Session, now: datetime, catalog: Catalog, org_id: str) -> None:
    """In the order of their own time; each for itself, so that a bad one spoils no other."""
    waiting = session.scalars(
        _waiting_events_of(org_id)
        .order_by(func.coalesce(ServiceEvent.occurred_at, ServiceEvent.received_at), ServiceEvent.received_at)
        .limit(MAX_WAITING_EVENTS)
        .with_for_update()
    ).all()
    for row in waiting:
        cause = Cause(actor="service", source=row.source, caused_by=f"{row.source}#{row.id}")
        organization = commands.lock(session, org_id)
        if organization is None:
            return
        try:
            with session.begin_nested():
                _, _, data = parse(_as_message(row))
                _apply_if_current(ChangeContext(session, now, cause), organization, row, data, catalog)
        except SubjectMissingError:
            continue
        except (InvalidChangeError, InvalidEventError) as error:
            session.refresh(organization)
            _record_status(session, row, "rejected", _reason(error))


def _as_message(row: ServiceEvent) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": row.id,
        "source": row.source,
        "type": row.type,
        "subject": row.subject,
        "data": row.data,
    }


def _without_superseded(session: Session, row: ServiceEvent, data: ServiceEventData) -> ServiceEventData | None:
    """What of the message the same source has not said otherwise since; ``None``: nothing of it.

    Members are told apart by user, billing details by field: a later word about one says nothing about another.
    """
    later = _later_event_data(session, row)
    if isinstance(data, BillingDetailsChangedData):
        later_fields = {field for each in later for field, value in each.items() if value is not None}
        own_fields = {field for field, value in data if value is not None}
        return data.model_copy(update=dict.fromkeys(later_fields)) if not later or own_fields - later_fields else None
    user_id = (row.data or {}).get("user_id")
    return None if any(each.get("user_id") == user_id for each in later) else data


def _later_event_data(session: Session, row: ServiceEvent) -> list[dict[str, Any]]:
    if row.occurred_at is None:
        return []
    later = session.scalars(
        select(ServiceEvent.data).where(
            ServiceEvent.subject == row.subject,
            ServiceEvent.source == row.source,
            ServiceEvent.status == "applied",
            ServiceEvent.type.like(f"{(row.type or '').split('.')[0]}.%")
            if (row.type or "").startswith("membership.")
            else ServiceEvent.type == row.type,
            ServiceEvent.occurred_at > row.occurred_at,
        )
    )
    return [data or {} for data in later]


def _store_or_find_earlier(session: Session, row: ServiceEvent) -> HandledEvent | None:
    """Put the row in, or tell what became of the one that is there."""
    values = {
        "source": row.source,
        "id": row.id,
        "type": row.type,
        "subject": row.subject,
        "occurred_at": row.occurred_at,
        "received_at": row.received_at,
        "status": row.status,
        "reason": row.reason,
        "data": row.data,
    }
    if insert_once(session, ServiceEvent, values):
        return None
    earlier = session.get_one(ServiceEvent, (row.source, row.id))
    return _to_handled_event(earlier, repeated=True)


def _record_status(session: Session, row: ServiceEvent, status: ServiceEventStatus, reason: str | None) -> HandledEvent:
    stored = session.get_one(ServiceEvent, (row.source, row.id))
    stored.status, stored.reason = status, reason
    stored.org_id = stored.subject if status == "applied" else None
    session.flush()
    return _to_handled_event(stored, repeated=False)


def _to_handled_event(row: ServiceEvent, *, repeated: bool) -> HandledEvent:
    statuses: dict[str, ServiceEventStatus] = {
        "applied": "applied",
        "rejected": "rejected",
        "waiting": "waiting",
        "superseded": "superseded",
    }
    return HandledEvent(status=statuses[row.status], reason=row.reason, org_id=row.org_id, repeated=repeated)


def _store_rejected(database: Database, raw: object, reason: str, now: datetime) -> HandledEvent:
    """Kept where a person sees it, under its own name, or under its content's where it has none."""
    fields: dict[str, Any] = raw if isinstance(raw, dict) else {}
    data = fields.get("data")
    row = ServiceEvent(
        source=storable_text(fields.get("source")) or UNKNOWN_EVENT_SOURCE,
        id=storable_text(fields.get("id")) or _digest(raw),
        type=storable_text(fields.get("type")),
        subject=storable_text(fields.get("subject")),
        received_at=now,
        status="rejected",
        reason=reason,
        data=data if isinstance(data, dict) and storage_problem(data) is None else None,
    )
    with database.write() as session:
        return _store_or_find_earlier(session, row) or _to_handled_event(row, repeated=False)


def _reason(error: Exception) -> str:
    if isinstance(error, NameTakenError):
        return "data.name: another organization has this name"
    return f"data.{error.field}: {error}" if isinstance(error, InvalidChangeError) else str(error)


def _digest(raw: object) -> str:
    try:
        content = json.dumps(raw, sort_keys=True, default=str)
    except (TypeError, ValueError, RecursionError):
        content = repr(type(raw))
    return hashlib.sha256(content.encode()).hexdigest()
