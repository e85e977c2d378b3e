"""The credit that a customer of Stripe shows: below zero, in the minor unit of its currency, and never guessed."""

from __future__ import annotations

import pytest

from core.ports.observed import ObservedCredit
from providers.stripe.balances import credit_of
from providers.stripe.responses import StripeCustomer


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        ({"balance": -3266, "currency": "usd"}, ObservedCredit(amount=3266, currency="USD")),
        ({"balance": -500, "currency": "jpy"}, ObservedCredit(amount=500, currency="JPY")),
        ({"balance": -50000, "currency": "isk"}, ObservedCredit(amount=500, currency="ISK")),
        ({"balance": 0, "currency": "usd"}, ObservedCredit(amount=0)),
        ({"balance": 0, "currency": None}, ObservedCredit(amount=0)),
        ({"balance": 1500, "currency": "usd"}, ObservedCredit(amount=0)),
        ({"deleted": True}, ObservedCredit(amount=0)),
        ({"balance": -500, "currency": "ugx"}, None),
        ({}, None),
    ],
)
def test_credit_is_what_is_below_zero(shown: dict[str, object], told: ObservedCredit | None) -> None:
    assert credit_of(StripeCustomer.model_validate({"id": "cus_1", **shown})) == told
