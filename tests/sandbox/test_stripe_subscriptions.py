"""Stripe's prices and subscriptions as stripe.md 5 and 6 have them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import stripe

from sandbox.client import SandboxClient, SandboxError


@pytest.fixture
def customer(billing: stripe.StripeClient) -> str:
    return billing.v1.customers.create({"name": "Acme", "email": "a@acme.test"}).id


@pytest.fixture
def prices(sandbox: SandboxClient) -> dict[str, str]:
    """Three monthly prices by lookup key."""
    made = sandbox.preload_stripe_prices(
        {
            "lookup_key": key,
            "currency": "usd",
            "unit_amount": cents,
            "recurring": {"interval": "month"},
            "product_data": {"name": key},
        }
        for key, cents in (("starter", 1900), ("professional", 4900), ("enterprise", 9900))
    )
    return {price["lookup_key"]: price["id"] for price in made}


def subscribe(billing: stripe.StripeClient, customer: str, price: str, quantity: int = 1) -> stripe.Subscription:
    return billing.v1.subscriptions.create(
        {
            "customer": customer,
            "items": [{"price": price, "quantity": quantity}],
            "collection_method": "send_invoice",
            "days_until_due": 30,
            "metadata": {"org_id": "org_1"},
        }
    )


def items(subscription: stripe.Subscription) -> list[Any]:
    return list(subscription["items"].data)


def reasons(sandbox: SandboxClient) -> list[tuple[str, int]]:
    return [(charge["reason"], charge["amount"]) for charge in sandbox.charges()]


def test_a_lookup_key_belongs_to_one_price_until_it_is_transferred(billing: stripe.StripeClient) -> None:
    product = billing.v1.products.create({"name": "Starter", "id": "starter"})
    first = billing.v1.prices.create(
        {
            "product": product.id,
            "currency": "usd",
            "unit_amount": 1900,
            "recurring": {"interval": "month"},
            "lookup_key": "s",
        }
    )
    with pytest.raises(stripe.InvalidRequestError, match="already uses that lookup key"):
        billing.v1.prices.create({"product": product.id, "currency": "usd", "unit_amount": 1, "lookup_key": "s"})
    second = billing.v1.prices.create(
        {"product": product.id, "currency": "usd", "unit_amount": 2900, "lookup_key": "s", "transfer_lookup_key": True}
    )
    assert billing.v1.prices.retrieve(first.id).lookup_key is None
    found = billing.v1.prices.list({"lookup_keys": ["s"], "active": True, "expand": ["data.product"]}).data
    assert [price.id for price in found] == [second.id]
    assert isinstance(found[0].product, stripe.Product)
    assert found[0].product.name == "Starter"
    with pytest.raises(stripe.InvalidRequestError, match="already exists") as error:
        billing.v1.products.create({"name": "Starter", "id": "starter"})
    assert error.value.code == "resource_already_exists"


def test_an_archived_price_is_found_no_more_and_takes_no_subscription(
    billing: stripe.StripeClient, customer: str, prices: dict[str, str]
) -> None:
    billing.v1.prices.update(prices["starter"], {"active": False})
    assert billing.v1.prices.list({"lookup_keys": ["starter"], "active": True}).data == []
    with pytest.raises(stripe.InvalidRequestError, match="inactive"):
        subscribe(billing, customer, prices["starter"])


def test_a_subscription_by_invoice_is_active_at_once_with_its_periods_on_the_items(
    billing: stripe.StripeClient, sandbox: SandboxClient, customer: str, prices: dict[str, str]
) -> None:
    sandbox.set_clock(datetime(2027, 1, 31, 12, tzinfo=UTC))
    made = subscribe(billing, customer, prices["starter"], 3)
    assert (made.status, made.currency, made.billing_mode.type) == ("active", "usd", "flexible")
    assert "current_period_end" not in made
    end = datetime.fromtimestamp(items(made)[0].current_period_end, UTC)
    assert (end.month, end.day) == (2, 28)
    assert reasons(sandbox) == [("subscription_create", 5700)]
    assert billing.v1.subscriptions.retrieve(made.id).to_dict() == made.to_dict()


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "parameter_missing", "customer"),
        ({"customer": "CUS"}, "parameter_missing", "items"),
        ({"customer": "cus_no", "items[0][price]": "PRICE", "days_until_due": "1"}, "resource_missing", "customer"),
        (
            {"customer": "CUS", "items[0][price]": "price_no", "days_until_due": "1"},
            "resource_missing",
            "items[0][price]",
        ),
        ({"customer": "CUS", "items[0][price]": "PRICE"}, "parameter_missing", "days_until_due"),
        ({"customer": "CUS", "items[0][prise]": "PRICE"}, "parameter_unknown", "items[0][prise]"),
        (
            {"customer": "CUS", "items[0][price]": "PRICE", "backdate_start_date": "1"},
            "sandbox_unsupported",
            "backdate_start_date",
        ),
        (
            {"customer": "CUS", "items[0][price]": "PRICE", "days_until_due": "1", "trial_end": "1"},
            None,
            "trial_end",
        ),
    ],
)
def test_a_wrong_subscription_is_400_and_the_field_named(  # noqa: PLR0913, PLR0917  # the fixtures and the case
    raw: httpx.Client, customer: str, prices: dict[str, str], fields: dict[str, str], code: str | None, param: str
) -> None:
    real = {"CUS": customer, "PRICE": prices["starter"]}
    form = {name: real.get(value, value) for name, value in fields.items()}
    answer = raw.post("/v1/subscriptions", data={"collection_method": "send_invoice", **form})
    error = answer.json()["error"]
    assert (answer.status_code, error.get("code"), error["param"]) == (400, code, param)


def test_charging_without_a_payment_method_is_refused_unless_left_incomplete(
    billing: stripe.StripeClient, sandbox: SandboxClient, customer: str, prices: dict[str, str]
) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="no attached payment source") as error:
        billing.v1.subscriptions.create({"customer": customer, "items": [{"price": prices["starter"]}]})
    assert error.value.code == "resource_missing"
    made = billing.v1.subscriptions.create(
        {"customer": customer, "items": [{"price": prices["starter"]}], "payment_behavior": "default_incomplete"}
    )
    assert made.status == "incomplete"
    sandbox.advance(timedelta(hours=24))
    assert billing.v1.subscriptions.retrieve(made.id).status == "incomplete_expired"


def test_a_plan_change_by_item_id_resets_a_quantity_that_is_not_sent(
    billing: stripe.StripeClient, sandbox: SandboxClient, customer: str, prices: dict[str, str]
) -> None:
    made = subscribe(billing, customer, prices["starter"], 5)
    item = items(made)[0].id
    kept = billing.v1.subscriptions.update(
        made.id, {"items": [{"id": item, "price": prices["professional"], "quantity": 5}]}
    )
    assert [(each.id, each.price.lookup_key, each.quantity) for each in items(kept)] == [(item, "professional", 5)]
    lost = billing.v1.subscriptions.update(made.id, {"items": [{"id": item, "price": prices["enterprise"]}]})
    assert [(each.price.lookup_key, each.quantity) for each in items(lost)] == [("enterprise", 1)]
    same = billing.v1.subscriptions.update(made.id, {"items": [{"id": item, "quantity": 2}]})
    assert items(same)[0].quantity == 2
    assert reasons(sandbox)[1:] == [("plan_change", 15000), ("plan_change", -14600), ("plan_change", 9900)]


def test_an_update_without_the_item_id_adds_an_item(
    billing: stripe.StripeClient, sandbox: SandboxClient, customer: str, prices: dict[str, str]
) -> None:
    made = subscribe(billing, customer, prices["starter"])
    doubled = billing.v1.subscriptions.update(made.id, {"items": [{"price": prices["professional"]}]})
    assert [each.price.lookup_key for each in items(doubled)] == ["starter", "professional"]
    with pytest.raises(stripe.InvalidRequestError, match="same plan"):
        billing.v1.subscriptions.update(made.id, {"items": [{"price": prices["starter"]}]})
    removed = billing.v1.subscriptions.update(made.id, {"items": [{"id": items(doubled)[0].id, "deleted": True}]})
    assert [each.price.lookup_key for each in items(removed)] == ["professional"]
    unprorated = billing.v1.subscriptions.update(
        made.id,
        {"items": [{"id": items(removed)[0].id, "price": prices["starter"]}], "proration_behavior": "none"},
    )
    assert items(unprorated)[0].price.lookup_key == "starter"
    assert sandbox.charges()[-1]["amount"] == 0


def test_an_item_of_another_subscription_is_refused(
    billing: stripe.StripeClient, customer: str, prices: dict[str, str]
) -> None:
    made = subscribe(billing, customer, prices["starter"])
    with pytest.raises(stripe.InvalidRequestError) as error:
        billing.v1.subscriptions.update(made.id, {"items": [{"id": "si_other", "price": prices["professional"]}]})
    assert (error.value.http_status, error.value.param) == (400, "items[0][id]")


def test_cancel_takes_query_parameters_and_works_once(
    billing: stripe.StripeClient, customer: str, prices: dict[str, str]
) -> None:
    made = subscribe(billing, customer, prices["starter"])
    gone = billing.v1.subscriptions.cancel(made.id, {"invoice_now": False, "prorate": False})
    assert (gone.status, gone.ended_at is not None) == ("canceled", True)
    with pytest.raises(stripe.InvalidRequestError, match="No such subscription") as again:
        billing.v1.subscriptions.cancel(made.id)
    with pytest.raises(stripe.InvalidRequestError) as changed:
        billing.v1.subscriptions.update(made.id, {"cancel_at_period_end": True})
    assert (again.value.http_status, again.value.code) == (404, "resource_missing")
    assert (changed.value.http_status, changed.value.code) == (400, "invalid_canceled_subscription_fields")
    assert billing.v1.subscriptions.update(made.id, {"metadata": {"note": "x"}}).metadata["note"] == "x"
    deleted = billing.v1.events.list({"type": "customer.subscription.deleted"}).data
    assert [event.data.object["id"] for event in deleted] == [made.id]


def test_lists_leave_canceled_ones_out_unless_asked(
    billing: stripe.StripeClient, customer: str, prices: dict[str, str]
) -> None:
    one = subscribe(billing, customer, prices["starter"])
    two = subscribe(billing, customer, prices["professional"])
    billing.v1.subscriptions.cancel(one.id)
    ids = {
        status: [each.id for each in billing.v1.subscriptions.list({"customer": customer, "status": status}).data]
        for status in ("all", "active", "canceled", "ended")
    }
    assert ids == {"all": [two.id, one.id], "active": [two.id], "canceled": [one.id], "ended": [one.id]}
    assert [each.id for each in billing.v1.subscriptions.list({"customer": customer}).data] == [two.id]
    assert billing.v1.subscriptions.list({"price": prices["starter"]}).data == []


def test_periods_end_and_renew_and_a_cancellation_waits_for_the_end(
    billing: stripe.StripeClient, sandbox: SandboxClient, customer: str, prices: dict[str, str]
) -> None:
    sandbox.set_clock(datetime(2027, 1, 15, tzinfo=UTC))
    made = subscribe(billing, customer, prices["starter"])
    sandbox.advance(timedelta(days=62))
    assert reasons(sandbox) == [("subscription_create", 1900), ("renewal", 1900), ("renewal", 1900)]
    assert [charge["at"][:10] for charge in sandbox.charges()] == ["2027-01-15", "2027-02-15", "2027-03-15"]
    waiting = billing.v1.subscriptions.update(made.id, {"cancel_at_period_end": True})
    assert (waiting.status, waiting.cancel_at) == ("active", items(waiting)[0].current_period_end)
    undone = billing.v1.subscriptions.update(made.id, {"cancel_at_period_end": False})
    assert (undone.cancel_at, undone.canceled_at) == (None, None)
    billing.v1.subscriptions.update(made.id, {"cancel_at_period_end": True})
    sandbox.advance(timedelta(days=31))
    ended = billing.v1.subscriptions.retrieve(made.id)
    assert (ended.status, ended.ended_at) == ("canceled", items(waiting)[0].current_period_end)
    assert len(sandbox.charges()) == 3


def test_a_subscription_that_is_paused_by_hand_makes_no_charge_until_it_is_resumed(
    billing: stripe.StripeClient, sandbox: SandboxClient, customer: str, prices: dict[str, str]
) -> None:
    made = subscribe(billing, customer, prices["starter"])
    assert sandbox.patch("stripe", "subscriptions", made.id, status="paused")["status"] == "paused"
    sandbox.advance(timedelta(days=32))
    assert len(sandbox.charges()) == 1
    sandbox.patch("stripe", "subscriptions", made.id, status="active")
    sandbox.advance(timedelta(days=31))
    assert len(sandbox.charges()) == 2
    with pytest.raises(SandboxError, match="only become active or paused"):
        sandbox.patch("stripe", "subscriptions", made.id, status="canceled")


def test_a_subscription_with_a_schedule_refuses_another_end(
    billing: stripe.StripeClient, sandbox: SandboxClient, customer: str, prices: dict[str, str]
) -> None:
    made = subscribe(billing, customer, prices["starter"])
    sandbox.patch("stripe", "subscriptions", made.id, schedule="sub_sched_1")
    assert billing.v1.subscriptions.retrieve(made.id).schedule == "sub_sched_1"
    with pytest.raises(stripe.InvalidRequestError, match="managed by the subscription schedule"):
        billing.v1.subscriptions.update(made.id, {"cancel_at_period_end": True})
    assert billing.v1.subscriptions.cancel(made.id).status == "canceled"


def test_deleting_a_customer_cancels_its_subscriptions(
    billing: stripe.StripeClient, customer: str, prices: dict[str, str]
) -> None:
    made = subscribe(billing, customer, prices["starter"])
    billing.v1.customers.delete(customer)
    assert billing.v1.subscriptions.retrieve(made.id).status == "canceled"


def test_one_customer_does_not_mix_currencies(
    billing: stripe.StripeClient, sandbox: SandboxClient, customer: str, prices: dict[str, str]
) -> None:
    euro = sandbox.preload_stripe_prices(
        [{"currency": "eur", "unit_amount": 1, "recurring": {"interval": "month"}, "product_data": {"name": "e"}}]
    )[0]["id"]
    subscribe(billing, customer, prices["starter"])
    with pytest.raises(stripe.InvalidRequestError, match="combine currencies"):
        subscribe(billing, customer, euro)


def test_the_billing_cycle_anchor_is_an_object_since_endive(
    raw: httpx.Client, billing: stripe.StripeClient, customer: str, prices: dict[str, str]
) -> None:
    made = subscribe(billing, customer, prices["starter"])
    word, thing = {"billing_cycle_anchor": "now"}, {"billing_cycle_anchor[type]": "now"}
    for version, form, status in (
        ("2026-10-28.endive", thing, 200),
        ("2026-10-28.endive", word, 400),
        ("2026-05-27.dahlia", word, 200),
    ):
        answer = raw.post(f"/v1/subscriptions/{made.id}", data=form, headers={"Stripe-Version": version})
        assert answer.status_code == status, (version, form)
        assert answer.headers["stripe-version"] == version


def test_what_is_sent_by_mail_needs_an_address(billing: stripe.StripeClient, prices: dict[str, str]) -> None:
    nobody = billing.v1.customers.create({"name": "Acme"}).id
    with pytest.raises(stripe.InvalidRequestError, match=r"^Request .*Missing email\.") as refused:
        subscribe(billing, nobody, prices["starter"])
    assert (refused.value.http_status, refused.value.code, refused.value.param) == (400, None, None)
    billing.v1.customers.update(nobody, {"invoice_settings": {"default_payment_method": "pm_1"}})
    charged = billing.v1.subscriptions.create({"customer": nobody, "items": [{"price": prices["starter"]}]})
    with pytest.raises(stripe.InvalidRequestError, match="Missing email"):
        billing.v1.subscriptions.update(charged.id, {"collection_method": "send_invoice", "days_until_due": 30})
    billing.v1.customers.update(nobody, {"email": "a@acme.test"})
    billing.v1.subscriptions.update(charged.id, {"collection_method": "send_invoice", "days_until_due": 30})


def test_a_trial_costs_nothing_until_it_ends(sandbox: SandboxClient, prices: dict[str, str], customer: str) -> None:
    created = sandbox.preload_stripe_subscription(customer, prices["starter"], trial_period_days=14)
    [item] = created["items"]["data"]
    assert (created["status"], item["current_period_end"]) == ("trialing", created["trial_end"])
    sandbox.patch("stripe", "subscriptions", created["id"], items=[{"id": item["id"], "price": prices["professional"]}])
    assert sum(each["amount"] for each in sandbox.charges()) == 0
    sandbox.advance(timedelta(days=15))
    [begun] = sandbox.state()["stripe"]["subscriptions"]
    assert (begun["status"], begun["items"]["data"][0]["current_period_start"]) == ("active", created["trial_end"])
    assert [each["amount"] for each in sandbox.charges() if each["amount"]] == [4900]
    assert [each["total"] for each in sandbox.state()["invoices"] if each["total"]] == [4900]


def test_a_discount_is_shown_by_its_id_and_whole_where_it_is_expanded(
    sandbox: SandboxClient, raw: httpx.Client, prices: dict[str, str], customer: str
) -> None:
    coupon = sandbox.create("stripe", "coupons", percent_off=20, duration="forever")["id"]
    created = sandbox.preload_stripe_subscription(customer, prices["starter"], discounts=[{"coupon": coupon}])
    [listed] = raw.get("/v1/subscriptions?expand[]=data.discounts.source.coupon").json()["data"]
    [discount] = listed["discounts"]
    assert created["discounts"] == [discount["id"]]
    assert (discount["subscription"], discount["source"]["coupon"]["percent_off"]) == (created["id"], 20.0)
    by_hand = sandbox.patch("stripe", "customers", customer, coupon=coupon)
    assert by_hand["discount"]["source"]["coupon"] == coupon


def test_usage_and_tiers_cost_nothing_and_a_metered_item_has_no_quantity(
    sandbox: SandboxClient, raw: httpx.Client, customer: str
) -> None:
    monthly = {"currency": "usd", "recurring": {"interval": "month"}, "product_data": {"name": "x"}}
    metered = {**monthly, "recurring": {"interval": "month", "usage_type": "metered", "meter": "mtr_1"}}
    tiers = {"billing_scheme": "tiered", "tiers_mode": "volume", "tiers": [{"up_to": "inf", "unit_amount": 5}]}
    [tiered, usage] = sandbox.preload_stripe_prices([{**monthly, **tiers}, {**metered, "unit_amount": 2}])
    assert (tiered["unit_amount"], tiered["tiers_mode"]) == (None, "volume")
    sandbox.preload_stripe_subscription(customer, usage["id"])
    [subscription] = raw.get("/v1/subscriptions").json()["data"]
    assert "quantity" not in subscription["items"]["data"][0]
    assert [each["amount"] for each in sandbox.charges()] == [0]
