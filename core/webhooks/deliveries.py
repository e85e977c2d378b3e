"""Deliveries: each event to each endpoint that asks for it, until it is taken or given up. At least once, in any order.

They are made in the transaction in which the relay marks the event published, each once. Whoever sends holds a lease
on the row; a worker that dies leaves one that ends, and the same event is sent again under the same id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import ColumnElement, Integer, TextClause, delete, func, literal, or_, select, text, true, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core.common.validation import InvalidChangeError
from core.db.base import UtcDateTime
from core.db.models.events import Event
from core.db.models.webhooks import WebhookDelivery, WebhookEndpoint
from core.webhooks import payloads
from core.webhooks.endpoints import IS_FAILED, IS_PENDING

# The first try is made at once; these are the waits before the others, then it is given up.
RETRIES: Final = (
    timedelta(minutes=1),
    timedelta(minutes=5),
    timedelta(minutes=15),
    timedelta(hours=1),
    timedelta(hours=2),
)
# Longer than one try with its look-up of a name, which the operating system bounds.
LEASE: Final = timedelta(seconds=60)
# At one endpoint, over all workers; one that has just failed is asked by one alone.
AT_ONCE: Final = 4
LONGEST_REST: Final = 60.0  # seconds; doubled by each failure in a row
KEPT: Final = timedelta(days=30)
MOST_REPLAYED: Final = 100_000
_CLEARED_AT_ONCE: Final = 1000

GONE: Final = 410
# About this event, from an endpoint that is well: one that refuses a kind of event is told the others at once.
_OF_THE_EVENT: Final = frozenset({400, 409, 413, 415, 422})


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One event that is about to be sent to one endpoint."""

    endpoint: WebhookEndpoint
    event: Event
    name: str
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """``status`` None: there was none, and ``error`` is a word for why."""

    status: int | None = None
    error: str | None = None

    @property
    def took(self) -> bool:
        return self.status is not None and 200 <= self.status < 300  # noqa: PLR2004 - HTTP's own class of success

    @property
    def was_read(self) -> bool:
        """Taken or refused: either way the endpoint is well."""
        return self.took or self.status in _OF_THE_EVENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """One that was given up, for a person."""

    endpoint_id: str
    url: str
    event_id: str
    type: str
    org_id: str
    attempts: int
    status: int | None
    error: str | None
    at: datetime | None


def make(session: Session, seqs: Collection[int], now: datetime) -> Counter[str]:
    """Deliveries of these events, by endpoint. In the transaction that marks them published; one look where nobody is
    told anything.
    """
    if not seqs:
        return Counter()
    # One that is being removed or told again is waited for, and then seen as it is: each event is this one's or the
    # replay's to make, and never nobody's.
    held = select(WebhookEndpoint.id, WebhookEndpoint.disabled_at).with_for_update(read=True, key_share=True)
    told = [row.id for row in session.execute(held) if row.disabled_at is None]
    if not told:
        return Counter()
    statement = _insert(session, now, Event.seq.in_(seqs), WebhookEndpoint.id.in_(told))
    return Counter(session.scalars(statement.on_conflict_do_nothing()))


def due(session: Session, now: datetime) -> list[str]:
    """Endpoints that something can be sent to now."""
    ready = (
        select(WebhookDelivery.event_seq)
        .where(WebhookDelivery.endpoint_id == WebhookEndpoint.id, *_is_free(now))
        .correlate(WebhookEndpoint)
    )
    return list(session.scalars(select(WebhookEndpoint.id).where(*_is_awake(now), ready.exists())))


def claim(session: Session, endpoint_id: str, now: datetime) -> Try | None:
    """The next one to send there; ``None``: nothing is due, or it rests, is disabled, or has enough on its hands.

    Claims at one endpoint are made one after the other: the endpoint's row is held.
    """
    endpoint = _locked(session, endpoint_id, *_is_awake(now))
    if endpoint is None or _busy(session, endpoint_id, now) >= (1 if endpoint.failures else AT_ONCE):
        return None
    found = session.scalars(
        select(WebhookDelivery)
        .where(WebhookDelivery.endpoint_id == endpoint_id, *_is_free(now))
        .order_by(WebhookDelivery.next_attempt_at, WebhookDelivery.event_seq)
        .limit(1)
    ).one_or_none()
    if found is None:
        return None
    found.lease_token = token = str(uuid4())
    found.lease_until = now + LEASE
    event = session.get_one(Event, found.event_seq)
    return Try(endpoint=endpoint, event=event, name=found.type, token=token)


