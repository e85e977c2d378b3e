"""Webhook endpoints: the addresses of other services that are told what happens, and of what.

An address is https, or on this very machine; where it leads is looked at again whenever something is sent there, since
a name may lead elsewhere by then.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import SplitResult, urlsplit

from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from core.announcements import NAMES, Name
from core.models import WebhookDelivery, WebhookEndpoint
from core.organizations import InvalidChangeError, one_of

PREFIX: Final = "we_"
URL_LIMIT: Final = 2000
DESCRIPTION_LIMIT: Final = 200
MOST: Final = 50

# Written out, not bound: SQLite uses a partial index only where it reads the index's own condition.
IS_PENDING: Final = "state = 'pending'"
IS_FAILED: Final = "state = 'failed'"

# Beyond what this Python's ipaddress knows: versions before 3.11.10 call some of these global.
_V4_NOT_PUBLIC: Final = tuple(map(IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "224.0.0.0/3")))
_V6_PUBLIC: Final = IPv6Network("2000::/3")
# Protocols, Teredo and 6to4 wrap addresses of version 4; the others are for documents.
_V6_NOT_PUBLIC: Final = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))


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


def checked_url(url: str, *, private: bool) -> str:
    """The address as it is used. Raises ``InvalidChangeError``, whose text does not repeat it: it may hold a token."""
    refusal = InvalidChangeError("url", "url must be https://host/path (http:// on this machine alone), without a user")
    if len(url) > URL_LIMIT or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise refusal
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise refusal from None
    if not host or port == 0 or parts.username is not None or parts.password is not None or parts.fragment:
        raise refusal
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise refusal
    if not private and _is_private(parts):
        message = "url leads to a private address: name a public one, or set WEBHOOK_ALLOW_PRIVATE"
        raise InvalidChangeError("url", message)
    return url


def is_public(address: str) -> bool:
    """Whether this numeric address is one of the open internet: not of this machine, a private network, a cloud's own.

    ``fe80::1%eth0`` and whatever else is not understood is not public.
    """
    try:
        found = ip_address(address)
    except ValueError:
        return False
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    if isinstance(found, IPv4Address):
        return found.is_global and not any(found in network for network in _V4_NOT_PUBLIC)
    return found in _V6_PUBLIC and found.is_global and not any(found in network for network in _V6_NOT_PUBLIC)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _is_private(parts: SplitResult) -> bool:
    """As far as the address itself tells it."""
    host = parts.hostname or ""
    try:
        ip_address(host)
    except ValueError:
        return _is_loopback(host)
    return not is_public(host)


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
