"""When a subscription with our ``org_id`` that we did not create becomes ours: if nothing changes that somebody pays.

It must be the subscription that we would have created: one item with the plan's price, once, without a discount, a
trial, a planned end, a pause or a schedule. Other terms are a conflict that names both, before anything is written. One
without our ``org_id`` is never adopted (``subscriptions.py``).
"""

from __future__ import annotations

from core.compare.advice import Advice
from core.ports.errors import ConflictError
from core.ports.spec import OTHER_TERMS, SubscriptionSpec
from providers.stripe.errors import STRIPE
from providers.stripe.minor_units import STRIPE_UNITS
from providers.stripe.prices import interval_of
from providers.stripe.responses import StripePrice, StripeSubscription


def refuse_other_terms(found: StripeSubscription, price: StripePrice, spec: SubscriptionSpec) -> None:
    """``price`` is that of the organization's plan. Raises ``ConflictError``."""
    sold = [(item.price.id, item.quantity) for item in found.items.data]
    conditions = _conditions(found)
    if sold == [(price.id, 1)] and not conditions:
        return
    prices = " and ".join(_describe(item.price, item.quantity) for item in found.items.data) or "nothing"
    parameters = {
        "org_id": spec.org_id,
        "subscription_id": found.id,
        "theirs": ", with ".join([prices, *conditions]),
        "ours": _describe(price, 1),
    }
    raise ConflictError(STRIPE, Advice("conflict_adoption", parameters).sentence, OTHER_TERMS)


def _conditions(found: StripeSubscription) -> list[str]:
    """What changes the price or the end of the subscription, apart from its items."""
    conditions = {
        "a discount": bool(found.discounts) or any(item.discounts for item in found.items.data),
        "a trial": found.status == "trialing",
        "a planned end": found.cancel_at_period_end or found.cancel_at is not None,
        "paused collection": found.pause_collection is not None or found.status == "paused",
        "a schedule": found.schedule is not None or bool(found.marks.get("next_plan")),
        "more items": found.items.has_more,
    }
    return [condition for condition, is_met in conditions.items() if is_met]


def _describe(price: StripePrice, quantity: int) -> str:
    times = f"{quantity} times " if quantity != 1 else ""
    return f"{times}{_money(price)} {interval_of(price)} ({price.id})"


def _money(price: StripePrice) -> str:
    currency = price.currency.upper()
    if price.unit_amount is None:
        return f"no flat amount in {currency}"
    return STRIPE_UNITS.text(price.unit_amount, currency)