def settle(session: Session, tried: Try, answer: Answer, now: datetime) -> None:
    """Write down what came of it, unless the lease ran out and the event is in other hands by now."""
    endpoint = _locked(session, tried.endpoint.id)
    if endpoint is None:
        return
    row = session.scalars(
        select(WebhookDelivery).where(
            WebhookDelivery.endpoint_id == endpoint.id,
            WebhookDelivery.event_seq == tried.event.seq,
            WebhookDelivery.lease_token == tried.token,
        )
    ).one_or_none()
    if row is None:
        return
    row.lease_token = row.lease_until = None
    row.attempts += 1
    row.last_attempt_at, row.last_status, row.last_error = now, answer.status, answer.error
    if answer.took:
        row.state, row.delivered_at = "delivered", now
    else:
        _put_off(row, now)
    if answer.was_read:
        if endpoint.failures:
            endpoint.failures, endpoint.rest_until = 0, None
        return
    endpoint.failures += 1
    endpoint.rest_until = now + timedelta(seconds=min(LONGEST_REST, 2.0 ** min(endpoint.failures, 16)))
    if answer.status == GONE:
        _disable(session, endpoint, row, now)


def replay(session: Session, endpoint_id: str, now: datetime, since: datetime | None = None) -> int | None:
    """Send again what failed; with ``since`` everything that happened from then on, taken or not. Returns how many.

    An endpoint that was disabled is told again. ``None``: there is no such endpoint. Raises ``InvalidChangeError``.
    """
    endpoint = _locked(session, endpoint_id)
    if endpoint is None:
        return None
    if endpoint.disabled_at is not None:
        # Against a relay too (``make``): it passes one that is disabled over.
        session.refresh(endpoint, with_for_update=True)
    endpoint.disabled_at = endpoint.disabled_because = endpoint.rest_until = None
    endpoint.failures = 0
    session.flush()
    if since is None:
        return len(session.scalars(_again(endpoint_id, now)).all())
    if since < now - KEPT:
        raise InvalidChangeError("since", f"since lies more than {KEPT.days} days back; name a later moment")
    return _replay_since(session, endpoint_id, now, since)


def failed(session: Session, limit: int, endpoint_id: str | None = None) -> tuple[list[Failed], int]:
    """The latest ones that were given up, and how many there are in all."""
    of_it = true() if endpoint_id is None else WebhookDelivery.endpoint_id == endpoint_id
    total = session.scalar(select(func.count()).select_from(WebhookDelivery).where(text(IS_FAILED), of_it)) or 0
    rows = session.execute(
        select(WebhookDelivery, WebhookEndpoint.url, Event.id, Event.org_id)
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .join(Event, Event.seq == WebhookDelivery.event_seq)
        .where(text(IS_FAILED), of_it)
        .order_by(WebhookDelivery.last_attempt_at.desc())
        .limit(limit)
    )
    found = [
        Failed(
            endpoint_id=row.endpoint_id,
            url=url,
            event_id=event_id,
            type=row.type,
            org_id=org_id,
            attempts=row.attempts,
            status=row.last_status,
            error=row.last_error,
            at=row.last_attempt_at,
        )
        for row, url, event_id, org_id in rows
    ]
    return found, total


def old(session: Session, now: datetime) -> list[str]:
    """Endpoints whose oldest delivery has long been settled."""
    oldest = (
        select(WebhookDelivery.event_seq)
        .where(WebhookDelivery.endpoint_id == WebhookEndpoint.id)
        .order_by(WebhookDelivery.event_seq)
        .limit(1)
        .correlate(WebhookEndpoint)
        .scalar_subquery()
    )
    settled = select(WebhookEndpoint.id).join(
        WebhookDelivery,
        (WebhookDelivery.endpoint_id == WebhookEndpoint.id) & (WebhookDelivery.event_seq == oldest),
    )
    return list(session.scalars(settled.where(WebhookDelivery.state != "pending", _is_old(now))))


def clear(session: Session, endpoint_id: str, now: datetime) -> bool:
    """Forget a part of what has long been settled; whether there may be more of it."""
    oldest = (
        select(WebhookDelivery.event_seq)
        .where(WebhookDelivery.endpoint_id == endpoint_id)
        .order_by(WebhookDelivery.event_seq)
        .limit(_CLEARED_AT_ONCE)
    )
    gone = session.scalars(
        delete(WebhookDelivery)
        .where(
            WebhookDelivery.endpoint_id == endpoint_id,
            WebhookDelivery.event_seq.in_(oldest),
            WebhookDelivery.state != "pending",
            _is_old(now),
        )
        .returning(WebhookDelivery.event_seq)
        .execution_options(synchronize_session=False)
    ).all()
    return len(gone) == _CLEARED_AT_ONCE


