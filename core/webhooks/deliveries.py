"""Deliveries: one per event and subscribed endpoint, retried until accepted or failed. At least once, in any order.

They are created in the transaction in which the relay marks the event as published, each once. The sender has a lease
on the row. If a worker dies, its lease expires, and the same event is sent again under the same id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Integer, TextClause, delete, func, literal, or_, select, text, true, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core.common.validation import InvalidChangeError
from core.db import leases
from core.db.base import UtcDateTime
from core.db.models.events import Event
from core.db.models.webhooks import WebhookDelivery, WebhookEndpoint
from core.webhooks import payloads
from core.webhooks.endpoints import DELIVERY_IS_FAILED, DELIVERY_IS_PENDING

# The first attempt is made at once. These are the delays before the others; after the last one the delivery has failed.
DELIVERY_RETRY_DELAYS: Final = (
    timedelta(minutes=1),
    timedelta(minutes=5),
    timedelta(minutes=15),
    timedelta(hours=1),
    timedelta(hours=2),
)
# Longer than one attempt with its DNS lookup, whose time the operating system limits.
DELIVERY_LEASE: Final = timedelta(seconds=60)
# Per endpoint, over all workers. After a failure only one delivery at a time is sent.
MAX_CONCURRENT_PER_ENDPOINT: Final = 4
MAX_ENDPOINT_BACKOFF_SECONDS: Final = 60.0  # doubled by each failure in a row
DELIVERY_RETENTION: Final = timedelta(days=30)
MAX_REPLAYED_EVENTS: Final = 100_000
_DELIVERY_DELETE_BATCH_SIZE: Final = 1000

HTTP_GONE: Final = 410
# These reject this one event. The endpoint is healthy, so other events are sent to it without a delay.
_EVENT_REJECTED_STATUSES: Final = frozenset({400, 409, 413, 415, 422})


NoResponseReason = Literal[
    "bad_address", "no_answer", "no_connection", "private_address", "timeout", "tls", "unexpected"
]
DeliveryError = NoResponseReason | Literal["disabled"]
"""``disabled``: the endpoint was gone, so the delivery was not sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryAttempt:
    """One event that is about to be sent to one endpoint."""

    endpoint: WebhookEndpoint
    event: Event
    name: str
    lease_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookResponse:
    """``status`` is None if there was no response; ``error`` is then the reason."""

    status: int | None = None
    error: NoResponseReason | None = None

    @property
    def accepted(self) -> bool:
        return self.status is not None and 200 <= self.status < 300  # noqa: PLR2004 - HTTP's own class of success

    @property
    def endpoint_healthy(self) -> bool:
        """Accepted, or rejected because of the event: either way the endpoint is healthy."""
        return self.accepted or self.status in _EVENT_REJECTED_STATUSES


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedDelivery:
    """A failed delivery, for an operator."""

    endpoint_id: str
    url: str
    event_id: str
    type: str
    org_id: str
    attempts: int
    status: int | None
    error: str | None
    last_attempt_at: datetime | None


def create_for_events(session: Session, seqs: Collection[int], now: datetime) -> Counter[str]:
    """Create the deliveries of these events, and count them by endpoint.

    Called in the transaction that marks the events as published. Without an enabled endpoint it is one read.
    """
    if not seqs:
        return Counter()
    # Waits for an endpoint that is being removed or replayed, and then reads its current state. So either this call or
    # the replay creates the delivery of an event, never neither of them.
    locked = select(WebhookEndpoint.id, WebhookEndpoint.disabled_at).with_for_update(read=True, key_share=True)
    endpoint_ids = [row.id for row in session.execute(locked) if row.disabled_at is None]
    if not endpoint_ids:
        return Counter()
    statement = _insert_statement(session, now, Event.seq.in_(seqs), WebhookEndpoint.id.in_(endpoint_ids))
    return Counter(session.scalars(statement.on_conflict_do_nothing()))


