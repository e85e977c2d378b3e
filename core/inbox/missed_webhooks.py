"""Webhooks that did not come: Stripe lists its events, so those that are not in the inbox are stored from there.

They are then processed as if their webhook had come. Lago lists no webhooks, so its links are read in turn
(``core.reconcile.due_links.request_routine_checks``).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, Protocol

from sqlalchemy import select, update

from core.common.clock import Clock
from core.db.database import Database
from core.db.models.inbox import ProviderWebhook
from core.db.models.providers import ProviderStatus
from core.flow_control.request_gate import RequestGates
from core.inbox import provider_webhooks
from core.inbox.provider_webhooks import ParsedWebhook
from core.ports.errors import ThrottledError, UnavailableError
from core.ports.provider import RequestPermits

# Stripe sends a webhook within seconds. What is younger may still come by itself.
DELIVERY_TIME: Final = timedelta(minutes=1)
# For clocks that differ, and for events that are listed late. It is also how far the first reading goes back.
OVERLAP: Final = timedelta(hours=1)
# Stripe lists no older ones.
EVENT_RETENTION: Final = timedelta(days=30)
# What is left then is read the next time.
MAX_READS: Final = 30
# By then thirty days are less than a second.
MAX_HALVINGS: Final = 24
EVENT_RESERVATION_HOLDER: Final = "events"


class EventReader(Protocol):
    def read(self, since: datetime, until: datetime, permits: RequestPermits) -> list[ParsedWebhook] | None:
        """The events of this time that we use, both ends included, oldest first. ``None``: too many to be read."""


def read_missed(database: Database, clock: Clock, reader: EventReader, gates: RequestGates) -> int:
    """Read the events since the last time, and store what the inbox lacks. Returns how many that were.

    Nothing is read while the circuit breaker is open. Call it for a key whose account was verified. Raises
    ``MustWaitError`` if the rate limiter does not permit it now, and ``ProviderError``. Nothing is skipped then.
    """
    until = clock() - DELIVERY_TIME
    with database.read() as session:
        status = session.get_one(ProviderStatus, "stripe")
    if status.breaker_reason is not None:
        return 0
    since = max((status.events_read_until or until) - OVERLAP, until - EVENT_RETENTION)
    gate = gates.open_gate("stripe", EVENT_RESERVATION_HOLDER, "bulk")
    stored = 0
    try:
        for _ in range(MAX_READS):
            events, since = _read_as_much_as_possible(reader, since, until, gate)
            stored += sum(_store(database, each, clock()) for each in _unknown(database, events))
            _save(database, max(since, status.events_read_until or since))
            if since >= until:
                break
    except ThrottledError as error:
        gate.record_throttle(error)
        raise
    finally:
        gate.close()
    return stored


def _save(database: Database, read_until: datetime) -> None:
    with database.write() as session:
        session.execute(
            update(ProviderStatus).where(ProviderStatus.provider == "stripe").values(events_read_until=read_until)
        )


def _read_as_much_as_possible(
    reader: EventReader, since: datetime, until: datetime, permits: RequestPermits
) -> tuple[list[ParsedWebhook], datetime]:
    """The events, and until when they were read."""
    for _ in range(MAX_HALVINGS):
        events = reader.read(since, until, permits)
        if events is not None:
            return events, until
        until = since + (until - since) / 2
    message = f"Stripe lists more events at {since.isoformat()} than can be read"
    raise UnavailableError("stripe", message)


def _unknown(database: Database, events: Sequence[ParsedWebhook]) -> list[ParsedWebhook]:
    """Those that are not in the inbox and that no request of ours caused."""
    news = [each for each in events if not each.caused_by_us]
    with database.read() as session:
        ids = select(ProviderWebhook.id).where(
            ProviderWebhook.provider == "stripe", ProviderWebhook.id.in_([each.id for each in news])
        )
        known = set(session.scalars(ids))
    return [each for each in news if each.id not in known]


def _store(database: Database, webhook: ParsedWebhook, now: datetime) -> bool:
    """Whether it had not come."""
    with database.write() as session:
        result = provider_webhooks.store(session, webhook, now)
    return not result.repeated and result.state == "stored"
