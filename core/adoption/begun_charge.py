"""The charges that begin once an adopted organization is managed: it has a plan, and nobody charges for it yet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from core.adoption.row import AdoptionRow
from core.catalog.plans import BillingInterval, Catalog
from core.ports.spec import Provider


@dataclass(frozen=True, slots=True, kw_only=True)
class BegunCharge:
    """``amount``: for one period, before discounts, in ISO minor units. ``provider``: who charges it."""

    row: AdoptionRow
    provider: Provider
    amount: int
    currency: str
    interval: BillingInterval


def begun_charge(row: AdoptionRow, catalog: Catalog) -> BegunCharge | None:
    """None: it has a subscription already, it costs nothing, or Lago has no payer and is given none."""
    plan = catalog.plans.get(row.plan_tier or "")
    if row.action in {"skip", "conflict"} or plan is None or plan.amount == 0:
        return None
    side = row.sides.get(plan.charged_by)
    if side is not None and side.subscription_id is not None:
        return None
    if plan.charged_by == "lago" and side is not None and side.payer_id is None:
        return None
    return BegunCharge(
        row=row, provider=plan.charged_by, amount=plan.amount, currency=plan.currency, interval=plan.interval
    )


def begun_totals(charges: Iterable[BegunCharge]) -> dict[tuple[str, BillingInterval], int]:
    """By currency and interval, which cannot be added up."""
    found: dict[tuple[str, BillingInterval], int] = {}
    for each in charges:
        key = (each.currency, each.interval)
        found[key] = found.get(key, 0) + each.amount
    return found
