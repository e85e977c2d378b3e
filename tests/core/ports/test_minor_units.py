"""The same amount is the same money at each provider."""

from __future__ import annotations

import pytest

from core.ports.errors import RejectedError
from core.ports.minor_units import MinorUnits, amount_text
from providers.lago.minor_units import LAGO_UNITS
from providers.stripe.minor_units import STRIPE_UNITS


@pytest.mark.parametrize(
    ("currency", "ours", "at_stripe", "at_lago"),
    [
        ("USD", 4900, 4900, 4900),
        ("JPY", 5000, 5000, 5000),
        ("KWD", 5120, 5120, 5120),
        ("ISK", 5000, 500000, 5000),
        ("HUF", 500000, 500000, 5000),
        ("XOF", 5000, 5000, 5000),
        ("MGA", 500000, 5000, 5000),
        ("TWD", 50000, 50000, 50000),
        ("USD", 0, 0, 0),
    ],
)
def test_the_same_amount_is_sent_to_each_provider_in_its_own_unit(
    currency: str, ours: int, at_stripe: int, at_lago: int
) -> None:
    assert STRIPE_UNITS.to_provider(ours, currency) == at_stripe
    assert LAGO_UNITS.to_provider(ours, currency) == at_lago
    assert STRIPE_UNITS.from_provider(at_stripe, currency) == ours
    assert LAGO_UNITS.from_provider(at_lago, currency) == ours


@pytest.mark.parametrize(
    ("units", "currency", "amount", "problem"),
    [
        (LAGO_UNITS, "HUF", 500050, "no counterpart"),
        (STRIPE_UNITS, "KWD", 5124, "in steps of 10"),
        (STRIPE_UNITS, "UGX", 5000, "cannot be told"),
        (STRIPE_UNITS, "MRU", 5000, "cannot be told"),
        (LAGO_UNITS, "MGA", 5050, "no counterpart"),
    ],
)
def test_an_amount_that_a_provider_cannot_hold_is_rejected(
    units: MinorUnits, currency: str, amount: int, problem: str
) -> None:
    with pytest.raises(RejectedError, match=problem) as caught:
        units.to_provider(amount, currency)
    assert caught.value.code == "minor_unit"


def test_an_amount_of_stripe_that_is_no_whole_unit_of_ours_is_rejected() -> None:
    """For example a proration in ISK that somebody made before Stripe took whole krónur only."""
    with pytest.raises(RejectedError, match="no counterpart"):
        STRIPE_UNITS.from_provider(512, "ISK")


def test_a_credit_is_converted_too() -> None:
    assert STRIPE_UNITS.from_provider(-500, "ISK") == -5


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [(3206, "USD", "32.06 USD"), (5, "EUR", "0.05 EUR"), (500, "JPY", "500 JPY"), (5120, "KWD", "5.120 KWD")],
)
def test_an_amount_is_shown_with_the_decimals_of_its_currency(amount: int, currency: str, text: str) -> None:
    assert amount_text(amount, currency) == text
