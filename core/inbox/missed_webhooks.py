"""Webhooks that did not come: Stripe lists its events, so those that are not in the inbox are stored from there.

They are then processed as if their webhook had come. Lago lists no webhooks, so its links are read in turn
(``core.reconcile.due_links.request_routine_checks``).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, Protocol

from sqlalchemy import update

from core.common.clock import Clock
from core.db.database import Database
from core.db.models.providers import ProviderStatus
from core.flow_control.request_gate import RequestGates
from core.inbox import provider_webhooks
from core.inbox.provider_webhooks import ParsedWebhook
from core.ports.errors import UnavailableError
from core.ports.provider import RequestPermits

# Stripe sends a webhook within seconds. What is younger may still come by itself.
DELIVERY_TIME: Final = timedelta(minutes=1)
# Of a database that has read none yet: what came before its first organization is not missed.
FIRST_WINDOW: Final = timedelta(hours=1)
# Stripe lists no older ones.
EVENT_RETENTION: Final = timedelta(days=30)
# By then thirty days are less than a second.
MAX_HALVINGS: Final = 24
EVENT_RESERVATION_HOLDER: Final = "events"


class EventReader(Protocol):
    def read(self, since: datetime, until: datetime, permits: RequestPermits) -> list[ParsedWebhook] | None:
        """The events of this time that we use, both ends included, oldest first. ``None``: too many to be read."""


def read_missed(database: Database, clock: Clock, reader: EventReader, gates: RequestGates) -> int:
    """Read the events since the last time, and store what the inbox lacks. Returns how many that were.

    Raises ``MustWaitError`` if the rate limiter does not permit it now, and ``ProviderError``. Nothing is skipped then.
    """
    until = clock() - DELIVERY_TIME
    with database.read() as session:
        read_until = session.get_one(ProviderStatus, "stripe").events_read_until
    since = max(read_until or until - FIRST_WINDOW, until - EVENT_RETENTION)
    gate = gates.open_gate("stripe", EVENT_RESERVATION_HOLDER, "bulk")
    try:
        events, until = _read_as_much_as_possible(reader, since, until, gate)
    finally:
        gate.close()
    stored = sum(_store(database, each, clock()) for each in events if not each.caused_by_us)
    with database.write() as session:
        session.execute(
            update(ProviderStatus).where(ProviderStatus.provider == "stripe").values(events_read_until=until)
        )
    return stored


def _read_as_much_as_possible(
    reader: EventReader, since: datetime, until: datetime, permits: RequestPermits
) -> tuple[list[ParsedWebhook], datetime]:
    """The events, and until when they were read. What is left is read the next time."""
    for _ in range(MAX_HALVINGS):
        events = reader.read(since, until, permits)
        if events is not None:
            return events, until
        until = since + (until - since) / 2
    message = f"Stripe lists more events at {since.isoformat()} than can be read"
    raise UnavailableError("stripe", message)


def _store(database: Database, webhook: ParsedWebhook, now: datetime) -> bool:
    """Whether it had not come."""
    with database.write() as session:
        result = provider_webhooks.store(session, webhook, now)
    return not result.repeated and result.state == "stored"
