"""Transactional outbox: an event is stored with the change that caused it.

A row leaves the pending set only after the broker took it, so a crash in between sends it twice and never zero times.
No transaction is open while the broker is talked to: rows are leased first, marked afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import uuid4

from sqlalchemy import Integer, bindparam, insert, or_, select, text, update
from sqlalchemy.orm import Session

from core.db.base import UtcDateTime
from core.db.models.events import Event, EventData
from core.events.event_types import ChangeContext, EventType

EVENTS_CHANNEL = "billing_sync_events"
"""Postgres NOTIFY: a hint that rows are pending, never the queue itself."""

EVENT_LEASE = timedelta(seconds=30)

# Written once: to build a statement costs more than to send it.
_PARAM_NOW = bindparam("this_moment", type_=UtcDateTime())
_LEASABLE = (
    select(Event.seq)
    .where(Event.published_at.is_(None), or_(Event.lease_until.is_(None), Event.lease_until < _PARAM_NOW))
    .order_by(Event.seq)
    .limit(bindparam("most", type_=Integer()))
    .with_for_update(skip_locked=True)
    # A subquery may be run again for every row and lock more than the limit; this runs once.
    .cte("free")
)
_LEASE_BATCH = (
    update(Event)
    .where(Event.seq.in_(select(_LEASABLE.c.seq)))
    .values(lease_token=bindparam("token"), lease_until=bindparam("until"))
    .returning(Event.seq, Event.id, Event.type, Event.org_id)
    .execution_options(synchronize_session=False)
)
_MARK_PUBLISHED = (
    update(Event)
    .where(Event.lease_token == bindparam("token"), Event.published_at.is_(None))
    .values(published_at=_PARAM_NOW, lease_token=None, lease_until=None)
    .returning(Event.seq)
    .execution_options(synchronize_session=False)
)
_INSERT_EVENT = insert(Event)
_NOTIFY_RELAY = text(f"NOTIFY {EVENTS_CHANNEL}")
# A lease that a crash of the server forgets is an event sent twice, which it may be anyway; the disk is not waited for.
_ASYNCHRONOUS_COMMIT = text("SET LOCAL synchronous_commit = off")
_SELECT_ANY_PENDING = select(Event.seq).where(Event.published_at.is_(None)).limit(1)


@dataclass(frozen=True, slots=True)
class PendingEvent:
    seq: int
    id: str
    type: str
    org_id: str


def record(
    change: ChangeContext, event_type: EventType, org_id: str, data: EventData, *, notify_relay: bool = True
) -> None:
    """Store the event in the caller's transaction, and ring for the relay when that commits.

    Without ``hurry`` nobody is rung: the relay's next look finds it, within a second.
    """
    event = {
        "id": str(uuid4()),
        "type": event_type,
        "org_id": org_id,
        "actor": change.cause.actor,
        "source": change.cause.source,
        "caused_by": change.cause.caused_by,
        "data": data,
        "occurred_at": change.now,
    }
    # Past the unit of work, which costs several times as much for a row that nobody looks at again.
    connection = change.session.connection()
    connection.execute(_INSERT_EVENT, event)
    if notify_relay and connection.dialect.name == "postgresql":
        connection.execute(_NOTIFY_RELAY)


def lease_batch(session: Session, limit: int, now: datetime) -> tuple[str, list[PendingEvent]]:
    """Take up to ``limit`` pending events, oldest first, for ``LEASE``; returns the token that marks them.

    In a transaction of its own: on Postgres nothing of it is on disk when it has been committed.
    """
    token = str(uuid4())
    parameters = {"most": limit, "this_moment": now, "token": token, "until": now + EVENT_LEASE}
    connection = session.connection()
    if connection.dialect.name == "postgresql":
        connection.execute(_ASYNCHRONOUS_COMMIT)
    rows = connection.execute(_LEASE_BATCH, parameters).all()
    return token, sorted((PendingEvent(*row) for row in rows), key=lambda pending: pending.seq)


def mark_published(session: Session, token: str, now: datetime) -> set[int]:
    """Call only after the broker took them all; returns the numbers of those that left the pending set by this.

    Each event is in one such answer and in no other, however often it was handed to the broker: what must be made of an
    event once is made in this transaction.
    """
    return set(session.connection().scalars(_MARK_PUBLISHED, {"token": token, "this_moment": now}))


def release(session: Session, token: str) -> None:
    """The broker did not take them: pending again at once."""
    session.execute(
        update(Event)
        .where(Event.lease_token == token, Event.published_at.is_(None))
        .values(lease_token=None, lease_until=None)
        .execution_options(synchronize_session=False)
    )


def has_pending(session: Session) -> bool:
    """A cheap look that takes no lock."""
    return session.scalar(_SELECT_ANY_PENDING) is not None
