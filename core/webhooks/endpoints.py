"""Webhook endpoints: the addresses of other services that are told what happens, and of what.

An address is https, or on this very machine; where it leads is looked at again whenever something is sent there, since
a name may lead elsewhere by then.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from core.common.validation import InvalidChangeError, one_of
from core.db.models.webhooks import WebhookDelivery, WebhookEndpoint
from core.webhooks.payloads import NAMES, Name
from core.webhooks.url_policy import checked_url

PREFIX: Final = "we_"
DESCRIPTION_LIMIT: Final = 200
MOST: Final = 50

# Written out, not bound: SQLite uses a partial index only where it reads the index's own condition.
IS_PENDING: Final = "state = 'pending'"
IS_FAILED: Final = "state = 'failed'"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointReport:
    """``events`` empty: every event. ``generation`` of its secret. What waits and what failed of the last 30 days."""

    id: str
    url: str
    events: list[Name]
    description: str | None
    generation: int
    created_at: datetime
    disabled_at: datetime | None
    disabled_because: str | None
    pending: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEndpoint:
    url: str
    events: Collection[str] = ()
    description: str | None = None


def add(session: Session, new: NewEndpoint, now: datetime, *, private: bool) -> EndpointReport:
    """``private``: it may be on a network of our own. Raises ``InvalidChangeError``."""
    wanted = {one_of("events", event, NAMES) for event in new.events}
    if (session.scalar(select(func.count()).select_from(WebhookEndpoint)) or 0) >= MOST:
        raise InvalidChangeError("url", f"there are {MOST} webhook endpoints already: remove one that is not needed")
    row = WebhookEndpoint(
        id=PREFIX + secrets.token_hex(12),
        url=checked_url(new.url, private=private),
        events=" ".join(name for name in NAMES if name in wanted),
        description=_checked_description(new.description),
        generation=1,
        created_at=now,
        failures=0,
    )
    session.add(row)
    session.flush()
    return _report(row, 0, 0)


def every(session: Session) -> list[EndpointReport]:
    """Oldest first."""
    pending, failed = _counted(session, IS_PENDING), _counted(session, IS_FAILED)
    endpoints = session.scalars(select(WebhookEndpoint).order_by(WebhookEndpoint.created_at, WebhookEndpoint.id))
    return [_report(row, pending.get(row.id, 0), failed.get(row.id, 0)) for row in endpoints]


def remove(session: Session, endpoint_id: str) -> bool:
    """With all its deliveries; nothing more is sent there. False: there is no such endpoint."""
    # Locked first: whoever puts a delivery in holds the row, and then finds it gone.
    row = session.get(WebhookEndpoint, endpoint_id, with_for_update=True)
    if row is None:
        return False
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint_id))
    session.delete(row)
    return True


def rotate(session: Session, endpoint_id: str, now: datetime) -> int | None:
    """The generation of its new secret; the one before signs as well for a day. ``None``: there is no such endpoint."""
    row = session.get(WebhookEndpoint, endpoint_id, with_for_update={"key_share": True})
    if row is None:
        return None
    row.generation += 1
    row.rotated_at = now
    return row.generation


def _checked_description(description: str | None) -> str | None:
    plain = (description or "").strip()
    if len(plain) > DESCRIPTION_LIMIT or not plain.isprintable():
        raise InvalidChangeError("description", f"description must be one line of at most {DESCRIPTION_LIMIT} letters")
    return plain or None


def _counted(session: Session, condition: str) -> dict[str, int]:
    counted = select(WebhookDelivery.endpoint_id, func.count()).where(text(condition))
    return {row[0]: row[1] for row in session.execute(counted.group_by(WebhookDelivery.endpoint_id))}


def _report(row: WebhookEndpoint, pending: int, failed: int) -> EndpointReport:
    words = row.events.split()
    return EndpointReport(
        id=row.id,
        url=row.url,
        events=[name for name in NAMES if name in words],
        description=row.description,
        generation=row.generation,
        created_at=row.created_at,
        disabled_at=row.disabled_at,
        disabled_because=row.disabled_because,
        pending=pending,
        failed=failed,
    )
