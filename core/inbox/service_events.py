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
from core.db.database import Database, insert_once, one_at_a_time
from core.db.models.inbox import ReceivedEvent, Verdict
from core.db.models.organizations import Organization
from core.events.event_types import CHANGE_TYPES, Cause, Change
from core.inbox.event_schemas import (
    BillingDetailsChanged,
    Data,
    Envelope,
    MembershipAdded,
    MembershipRemoved,
    MembershipRoleChanged,
    OrganizationCreated,
    OrganizationRenamed,
    PlanChanged,
    RefusedError,
    StatusChanged,
    parse,
    unstorable,
)
from core.organizations import commands, memberships, plan_changes
from core.organizations.commands import NameTakenError, NewOrganization

UNNAMED_SOURCE = "(no source)"
# One message of the far future would make all that its source says until then look old.
CLOCKS_MAY_DIFFER = timedelta(days=1)
MOST_WAITING = 500
KEY_LENGTH = 255
SUBJECTS_AT_ONCE: Final = 500
_TRIES: Final = 3

T = TypeVar("T")


class NotYetError(InvalidChangeError):
    """What the message is about may be on its way: a member whose addition has not come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """``repeated``: the verdict is an earlier one's, nothing was done now."""

    verdict: Verdict
    reason: str | None
    org_id: str | None
    repeated: bool = False


def receive(database: Database, catalog: Catalog, clock: Clock, raw: object) -> Receipt:
    """Take one message, whatever it is; never raises for what is in it.

    A database that is away is the caller's to outlast, and so is a deadlock: two organizations that swap their names.
    ``IntegrityError``, the caller's too: others kept putting in the same at the same moments.
    """
    now = clock()
    try:
        envelope, _, data = parse(raw)
    except RefusedError as error:
        return _keep_refused(database, raw, str(error), now)

    try:
        return _looked_at_anew(partial(_take, database, catalog, envelope, data, now))
    except InvalidChangeError as error:
        return _keep_refused(database, raw, _reason(error), now)


def refuse(database: Database, clock: Clock, raw: object, reason: str) -> Receipt:
    """Keep that something came which is no message, under what it holds; the reason repeats nothing of it."""
    return _keep_refused(database, raw, reason, clock())


def take_those_that_waited(database: Database, catalog: Catalog, clock: Clock) -> None:
    """After an import: what other services said before of organizations and members that it brought."""
    last = ""
    while subjects := _subjects_that_wait(database, last):
        for last in subjects:
            _looked_at_anew(partial(_take_waiting, database, catalog, clock, last))


def about(org_id: str) -> str:
    """The word for ``one_at_a_time`` under which messages about an organization are judged, and it is imported."""
    return f"subject:{org_id}"


def short(value: object) -> str | None:
    """A text that fits its column. A longer one is not cut: it could then be taken for another one's name."""
    fits = isinstance(value, str) and 0 < len(value) <= KEY_LENGTH and unstorable(value) is None
    return str(value) if fits else None


def _looked_at_anew(take: Callable[[], T]) -> T:
    """Another, an import above all, may put in the same name or member at the same moment: then it is there to see."""
    for _ in range(_TRIES - 1):
        try:
            return take()
        except IntegrityError:
            continue
    return take()


def _subjects_that_wait(database: Database, last: str) -> list[str]:
    """Of organizations that are here, in order, from the one behind ``last`` on."""
    with database.read() as session:
        here = select(Organization.id).where(Organization.id == ReceivedEvent.subject).exists()
        found = (
            select(ReceivedEvent.subject)
            .where(ReceivedEvent.verdict == "waiting", ReceivedEvent.subject > last, here)
            .distinct()
            .order_by(ReceivedEvent.subject)
            .limit(SUBJECTS_AT_ONCE)
        )
        return [subject for subject in session.scalars(found) if subject is not None]


def _take(database: Database, catalog: Catalog, envelope: Envelope, data: Data, now: datetime) -> Receipt:
    with database.write() as session:
        return _taken(session, catalog, envelope, data, now)


def _take_waiting(database: Database, catalog: Catalog, clock: Clock, org_id: str) -> None:
    with database.write() as session:
        one_at_a_time(session, about(org_id))
        _take_those_that_waited(session, clock(), catalog, org_id)


