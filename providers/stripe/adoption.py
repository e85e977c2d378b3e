"""When a subscription that we did not create becomes ours: only if that changes nothing that somebody pays.

It must be the subscription that we would have created: one item with the plan's price, once, without a discount, a
trial, a planned end, a pause or a schedule. Anything else is a conflict that names both terms, before anything is
written.
"""

from __future__ import annotations

from core.compare.advice import Advice
from core.ports.errors import ConflictError
from core.ports.spec import CHANGED_AT_PROVIDER, SubscriptionSpec
from providers.stripe.errors import STRIPE
from providers.stripe.minor_units import STRIPE_UNITS
from providers.stripe.prices import interval_of
from providers.stripe.responses import StripePrice, StripeSubscription


def refuse_other_terms(found: StripeSubscription, price: StripePrice, spec: SubscriptionSpec) -> None:
    """``price`` is that of the organization's plan. Raises ``ConflictError``."""
    theirs = _terms(found)
    if theirs == _price_terms(price, 1):
        return
    parameters = {
        "org_id": spec.org_id,
        "subscription_id": found.id,
        "theirs": theirs,
        "ours": _price_terms(price, 1),
    }
    raise ConflictError(STRIPE, Advice("conflict_adoption", parameters).sentence, CHANGED_AT_PROVIDER)


def _terms(found: StripeSubscription) -> str:
    prices = [_price_terms(item.price, item.quantity) for item in found.items.data]
    conditions = {
        "a discount": bool(found.discounts) or any(item.discounts for item in found.items.data),
        "a trial": found.status == "trialing",
        "a planned end": found.cancel_at_period_end or found.cancel_at is not None,
        "paused collection": found.pause_collection is not None or found.status == "paused",
        "a schedule": found.schedule is not None,
        "more items": found.items.has_more,
    }
    return ", with ".join([" and ".join(prices), *(name for name, holds in conditions.items() if holds)])


def _price_terms(price: StripePrice, quantity: int) -> str:
    times = f"{quantity} times " if quantity != 1 else ""
    return f"{times}{_money(price)} {interval_of(price)} ({price.id})"


def _money(price: StripePrice) -> str:
    currency = price.currency.upper()
    if price.unit_amount is None:
        return f"no flat amount in {currency}"
    decimals = STRIPE_UNITS.decimals_of(currency)
    return f"{price.unit_amount / 10**decimals:.{decimals}f} {currency}"
