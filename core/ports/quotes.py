"""Quotes of plan changes, and usage in the current period."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from core.ports.spec import SoldPrice, SubscriptionSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanChangeQuery:
    """A possible plan change: the spec after it, and ``subscription_id``, the subscription that exists now.

    ``list_price``: the catalog's price of the plan of the next period, in minor units; None for one that is sold under
    a former code. It counts only if the provider has no subscription yet.
    """

    spec: SubscriptionSpec
    subscription_id: str | None
    list_price: int | None
    currency: str
    sold_price: SoldPrice | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What the provider says that a change costs, in minor units of ``currency``. None: it does not say, not 0.

    ``now`` is invoiced with the change. ``prorated`` is for the current period (negative: a credit), in that invoice or
    the next one. ``next`` is the amount of the invoice at ``next_at``. ``reason`` says what is missing or is added.
    """

    currency: str
    now: int | None = None
    prorated: int | None = None
    next: int | None = None
    next_at: datetime | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageLine:
    """One metric of the current period. ``units``: the provider's own decimal. ``amount``: in minor units."""

    code: str
    name: str
    units: str
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was used in the current period and is not billed yet, without the price of the plan itself."""

    since: datetime
    until: datetime
    currency: str
    amount: int
    metrics: tuple[UsageLine, ...]
