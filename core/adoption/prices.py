"""What is paid at one provider, and which plan of ours that is. Pure.

A plan is known by its code, current or former. At Stripe it may also be a price of its own that costs what exactly one
plan costs, because a link remembers the price that was sold. At Lago it must be the code: whatever has another code is
another plan there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from core.adoption.matching import AccountCustomer
from core.catalog.plans import BillingInterval, Catalog, CatalogPlan
from core.ports.inventory import Interval, InventoryItem, InventorySubscription
from core.ports.minor_units import amount_text
from core.ports.spec import PROVIDER_NAMES, Provider

_CATALOG_INTERVALS: Final[Mapping[tuple[Interval, int], BillingInterval]] = {
    ("week", 1): "weekly",
    ("month", 1): "monthly",
    ("month", 3): "quarterly",
    ("month", 6): "semiannual",
    ("month", 12): "yearly",
    ("year", 1): "yearly",
}
_ADOPTABLE_STATUSES: Final = frozenset({"active", "trialing", "past_due"})
_CATALOG_INTERVAL_TEXTS: Final[Mapping[BillingInterval, str]] = {
    "weekly": "week",
    "monthly": "month",
    "quarterly": "3 months",
    "semiannual": "6 months",
    "yearly": "year",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SidePrice:
    """What one subscription with one item pays. ``total``: for one period, before discounts.

    ``tier`` None: it is no plan of the catalog. ``by_amount``: the plan is known by its amount only.
    """

    provider: Provider
    subscription: InventorySubscription
    item: InventoryItem
    total: int
    tier: str | None
    by_amount: bool = False

    @property
    def interval(self) -> BillingInterval | None:
        return interval_name(self.item)

    @property
    def text(self) -> str:
        return f"{amount_text(self.total, self.item.currency)} a {interval_text(self.item) or 'period'}"

    @property
    def code_text(self) -> str:
        return self.item.code or self.item.price_id


def read_price(each: AccountCustomer, catalog: Catalog, org_tier: str | None) -> SidePrice | str | None:
    """None: the customer has no subscription. A sentence: its price cannot be told, or its terms cannot be adopted."""
    if not each.subscriptions:
        return None
    name = PROVIDER_NAMES[each.provider]
    if len(each.subscriptions) > 1:
        ids = ", ".join(subscription.external_id or subscription.id for subscription in each.subscriptions)
        return f"it has {len(each.subscriptions)} subscriptions at {name}: {ids}; end all but one, then discover again"
    subscription = each.subscriptions[0]
    problem = _problem_of(subscription, name)
    if problem is not None:
        return problem
    item = subscription.items[0]
    if item.amount is None:
        unusual = f" ({'; '.join(item.unusual)})" if item.unusual else ""
        return f"{item.code or item.price_id} at {name} has no flat amount{unusual}; leave it as it is"
    tier, by_amount = _tier_of(each.provider, item, catalog, org_tier)
    return SidePrice(
        provider=each.provider,
        subscription=subscription,
        item=item,
        total=item.amount * item.quantity,
        tier=tier,
        by_amount=by_amount,
    )


def catalog_text(plan: CatalogPlan) -> str:
    return f"{amount_text(plan.amount, plan.currency)} a {_CATALOG_INTERVAL_TEXTS[plan.interval]}"


def interval_name(item: InventoryItem) -> BillingInterval | None:
    return _CATALOG_INTERVALS.get((item.interval, item.interval_count)) if item.interval is not None else None


def interval_text(item: InventoryItem) -> str | None:
    """``month`` or ``2 weeks``."""
    if item.interval is None:
        return None
    name = interval_name(item)
    if name is not None:
        return _CATALOG_INTERVAL_TEXTS[name]
    return item.interval if item.interval_count == 1 else f"{item.interval_count} {item.interval}s"


def _problem_of(subscription: InventorySubscription, name: str) -> str | None:
    if subscription.status not in _ADOPTABLE_STATUSES:
        return (
            f"its subscription at {name} is {subscription.status}; adopt it when it is active, or end it there, then "
            "discover again"
        )
    if subscription.arrangement is not None and subscription.arrangement.waits_for_payment:
        return f"an upgrade of its subscription at {name} waits for a payment; discover again when it is paid"
    if len(subscription.items) != 1:
        prices = ", ".join(item.code or item.price_id for item in subscription.items) or "none"
        return (
            f"its subscription at {name} has {len(subscription.items)} items ({prices}), and a plan of ours is one; "
            "leave one item, then discover again"
        )
    return None


def _tier_of(
    provider: Provider, item: InventoryItem, catalog: Catalog, org_tier: str | None
) -> tuple[str | None, bool]:
    """The tier, and whether only the amount says so."""
    tier = catalog.tier_of(provider, item.code) if item.code is not None else None
    if tier is not None or provider == "lago" or item.bills_usage or item.unusual:
        return tier, False
    same = [
        plan.tier
        for plan in catalog.plans.values()
        if plan.charged_by == provider
        and (plan.amount, plan.currency, plan.interval) == (item.amount, item.currency, interval_name(item))
    ]
    if org_tier in same:
        return org_tier, True
    return (same[0], True) if len(same) == 1 else (None, False)