def _taken(session: Session, catalog: Catalog, envelope: Envelope, data: Data, now: datetime) -> Receipt:
    row = ReceivedEvent(
        source=envelope.source,
        id=envelope.id,
        type=envelope.type,
        subject=envelope.subject,
        occurred_at=envelope.time,
        received_at=now,
        verdict="accepted",
        data=envelope.data,
    )
    # Messages about one organization are judged one after the other, also while its row is not there to lock.
    one_at_a_time(session, about(envelope.subject))
    if (earlier := _stored_before(session, row)) is not None:
        return earlier
    if envelope.time is not None and envelope.time > now + CLOCKS_MAY_DIFFER:
        return _verdict(session, row, "refused", "time: lies in the future; send the moment at which it happened")
    change = Change(session, now, Cause(actor="service", source=envelope.source, caused_by=envelope.cause))
    organization = commands.lock(session, envelope.subject)
    if organization is not None:
        # An import may have brought what they waited for; without times, who came first is judged first.
        _take_those_that_waited(session, now, catalog, organization.id)
    if isinstance(data, OrganizationCreated):
        return _take_new(change, catalog, row, data, organization)
    if organization is None:
        return _wait(session, row, f"subject: {envelope.subject} is not known yet")
    try:
        receipt = _judge(change, organization, row, data, catalog)
    except NotYetError as error:
        return _wait(session, row, _reason(error))
    if isinstance(data, MembershipAdded):
        _take_those_that_waited(session, now, catalog, organization.id)
    return receipt


def _judge(change: Change, organization: Organization, row: ReceivedEvent, data: Data, catalog: Catalog) -> Receipt:
    still_news = _still_news(change.session, row, data)
    if still_news is None:
        reason = "time: the same source has sent a later one of this type"
        return _verdict(change.session, row, "superseded", reason)
    _apply(change, organization, still_news, catalog)
    return _verdict(change.session, row, "accepted", None)


def _wait(session: Session, row: ReceivedEvent, reason: str) -> Receipt:
    waiting = _waiting_for(row.subject).with_only_columns(func.count())
    if (session.scalar(waiting) or 0) >= MOST_WAITING:
        return _verdict(session, row, "refused", f"{reason}, and {MOST_WAITING} messages wait for it already")
    return _verdict(session, row, "waiting", reason)


def _take_new(
    change: Change, catalog: Catalog, row: ReceivedEvent, data: OrganizationCreated, present: Organization | None
) -> Receipt:
    subject = row.subject or ""
    if present is not None and present.name != data.name.strip():
        return _verdict(change.session, row, "refused", f"subject: {subject} exists already under another name")
    if present is not None:
        return _verdict(change.session, row, "accepted", "existed already")
    _create(change, subject, data, catalog)
    _take_those_that_waited(change.session, change.now, catalog, subject)
    return _verdict(change.session, row, "accepted", None)


def _create(change: Change, org_id: str, data: OrganizationCreated, catalog: Catalog) -> None:
    _refuse_unknown_plan(data.plan_tier, catalog)
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


def _apply(change: Change, organization: Organization, data: Data, catalog: Catalog) -> None:
    match data:
        case OrganizationRenamed():
            commands.rename(change, organization, data.name)
        case PlanChanged():
            _refuse_unknown_plan(data.plan_tier, catalog)
            plan_changes.change_plan(change, organization, data.plan_tier, catalog)
        case StatusChanged():
            commands.change_status(change, organization, data.status)
        case BillingDetailsChanged():
            commands.change_billing_details(
                change, organization, billing_email=data.billing_email, currency=data.currency
            )
        case MembershipAdded() | MembershipRemoved() | MembershipRoleChanged():
            _apply_to_member(change, organization, data)


def _refuse_unknown_plan(tier: str, catalog: Catalog) -> None:
    """Like every change does, without repeating what was sent."""
    if tier not in catalog.plans:
        raise InvalidChangeError("plan_tier", f"must be one of {', '.join(catalog.tiers())}")


def _apply_to_member(
    change: Change, organization: Organization, data: MembershipAdded | MembershipRemoved | MembershipRoleChanged
) -> None:
    membership = memberships.find(change.session, organization.id, data.user_id)
    if isinstance(data, MembershipAdded):
        if organization.status == "deleted":
            raise InvalidChangeError("user_id", f"{organization.id} is deleted and takes no new members")
        if membership is None:
            memberships.add(change, organization, data.user_id, data.role)
        else:
            memberships.change_role(change, membership, data.role)
    elif membership is None:
        if isinstance(data, MembershipRoleChanged):
            raise NotYetError("user_id", f"this user is not in organization {organization.id}")
    elif isinstance(data, MembershipRemoved):
        memberships.remove(change, membership)
    else:
        memberships.change_role(change, membership, data.role)


def _waiting_for(subject: str | None) -> Select[ReceivedEvent]:
    # The types are named because the index has them before the verdict; what waits is always of a known one.
    return select(ReceivedEvent).where(
        ReceivedEvent.subject == subject, ReceivedEvent.type.in_(CHANGE_TYPES), ReceivedEvent.verdict == "waiting"
    )


