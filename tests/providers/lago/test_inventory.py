"""Everything a Lago organization has of customers and subscriptions is read, with what is odd about it, not written."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from core.ports.inventory import InventoryCustomer, InventorySubscription
from providers.lago.client import LagoClient
from providers.lago.inventory import LagoInventory
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.support.scripted_lago import Reply, ScriptedLago
from tests.support.scripted_lago import customer as shown_customer

PLAN = {"amount_currency": "USD", "interval": "monthly", "pay_in_advance": True}


@pytest.fixture
def client(sandbox_server: Sandbox) -> Iterator[LagoClient]:
    client = LagoClient(sandbox_server.url, "sandbox", 10.0)
    yield client
    client.close()


@pytest.fixture
def inventory(client: LagoClient) -> LagoInventory:
    return LagoInventory(client)


@pytest.fixture(autouse=True)
def plans(sandbox: SandboxClient) -> None:
    sandbox.preload_lago_plans(
        [
            {"code": "starter", "name": "Starter", "amount_cents": 1900, **PLAN},
            {"code": "enterprise", "name": "Enterprise", "amount_cents": 9900, **PLAN},
            {"code": "forint", "name": "Forint", "amount_cents": 1900, **PLAN, "amount_currency": "HUF"},
            {"code": "trial", "name": "Trial", "amount_cents": 1900, **PLAN, "trial_period": 14.0},
        ]
    )


def customer(sandbox: SandboxClient, inventory: LagoInventory, **fields: Any) -> InventoryCustomer:  # noqa: ANN401
    sandbox.preload_lago_customers([{"external_id": "acme", "name": "Acme", "email": "a@a.test,b@a.test", **fields}])
    (listed,) = inventory.customers(None).rows
    return listed


def subscription(
    sandbox: SandboxClient,
    inventory: LagoInventory,
    plan: str = "starter",
    **fields: Any,  # noqa: ANN401
) -> InventorySubscription:
    sandbox.preload_lago_customers([{"external_id": "acme"}])
    sandbox.preload_lago_subscriptions(
        [{"external_customer_id": "acme", "external_id": "contract", "plan_code": plan, **fields}]
    )
    (listed,) = inventory.subscriptions(None).rows
    assert inventory.subscriptions_of("acme") == [listed]
    return listed


def test_a_customer_and_the_payer_that_lago_charges(sandbox: SandboxClient, inventory: LagoInventory) -> None:
    configuration = {
        "payment_provider": "stripe",
        "payment_provider_code": "stripe_main",
        "provider_customer_id": "cus_1",
    }
    found = customer(sandbox, inventory, lago_id="7d1f", billing_configuration=configuration)
    assert found == InventoryCustomer(
        id="7d1f", external_id="acme", name="Acme", email="a@a.test", payer_id="cus_1", currency=None
    )
    assert inventory.customer("acme") == found
    assert inventory.customer("nobody") is None


def test_an_id_with_a_dot_cannot_be_addressed(sandbox: SandboxClient, inventory: LagoInventory) -> None:
    assert not customer(sandbox, inventory, external_id="acme.com").is_addressable


def test_an_answer_with_another_id_than_the_one_requested_is_nobody() -> None:
    """For Lago ``/customers/acme.com`` is customer ``acme``, and a proxy may turn ``%2E`` into that dot."""
    script = ScriptedLago()
    client = LagoClient(script.url, "key", 10.0)
    try:
        script.respond_with(shown_customer(external_id="acme"), Reply(200, {"applied_coupons": [], "meta": {}}))
        assert LagoInventory(client).customer("acme.com") is None
    finally:
        client.close()
        script.close()


def test_nor_can_the_subscription_with_such_an_id(sandbox: SandboxClient, inventory: LagoInventory) -> None:
    sandbox.preload_lago_customers([{"external_id": "acme"}])
    sandbox.preload_lago_subscription("acme", "starter", external_id="a.b")
    assert [each.is_addressable for each in inventory.subscriptions_of("acme")] == [False]


def test_coupons_are_in_a_list_of_their_own(sandbox: SandboxClient, inventory: LagoInventory) -> None:
    found = customer(sandbox, inventory)
    sandbox.preload_lago_customers([{"external_id": "other"}])
    sandbox.preload_applied_coupons(
        [
            {"external_customer_id": "acme", "coupon_code": "a", "percentage_rate": "20.0"},
            {
                "external_customer_id": "acme",
                "coupon_code": "b",
                "amount_cents": 500,
                "amount_currency": "USD",
                "frequency": "recurring",
                "frequency_duration": 3,
            },
            {"external_customer_id": "other", "coupon_code": "c", "percentage_rate": "5", "frequency": "once"},
        ]
    )
    page = inventory.discounts(None)
    texts = {(each.customer_id == found.id, each.text) for each in page.rows}
    assert texts == {(True, "20 % off"), (True, "5.00 USD off for 3 more periods"), (False, "5 % off once")}
    assert found.discounts == ()
    read = inventory.customer("acme")
    assert read is not None
    assert set(read.discounts) == {"20 % off", "5.00 USD off for 3 more periods"}


def test_a_plain_subscription_and_its_plan_is_read_once(sandbox: SandboxClient, inventory: LagoInventory) -> None:
    found = subscription(sandbox, inventory)
    (item,) = found.items
    assert (item.price_id, item.code, item.sold_price_id) == ("starter", "starter", "1900")
    assert (item.amount, item.currency, item.interval, item.interval_count) == (1900, "USD", "month", 1)
    assert (item.quantity, item.bills_usage, item.unusual) == (1, False, ())
    assert (found.external_id, found.status, found.arrangement, found.next_code) == ("contract", "active", None, None)
    assert found.next_at is not None
    assert not found.is_paid_manually
    assert sandbox.counters().lago.of("GET /api/v1/plans/{id}") == 1


def test_amounts_are_in_iso_minor_units(sandbox: SandboxClient, inventory: LagoInventory) -> None:
    (item,) = subscription(sandbox, inventory, "forint").items
    assert (item.amount, item.currency, item.sold_price_id) == (190000, "HUF", "1900")


def test_a_price_of_its_own_is_what_the_subscription_pays(sandbox: SandboxClient, inventory: LagoInventory) -> None:
    subscription(sandbox, inventory)
    sandbox.patch("lago", "subscriptions", "contract", plan_overrides={"amount_cents": 1700})
    (found,) = inventory.subscriptions(None).rows
    assert (found.items[0].amount, found.items[0].sold_price_id, found.items[0].code) == (1700, "1700", "starter")


def test_a_scheduled_plan_is_no_subscription_of_its_own(sandbox: SandboxClient, inventory: LagoInventory) -> None:
    subscription(sandbox, inventory, "enterprise")
    sandbox.preload_lago_subscription("acme", "starter", external_id="contract")
    (found,) = inventory.subscriptions(None).rows
    assert (found.items[0].code, found.next_code) == ("enterprise", "starter")


def test_one_that_begins_later_and_one_that_is_paid_by_hand(sandbox: SandboxClient, inventory: LagoInventory) -> None:
    later = subscription(sandbox, inventory, subscription_at="2099-01-01T00:00:00Z")
    assert (later.status, later.next_at) == ("pending", None)
    manual = {"payment_method_type": "manual"}
    sandbox.preload_lago_subscriptions(
        [{"external_customer_id": "acme", "external_id": "b", "plan_code": "starter", "payment_method": manual}]
    )
    assert {each.external_id: each.is_paid_manually for each in inventory.subscriptions_of("acme")} == {
        "contract": False,
        "b": True,
    }


def test_a_trial_ends_so_many_days_after_it_began(sandbox: SandboxClient, inventory: LagoInventory) -> None:
    found = subscription(sandbox, inventory, "trial")
    assert found.trial_ends_at is not None
    assert found.created_at is not None
    assert abs(found.trial_ends_at - found.created_at - timedelta(days=14)) < timedelta(seconds=2)


def test_subscriptions_of_others_are_not_listed(sandbox: SandboxClient, inventory: LagoInventory) -> None:
    subscription(sandbox, inventory)
    sandbox.preload_lago_customers([{"external_id": "other"}])
    assert inventory.subscriptions_of("other") == []
    assert {call.method for call in sandbox.calls("lago")} == {"GET"}
