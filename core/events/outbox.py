"""Transactional outbox: an event is stored with the change that caused it.

An event stays pending until the broker has accepted it, so after a crash it is sent twice rather than never. No
transaction is open while an event is published: rows are leased before and marked after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import uuid4

from sqlalchemy import Integer, bindparam, insert, select, text, update
from sqlalchemy.orm import Session

from core.db import leases
from core.db.base import UtcDateTime
from core.db.models.events import Event, EventData
from core.events.event_types import ChangeContext, EventType

EVENTS_CHANNEL = "billing_sync_events"
"""Channel of the Postgres NOTIFY that says that rows are pending. It is never the queue itself."""

EVENT_LEASE = timedelta(seconds=30)

# Built once, because building a statement costs more than sending it.
_PARAM_NOW = bindparam("this_moment", type_=UtcDateTime())
_LEASABLE = (
    select(Event.seq)
    .where(Event.published_at.is_(None), leases.is_free(Event, _PARAM_NOW))
    .order_by(Event.seq)
    .limit(bindparam("most", type_=Integer()))
    .with_for_update(skip_locked=True)
    # A subquery may run again for every row and lock more rows than the limit; this runs once.
    .cte("free")
)
_LEASE_BATCH = (
    update(Event)
    .where(Event.seq.in_(select(_LEASABLE.c.seq)))
    .values(leases.acquired(bindparam("token"), bindparam("until")))
    .returning(Event.seq, Event.id, Event.type, Event.org_id)
    .execution_options(synchronize_session=False)
)
_MARK_PUBLISHED = (
    update(Event)
    .where(leases.is_mine(Event, bindparam("token")), Event.published_at.is_(None))
    .values(published_at=_PARAM_NOW, **leases.RELEASED)
    .returning(Event.seq)
    .execution_options(synchronize_session=False)
)
_INSERT_EVENT = insert(Event)
_NOTIFY_RELAY = text(f"NOTIFY {EVENTS_CHANNEL}")
# Does not wait for the disk. If a server crash loses a lease, an event is sent twice, which may happen anyway.
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
    """Store the event in the caller's transaction, and notify the relay when that commits.

    Without ``notify_relay`` the relay finds the event at its next poll, within a second.
    """
    event = {
        "id": str(uuid4()),
        "type": event_type,
        "org_id": org_id,
        "actor": change.cause.actor,
        "source": change.cause.source,
        "caused_by": change.cause.caused_by,
        "key_id": change.cause.key_id,
        "data": data,
        "occurred_at": change.now,
    }
    # Not through the unit of work, which costs several times as much for a row that is not used again.
    connection = change.session.connection()
    connection.execute(_INSERT_EVENT, event)
    if notify_relay and connection.dialect.name == "postgresql":
        connection.execute(_NOTIFY_RELAY)


def lease_batch(session: Session, limit: int, now: datetime) -> tuple[str, list[PendingEvent]]:
    """Lease up to ``limit`` pending events, oldest first, for ``EVENT_LEASE``; returns their token and the events.

    Call it in a transaction of its own: on Postgres the commit does not wait for the disk.
    """
    token = leases.new_token()
    parameters = {"most": limit, "this_moment": now, "token": token, "until": now + EVENT_LEASE}
    connection = session.connection()
    if connection.dialect.name == "postgresql":
        connection.execute(_ASYNCHRONOUS_COMMIT)
    rows = connection.execute(_LEASE_BATCH, parameters).all()
    return token, sorted((PendingEvent(*row) for row in rows), key=lambda pending: pending.seq)


def mark_published(session: Session, token: str, now: datetime) -> set[int]:
    """Call only after the broker has accepted all of them; returns the ``seq`` of the events that this call marked.

    Each event is returned exactly once, however often it was published. So what must be done once per event is done in
    this transaction.
    """
    return set(session.connection().scalars(_MARK_PUBLISHED, {"token": token, "this_moment": now}))


def release(session: Session, token: str) -> None:
    """The broker did not accept the events: they are pending again at once."""
    session.execute(
        update(Event)
        .where(leases.is_mine(Event, token), Event.published_at.is_(None))
        .values(leases.RELEASED)
        .execution_options(synchronize_session=False)
    )


def has_pending(session: Session) -> bool:
    """Whether any event is pending; a cheap query without a lock."""
    return session.scalar(_SELECT_ANY_PENDING) is not None