def due_endpoints(session: Session, now: datetime) -> list[str]:
    """Endpoints to which something can be sent now."""
    ready = (
        select(WebhookDelivery.event_seq)
        .where(WebhookDelivery.endpoint_id == WebhookEndpoint.id, *_delivery_is_due(now))
        .correlate(WebhookEndpoint)
    )
    return list(session.scalars(select(WebhookEndpoint.id).where(*_endpoint_accepts_now(now), ready.exists())))


def lease_next(session: Session, endpoint_id: str, now: datetime) -> DeliveryAttempt | None:
    """Lease the endpoint's next delivery. ``None``: none is due, or the endpoint backs off, is disabled or is busy.

    Leases at one endpoint are acquired one after the other, because the endpoint's row is locked.
    """
    endpoint = _lock_endpoint(session, endpoint_id, *_endpoint_accepts_now(now))
    if endpoint is None or _count_leased(session, endpoint_id, now) >= (
        1 if endpoint.consecutive_failures else MAX_CONCURRENT_PER_ENDPOINT
    ):
        return None
    delivery = session.scalars(
        select(WebhookDelivery)
        .where(WebhookDelivery.endpoint_id == endpoint_id, *_delivery_is_due(now))
        .order_by(WebhookDelivery.next_attempt_at, WebhookDelivery.event_seq)
        .limit(1)
    ).one_or_none()
    if delivery is None:
        return None
    delivery.lease_token = lease_token = leases.new_token()
    delivery.lease_until = now + DELIVERY_LEASE
    event = session.get_one(Event, delivery.event_seq)
    return DeliveryAttempt(endpoint=endpoint, event=event, name=delivery.type, lease_token=lease_token)


def record_attempt(session: Session, attempt: DeliveryAttempt, response: WebhookResponse, now: datetime) -> None:
    """Record the response, unless the lease has expired and another worker has the delivery by now."""
    endpoint = _lock_endpoint(session, attempt.endpoint.id)
    if endpoint is None:
        return
    delivery = session.scalars(
        select(WebhookDelivery).where(
            WebhookDelivery.endpoint_id == endpoint.id,
            WebhookDelivery.event_seq == attempt.event.seq,
            leases.is_mine(WebhookDelivery, attempt.lease_token),
        )
    ).one_or_none()
    if delivery is None:
        return
    delivery.lease_token = delivery.lease_until = None
    delivery.attempts += 1
    delivery.last_attempt_at, delivery.last_status, delivery.last_error = now, response.status, response.error
    if response.accepted:
        delivery.state, delivery.delivered_at = "delivered", now
    else:
        _schedule_retry(delivery, now)
    if response.endpoint_healthy:
        if endpoint.consecutive_failures:
            endpoint.consecutive_failures, endpoint.backoff_until = 0, None
        return
    endpoint.consecutive_failures += 1
    endpoint.backoff_until = now + timedelta(
        seconds=min(MAX_ENDPOINT_BACKOFF_SECONDS, 2.0 ** min(endpoint.consecutive_failures, 16))
    )
    if response.status == HTTP_GONE:
        _disable_endpoint(session, endpoint, delivery, now)


def replay(
    session: Session, endpoint_id: str, now: datetime, since: datetime | None = None, event_id: str | None = None
) -> int | None:
    """Send failed deliveries again; with ``event_id`` only that of this event; with ``since``, every event from then
    on, delivered or not. Returns how many.

    A disabled endpoint is enabled again. ``None``: the endpoint does not exist. Raises ``InvalidChangeError``.
    """
    endpoint = _lock_endpoint(session, endpoint_id)
    if endpoint is None:
        return None
    if endpoint.disabled_at is not None:
        # A stronger lock, for which ``create_for_events`` waits too: it skips a disabled endpoint.
        session.refresh(endpoint, with_for_update=True)
    endpoint.disabled_at = endpoint.disabled_reason = endpoint.backoff_until = None
    endpoint.consecutive_failures = 0
    session.flush()
    if since is None:
        return len(session.scalars(_reset_failed_statement(endpoint_id, now, event_id)).all())
    if since < now - DELIVERY_RETENTION:
        raise InvalidChangeError(
            "since", f"since must not be more than {DELIVERY_RETENTION.days} days ago; use a later time"
        )
    return _replay_since(session, endpoint_id, now, since)


