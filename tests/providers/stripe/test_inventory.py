"""All customers and subscriptions of a Stripe account are read, with what is odd about them, and nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from core.ports.arrangement import Arrangement
from core.ports.inventory import InventoryCustomer, InventorySubscription
from providers.stripe.client import StripeClient
from providers.stripe.inventory import StripeDiscount, StripeInventory
from sandbox.client import SandboxClient
from sandbox.http import JsonDocument
from sandbox.server import Sandbox
from tests.support.stripe_stub import KEY


@pytest.fixture
def server() -> Iterator[Sandbox]:
    with Sandbox(limits=False) as server:
        yield server


@pytest.fixture
def account(server: Sandbox) -> Iterator[SandboxClient]:
    with SandboxClient(server.url) as account:
        yield account


@pytest.fixture
def client(server: Sandbox) -> Iterator[StripeClient]:
    client = StripeClient(KEY, server.url, 10.0)
    yield client
    client.close()


@pytest.fixture
def inventory(client: StripeClient) -> StripeInventory:
    return StripeInventory(client)


def customer(account: SandboxClient, inventory: StripeInventory, **fields: Any) -> InventoryCustomer:  # noqa: ANN401
    account.preload_stripe_customers([{"id": "cus_1", "name": "Acme", "email": "a@acme.test", **fields}])
    (listed,) = inventory.customers(None).rows
    assert inventory.customer("cus_1") == listed
    return listed


def price(account: SandboxClient, **fields: Any) -> str:  # noqa: ANN401
    base = {"currency": "usd", "recurring": {"interval": "month"}, "product_data": {"name": "Pro"}}
    amount = {} if "billing_scheme" in fields else {"unit_amount": 4900}
    (created,) = account.preload_stripe_prices([{**base, **amount, **fields}])
    return str(created["id"])


def subscription(
    account: SandboxClient,
    inventory: StripeInventory,
    items: list[JsonDocument],
    **fields: Any,  # noqa: ANN401
) -> InventorySubscription:
    account.preload_stripe_customers(
        [{"id": "cus_1", "email": "a@acme.test", "invoice_settings": {"default_payment_method": "pm_1"}}]
    )
    charged = {"collection_method": "charge_automatically", "days_until_due": None}
    account.preload_stripe_subscriptions([{"customer": "cus_1", "items": items, **charged, **fields}])
    (listed,) = inventory.subscriptions(None).rows
    assert inventory.subscriptions_of("cus_1") == [listed]
    return listed


def test_a_customer_with_complete_marks(account: SandboxClient, inventory: StripeInventory) -> None:
    marks = {"billing_sync_org_id": "org_1", "billing_sync_database_id": "db-1"}
    found = customer(account, inventory, metadata=marks, invoice_settings={"default_payment_method": "pm_1"})
    assert found == InventoryCustomer(
        id="cus_1",
        org_id="org_1",
        database_id="db-1",
        name="Acme",
        email="a@acme.test",
        has_payment_method=True,
    )


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"billing_sync_org_id": "org_1"}, ("org_1",)),
        ({"org_id": "org_2", "organizationId": "7", "plan": "pro"}, ("org_2", "7")),
        ({"billing_sync_database_id": "db-1"}, ()),
        ({"plan": "organization"}, ()),
    ],
)
def test_other_metadata_only_names_organizations(
    account: SandboxClient, inventory: StripeInventory, metadata: dict[str, str], named: tuple[str, ...]
) -> None:
    found = customer(account, inventory, metadata=metadata)
    assert (found.org_id, found.database_id, found.named_org_ids) == (None, None, named)


def test_a_coupon_of_the_customer_is_a_discount(account: SandboxClient, inventory: StripeInventory) -> None:
    account.create("stripe", "coupons", id="LOYAL20", percent_off=20, duration="forever")
    customer(account, inventory)
    account.patch("stripe", "customers", "cus_1", coupon="LOYAL20")
    (listed,) = inventory.customers(None).rows
    assert listed.discounts == ("20 % off",)
    assert inventory.discounts(None).rows == ()


def test_deleted_and_unknown_customers(account: SandboxClient, inventory: StripeInventory) -> None:
    customer(account, inventory)
    account.delete("stripe", "customers", "cus_1")
    assert inventory.customers(None).rows == ()
    deleted = inventory.customer("cus_1")
    assert deleted is not None
    assert deleted.deleted
    assert inventory.customer("cus_unknown") is None


def test_lists_are_read_to_their_end(account: SandboxClient, inventory: StripeInventory) -> None:
    account.preload_stripe_customers([{"id": f"cus_{number}"} for number in range(101)])
    first = inventory.customers(None)
    second = inventory.customers(first.next_cursor)
    assert (len(first.rows), len(second.rows), second.next_cursor) == (100, 1, None)


def test_a_plain_subscription(account: SandboxClient, inventory: StripeInventory) -> None:
    price_id = price(account, lookup_key="pro_usd")
    found = subscription(account, inventory, [{"price": price_id}])
    (item,) = found.items
    assert (item.price_id, item.sold_price_id, item.code) == (price_id, price_id, "pro_usd")
    assert (item.amount, item.currency, item.interval, item.interval_count) == (4900, "USD", "month", 1)
    assert (item.quantity, item.bills_usage, item.unusual) == (1, False, ())
    assert (found.customer_id, found.status, found.arrangement, found.discounts) == ("cus_1", "active", None, ())
    assert found.next_at is not None
    assert not found.has_payment_method


def test_terms_of_its_own(account: SandboxClient, inventory: StripeInventory) -> None:
    account.create("stripe", "coupons", id="FIVE", amount_off=500, currency="usd", duration="once")
    found = subscription(
        account,
        inventory,
        [{"price": price(account), "quantity": 3}],
        discounts=[{"coupon": "FIVE"}],
        trial_period_days=30,
        collection_method="send_invoice",
        days_until_due=14,
        cancel_at_period_end=True,
        metadata={"billing_sync_org_id": "org_1", "billing_sync_database_id": "db-1"},
    )
    assert (found.status, found.items[0].quantity, found.items[0].code) == ("trialing", 3, None)
    assert found.discounts == ("5.00 USD off once",)
    assert found.trial_ends_at is not None
    assert found.is_paid_manually
    assert isinstance(found.arrangement, Arrangement)
    assert found.arrangement.ends_at is not None
    assert (found.org_id, found.database_id) == ("org_1", "db-1")


def test_marks_of_a_subscription_count_only_together(account: SandboxClient, inventory: StripeInventory) -> None:
    found = subscription(account, inventory, [{"price": price(account)}], metadata={"org_id": "org_1", "plan": "pro"})
    assert (found.org_id, found.database_id, found.next_code) == (None, None, None)


def test_usage_and_tiers_have_no_amount(account: SandboxClient, inventory: StripeInventory) -> None:
    usage = price(account, recurring={"interval": "month", "usage_type": "metered", "meter": "mtr_1"})
    tiers = [{"up_to": 10, "unit_amount": 900}, {"up_to": "inf", "unit_amount": 700}]
    tiered = price(account, billing_scheme="tiered", tiers_mode="volume", tiers=tiers)
    found = subscription(account, inventory, [{"price": usage}, {"price": tiered, "quantity": 2}])
    by_price = {item.price_id: item for item in found.items}
    assert (by_price[usage].amount, by_price[usage].bills_usage) == (None, True)
    assert (by_price[tiered].amount, by_price[tiered].bills_usage) == (None, False)
    assert "its amount has tiers" in by_price[tiered].unusual


def test_a_subscription_that_has_ended_is_left_out(account: SandboxClient, inventory: StripeInventory) -> None:
    found = subscription(account, inventory, [{"price": price(account)}])
    account.delete("stripe", "subscriptions", found.id)
    assert inventory.subscriptions(None).rows == ()
    assert inventory.subscriptions_of("cus_1") == []


@pytest.mark.parametrize(
    ("discount", "text"),
    [
        ({"source": {"coupon": {"id": "A", "percent_off": 12.5}}}, "12.5 % off"),
        ({"source": {"coupon": {"id": "A", "amount_off": 500, "currency": "jpy"}}}, "500 JPY off"),
        (
            {
                "end": int(datetime(2026, 12, 24, tzinfo=UTC).timestamp()),
                "source": {"coupon": {"id": "A", "percent_off": 20, "duration": "repeating"}},
            },
            "20 % off until 2026-12-24",
        ),
        ({"source": {"coupon": {"id": "A", "percent_off": 20, "duration": "once"}}}, "20 % off once"),
        ({"source": {"coupon": "A"}}, "coupon A"),
        ({}, "a discount"),
    ],
)
def test_discounts_in_words(discount: JsonDocument, text: str) -> None:
    assert StripeDiscount.model_validate(discount).text == text


def test_nothing_is_written(account: SandboxClient, inventory: StripeInventory) -> None:
    customer(account, inventory)
    inventory.prices(None)
    inventory.price("price_unknown")
    assert {call.method for call in account.calls("stripe")} == {"GET"}
