"""The history of one organization: every change, what was sent to which provider, and what came of it, newest first.

It is read from the rows that the parts of the program store anyway, so nothing can be in one and not in the other.
Names, email addresses and other data of people are not in it: they stay in their own rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.common.json_types import Json
from core.db.models.access import ApiKey, ServiceAccount
from core.db.models.billing_links import BillingLink
from core.db.models.drift import DriftFinding, DriftReportRecord
from core.db.models.email import Email
from core.db.models.events import Event
from core.db.models.history import LinkHistory
from core.db.models.inbox import ProviderWebhook, ServiceEvent
from core.db.models.organizations import Organization
from core.db.models.webhooks import WebhookDelivery
from core.ports.spec import PROVIDERS, Provider

MAX_ENTRIES: Final = 500
# A transaction stores a few rows with one time.
MAX_OF_ONE_MOMENT: Final = 50

Subject = Literal["change", "sync", "action", "message", "webhook", "email", "delivery", "drift"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """``kind``: within the subject, such as ``organization.renamed``. ``by``: who or what caused it; of a service
    over HTTP also the name of its account and the id of its key.

    ``details``: ids, codes, plans and statuses.
    """

    at: datetime
    subject: Subject
    kind: str
    provider: Provider | None = None
    by: str | None = None
    details: Mapping[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class PastLink:
    """What the last attempt before that time left. A field that is None was not known then."""

    provider: Provider
    as_of: datetime
    outcome: str | None
    state: str | None
    customer_id: str | None
    subscription_id: str | None
    plan_code: str | None
    next_plan_code: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PastState:
    at: datetime
    plan_tier: str
    pending_plan_tier: str | None
    status: str
    links: Mapping[Provider, PastLink | None]


def exists(session: Session, org_id: str) -> bool:
    return session.get(Organization, org_id) is not None


def entries(session: Session, org_id: str, limit: int, before: datetime | None = None) -> list[HistoryEntry]:
    """The newest ``limit`` entries, newest first; those before ``before`` for the next page.

    Entries of one moment are never on two pages, so there may be some more.
    """
    most = min(limit, MAX_ENTRIES)
    found = [entry for read in _READERS for entry in read(session, org_id, most + MAX_OF_ONE_MOMENT, before)]
    found.sort(key=lambda each: each.at, reverse=True)
    return [each for each in found if len(found) <= most or each.at >= found[most - 1].at]


def state_at(session: Session, org_id: str, at: datetime) -> PastState | None:
    """Plan, status and links as they were then. ``None``: the organization did not exist."""
    organization = session.get(Organization, org_id)
    if organization is None or organization.created_at > at:
        return None
    plan, pending = _plans_at(session, organization, at)
    return PastState(
        at=at,
        plan_tier=plan,
        pending_plan_tier=pending,
        status=_status_at(session, organization, at),
        links={provider: _link_at(session, org_id, provider, at) for provider in PROVIDERS},
    )


def _plans_at(session: Session, organization: Organization, at: datetime) -> tuple[str, str | None]:
    last = _last_event(session, organization.id, "organization.plan_changed", at)
    if last is not None:
        data = last.data
        is_scheduled = data["at"] == "period_end"
        pending = data.get("pending", data["to"] if is_scheduled else None)
        return data["from"] if is_scheduled else data["to"], pending
    following = _next_event(session, organization.id, "organization.plan_changed", at)
    return (organization.plan_tier if following is None else following.data["from"]), None


def _status_at(session: Session, organization: Organization, at: datetime) -> str:
    last = _last_event(session, organization.id, "organization.status_changed", at)
    if last is not None:
        return str(last.data["to"])
    following = _next_event(session, organization.id, "organization.status_changed", at)
    return organization.status if following is None else str(following.data["from"])


def _last_event(session: Session, org_id: str, event_type: str, at: datetime) -> Event | None:
    events = select(Event).where(Event.org_id == org_id, Event.type == event_type, Event.occurred_at <= at)
    return session.scalars(events.order_by(Event.seq.desc()).limit(1)).one_or_none()


def _next_event(session: Session, org_id: str, event_type: str, at: datetime) -> Event | None:
    events = select(Event).where(Event.org_id == org_id, Event.type == event_type, Event.occurred_at > at)
    return session.scalars(events.order_by(Event.seq).limit(1)).one_or_none()


def _link_at(session: Session, org_id: str, provider: Provider, at: datetime) -> PastLink | None:
    attempts = (
        select(LinkHistory)
        .where(
            LinkHistory.org_id == org_id,
            LinkHistory.provider == provider,
            LinkHistory.kind == "attempt",
            LinkHistory.ended_at <= at,
        )
        .order_by(LinkHistory.seq.desc())
        .limit(MAX_OF_ONE_MOMENT)
    )
    # One that lost its lease does not know what the link was afterwards.
    row = next((each for each in session.scalars(attempts) if "link" in each.data), None)
    if row is None or row.ended_at is None:
        return None
    link = row.data["link"]
    return PastLink(
        provider=provider,
        as_of=row.ended_at,
        outcome=row.outcome,
        state=link.get("state"),
        customer_id=link.get("customer_id"),
        subscription_id=link.get("subscription_id"),
        plan_code=link.get("sold_plan"),
        next_plan_code=link.get("applied_next_plan"),
    )


def _changes(session: Session, org_id: str, limit: int, before: datetime | None) -> Iterator[HistoryEntry]:
    found = select(Event).where(
        Event.org_id == org_id,
        Event.type.not_in(
            ("organization.sync_requested", "link.parked", "link.payment_on_hold")
        ),  # a row of the link says the same
        *_before(Event.occurred_at, before),
    )
    events = session.scalars(found.order_by(Event.seq.desc()).limit(limit)).all()
    names = _account_names(session, [event.key_id for event in events])
    for event in events:
        yield HistoryEntry(
            at=event.occurred_at,
            subject="change",
            kind=event.type,
            by=f"{event.actor}{_key_text(names, event.key_id)} ({event.caused_by or event.source})",
            details=event.data,
        )


def _link_rows(session: Session, org_id: str, limit: int, before: datetime | None) -> Iterator[HistoryEntry]:
    found = select(LinkHistory).where(LinkHistory.org_id == org_id, *_before(LinkHistory.at, before))
    rows = session.scalars(found.order_by(LinkHistory.seq.desc()).limit(limit)).all()
    names = _account_names(session, [row.key_id for row in rows])
    for row in rows:
        is_attempt = row.kind == "attempt"
        ended = {"ended_at": row.ended_at.isoformat() if row.ended_at else None, "version": row.version}
        yield HistoryEntry(
            at=row.at,
            subject="sync" if is_attempt else "action",
            kind=(row.outcome or "not_ended") if is_attempt else row.kind,
            provider=_provider(row.provider),
            by=None if is_attempt else f"{row.actor}{_key_text(names, row.key_id)} ({row.source})",
            details={**row.data, **ended} if is_attempt else row.data,
        )


def _messages(session: Session, org_id: str, limit: int, before: datetime | None) -> Iterator[HistoryEntry]:
    found = select(ServiceEvent).where(ServiceEvent.org_id == org_id, *_before(ServiceEvent.received_at, before))
    rows = session.scalars(found.order_by(ServiceEvent.received_at.desc()).limit(limit)).all()
    names = _account_names(session, [row.key_id for row in rows])
    for row in rows:
        yield HistoryEntry(
            at=row.received_at,
            subject="message",
            kind=row.status,
            by=f"{row.source}{_key_text(names, row.key_id)}",
            details={"id": row.id, "type": row.type},
        )


def _webhooks(session: Session, org_id: str, limit: int, before: datetime | None) -> Iterator[HistoryEntry]:
    links = session.execute(
        select(BillingLink.provider, BillingLink.customer_id).where(
            BillingLink.org_id == org_id, BillingLink.customer_id.is_not(None)
        )
    )
    by_customer = [
        and_(
            ProviderWebhook.provider == provider,
            ProviderWebhook.customer_id == customer_id,
            # The id may have been another organization's.
            or_(ProviderWebhook.org_id.is_(None), ProviderWebhook.org_id == org_id),
        )
        for provider, customer_id in links
    ]
    found = select(ProviderWebhook).where(
        or_(ProviderWebhook.org_id == org_id, *by_customer), *_before(ProviderWebhook.received_at, before)
    )
    for row in session.scalars(found.order_by(ProviderWebhook.received_at.desc()).limit(limit)):
        yield HistoryEntry(
            at=row.received_at,
            subject="webhook",
            kind=row.state,
            provider=_provider(row.provider),
            details={"id": row.id, "type": row.type, "code": row.code, "reason": row.reason},
        )


def _emails(session: Session, org_id: str, limit: int, before: datetime | None) -> Iterator[HistoryEntry]:
    found = select(Email).where(Email.org_id == org_id, *_before(Email.created_at, before))
    for row in session.scalars(found.order_by(Email.created_at.desc()).limit(limit)):
        closed_at = row.closed_at.isoformat() if row.closed_at is not None else None
        yield HistoryEntry(
            at=row.created_at,
            subject="email",
            kind=row.state,
            details={"id": row.id, "kind": row.kind, "closed_at": closed_at},
        )


def _deliveries(session: Session, org_id: str, limit: int, before: datetime | None) -> Iterator[HistoryEntry]:
    found = (
        select(WebhookDelivery)
        .join(Event, Event.seq == WebhookDelivery.event_seq)
        .where(Event.org_id == org_id, *_before(WebhookDelivery.created_at, before))
        .order_by(WebhookDelivery.created_at.desc())
        .limit(limit)
    )
    for row in session.scalars(found):
        yield HistoryEntry(
            at=row.created_at,
            subject="delivery",
            kind=row.state,
            details={
                "endpoint_id": row.endpoint_id,
                "type": row.type,
                "attempts": row.attempts,
                "last_status": row.last_status,
            },
        )


def _drift(session: Session, org_id: str, limit: int, before: datetime | None) -> Iterator[HistoryEntry]:
    found = (
        select(DriftFinding, DriftReportRecord)
        .join(DriftReportRecord, DriftReportRecord.run_id == DriftFinding.run_id)
        .where(DriftFinding.org_id == org_id, *_before(DriftReportRecord.started_at, before))
        .order_by(DriftReportRecord.started_at.desc())
        .limit(limit)
    )
    for finding, report in session.execute(found):
        yield HistoryEntry(
            at=report.finished_at or report.started_at,
            subject="drift",
            kind="found",
            details={"report_id": report.report_id, "kinds": _finding_kinds(finding.body)},
        )


def _account_names(session: Session, key_ids: Collection[str | None]) -> dict[str, str]:
    """The name of the service account of each key."""
    found = select(ApiKey.id, ServiceAccount.name).join(ServiceAccount, ServiceAccount.id == ApiKey.account_id)
    given = {key_id for key_id in key_ids if key_id is not None}
    return {row[0]: row[1] for row in session.execute(found.where(ApiKey.id.in_(given)))} if given else {}


def _key_text(names: Mapping[str, str], key_id: str | None) -> str:
    """`` signup, key 1a2b``; empty: no service called over HTTP."""
    return "" if key_id is None else f" {names[key_id]}, key {key_id}"


def _finding_kinds(body: Mapping[str, Any]) -> list[Json]:
    return [str(each["kind"]) for each in body["findings"]]


def _before(column: InstrumentedAttribute[datetime], before: datetime | None) -> list[ColumnElement[bool]]:
    return [] if before is None else [column < before]


def _provider(name: str) -> Provider:
    return "stripe" if name == "stripe" else "lago"


_READERS: Final = (_changes, _link_rows, _messages, _webhooks, _emails, _deliveries, _drift)