def list_failed(session: Session, limit: int, endpoint_id: str | None = None) -> tuple[list[FailedDelivery], int]:
    """The latest failed deliveries, and the number of all of them."""
    endpoint_filter = true() if endpoint_id is None else WebhookDelivery.endpoint_id == endpoint_id
    total = (
        session.scalar(
            select(func.count()).select_from(WebhookDelivery).where(text(DELIVERY_IS_FAILED), endpoint_filter)
        )
        or 0
    )
    rows = session.execute(
        select(WebhookDelivery, WebhookEndpoint.url, Event.id, Event.org_id)
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .join(Event, Event.seq == WebhookDelivery.event_seq)
        .where(text(DELIVERY_IS_FAILED), endpoint_filter)
        .order_by(WebhookDelivery.last_attempt_at.desc())
        .limit(limit)
    )
    found = [
        FailedDelivery(
            endpoint_id=row.endpoint_id,
            url=url,
            event_id=event_id,
            type=row.type,
            org_id=org_id,
            attempts=row.attempts,
            status=row.last_status,
            error=row.last_error,
            last_attempt_at=row.last_attempt_at,
        )
        for row, url, event_id, org_id in rows
    ]
    return found, total


def endpoints_with_expired(session: Session, now: datetime) -> list[str]:
    """Endpoints whose oldest delivery has ended and is past its retention."""
    oldest = (
        select(WebhookDelivery.event_seq)
        .where(WebhookDelivery.endpoint_id == WebhookEndpoint.id)
        .order_by(WebhookDelivery.event_seq)
        .limit(1)
        .correlate(WebhookEndpoint)
        .scalar_subquery()
    )
    query = select(WebhookEndpoint.id).join(
        WebhookDelivery,
        (WebhookDelivery.endpoint_id == WebhookEndpoint.id) & (WebhookDelivery.event_seq == oldest),
    )
    return list(session.scalars(query.where(WebhookDelivery.state != "pending", _delivery_is_expired(now))))


def delete_expired(session: Session, endpoint_id: str, now: datetime) -> bool:
    """Delete a batch of deliveries that are past their retention. Returns whether there may be more."""
    oldest = (
        select(WebhookDelivery.event_seq)
        .where(WebhookDelivery.endpoint_id == endpoint_id)
        .order_by(WebhookDelivery.event_seq)
        .limit(_DELIVERY_DELETE_BATCH_SIZE)
    )
    deleted = session.scalars(
        delete(WebhookDelivery)
        .where(
            WebhookDelivery.endpoint_id == endpoint_id,
            WebhookDelivery.event_seq.in_(oldest),
            WebhookDelivery.state != "pending",
            _delivery_is_expired(now),
        )
        .returning(WebhookDelivery.event_seq)
        .execution_options(synchronize_session=False)
    ).all()
    return len(deleted) == _DELIVERY_DELETE_BATCH_SIZE


def _replay_since(session: Session, endpoint_id: str, now: datetime, since: datetime) -> int:
    newest = select(Event.seq, Event.occurred_at).order_by(Event.seq.desc()).limit(MAX_REPLAYED_EVENTS + 1).subquery()
    first, count = session.execute(
        select(func.min(newest.c.seq), func.count()).where(newest.c.occurred_at >= since)
    ).one()
    if count > MAX_REPLAYED_EVENTS:
        raise InvalidChangeError("since", f"since covers more than {MAX_REPLAYED_EVENTS} events; use a later time")
    if first is None:
        return 0
    event_filter = (Event.seq >= first) & (Event.occurred_at >= since) & Event.published_at.is_not(None)
    statement = _insert_statement(session, now, event_filter, WebhookEndpoint.id == endpoint_id)
    reset = {**_RESET_TO_PENDING, "next_attempt_at": now, "created_at": now}
    upsert = statement.on_conflict_do_update(
        index_elements=[WebhookDelivery.endpoint_id, WebhookDelivery.event_seq], set_=reset
    )
    return len(session.scalars(upsert).all())


