"""What other services send, taken once each: applied, refused with the reason, or waiting for its organization.

The verdict and the change commit together, so a repeat finds the verdict and does nothing. A message that comes before
its organization waits for it; one that is older than what the same source has said since changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core import memberships, organizations
from core.catalog import Catalog
from core.clock import Clock
from core.database import Database
from core.envelope import (
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
)
from core.events import Cause, Change
from core.models import Organization, ReceivedEvent, Verdict
from core.organizations import InvalidChangeError, NewOrganization

UNNAMED_SOURCE = "(no source)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """``repeated``: the verdict is an earlier one's, nothing was done now."""

    verdict: Verdict
    reason: str | None
    org_id: str | None
    repeated: bool = False


def receive(database: Database, catalog: Catalog, clock: Clock, raw: object) -> Receipt:
    """Take one message, whatever it is; never raises for what is in it."""
    now = clock()
    try:
        envelope, _, data = parse(raw)
    except RefusedError as error:
        return _keep_refused(database, raw, str(error), now)
    try:
        with database.write() as session:
            return _take(session, catalog, envelope, data, now)
    except InvalidChangeError as error:
        return _keep_refused(database, raw, f"data.{error.field}: {error}", now)


def _take(session: Session, catalog: Catalog, envelope: Envelope, data: Data, now: datetime) -> Receipt:
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
    _one_at_a_time(session, envelope.subject)
    if (earlier := _insert_once(session, row)) is not None:
        return earlier
    change = Change(session, now, Cause(actor="service", source=envelope.source, caused_by=envelope.cause))
    organization = organizations.lock(session, envelope.subject)
    if isinstance(data, OrganizationCreated):
        return _take_new(change, catalog, row, data, organization)
    if organization is None:
        return _verdict(session, row, "waiting", f"subject: {envelope.subject} is not known yet")
    if _said_since(session, row):
        return _verdict(session, row, "superseded", "time: the same source has sent a later one of this type")
    _apply(change, organization, data, catalog)
    return _verdict(session, row, "accepted", None)


def _one_at_a_time(session: Session, subject: str) -> None:
    """Messages about one organization are judged one after the other, also while its row is not there to lock."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:subject, 0))"), {"subject": subject})


def _take_new(
    change: Change, catalog: Catalog, row: ReceivedEvent, data: OrganizationCreated, present: Organization | None
) -> Receipt:
    subject = row.subject or ""
    if present is not None and present.name != data.name.strip():
        return _verdict(change.session, row, "refused", f"subject: {subject} exists already under another name")
    if present is not None:
        return _verdict(change.session, row, "accepted", "existed already")
    _create(change, subject, data, catalog)
    _take_those_that_waited(change, catalog, subject)
    return _verdict(change.session, row, "accepted", None)


def _create(change: Change, org_id: str, data: OrganizationCreated, catalog: Catalog) -> None:
    new = NewOrganization(
        name=data.name,
        plan_tier=data.plan_tier,
        org_id=org_id,
        billing_email=data.billing_email,
        currency=data.currency,
    )
    organization = organizations.create(change, new, catalog)
    if data.owner_user_id is not None:
        memberships.add(change, organization, data.owner_user_id, "owner")


def _apply(change: Change, organization: Organization, data: Data, catalog: Catalog) -> None:
    match data:
        case OrganizationRenamed():
            organizations.rename(change, organization, data.name)
        case PlanChanged():
            organizations.change_plan(change, organization, data.plan_tier, catalog)
        case StatusChanged():
            organizations.change_status(change, organization, data.status)
        case BillingDetailsChanged():
            organizations.change_billing_details(
                change, organization, billing_email=data.billing_email, currency=data.currency
            )
        case MembershipAdded() | MembershipRemoved() | MembershipRoleChanged():
            _apply_to_member(change, organization, data)


def _apply_to_member(
    change: Change, organization: Organization, data: MembershipAdded | MembershipRemoved | MembershipRoleChanged
) -> None:
    membership = memberships.find(change.session, organization.id, data.user_id)
    if isinstance(data, MembershipAdded):
        if membership is None:
            memberships.add(change, organization, data.user_id, data.role)
        else:
            memberships.change_role(change, membership, data.role)
    elif membership is None:
        if isinstance(data, MembershipRoleChanged):
            raise InvalidChangeError("user_id", f"{data.user_id} is not in organization {organization.id}")
    elif isinstance(data, MembershipRemoved):
        memberships.remove(change, membership)
    else:
        memberships.change_role(change, membership, data.role)


def _take_those_that_waited(change: Change, catalog: Catalog, org_id: str) -> None:
    """In the order of their own time; each for itself, so that a bad one spoils no other."""
    waited = change.session.scalars(
        select(ReceivedEvent)
        .where(ReceivedEvent.subject == org_id, ReceivedEvent.verdict == "waiting")
        .order_by(ReceivedEvent.occurred_at, ReceivedEvent.received_at)
        .with_for_update()
    ).all()
    for row in waited:
        cause = Cause(actor="service", source=row.source, caused_by=f"{row.source}#{row.id}")
        organization = organizations.lock(change.session, org_id)
        if organization is None:
            return
        try:
            with change.session.begin_nested():
                _, _, data = parse(_as_message(row))
                _apply(Change(change.session, change.now, cause), organization, data, catalog)
                _verdict(change.session, row, "accepted", "waited for its organization")
        except (InvalidChangeError, RefusedError) as error:
            change.session.refresh(organization)
            _verdict(change.session, row, "refused", str(error))


def _as_message(row: ReceivedEvent) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": row.id,
        "source": row.source,
        "type": row.type,
        "subject": row.subject,
        "data": row.data,
    }


def _said_since(session: Session, row: ReceivedEvent) -> bool:
    """Members are told apart by user: a later word about one says nothing about another."""
    if row.occurred_at is None:
        return False
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
    about = (row.data or {}).get("user_id")
    return any((data or {}).get("user_id") == about for data in later)


def _insert_once(session: Session, row: ReceivedEvent) -> Receipt | None:
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
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(ReceivedEvent).values(values).on_conflict_do_nothing()
    inserted = session.execute(statement.returning(ReceivedEvent.id)).one_or_none()
    if inserted is not None:
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
    digest = hashlib.sha256(json.dumps(raw, sort_keys=True, default=str).encode()).hexdigest()
    data = fields.get("data")
    row = ReceivedEvent(
        source=_short(fields.get("source")) or UNNAMED_SOURCE,
        id=_short(fields.get("id")) or digest,
        type=_short(fields.get("type")),
        subject=_short(fields.get("subject")),
        received_at=now,
        verdict="refused",
        reason=reason,
        data=data if isinstance(data, dict) and len(json.dumps(data, default=str)) <= 64 * 1024 else None,
    )
    with database.write() as session:
        return _insert_once(session, row) or _receipt(row, repeated=False)


def _short(value: object) -> str | None:
    return value[:255] if isinstance(value, str) and value else None
