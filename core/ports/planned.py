"""What an attempt would change at a provider: the steps of an observed link.

A provider describes each change before it sends the first write for it (``AttemptContext.before_change``). Amounts are
what somebody pays for one interval, in ISO minor units, with the quantity. An amount that is not known is None, never
zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

StepKind = Literal[
    "create_customer",
    "update_customer",
    "set_payer",
    "create_subscription",
    "change_plan",
    "schedule_plan",
    "cancel_scheduled_plan",
    "change_collection",
    "end_subscription",
    "credit_unused_time",
    "write_marks",
    "remove_marks",
]
"""change_collection: how a subscription's invoices are paid. write_marks, remove_marks: our metadata; nobody pays more
or less for it. credit_unused_time: on an invoice, after an end; ``price_after`` is the credit."""


PaymentChangeKind = Literal["plan", "end", "payer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentChange:
    """A change of what somebody pays who pays already: another plan or price, an end, or another payer.

    ``before``, ``after``: plan codes, or the ids of the payers; None where the provider's method does not know it.
    """

    kind: PaymentChangeKind
    before: str | None = None
    after: str | None = None
    at_period_end: bool = False


class WritePlannedError(Exception):
    """Ends a provider's method where it would write, because the attempt only plans. It is no failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPrice:
    """``amount``: for one ``interval``, with the quantity. ``interval``: the catalog's word, or the provider's."""

    amount: int | None
    currency: str | None
    interval: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """``object_id``: of the customer or the subscription; None: it does not exist yet.

    ``fields``: what an update of a customer changes. ``before``, ``after``: plan codes; of ``set_payer`` the ids of
    Stripe customers, where None is one that does not exist yet. ``at_period_end``: it takes effect then, and not now.
    ``is_repeat``: the request was sent before and has no answer, so the change may be there already.
    """

    kind: StepKind
    object_id: str | None = None
    fields: tuple[str, ...] = ()
    before: str | None = None
    after: str | None = None
    price_before: PlannedPrice | None = None
    price_after: PlannedPrice | None = None
    at_period_end: bool = False
    effective_at: datetime | None = None
    is_repeat: bool = False


def to_json(step: PlannedStep) -> dict[str, Any]:
    """As a billing link stores it."""
    stored = asdict(step)
    effective_at = step.effective_at
    return stored | {
        "fields": list(step.fields),
        "effective_at": effective_at.isoformat() if effective_at is not None else None,
    }


def from_json(stored: Mapping[str, Any]) -> PlannedStep:
    before, after, effective_at = stored["price_before"], stored["price_after"], stored["effective_at"]
    return PlannedStep(
        kind=stored["kind"],
        object_id=stored["object_id"],
        fields=tuple(stored["fields"]),
        before=stored["before"],
        after=stored["after"],
        price_before=PlannedPrice(**before) if before is not None else None,
        price_after=PlannedPrice(**after) if after is not None else None,
        at_period_end=stored["at_period_end"],
        effective_at=datetime.fromisoformat(effective_at) if effective_at is not None else None,
        is_repeat=stored["is_repeat"],
    )