def _insert_statement(
    session: Session, now: datetime, events: ColumnElement[bool], endpoints: ColumnElement[bool]
) -> Any:  # noqa: ANN401 - two dialects' own classes, alike
    """``INSERT … SELECT`` of the deliveries of these events to those of these endpoints that subscribe to them."""
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    now_literal = literal(now, UtcDateTime())
    name = payloads.public_name()
    pending, attempts = literal("pending"), literal(0, Integer())
    selected = (
        select(WebhookEndpoint.id, Event.seq, name, pending, attempts, now_literal, now_literal)
        .join_from(Event, WebhookEndpoint, payloads.subscribed())
        .where(events, endpoints, name.is_not(None))
    )
    columns = ["endpoint_id", "event_seq", "type", "state", "attempts", "next_attempt_at", "created_at"]
    statement = dialect.insert(WebhookDelivery).from_select(columns, selected)
    return statement.returning(WebhookDelivery.endpoint_id).execution_options(synchronize_session=False)


_RESET_TO_PENDING: Final[dict[str, Any]] = {"state": "pending", "attempts": 0, **leases.RELEASED}


def _reset_failed_statement(endpoint_id: str, now: datetime, event_id: str | None) -> Any:  # noqa: ANN401 - an UPDATE with RETURNING
    of_event = WebhookDelivery.event_seq == select(Event.seq).where(Event.id == event_id).scalar_subquery()
    return (
        update(WebhookDelivery)
        .where(
            WebhookDelivery.endpoint_id == endpoint_id,
            text(DELIVERY_IS_FAILED),
            true() if event_id is None else of_event,
        )
        .values(**_RESET_TO_PENDING, next_attempt_at=now, created_at=now)
        .returning(WebhookDelivery.event_seq)
        .execution_options(synchronize_session=False)
    )


def _lock_endpoint(session: Session, endpoint_id: str, *conditions: ColumnElement[bool]) -> WebhookEndpoint | None:
    """Always locked before any of its deliveries, so that two transactions at one endpoint wait only here."""
    query = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, *conditions)
    return session.scalars(query.with_for_update(key_share=True)).one_or_none()


def _count_leased(session: Session, endpoint_id: str, now: datetime) -> int:
    leased = select(func.count()).where(
        WebhookDelivery.endpoint_id == endpoint_id,
        text("lease_token IS NOT NULL"),
        ~leases.is_free(WebhookDelivery, now),
    )
    return session.scalar(leased) or 0


def _endpoint_accepts_now(now: datetime) -> tuple[ColumnElement[bool], ...]:
    backoff_is_over = or_(WebhookEndpoint.backoff_until.is_(None), WebhookEndpoint.backoff_until <= now)
    return WebhookEndpoint.disabled_at.is_(None), backoff_is_over


def _delivery_is_due(now: datetime) -> tuple[ColumnElement[bool] | TextClause, ...]:
    return (
        text(DELIVERY_IS_PENDING),
        WebhookDelivery.next_attempt_at <= now,
        leases.is_free(WebhookDelivery, now),
    )


def _delivery_is_expired(now: datetime) -> ColumnElement[bool]:
    return WebhookDelivery.created_at < now - DELIVERY_RETENTION


def _schedule_retry(delivery: WebhookDelivery, now: datetime) -> None:
    if delivery.attempts > len(DELIVERY_RETRY_DELAYS):
        delivery.state = "failed"
    else:
        delivery.next_attempt_at = now + DELIVERY_RETRY_DELAYS[delivery.attempts - 1]


def _disable_endpoint(session: Session, endpoint: WebhookEndpoint, delivery: WebhookDelivery, now: datetime) -> None:
    """The endpoint is gone: nothing more is sent to it until it is replayed, and its pending deliveries have failed."""
    delivery.state = "failed"
    endpoint.disabled_at, endpoint.disabled_reason = now, f"the endpoint responded {HTTP_GONE} Gone"
    session.flush()
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.endpoint_id == endpoint.id, text(DELIVERY_IS_PENDING))
        .values(state="failed", **leases.RELEASED, last_error="disabled", last_attempt_at=now)
        .execution_options(synchronize_session=False)
    )
