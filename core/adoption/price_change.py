"""What ``change-to-catalog`` changes in what an organization pays, before it is decided."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from core.adoption.row import AdoptionRow
from core.catalog.plans import BillingInterval, Catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceChange:
    """For one period, before discounts, in ISO minor units. ``before`` None: it is not known."""

    row: AdoptionRow
    before: int | None
    after: int
    currency: str
    interval: BillingInterval

    @property
    def difference(self) -> int | None:
        return self.after - self.before if self.before is not None else None


def price_change(row: AdoptionRow, catalog: Catalog) -> PriceChange | None:
    """None: the row asks for none, or it pays that already, or its charge begins. The quantity stays."""
    plan = catalog.plans.get(row.plan_tier or "")
    if row.action != "change-to-catalog" or plan is None:
        return None
    side = row.sides.get(plan.charged_by)
    if side is None or side.subscription_id is None:
        return None
    is_comparable = side.currency == plan.currency
    quantity = side.quantity if side.quantity is not None else 1
    if is_comparable and side.amount == plan.amount * quantity:
        return None
    return PriceChange(
        row=row,
        before=side.amount if is_comparable else None,
        after=plan.amount * quantity,
        currency=plan.currency,
        interval=plan.interval,
    )


def totals(changes: Iterable[PriceChange]) -> dict[tuple[str, BillingInterval], int]:
    """The known differences by currency and interval, which cannot be added up."""
    found: dict[tuple[str, BillingInterval], int] = {}
    for each in changes:
        if each.difference is not None:
            key = (each.currency, each.interval)
            found[key] = found.get(key, 0) + each.difference
    return found
