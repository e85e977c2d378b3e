"""Webhook endpoints: the URLs of subscribers, and the events that they subscribe to.

An endpoint belongs to the service account that added it, or to the operators. A URL is https, or http on this machine.
The address behind it is checked again at each delivery, because the host name may lead to another one by then.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import delete, func, select, text, true
from sqlalchemy.orm import Session

from core.common.validation import InvalidChangeError, one_of
from core.db.database import acquire_advisory_locks
from core.db.models.webhooks import WebhookDelivery, WebhookEndpoint
from core.webhooks.payloads import PUBLIC_EVENT_NAMES, PublicEventName
from core.webhooks.url_policy import checked_url

ENDPOINT_ID_PREFIX: Final = "we_"
MAX_ENDPOINT_DESCRIPTION_LENGTH: Final = 200
MAX_ENDPOINTS: Final = 50
MAX_ENDPOINTS_OF_ACCOUNT: Final = 20
_ENDPOINT_COUNT_LOCK: Final = "webhook_endpoints"

# A literal, not a bound parameter: SQLite uses a partial index only if the query contains its condition.
DELIVERY_IS_PENDING: Final = "state = 'pending'"
DELIVERY_IS_FAILED: Final = "state = 'failed'"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointInfo:
    """``events`` empty: every event. ``pending`` and ``failed`` count deliveries of the last 30 days."""

    id: str
    url: str
    events: list[PublicEventName]
    description: str | None
    secret_generation: int
    created_at: datetime
    disabled_at: datetime | None
    disabled_reason: str | None
    pending: int
    failed: int
    account_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEndpoint:
    """``account_id``: the service account that owns it; ``None``: an operator adds it."""

    url: str
    events: Collection[str] = ()
    description: str | None = None
    account_id: str | None = None


def add(session: Session, new: NewEndpoint, now: datetime, *, allow_private: bool) -> EndpointInfo:
    """``allow_private``: the URL may lead to a private network. Raises ``InvalidChangeError``."""
    subscribed = {one_of("events", event, PUBLIC_EVENT_NAMES) for event in new.events}
    _refuse_too_many(session, new.account_id)
    row = WebhookEndpoint(
        id=ENDPOINT_ID_PREFIX + secrets.token_hex(12),
        url=checked_url(new.url, allow_private=allow_private),
        events=" ".join(name for name in PUBLIC_EVENT_NAMES if name in subscribed),
        description=_checked_description(new.description),
        secret_generation=1,
        created_at=now,
        consecutive_failures=0,
        account_id=new.account_id,
    )
    session.add(row)
    session.flush()
    return _to_info(row, 0, 0)


def list_all(session: Session, account_id: str | None = None) -> list[EndpointInfo]:
    """Oldest first. ``account_id``: only those of this account; ``None``: all, for an operator."""
    is_listed = true() if account_id is None else WebhookEndpoint.account_id == account_id
    pending, failed = _count_by_endpoint(session, DELIVERY_IS_PENDING), _count_by_endpoint(session, DELIVERY_IS_FAILED)
    endpoints = session.scalars(
        select(WebhookEndpoint).where(is_listed).order_by(WebhookEndpoint.created_at, WebhookEndpoint.id)
    )
    return [_to_info(row, pending.get(row.id, 0), failed.get(row.id, 0)) for row in endpoints]


def lock_own(session: Session, endpoint_id: str, account_id: str) -> bool:
    """Whether the endpoint exists and belongs to this account. Then it does until the transaction ends."""
    row = session.get(WebhookEndpoint, endpoint_id, with_for_update={"key_share": True})
    return row is not None and row.account_id == account_id


def assign(session: Session, endpoint_id: str, account_id: str) -> bool:
    """Give the endpoint to this account, whoever owns it. False: it does not exist. Raises ``InvalidChangeError``."""
    _refuse_too_many(session, account_id, is_new=False)
    row = session.get(WebhookEndpoint, endpoint_id, with_for_update={"key_share": True})
    if row is not None:
        row.account_id = account_id
    return row is not None


def remove(session: Session, endpoint_id: str) -> bool:
    """Remove the endpoint and all its deliveries. Nothing more is sent to it. False: it does not exist."""
    # Locked first: a transaction that inserts a delivery locks the row too, and then finds it removed.
    row = session.get(WebhookEndpoint, endpoint_id, with_for_update=True)
    if row is None:
        return False
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint_id))
    session.delete(row)
    return True


def rotate_secret(session: Session, endpoint_id: str, now: datetime) -> int | None:
    """The generation of the new secret. The old secret signs too for a day. ``None``: the endpoint does not exist."""
    row = session.get(WebhookEndpoint, endpoint_id, with_for_update={"key_share": True})
    if row is None:
        return None
    row.secret_generation += 1
    row.rotated_at = now
    return row.secret_generation


def _refuse_too_many(session: Session, account_id: str | None, *, is_new: bool = True) -> None:
    """Others who add an endpoint wait until this transaction ends. Raises ``InvalidChangeError``."""
    acquire_advisory_locks(session, _ENDPOINT_COUNT_LOCK)
    count = select(func.count()).select_from(WebhookEndpoint)
    if is_new and (session.scalar(count) or 0) >= MAX_ENDPOINTS:
        raise InvalidChangeError("url", f"there are already {MAX_ENDPOINTS} webhook endpoints; remove one first")
    if account_id is None:
        return
    if (session.scalar(count.where(WebhookEndpoint.account_id == account_id)) or 0) >= MAX_ENDPOINTS_OF_ACCOUNT:
        problem = f"the service account already has {MAX_ENDPOINTS_OF_ACCOUNT} webhook endpoints; remove one first"
        raise InvalidChangeError("url", problem)


def _checked_description(description: str | None) -> str | None:
    stripped = (description or "").strip()
    if len(stripped) > MAX_ENDPOINT_DESCRIPTION_LENGTH or not stripped.isprintable():
        raise InvalidChangeError(
            "description", f"description must be one line of at most {MAX_ENDPOINT_DESCRIPTION_LENGTH} characters"
        )
    return stripped or None


def _count_by_endpoint(session: Session, condition: str) -> dict[str, int]:
    query = select(WebhookDelivery.endpoint_id, func.count()).where(text(condition))
    return {row[0]: row[1] for row in session.execute(query.group_by(WebhookDelivery.endpoint_id))}


def _to_info(row: WebhookEndpoint, pending: int, failed: int) -> EndpointInfo:
    subscribed = row.events.split()
    return EndpointInfo(
        id=row.id,
        url=row.url,
        events=[name for name in PUBLIC_EVENT_NAMES if name in subscribed],
        description=row.description,
        secret_generation=row.secret_generation,
        created_at=row.created_at,
        disabled_at=row.disabled_at,
        disabled_reason=row.disabled_reason,
        pending=pending,
        failed=failed,
        account_id=row.account_id,
    )