def _take_those_that_waited(session: Session, now: datetime, catalog: Catalog, org_id: str) -> None:
    """In the order of their own time; each for itself, so that a bad one spoils no other."""
    waited = session.scalars(
        _waiting_for(org_id)
        .order_by(func.coalesce(ReceivedEvent.occurred_at, ReceivedEvent.received_at), ReceivedEvent.received_at)
        .limit(MOST_WAITING)
        .with_for_update()
    ).all()
    for row in waited:
        cause = Cause(actor="service", source=row.source, caused_by=f"{row.source}#{row.id}")
        organization = commands.lock(session, org_id)
        if organization is None:
            return
        try:
            with session.begin_nested():
                _, _, data = parse(_as_message(row))
                _judge(Change(session, now, cause), organization, row, data, catalog)
        except NotYetError:
            continue
        except (InvalidChangeError, RefusedError) as error:
            session.refresh(organization)
            _verdict(session, row, "refused", _reason(error))


def _as_message(row: ReceivedEvent) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": row.id,
        "source": row.source,
        "type": row.type,
        "subject": row.subject,
        "data": row.data,
    }


def _still_news(session: Session, row: ReceivedEvent, data: Data) -> Data | None:
    """What of the message the same source has not said otherwise since; ``None``: nothing of it.

    Members are told apart by user, billing details by field: a later word about one says nothing about another.
    """
    later = _said_since(session, row)
    if isinstance(data, BillingDetailsChanged):
        said = {field for each in later for field, value in each.items() if value is not None}
        given = {field for field, value in data if value is not None}
        return data.model_copy(update=dict.fromkeys(said)) if not later or given - said else None
    about = (row.data or {}).get("user_id")
    return None if any(each.get("user_id") == about for each in later) else data


def _said_since(session: Session, row: ReceivedEvent) -> list[dict[str, Any]]:
    if row.occurred_at is None:
        return []
    later = session.scalars(
        select(ReceivedEvent.data).where(
            ReceivedEvent.subject == row.subject,
            ReceivedEvent.source == row.source,
            ReceivedEvent.verdict == "accepted",
            ReceivedEvent.type.like(f"{(row.type or '').split('.')[0]}.%")
            if (row.type or "").startswith("membership.")
            else ReceivedEvent.type == row.type,
            ReceivedEvent.occurred_at > row.occurred_at,
        )
    )
    return [data or {} for data in later]


def _stored_before(session: Session, row: ReceivedEvent) -> Receipt | None:
    """Put the row in, or tell what became of the one that is there."""
    values = {
        "source": row.source,
        "id": row.id,
        "type": row.type,
        "subject": row.subject,
        "occurred_at": row.occurred_at,
        "received_at": row.received_at,
        "verdict": row.verdict,
        "reason": row.reason,
        "data": row.data,
    }
    if insert_once(session, ReceivedEvent, values):
        return None
    earlier = session.get_one(ReceivedEvent, (row.source, row.id))
    return _receipt(earlier, repeated=True)


def _verdict(session: Session, row: ReceivedEvent, verdict: Verdict, reason: str | None) -> Receipt:
    stored = session.get_one(ReceivedEvent, (row.source, row.id))
    stored.verdict, stored.reason = verdict, reason
    stored.org_id = stored.subject if verdict == "accepted" else None
    session.flush()
    return _receipt(stored, repeated=False)


def _receipt(row: ReceivedEvent, *, repeated: bool) -> Receipt:
    verdicts: dict[str, Verdict] = {
        "accepted": "accepted",
        "refused": "refused",
        "waiting": "waiting",
        "superseded": "superseded",
    }
    return Receipt(verdict=verdicts[row.verdict], reason=row.reason, org_id=row.org_id, repeated=repeated)


def _keep_refused(database: Database, raw: object, reason: str, now: datetime) -> Receipt:
    """Kept where a person sees it, under its own name, or under its content's where it has none."""
    fields: dict[str, Any] = raw if isinstance(raw, dict) else {}
    data = fields.get("data")
    row = ReceivedEvent(
        source=short(fields.get("source")) or UNNAMED_SOURCE,
        id=short(fields.get("id")) or _digest(raw),
        type=short(fields.get("type")),
        subject=short(fields.get("subject")),
        received_at=now,
        verdict="refused",
        reason=reason,
        data=data if isinstance(data, dict) and unstorable(data) is None else None,
    )
    with database.write() as session:
        return _stored_before(session, row) or _receipt(row, repeated=False)


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
