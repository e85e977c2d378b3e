"""Events of a bulk import: stored in the history like any other event, but never published by the relay.

They are stored as already published, in the transaction of the change they report. Publishing the events of a hundred
thousand organizations would load the broker for nothing, since the sweep finds their links anyway.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterable, Iterator
from datetime import datetime
from uuid import UUID

from sqlalchemy import insert

from core.db.models.events import Event, EventData
from core.events.event_types import ChangeContext, EventType


def record_published(change: ChangeContext, event_type: EventType, events: Iterable[tuple[str, EventData]]) -> None:
    """Stores one event for each pair of an organization's id and the event's data, in this order."""
    rows = [
        {
            "id": event_id,
            "type": event_type,
            "org_id": org_id,
            "actor": change.cause.actor,
            "source": change.cause.source,
            "caused_by": change.cause.caused_by,
            "data": data,
            "occurred_at": change.now,
            "published_at": change.now,
        }
        for event_id, (org_id, data) in zip(_ordered_event_ids(change.now), events, strict=False)
    ]
    change.session.connection().execute(insert(Event), rows)


def _ordered_event_ids(now: datetime) -> Iterator[str]:
    """UUIDs of version 7 in rising order, since a million random ones would touch every page of the index."""
    first = UUID(
        int=int(now.timestamp() * 1000) << 80 | 7 << 76 | secrets.randbits(12) << 64 | 2 << 62 | secrets.randbits(61)
    )
    prefix = str(first)[:24]
    # 47 random bits, and room above them for the counter.
    for number in itertools.count(first.node >> 1):
        yield f"{prefix}{number:012x}"
