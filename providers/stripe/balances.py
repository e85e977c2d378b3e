"""The balance of a customer in Stripe, which a response shows with the customer (stripe.md 9)."""

from __future__ import annotations

from core.ports.errors import RejectedError
from core.ports.observed import ObservedCredit
from providers.stripe.minor_units import STRIPE_UNITS
from providers.stripe.responses import StripeCustomer


def credit_of(customer: StripeCustomer) -> ObservedCredit | None:
    """None: the response shows no balance, or in a unit that cannot be told. A debt is no credit.

    With a deleted customer its credit is gone, too.
    """
    if customer.deleted:
        return ObservedCredit(amount=0)
    if customer.balance is None:
        return None
    if customer.balance >= 0 or customer.currency is None:
        return ObservedCredit(amount=0)
    currency = customer.currency.upper()
    try:
        return ObservedCredit(amount=STRIPE_UNITS.from_provider(-customer.balance, currency), currency=currency)
    except RejectedError:
        return None
