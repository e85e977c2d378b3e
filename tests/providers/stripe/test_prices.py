"""What a price of Stripe has beside amount, currency and interval: what bills otherwise is named."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.common.json_types import Json
from core.ports.errors import RejectedError
from core.ports.spec import PriceSpec
from providers.stripe.client import StripeClient
from providers.stripe.prices import StripePrices
from tests.support.stripe_stub import KEY, StripeStub, running

PRICE: dict[str, Json] = {
    "id": "price_1",
    "object": "price",
    "active": True,
    "billing_scheme": "per_unit",
    "currency": "usd",
    "lookup_key": "starter",
    "product": {"id": "prod_1", "object": "product", "name": "Starter"},
    "recurring": {"interval": "month", "interval_count": 1, "usage_type": "licensed", "trial_period_days": None},
    "tax_behavior": "exclusive",
    "transform_quantity": None,
    "unit_amount": 1900,
}


@pytest.fixture
def stub() -> Iterator[StripeStub]:
    with running() as stub:
        yield stub


def found(stub: StripeStub, **changed: Json) -> PriceSpec:
    """As the provider reads this price."""
    stub.answer(200, {"object": "list", "data": [{**PRICE, **changed}], "has_more": False, "url": "/v1/prices"})
    client = StripeClient(KEY, stub.url, 10.0)
    try:
        price = StripePrices(client).find_price("starter")
    finally:
        client.close()
    assert price is not None
    return price


def test_a_price_on_our_terms_has_no_others(stub: StripeStub) -> None:
    price = found(stub)
    assert (price.amount, price.interval, price.other_terms, price.remarks) == (1900, "monthly", (), ())


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"recurring": {"interval": "month", "interval_count": 1, "usage_type": "metered"}}, "it is metered"),
        ({"billing_scheme": "tiered"}, "its amount has tiers"),
        ({"transform_quantity": {"divide_by": 10, "round": "up"}}, "its quantity is divided by 10"),
        ({"recurring": {"interval": "month", "interval_count": 1, "trial_period_days": 14}}, "14 days that are free"),
    ],
)
def test_what_bills_otherwise_is_named(stub: StripeStub, changed: dict[str, Json], sentence: str) -> None:
    (term,) = found(stub, **changed).other_terms
    assert sentence in term


def test_an_amount_with_tax_in_it_is_a_remark(stub: StripeStub) -> None:
    price = found(stub, tax_behavior="inclusive")
    assert (price.other_terms, price.remarks) == ((), ("its amount includes tax",))


def test_a_product_that_is_only_named_is_no_other_amount(stub: StripeStub) -> None:
    assert found(stub, product="prod_1").amount == PRICE["unit_amount"]


def test_tiers_without_an_amount_are_refused(stub: StripeStub) -> None:
    with pytest.raises(RejectedError, match="has no flat recurring amount"):
        found(stub, billing_scheme="tiered", unit_amount=None)