def _replay_since(session: Session, endpoint_id: str, now: datetime, since: datetime) -> int:
    newest = select(Event.seq, Event.occurred_at).order_by(Event.seq.desc()).limit(MOST_REPLAYED + 1).subquery()
    first, count = session.execute(
        select(func.min(newest.c.seq), func.count()).where(newest.c.occurred_at >= since)
    ).one()
    if count > MOST_REPLAYED:
        raise InvalidChangeError("since", f"more than {MOST_REPLAYED} events lie behind it; name a later moment")
    if first is None:
        return 0
    which = (Event.seq >= first) & (Event.occurred_at >= since) & Event.published_at.is_not(None)
    statement = _insert(session, now, which, WebhookEndpoint.id == endpoint_id)
    anew = {**_ANEW, "next_attempt_at": now, "made_at": now}
    again = statement.on_conflict_do_update(
        index_elements=[WebhookDelivery.endpoint_id, WebhookDelivery.event_seq], set_=anew
    )
    return len(session.scalars(again).all())


def _insert(session: Session, now: datetime, events: ColumnElement[bool], endpoints: ColumnElement[bool]) -> Any:  # noqa: ANN401 - two dialects' own classes, alike
    """``INSERT … SELECT`` of the deliveries of these events to those of these endpoints that ask for them."""
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    moment = literal(now, UtcDateTime())
    name = payloads.name()
    pending, attempts = literal("pending"), literal(0, Integer())
    chosen = (
        select(WebhookEndpoint.id, Event.seq, name, pending, attempts, moment, moment)
        .join_from(Event, WebhookEndpoint, payloads.wanted())
        .where(events, endpoints, name.is_not(None))
    )
    columns = ["endpoint_id", "event_seq", "type", "state", "attempts", "next_attempt_at", "made_at"]
    statement = dialect.insert(WebhookDelivery).from_select(columns, chosen)
    return statement.returning(WebhookDelivery.endpoint_id).execution_options(synchronize_session=False)


_ANEW: Final[dict[str, Any]] = {"state": "pending", "attempts": 0, "lease_token": None, "lease_until": None}


def _again(endpoint_id: str, now: datetime) -> Any:  # noqa: ANN401 - an UPDATE with RETURNING
    return (
        update(WebhookDelivery)
        .where(WebhookDelivery.endpoint_id == endpoint_id, text(IS_FAILED))
        .values(**_ANEW, next_attempt_at=now, made_at=now)
        .returning(WebhookDelivery.event_seq)
        .execution_options(synchronize_session=False)
    )


def _locked(session: Session, endpoint_id: str, *conditions: ColumnElement[bool]) -> WebhookEndpoint | None:
    """Always before any of its deliveries: two at one endpoint wait for each other here and nowhere else."""
    row = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, *conditions)
    return session.scalars(row.with_for_update(key_share=True)).one_or_none()


def _busy(session: Session, endpoint_id: str, now: datetime) -> int:
    leased = select(func.count()).where(
        WebhookDelivery.endpoint_id == endpoint_id,
        text("lease_token IS NOT NULL"),
        WebhookDelivery.lease_until >= now,
    )
    return session.scalar(leased) or 0


def _is_awake(now: datetime) -> tuple[ColumnElement[bool], ...]:
    rests_no_more = or_(WebhookEndpoint.rest_until.is_(None), WebhookEndpoint.rest_until <= now)
    return WebhookEndpoint.disabled_at.is_(None), rests_no_more


def _is_free(now: datetime) -> tuple[ColumnElement[bool] | TextClause, ...]:
    return (
        text(IS_PENDING),
        WebhookDelivery.next_attempt_at <= now,
        or_(WebhookDelivery.lease_until.is_(None), WebhookDelivery.lease_until < now),
    )


def _is_old(now: datetime) -> ColumnElement[bool]:
    return WebhookDelivery.made_at < now - KEPT


def _put_off(row: WebhookDelivery, now: datetime) -> None:
    if row.attempts > len(RETRIES):
        row.state = "failed"
    else:
        row.next_attempt_at = now + RETRIES[row.attempts - 1]


def _disable(session: Session, endpoint: WebhookEndpoint, row: WebhookDelivery, now: datetime) -> None:
    """It says that it is gone: nothing more is sent there until a person replays it; what waits has failed."""
    row.state = "failed"
    endpoint.disabled_at, endpoint.disabled_because = now, f"it answered {GONE}, gone"
    session.flush()
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.endpoint_id == endpoint.id, text(IS_PENDING))
        .values(state="failed", lease_token=None, lease_until=None, last_error="disabled", last_attempt_at=now)
        .execution_options(synchronize_session=False)
    )
