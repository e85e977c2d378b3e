"""Incoming messages that wait or were rejected: events of other services and webhooks of the providers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.db.models.inbox import ProviderWebhook, ProviderWebhookState, ServiceEvent

MAX_MESSAGES_OF_ONE_ID = 20
# The state of a provider webhook in the words for service events.
_WEBHOOK_INBOX_STATUSES: dict[ProviderWebhookState, str] = {
    "stored": "waiting",
    "handled": "applied",
    "rejected": "rejected",
    "ignored": "ignored",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxMessage:
    """A service event or a provider webhook, with its status. ``sent_id``: the id that was sent, if not ``id``."""

    source: str
    id: str
    sent_id: str | None
    type: str | None
    subject: str | None
    status: str
    reason: str | None
    occurred_at: datetime | None
    received_at: datetime
    is_provider_webhook: bool


def list_messages(session: Session, statuses: Collection[str], limit: int) -> tuple[list[InboxMessage], int]:
    """Messages of other services and of providers, newest first, and their number without the limit."""
    events, event_total = _service_events(session, statuses, limit)
    webhooks, webhook_total = _provider_webhooks(session, statuses, limit)
    found = sorted([*events, *webhooks], key=lambda each: each.received_at, reverse=True)
    return found[:limit], event_total + webhook_total


def find_messages(session: Session, message_id: str, source: str | None) -> list[InboxMessage]:
    """The messages with this id, of any source unless one is given. An id is unique only within its source."""
    events = select(ServiceEvent).where(ServiceEvent.id == message_id).limit(MAX_MESSAGES_OF_ONE_ID)
    webhooks = select(ProviderWebhook).where(ProviderWebhook.id == message_id)
    found = [
        *(_of_service_event(row) for row in session.scalars(events)),
        *(_of_provider_webhook(row) for row in session.scalars(webhooks)),
    ]
    return [each for each in found if source in {None, each.source}]


def _service_events(session: Session, statuses: Collection[str], limit: int) -> tuple[list[InboxMessage], int]:
    condition = ServiceEvent.status.in_(statuses)
    rows = session.scalars(select(ServiceEvent).where(condition).order_by(ServiceEvent.received_at.desc()).limit(limit))
    found = [_of_service_event(row) for row in rows]
    return found, session.scalar(select(func.count()).select_from(ServiceEvent).where(condition)) or 0


def _provider_webhooks(session: Session, statuses: Collection[str], limit: int) -> tuple[list[InboxMessage], int]:
    condition = ProviderWebhook.state.in_(
        [state for state, status in _WEBHOOK_INBOX_STATUSES.items() if status in statuses]
    )
    rows = session.scalars(
        select(ProviderWebhook).where(condition).order_by(ProviderWebhook.received_at.desc()).limit(limit)
    )
    found = [_of_provider_webhook(row) for row in rows]
    return found, session.scalar(select(func.count()).select_from(ProviderWebhook).where(condition)) or 0


def _of_service_event(row: ServiceEvent) -> InboxMessage:
    return InboxMessage(
        source=row.source,
        id=row.id,
        sent_id=row.sent_id,
        type=row.type,
        subject=row.subject,
        status=row.status,
        reason=row.reason,
        occurred_at=row.occurred_at,
        received_at=row.received_at,
        is_provider_webhook=False,
    )


def _of_provider_webhook(row: ProviderWebhook) -> InboxMessage:
    return InboxMessage(
        source=row.provider,
        id=row.id,
        sent_id=None,
        type=row.type,
        subject=row.org_id or row.customer_id or row.object_id,
        status=_WEBHOOK_INBOX_STATUSES[row.state],
        reason=row.reason,
        occurred_at=None,
        received_at=row.received_at,
        is_provider_webhook=True,
    )


def _merge_counts(events: Mapping[str, int], webhooks: Mapping[ProviderWebhookState, int]) -> dict[str, int]:
    counts = dict(events)
    for state, number in webhooks.items():
        counts[_WEBHOOK_INBOX_STATUSES[state]] = counts.get(_WEBHOOK_INBOX_STATUSES[state], 0) + number
    return counts
