"""All recurring prices of a Stripe account are listed once, with what each is to a catalog."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.common.json_types import Json
from core.ports.inventory import InventoryPrice
from providers.stripe import price_inventory
from providers.stripe.client import StripeClient
from providers.transport.permits import UnlimitedPermits
from sandbox.server import Sandbox
from tests.support.stripe_stub import KEY, StripeStub
from tests.support.stripe_stub import running as stub_running

PRICE: dict[str, Json] = {
    "id": "price_1",
    "object": "price",
    "active": True,
    "billing_scheme": "per_unit",
    "currency": "usd",
    "lookup_key": "starter",
    "product": {"id": "prod_1", "object": "product", "name": "Starter", "active": True},
    "recurring": {"interval": "month", "interval_count": 1, "usage_type": "licensed", "trial_period_days": None},
    "tax_behavior": "exclusive",
    "transform_quantity": None,
    "unit_amount": 1900,
}


@pytest.fixture
def stub() -> Iterator[StripeStub]:
    with stub_running() as stub:
        yield stub


@pytest.fixture
def client() -> Iterator[StripeClient]:
    with Sandbox(limits=False) as sandbox:
        client = StripeClient(KEY, sandbox.url, 10.0)
        yield client
        client.close()


def all_prices(client: StripeClient) -> list[InventoryPrice]:
    found: list[InventoryPrice] = []
    cursor: str | None = None
    while True:
        page = price_inventory.list_prices(client, UnlimitedPermits(), cursor)
        found += page.rows
        cursor = page.next_cursor
        if cursor is None:
            return found


def read(stub: StripeStub, **changed: Json) -> InventoryPrice:
    stub.answer(200, {**PRICE, **changed})
    client = StripeClient(KEY, stub.url, 10.0)
    try:
        found = price_inventory.read_price(client, UnlimitedPermits(), "price_1")
    finally:
        client.close()
    assert found is not None
    return found


def test_active_and_archived_prices_of_all_pages_are_listed_once_and_one_time_prices_never(
    client: StripeClient,
) -> None:
    product = client.v1.products.create({"name": "Starter"}).id
    recurring_ids = {
        client.v1.prices.create(
            {"product": product, "currency": "usd", "unit_amount": number, "recurring": {"interval": "month"}}
        ).id
        for number in range(105)
    }
    client.v1.prices.create({"product": product, "currency": "usd", "unit_amount": 500})
    archived = min(recurring_ids)
    client.v1.prices.update(archived, {"active": False})
    found = all_prices(client)
    assert len(found) == len(recurring_ids)
    assert {each.id for each in found} == recurring_ids
    assert [each.id for each in found if not each.active] == [archived]
    assert {(each.name, each.code, each.currency, each.interval) for each in found} == {
        ("Starter", None, "USD", "month")
    }


def test_a_price_that_does_not_exist_is_none(client: StripeClient) -> None:
    assert price_inventory.read_price(client, UnlimitedPermits(), "price_gone") is None


def test_a_price_on_our_terms_has_nothing_unusual(stub: StripeStub) -> None:
    assert read(stub) == InventoryPrice(
        id="price_1", code="starter", name="Starter", amount=1900, currency="USD", interval="month"
    )


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"recurring": {"interval": "month", "interval_count": 1, "usage_type": "metered"}}, "it has no flat amount"),
        ({"billing_scheme": "tiered", "unit_amount": None}, "it has no flat amount"),
        ({"unit_amount": None}, "it has no flat amount"),
        ({"currency": "isk", "unit_amount": 150}, "has no counterpart"),
    ],
)
def test_an_amount_that_is_not_known_is_never_nought(stub: StripeStub, changed: Json, sentence: str) -> None:
    assert isinstance(changed, dict)
    price = read(stub, **changed)
    assert price.amount is None
    assert any(sentence in each for each in price.unusual)


def test_a_price_of_an_archived_product_is_sold_no_longer(stub: StripeStub) -> None:
    assert not read(stub, product={"id": "prod_1", "object": "product", "name": "Starter", "active": False}).active


def test_three_months_are_three_months(stub: StripeStub) -> None:
    price = read(stub, recurring={"interval": "month", "interval_count": 3, "usage_type": "licensed"})
    assert (price.interval, price.interval_count) == ("month", 3)
