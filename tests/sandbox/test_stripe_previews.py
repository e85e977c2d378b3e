"""Stripe's invoice preview as stripe.md 6 and the document of the update have it; its own example is among them."""

from datetime import UTC, datetime

import pytest
import stripe
from stripe.params import InvoiceCreatePreviewParamsSubscriptionDetailsItem as Item

from sandbox.client import SandboxClient

BEGINS = datetime(2027, 5, 1, tzinfo=UTC)
HALF = datetime(2027, 5, 16, 12, tzinfo=UTC)
# Sent with each change at that time: the clock runs on, and a second less would be a cent less.
SINCE_HALF = int(HALF.timestamp())


@pytest.fixture
def prices(sandbox: SandboxClient) -> dict[str, str]:
    sandbox.set_clock(BEGINS)
    made = sandbox.preload_stripe_prices(
        {
            "lookup_key": key,
            "currency": "usd",
            "unit_amount": cents,
            "recurring": {"interval": interval},
            "product_data": {"name": key},
        }
        for key, cents, interval in (
            ("free", 0, "month"),
            ("low", 10000, "month"),
            ("high", 20000, "month"),
            ("year", 100000, "year"),
        )
    )
    return {price["lookup_key"]: price["id"] for price in made}


@pytest.fixture
def subscribed(billing: stripe.StripeClient, prices: dict[str, str]) -> stripe.Subscription:
    return subscribe(billing, prices["low"])


def subscribe(billing: stripe.StripeClient, price: str) -> stripe.Subscription:
    customer = billing.v1.customers.create({"name": "Acme", "email": "a@acme.test"}).id
    return billing.v1.subscriptions.create(
        {
            "customer": customer,
            "items": [{"price": price, "quantity": 1}],
            "collection_method": "send_invoice",
            "days_until_due": 30,
        }
    )


def changed(subscription: stripe.Subscription, price: str) -> list[Item]:
    return [{"id": subscription["items"].data[0].id, "price": price, "quantity": 1}]


def preview(billing: stripe.StripeClient, subscription: str, items: list[Item], behavior: str) -> stripe.Invoice:
    return billing.v1.invoices.create_preview(
        {
            "subscription": subscription,
            "subscription_details": {
                "items": items,
                "proration_behavior": behavior,
                "proration_date": SINCE_HALF,
            },
        }
    )


def lines(invoice: stripe.Invoice) -> list[tuple[int, bool]]:
    shown = invoice.to_dict()["lines"]["data"]
    return [(line["amount"], line["parent"]["subscription_item_details"]["proration"]) for line in shown]


def test_a_subscription_as_it_is_renews_at_its_price(
    billing: stripe.StripeClient, subscribed: stripe.Subscription
) -> None:
    shown = billing.v1.invoices.create_preview({"subscription": subscribed.id})
    assert (shown.amount_due, lines(shown)) == (10000, [(10000, False)])
    assert shown.period_end == subscribed["items"].data[0].current_period_end


def test_an_upgrade_in_mid_period_is_prorated_as_stripes_own_example_says(
    billing: stripe.StripeClient, sandbox: SandboxClient, subscribed: stripe.Subscription, prices: dict[str, str]
) -> None:
    """100 on the 1st, to 200 after half of the month: 250 on the next 1st."""
    sandbox.set_clock(HALF)
    shown = preview(billing, subscribed.id, changed(subscribed, prices["high"]), "create_prorations")
    assert shown.total == 25000
    assert lines(shown) == [(-5000, True), (10000, True), (20000, False)]
    unchanged = billing.v1.subscriptions.retrieve(subscribed.id)
    assert unchanged["items"].data[0].price.id == prices["low"]


def test_what_a_change_left_to_settle_is_on_the_next_invoice_until_it_is_made(
    billing: stripe.StripeClient, sandbox: SandboxClient, subscribed: stripe.Subscription, prices: dict[str, str]
) -> None:
    sandbox.set_clock(HALF)
    billing.v1.subscriptions.update(
        subscribed.id,
        {
            "items": [{"id": subscribed["items"].data[0].id, "price": prices["high"], "quantity": 1}],
            "proration_date": SINCE_HALF,
        },
    )
    assert billing.v1.invoices.create_preview({"subscription": subscribed.id}).total == 25000
    sandbox.set_clock(datetime(2027, 6, 2, tzinfo=UTC))
    assert lines(billing.v1.invoices.create_preview({"subscription": subscribed.id})) == [(20000, False)]


def test_without_proration_nothing_of_this_period_is_billed(
    billing: stripe.StripeClient, sandbox: SandboxClient, subscribed: stripe.Subscription, prices: dict[str, str]
) -> None:
    sandbox.set_clock(datetime(2027, 5, 16, tzinfo=UTC))
    assert lines(preview(billing, subscribed.id, changed(subscribed, prices["high"]), "none")) == [(20000, False)]


def test_always_invoice_bills_the_difference_at_once_and_nothing_else(
    billing: stripe.StripeClient, sandbox: SandboxClient, subscribed: stripe.Subscription, prices: dict[str, str]
) -> None:
    sandbox.set_clock(HALF)
    shown = preview(billing, subscribed.id, changed(subscribed, prices["high"]), "always_invoice")
    assert (shown.total, lines(shown)) == (5000, [(-5000, True), (10000, True)])


@pytest.mark.parametrize("move", [("free", "low", 0, 10000), ("low", "year", -5000, 100000)])
def test_from_free_to_paid_and_to_another_interval_begin_a_period_at_once(
    billing: stripe.StripeClient, sandbox: SandboxClient, prices: dict[str, str], move: tuple[str, str, int, int]
) -> None:
    old, new, credit, full = move
    subscription = subscribe(billing, prices[old])
    moment = HALF
    sandbox.set_clock(moment)
    shown = preview(billing, subscription.id, changed(subscription, prices[new]), "create_prorations")
    assert lines(shown) == [*([(credit, True)] if credit else []), (full, False)]
    assert abs(shown.period_end - moment.timestamp()) < 60
    after = billing.v1.subscriptions.update(
        subscription.id, {"items": [{"id": subscription["items"].data[0].id, "price": prices[new], "quantity": 1}]}
    )
    assert abs(after["items"].data[0].current_period_start - moment.timestamp()) < 60


def test_a_credit_beyond_the_price_is_kept_and_paid_to_nobody(
    billing: stripe.StripeClient, sandbox: SandboxClient, prices: dict[str, str]
) -> None:
    subscription = subscribe(billing, prices["high"])
    sandbox.set_clock(datetime(2027, 5, 2, tzinfo=UTC))
    shown = preview(billing, subscription.id, changed(subscription, prices["free"]), "create_prorations")
    assert shown.total < 0
    assert (shown.amount_due, shown.ending_balance) == (0, shown.total)


def test_an_ended_subscription_has_no_next_invoice(
    billing: stripe.StripeClient, subscribed: stripe.Subscription
) -> None:
    billing.v1.subscriptions.cancel(subscribed.id)
    with pytest.raises(stripe.InvalidRequestError) as refused:
        billing.v1.invoices.create_preview({"subscription": subscribed.id})
    assert (refused.value.http_status, refused.value.code) == (404, "invoice_upcoming_none")


def test_what_it_does_not_do_is_refused_aloud(billing: stripe.StripeClient, subscribed: stripe.Subscription) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        billing.v1.invoices.create_preview(
            {"subscription": subscribed.id, "subscription_details": {"cancel_at_period_end": True}}
        )
    assert refused.value.code == "sandbox_unsupported"
