"""Incoming messages that wait or were rejected: events of other services and webhooks of the providers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.db.models.inbox import Hint, HintState, ReceivedEvent

# A webhook's state in the words that are used for what other services send.
_VERDICTS: dict[HintState, str] = {
    "stored": "waiting",
    "handled": "accepted",
    "refused": "refused",
    "ignored": "ignored",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What another service sent, or a biller by webhook, and what became of it."""

    source: str
    id: str
    type: str | None
    subject: str | None
    verdict: str
    reason: str | None
    occurred_at: datetime | None
    received_at: datetime


def messages(session: Session, verdicts: Collection[str], limit: int) -> tuple[list[Message], int]:
    """Of other services and of billers, newest first, and how many there are beyond the limit too."""
    events, of_services = _events(session, verdicts, limit)
    webhooks, of_billers = _webhooks(session, verdicts, limit)
    found = sorted([*events, *webhooks], key=lambda each: each.received_at, reverse=True)
    return found[:limit], of_services + of_billers


def _events(session: Session, verdicts: Collection[str], limit: int) -> tuple[list[Message], int]:
    condition = ReceivedEvent.verdict.in_(verdicts)
    rows = session.scalars(
        select(ReceivedEvent).where(condition).order_by(ReceivedEvent.received_at.desc()).limit(limit)
    )
    found = [
        Message(
            source=row.source,
            id=row.id,
            type=row.type,
            subject=row.subject,
            verdict=row.verdict,
            reason=row.reason,
            occurred_at=row.occurred_at,
            received_at=row.received_at,
        )
        for row in rows
    ]
    return found, session.scalar(select(func.count()).select_from(ReceivedEvent).where(condition)) or 0


def _webhooks(session: Session, verdicts: Collection[str], limit: int) -> tuple[list[Message], int]:
    condition = Hint.state.in_([state for state, verdict in _VERDICTS.items() if verdict in verdicts])
    rows = session.scalars(select(Hint).where(condition).order_by(Hint.received_at.desc()).limit(limit))
    found = [
        Message(
            source=row.provider,
            id=row.id,
            type=row.type,
            subject=row.org_id or row.customer_id or row.object_id,
            verdict=_VERDICTS[row.state],
            reason=row.reason,
            occurred_at=None,
            received_at=row.received_at,
        )
        for row in rows
    ]
    return found, session.scalar(select(func.count()).select_from(Hint).where(condition)) or 0


def _together(received: Mapping[str, int], webhooks: Mapping[HintState, int]) -> dict[str, int]:
    counts = dict(received)
    for state, number in webhooks.items():
        counts[_VERDICTS[state]] = counts.get(_VERDICTS[state], 0) + number
    return counts
