"""Payment brake: how many changes of what organizations pay are sent within an hour.

Each change takes a place, in the database, before its first request: a plan, a price, an end or another payer of
somebody who pays already. The places of the last hour are counted, of all workers. Beyond the limit a change waits:
its link is on hold until an operator lets it go (``core.reconcile.payment_holds``). An attempt that repeats a change
that has its place takes no second one, so what was begun is always finished.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Self

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from core.db.database import Database, acquire_advisory_locks
from core.db.models.billing_links import BillingLink
from core.db.models.payments import ExpectedPaymentChanges, PaymentChangeRecord, PaymentPlace, PaymentScope

PLACES_LOCK: Final = "payment_brake"
PAYMENT_WINDOW: Final = timedelta(hours=1)
# A change that has its place is repeated for as long as a provider may be down. After that it takes a new one.
PLACE_LASTS: Final = timedelta(days=7)
_DELETE_BATCH_SIZE: Final = 1_000
_LIMIT_PATTERN: Final = re.compile(r"\s*(\d{1,7})(?:\s+or\s+(100|\d{1,2})\s*%)?\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentLimit:
    """Changes within an hour: ``changes``, or ``percent`` of all links, whichever is more."""

    changes: int
    percent: int = 0

    @classmethod
    def parse(cls, given: str) -> Self | None:
        """``"50 or 2%"``, ``"50"``, or ``"off"``, which is None. Raises ``ValueError``."""
        if given.strip().lower() == "off":
            return None
        found = _LIMIT_PATTERN.fullmatch(given)
        if found is None:
            message = f"{given!r} is no limit"
            raise ValueError(message)
        return cls(changes=int(found[1]), percent=int(found[2] or 0))

    def of(self, database: Database) -> int:
        """Changes an hour. Not counted where the places are, since all workers wait for each other there."""
        if not self.percent:
            return self.changes
        with database.read() as session:
            links = session.scalar(select(func.count()).select_from(BillingLink)) or 0
        return max(self.changes, links * self.percent // 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedChange:
    """``goal``: digest of all that is to be paid."""

    org_id: str
    scope: PaymentScope
    goal: str


def take_place(session: Session, requested: RequestedChange, places: int, now: datetime) -> bool:
    """Whether the change may be sent. False: the hour has no place of its ``places`` left, and nobody let it go."""
    # One after the other, or two would take the last place.
    acquire_advisory_locks(session, PLACES_LOCK)
    newest = _newest(session, requested.org_id, requested.scope)
    if newest is not None and newest.goal == requested.goal and newest.at > now - PLACE_LASTS:
        return True
    # An expectation comes first, so that what is expected leaves the places of the hour to all others.
    expectation = next(iter(open_expectations(session, now)), None)
    if expectation is not None:
        expectation.used += 1
        record(session, requested, "expected", now)
        return True
    if count_places(session, now) >= places:
        return False
    record(session, requested, "counted", now)
    return True


def record(
    session: Session, change: RequestedChange, place: PaymentPlace, now: datetime, reason: str | None = None
) -> None:
    session.add(
        PaymentChangeRecord(
            org_id=change.org_id, scope=change.scope, goal=change.goal, place=place, at=now, reason=reason
        )
    )


def count_places(session: Session, now: datetime) -> int:
    """The places that were taken in the last hour."""
    counted = select(func.count()).where(
        PaymentChangeRecord.place == "counted", PaymentChangeRecord.at > now - PAYMENT_WINDOW
    )
    return session.scalar(counted) or 0


def open_expectations(session: Session, now: datetime) -> list[ExpectedPaymentChanges]:
    """Those with a place that is not taken yet; the one that ends first is first."""
    query = select(ExpectedPaymentChanges).where(
        ExpectedPaymentChanges.until > now, ExpectedPaymentChanges.used < ExpectedPaymentChanges.changes
    )
    return list(session.scalars(query.order_by(ExpectedPaymentChanges.until, ExpectedPaymentChanges.id)))


def delete_expired(session: Session, now: datetime) -> None:
    """Delete a batch of places that count no more, and one of expectations that ended as long ago."""
    places = select(PaymentChangeRecord.seq).where(PaymentChangeRecord.at < now - PLACE_LASTS)
    expectations = select(ExpectedPaymentChanges.id).where(ExpectedPaymentChanges.until < now - PLACE_LASTS)
    for statement in (
        delete(PaymentChangeRecord).where(PaymentChangeRecord.seq.in_(places.limit(_DELETE_BATCH_SIZE))),
        delete(ExpectedPaymentChanges).where(ExpectedPaymentChanges.id.in_(expectations.limit(_DELETE_BATCH_SIZE))),
    ):
        session.execute(statement.execution_options(synchronize_session=False))


def _newest(session: Session, org_id: str, scope: PaymentScope) -> PaymentChangeRecord | None:
    query = select(PaymentChangeRecord).where(PaymentChangeRecord.org_id == org_id, PaymentChangeRecord.scope == scope)
    return session.scalars(query.order_by(PaymentChangeRecord.seq.desc()).limit(1)).one_or_none()
