"""Which payment problem a link shows after a remote check. It delays nothing and lowers no plan.

| problem | begins | ends |
|---|---|---|
| ``failed`` | an invoice could not be charged | a check finds none that is unpaid |
| ``dispute_lost`` | a dispute was lost in Lago | its invoice is voided there, or an operator closes it |
| ``overdue`` | an invoice in Lago is past its due date | a check finds none that is overdue |
| ``manual`` | the subscription in Lago is paid manually | a check finds that it is not |
| ``payer_rejected`` | a webhook reported it | our write reaches the payer, a webhook says so, or an operator retries |

A check shows the first one that it finds; ``payer_rejected`` stays before the two below it, because it says why nobody
could pay. Lago never takes a lost dispute back: the invoice stays paid and disputed, also if the money comes in another
way. So an operator closes it, and only a dispute that is lost later counts again.

No provider can be asked whether a payer is still rejected. But Lago writes a linked customer to Stripe within our
request, so a response proves that it is not.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, case, false, or_, select, update
from sqlalchemy.orm import Session

from core.db.models.billing_links import BillingLink, PaymentStatus
from core.ports.observed import ObservedPayment
from core.reconcile.attempt import SyncAttempt

_FOUND_BY_CHECK: Final[tuple[PaymentStatus, ...]] = ("failed", "dispute_lost", "overdue", "manual")


def values_after_attempt(
    session: Session, attempt: SyncAttempt, payment: ObservedPayment | None, now: datetime, *, payer_accepted: bool
) -> dict[str, Any]:
    """``payment`` None: no check was made. The caller has locked the organization."""
    is_payer_rejected = BillingLink.payment_status == "payer_rejected"
    # What was reported during the attempt may be later than its write.
    is_unreported = BillingLink.checks_requested == attempt.link.checks_requested
    is_payer_accepted = and_(is_payer_rejected, is_unreported) if payer_accepted else false()
    if payment is None:
        return _without_problem(is_payer_accepted, ~is_payer_accepted) if payer_accepted else {}
    if payment.failed:
        return {"payment_status": "failed", "payment_since": _since("failed", now)}
    lost_at = payment.dispute_lost_at
    if lost_at is not None and not _is_closed(session, attempt, lost_at):
        return {"payment_status": "dispute_lost", "payment_since": lost_at}
    stays_rejected = and_(is_payer_rejected, ~is_payer_accepted)
    lasting: PaymentStatus | None = "overdue" if payment.overdue else "manual" if payment.manual else None
    if lasting is not None:
        return {
            "payment_status": case((stays_rejected, BillingLink.payment_status), else_=lasting),
            "payment_since": case((stays_rejected, BillingLink.payment_since), else_=_since(lasting, now)),
        }
    is_over = or_(BillingLink.payment_status.in_(_FOUND_BY_CHECK), is_payer_accepted)
    # A reason that was reported during the attempt belongs to the next remote check.
    return _without_problem(is_over, or_(~is_unreported, stays_rejected))


def _without_problem(is_over: ColumnElement[bool], code_is_current: ColumnElement[bool]) -> dict[str, Any]:
    return {
        "payment_status": case((is_over, None), else_=BillingLink.payment_status),
        "payment_since": case((is_over, None), else_=BillingLink.payment_since),
        "payment_code": case((code_is_current, BillingLink.payment_code), else_=None),
    }


def close_dispute(session: Session, org_id: str) -> bool:
    """An operator has dealt with the disputes that were lost so far. Returns False if none is shown.

    The caller has locked the organization.
    """
    closed = session.scalars(
        update(BillingLink)
        .where(BillingLink.org_id == org_id, BillingLink.payment_status == "dispute_lost")
        .values(
            disputes_closed_until=BillingLink.payment_since, payment_status=None, payment_since=None, payment_code=None
        )
        .returning(BillingLink.provider)
        .execution_options(synchronize_session=False)
    )
    return bool(closed.all())


def _since(status: PaymentStatus, now: datetime) -> Any:  # noqa: ANN401 - a statement's value
    return case((BillingLink.payment_status == status, BillingLink.payment_since), else_=now)


def _is_closed(session: Session, attempt: SyncAttempt, lost_at: datetime) -> bool:
    """By the row as it is now: an operator may have closed the dispute during the attempt."""
    closed_until = session.scalar(
        select(BillingLink.disputes_closed_until).where(
            BillingLink.org_id == attempt.organization.id, BillingLink.provider == attempt.provider
        )
    )
    return closed_until is not None and lost_at <= closed_until
