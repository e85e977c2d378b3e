"""What a plan change would cost, and what was used in the running period."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from core.ports.spec import SubscriptionSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanChangeQuery:
    """A plan change that is not made yet: what the subscription would have to be, ``subscription_id`` the one that is
    there. ``listed``: the price in the catalog of the plan that the next period takes, in minor units.
    """

    spec: SubscriptionSpec
    subscription_id: str | None
    list_price: int
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What a change costs by the biller's own word, in minor units of ``currency``. None: it does not tell, not 0.

    ``now`` is invoiced with the change. ``prorated`` settles the period that runs (negative: a credit), in that invoice
    or the next one. ``next`` is what the invoice at ``next_at`` takes. ``why`` says what is missing or comes on top.
    """

    currency: str
    now: int | None = None
    prorated: int | None = None
    next: int | None = None
    next_at: datetime | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageLine:
    """One metric of the running period. ``units`` is the biller's own decimal; ``amount`` in minor units."""

    code: str
    name: str
    units: str
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was used in the running period and not yet billed; the plan's own price is not in it."""

    since: datetime
    until: datetime
    currency: str
    amount: int
    metrics: tuple[UsageLine, ...]
