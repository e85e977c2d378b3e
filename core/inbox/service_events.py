"""Inbox of service events: each is stored once, and is applied, rejected with a reason, or waiting for its subject.

The status and the change commit together, so a repeated message finds the status and does nothing. Another message
under the id of a stored one is rejected, and the stored one stays as it is. A rejected message is decided again when an
operator replays it. ``senders`` says who may send, ``ordering`` decides the status, ``apply`` makes the change, and
this module stores and locks. A reason names the field, never its value: the message itself is stored beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
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
from core.db.models.organizations import Membership, Organization
from core.events.event_types import CHANGE_TYPES, Cause, ChangeContext
from core.inbox import message_content, ordering
from core.inbox.apply import SubjectMissingError, apply_change, create_organization
from core.inbox.event_schemas import (
    InvalidEventError,
    MembershipAddedData,
    MembershipRemovedData,
    MembershipRoleChangedData,
    OrganizationCreatedData,
    ServiceEventData,
    ServiceEventMessage,
    parse,
    storage_problem,
)
from core.inbox.ordering import MAX_WAITING_EVENTS, Decision
from core.inbox.senders import ANYBODY_ON_THE_QUEUE, Admission, EventSender
from core.organizations import commands
from core.organizations.commands import NameTakenError

__all__ = [
    "ID_USED_TWICE",
    "MAX_EVENT_KEY_LENGTH",
    "MAX_WAITING_EVENTS",
    "UNKNOWN_EVENT_SOURCE",
    "WAITING_SUBJECTS_BATCH",
    "HandledEvent",
    "SubjectMissingError",
    "apply_waiting",
    "apply_waiting_for_owner",
    "handle",
    "reject",
    "replay",
    "storable_text",
    "subject_lock_key",
]

UNKNOWN_EVENT_SOURCE = "(no source)"
MAX_EVENT_KEY_LENGTH = 255
WAITING_SUBJECTS_BATCH: Final = 500
_MAX_CONFLICT_TRIES: Final = 3

ID_USED_TWICE: Final = "id: this source has already sent another message with this id; send a new id"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class HandledEvent:
    """``repeated``: the status was recorded earlier, and nothing was done now.

    ``is_foreign``: it was rejected without a row, since its source belongs to another service account.
    """

    status: ServiceEventStatus
    reason: str | None
    org_id: str | None
    repeated: bool = False
    is_foreign: bool = False


def handle(
    database: Database, catalog: Catalog, clock: Clock, raw: object, sender: EventSender = ANYBODY_ON_THE_QUEUE
) -> HandledEvent:
    """Handle one message, whatever it contains. Its contents never raise an error.

    ``sender`` is asked in the transaction that writes, before anything is written. If it raises, nothing is.

    The caller has to try again if the database is not reachable, on a deadlock (two organizations that swap their
    names), and on ``IntegrityError`` (other transactions kept inserting the same row at the same moments).
    """
    now = clock()
    try:
        envelope, _, data = parse(raw)
    except InvalidEventError as error:
        return _store_rejected(database, raw, str(error), now, sender)

    try:
        return _with_conflict_retry(partial(_handle_in_transaction, database, catalog, envelope, data, now, sender))
    except InvalidChangeError as error:
        return _store_rejected(database, raw, _reason(error), now, sender, envelope.time)


def reject(
    database: Database, clock: Clock, raw: object, reason: str, received_at: datetime | None = None
) -> HandledEvent:
    """Store a message, or something that is none, as rejected. ``reason`` must repeat nothing of it.

    ``received_at``: when it came first, if that is earlier than now. When it is replayed, it is ordered by its own time
    or else by this, so what came later stays.
    """
    try:
        occurred_at = parse(raw)[0].time
    except InvalidEventError:
        occurred_at = None
    return _store_rejected(database, raw, reason, clock(), ANYBODY_ON_THE_QUEUE, occurred_at, received_at)


def replay(  # noqa: PLR0913, PLR0917 - the message, where it is applied, and who asks for it
    database: Database, catalog: Catalog, clock: Clock, source: str, event_id: str, by: Cause
) -> HandledEvent | None:
    """Decide a rejected message again, as if it arrived now; ``None``: there is no such message.

    ``by``: whose command it is; the changes name both that and the message.

    One that is not rejected keeps its status. One that is stored under a digest is decided under the id that was sent,
    unless its source has sent another message under it. An operator may also replay a message of a source that is not
    allowed. What a later message has changed stays: without a time, the message that
    was received later is the later one.
    """
    return _with_conflict_retry(partial(_replay_in_transaction, database, catalog, source, event_id, clock(), by))


def apply_waiting(database: Database, catalog: Catalog, clock: Clock) -> None:
    """After an import: apply the events that were waiting for the imported organizations and members."""
    last_subject = ""
    while subjects := _subjects_with_waiting_events(database, last_subject):
        for last_subject in subjects:
            _with_conflict_retry(partial(_apply_waiting_in_transaction, database, catalog, clock, last_subject))


def apply_waiting_for_owner(
    change: ChangeContext, catalog: Catalog, organization: Organization, new_owner: str
) -> None:
    """After ``new_owner`` became one in another way: apply the events that were waiting for the next owner.

    Those about the new owner go on waiting: they are older than what was decided now, in another way. Expects the
    organization's row to be locked.
    """
    _apply_waiting(change.session, change.now, catalog, organization, except_user_id=new_owner)


def subject_lock_key(org_id: str) -> str:
    """The name of the advisory lock under which messages about an organization are handled, and it is imported."""
    return f"subject:{org_id}"


def storable_text(value: object) -> str | None:
    """A text that fits its column. A longer one is not cut, because it could then equal another one."""
    fits = isinstance(value, str) and 0 < len(value) <= MAX_EVENT_KEY_LENGTH and value.isprintable()
    return str(value) if fits else None


def _with_conflict_retry(work: Callable[[], T]) -> T:
    """Try again if another transaction, such as an import, has inserted the same name or member at the same moment."""
    for _ in range(_MAX_CONFLICT_TRIES - 1):
        try:
            return work()
        except IntegrityError:
            continue
    return work()


def _subjects_with_waiting_events(database: Database, after: str) -> list[str]:
    """Ids of existing organizations with waiting events, in order, beginning after ``after``."""
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


def _handle_in_transaction(  # noqa: PLR0913, PLR0917 - the parsed message, where it is applied, and its sender
    database: Database,
    catalog: Catalog,
    envelope: ServiceEventMessage,
    data: ServiceEventData,
    now: datetime,
    sender: EventSender,
) -> HandledEvent:
    row = _new_row(envelope, now)
    with database.write() as session:
        admission = sender.admit(session, row.source, now)
        if admission.reason is not None:
            return _reject_sender(session, row, admission, now)
        row.key_id = admission.key_id
        return _handle_event(session, catalog, row, envelope, data)


def _replay_in_transaction(  # noqa: PLR0913, PLR0917 - as replay
    database: Database, catalog: Catalog, source: str, event_id: str, now: datetime, by: Cause
) -> HandledEvent | None:
    with database.write() as session:
        row = session.get(ServiceEvent, (source, event_id))
        if row is None:
            return None
        acquire_advisory_locks(session, subject_lock_key(row.subject or ""))
        session.refresh(row, with_for_update=True)
        if row.status != "rejected":
            return _to_handled_event(row, repeated=True)
        if row.sent_id is not None:
            if (earlier := session.get(ServiceEvent, (source, row.sent_id))) is not None:
                is_same = message_content.is_same(earlier, row)
                return _to_handled_event(earlier, repeated=True) if is_same else _to_handled_event(row, repeated=False)
            row.id, row.sent_id = row.sent_id, None
            session.flush()
        try:
            envelope, _, data = parse(_as_message(row))
            with session.begin_nested():
                return _decide(session, catalog, row, envelope, data, now=now, by=by)
        except (InvalidChangeError, InvalidEventError) as error:
            return _record(session, row, Decision(status="rejected", reason=_reason(error)), now)


def _apply_waiting_in_transaction(database: Database, catalog: Catalog, clock: Clock, org_id: str) -> None:
    with database.write() as session:
        acquire_advisory_locks(session, subject_lock_key(org_id))
        organization = commands.lock(session, org_id)
        if organization is not None:
            _apply_waiting(session, clock(), catalog, organization)


def _handle_event(
    session: Session, catalog: Catalog, row: ServiceEvent, envelope: ServiceEventMessage, data: ServiceEventData
) -> HandledEvent:
    # Messages about one organization are handled one after the other, even before it has a row to lock.
    acquire_advisory_locks(session, subject_lock_key(envelope.subject))
    if (earlier := _store_or_find_earlier(session, row)) is not None:
        return earlier
    return _decide(session, catalog, row, envelope, data, now=row.received_at)


def _decide(  # noqa: PLR0913 - the message, its row, and where it is applied
    session: Session,
    catalog: Catalog,
    row: ServiceEvent,
    envelope: ServiceEventMessage,
    data: ServiceEventData,
    *,
    now: datetime,
    by: Cause | None = None,
) -> HandledEvent:
    """The row is stored, and the lock of its subject is held. ``by``: an operator; ``None``: its sender."""
    if (rejected := ordering.decide_time(row.occurred_at, now)) is not None:
        return _record(session, row, rejected, now)
    row.occurred_at = ordering.ordered_time(row.occurred_at, row.received_at)
    cause = by or Cause(actor="service", source=envelope.source, key_id=row.key_id)
    change = ChangeContext(session, now, replace(cause, caused_by=envelope.reference))
    organization = commands.lock(session, envelope.subject)
    if organization is not None:
        # An import may have created what they waited for. Without times, the first to arrive is applied first.
        _apply_waiting(session, now, catalog, organization)
    if isinstance(data, OrganizationCreatedData):
        return _handle_creation(change, catalog, row, data, organization)
    if organization is None:
        return _wait_for_subject(session, row, f"subject: organization {envelope.subject} does not exist yet", now)
    return _handle_change(change, organization, row, data, catalog)


def _new_row(envelope: ServiceEventMessage, now: datetime) -> ServiceEvent:
    """A time that is too far ahead stays as it was sent: the message is rejected, and a replay decides again."""
    is_rejected = ordering.decide_time(envelope.time, now) is not None
    return ServiceEvent(
        source=envelope.source,
        id=envelope.id,
        type=envelope.type,
        subject=envelope.subject,
        occurred_at=envelope.time if is_rejected else ordering.ordered_time(envelope.time, now),
        received_at=now,
        status="applied",
        data=envelope.data,
    )


def _handle_creation(
    change: ChangeContext,
    catalog: Catalog,
    row: ServiceEvent,
    data: OrganizationCreatedData,
    existing: Organization | None,
) -> HandledEvent:
    subject = row.subject or ""
    decision = ordering.decide_creation(subject, data, None if existing is None else existing.name)
    if decision.news is not None:
        created = create_organization(change, subject, data, catalog)
        _apply_waiting(change.session, change.now, catalog, created)
    return _record(change.session, row, decision, change.now)


def _handle_change(
    change: ChangeContext, organization: Organization, row: ServiceEvent, data: ServiceEventData, catalog: Catalog
) -> HandledEvent:
    if isinstance(data, MembershipAddedData | MembershipRemovedData | MembershipRoleChangedData):
        _supersede_waiting(change, row, data.user_id)
    try:
        handled = _apply_if_current(change, organization, row, data, catalog)
    except SubjectMissingError as error:
        return _wait_for_subject(change.session, row, _reason(error), change.now)
    if isinstance(data, MembershipAddedData | MembershipRoleChangedData):
        _apply_waiting(change.session, change.now, catalog, organization)
    return handled


def _supersede_waiting(change: ChangeContext, row: ServiceEvent, user_id: str) -> None:
    """What waits about a present member waits for the next owner: all else about it was applied before this message."""
    if change.session.get(Membership, (row.subject, user_id)) is None:
        return
    waiting = _waiting_events_of(row.subject).where(ServiceEvent.source == row.source)
    for earlier in change.session.scalars(waiting.limit(MAX_WAITING_EVENTS).with_for_update()).all():
        # Two with times are compared by them.
        is_untimed = row.occurred_at is None or earlier.occurred_at is None
        if is_untimed and (earlier.data or {}).get("user_id") == user_id:
            _record(change.session, earlier, ordering.decide_repeated_member(), change.now)


def _apply_if_current(
    change: ChangeContext, organization: Organization, row: ServiceEvent, data: ServiceEventData, catalog: Catalog
) -> HandledEvent:
    decision = ordering.decide_change(data, _later_event_data(change.session, row))
    if decision.news is not None:
        apply_change(change, organization, decision.news, catalog)
    return _record(change.session, row, decision, change.now)


def _wait_for_subject(session: Session, row: ServiceEvent, reason: str, now: datetime) -> HandledEvent:
    waiting_count = session.scalar(_waiting_events_of(row.subject).with_only_columns(func.count())) or 0
    return _record(session, row, ordering.decide_missing_subject(reason, waiting_count), now)


def _waiting_events_of(subject: str | None) -> Select[ServiceEvent]:
    # The types are listed because the index has them before the status. A waiting event always has one of them.
    return select(ServiceEvent).where(
        ServiceEvent.subject == subject, ServiceEvent.type.in_(CHANGE_TYPES), ServiceEvent.status == "waiting"
    )


def _apply_waiting(
    session: Session, now: datetime, catalog: Catalog, organization: Organization, except_user_id: str | None = None
) -> None:
    """In the order of their own times, and again while one that was applied may be what another waits for.

    Expects the organization's row to be locked, before those of the events.
    """
    query = (
        _waiting_events_of(organization.id)
        .order_by(func.coalesce(ServiceEvent.occurred_at, ServiceEvent.received_at), ServiceEvent.received_at)
        .limit(MAX_WAITING_EVENTS)
        .with_for_update()
    )
    for _ in range(MAX_WAITING_EVENTS):
        is_progress = False
        for row in session.scalars(query).all():
            if except_user_id is None or (row.data or {}).get("user_id") != except_user_id:
                is_progress |= _apply_one_waiting(session, now, catalog, organization, row)
        if not is_progress:
            return


def _apply_one_waiting(
    session: Session, now: datetime, catalog: Catalog, organization: Organization, row: ServiceEvent
) -> bool:
    """Whether a member came or changed. In its own savepoint, so that an invalid one does not affect the others."""
    cause = Cause(actor="service", source=row.source, caused_by=f"{row.source}#{row.id}", key_id=row.key_id)
    try:
        with session.begin_nested():
            _, _, data = parse(_as_message(row))
            _apply_if_current(ChangeContext(session, now, cause), organization, row, data, catalog)
    except SubjectMissingError:
        return False
    except (InvalidChangeError, InvalidEventError) as error:
        session.refresh(organization)
        _record(session, row, Decision(status="rejected", reason=_reason(error)), now)
        return False
    return isinstance(data, MembershipAddedData | MembershipRoleChangedData)


def _as_message(row: ServiceEvent) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": row.id,
        "source": row.source,
        "type": row.type,
        "subject": row.subject,
        "data": row.data,
    }


def _later_event_data(session: Session, row: ServiceEvent) -> list[dict[str, Any]]:
    """The data of the applied events that are later than this one, as ``ordering`` defines it."""
    is_replay = row.status == "rejected"
    if row.occurred_at is None and not is_replay:
        return []
    # What is replayed did not just arrive, so also a message without a time may be later than it.
    time_of_others = (
        func.coalesce(ServiceEvent.occurred_at, ServiceEvent.received_at) if is_replay else ServiceEvent.occurred_at
    )
    prefix = ordering.compared_type_prefix(row.type or "")
    later = session.scalars(
        select(ServiceEvent.data).where(
            ServiceEvent.subject == row.subject,
            ServiceEvent.source == row.source,
            ServiceEvent.status == "applied",
            ServiceEvent.type == row.type if prefix is None else ServiceEvent.type.like(f"{prefix}%"),
            time_of_others > (row.occurred_at or row.received_at),
        )
    )
    return [data or {} for data in later]


def _store_or_find_earlier(session: Session, row: ServiceEvent) -> HandledEvent | None:
    """Insert the row and return ``None``, or return what was recorded for the existing one.

    A repeat has the same content. Other content is stored as rejected.
    """
    if _insert(session, row):
        return None
    earlier = session.get_one(ServiceEvent, (row.source, row.id))
    if message_content.is_same(earlier, row):
        return _to_handled_event(earlier, repeated=True)
    return _store_under_digest(session, row, ID_USED_TWICE, row.received_at)


def _store_under_digest(session: Session, row: ServiceEvent, reason: str, now: datetime) -> HandledEvent:
    """Store it as rejected for an operator, and leave its id to the message that has it, or may have it later."""
    rejected = ServiceEvent(
        source=row.source,
        id=message_content.digest(row),
        type=row.type,
        subject=row.subject,
        occurred_at=row.occurred_at,
        received_at=row.received_at,
        status="rejected",
        rejected_at=now,
        reason=reason,
        data=row.data,
        sent_id=row.id,
        key_id=row.key_id,
    )
    return _to_handled_event(rejected, repeated=not _insert(session, rejected))


def _reject_sender(session: Session, row: ServiceEvent, admission: Admission, now: datetime) -> HandledEvent:
    reason = admission.reason or ""
    if admission.is_foreign:
        return HandledEvent(status="rejected", reason=reason, org_id=None, is_foreign=True)
    return _store_under_digest(session, row, reason, now)


def _insert(session: Session, row: ServiceEvent) -> bool:
    """False: its source has already sent a message with its id."""
    values = {
        "source": row.source,
        "id": row.id,
        "type": row.type,
        "subject": row.subject,
        "occurred_at": row.occurred_at,
        "received_at": row.received_at,
        "status": row.status,
        "rejected_at": row.rejected_at,
        "reason": row.reason,
        "data": row.data,
        "sent_id": row.sent_id,
        "key_id": row.key_id,
    }
    return insert_once(session, ServiceEvent, values)


def _record(session: Session, row: ServiceEvent, decision: Decision, now: datetime) -> HandledEvent:
    stored = session.get_one(ServiceEvent, (row.source, row.id))
    stored.status, stored.reason = decision.status, decision.reason
    stored.rejected_at = now if decision.status == "rejected" else None
    stored.org_id = stored.subject if decision.status == "applied" else None
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


def _store_rejected(  # noqa: PLR0913, PLR0917 - the message, why it is rejected, and its sender
    database: Database,
    raw: object,
    reason: str,
    now: datetime,
    sender: EventSender,
    occurred_at: datetime | None = None,
    received_at: datetime | None = None,
) -> HandledEvent:
    """Store it for an operator, under its own source and id, or under a digest of its content if it has no id."""
    fields: dict[str, Any] = raw if isinstance(raw, dict) else {}
    data = fields.get("data")
    source = storable_text(fields.get("source"))
    row = ServiceEvent(
        source=source or UNKNOWN_EVENT_SOURCE,
        id=storable_text(fields.get("id")) or _digest(raw),
        type=storable_text(fields.get("type")),
        subject=storable_text(fields.get("subject")),
        occurred_at=occurred_at,
        received_at=received_at or now,
        status="rejected",
        rejected_at=now,
        reason=reason,
        data=data if isinstance(data, dict) and storage_problem(data) is None else None,
    )
    with database.write() as session:
        admission = sender.admit(session, source, now)
        if admission.reason is not None:
            return _reject_sender(session, row, admission, now)
        row.key_id = admission.key_id
        return _store_or_find_earlier(session, row) or _to_handled_event(row, repeated=False)


def _reason(error: Exception) -> str:
    if isinstance(error, NameTakenError):
        return "data.name: another organization already has this name"
    return f"data.{error.field}: {error}" if isinstance(error, InvalidChangeError) else str(error)


def _digest(raw: object) -> str:
    try:
        content = json.dumps(raw, sort_keys=True, default=str)
    except (TypeError, ValueError, RecursionError):
        content = repr(type(raw))
    return hashlib.sha256(content.encode()).hexdigest()
