"""The sandbox's answers have the shapes of the providers' own documents, except for what a list names with its reason.

Each test calls every operation of one provider, so that a listed difference that no longer occurs is noticed.
"""

from collections.abc import Iterable, Iterator

import httpx
import pytest

from sandbox.client import SandboxClient
from sandbox.http import Exchange
from sandbox.server import Sandbox
from sandbox.state import SandboxState
from sandbox.stripe_api.provider import StripeApi
from tests import contract
from tests.contract.answer_differences import DIFFERENCES
from tests.contract.answers import Provider, answer_faults
from tests.contract.shapes import AnswerFault

KEY = {"Authorization": "Bearer sk_test_sandbox"}


@pytest.fixture
def exchanges() -> list[Exchange]:
    return []


@pytest.fixture
def client(exchanges: list[Exchange]) -> Iterator[httpx.Client]:
    if not contract.available():
        pytest.skip(contract.where())
    with (
        Sandbox(limits=False, observer=exchanges.append) as server,
        httpx.Client(base_url=server.url, headers=KEY, trust_env=False) as http,
    ):
        yield http


def faults(provider: Provider, exchanges: Iterable[Exchange]) -> set[AnswerFault]:
    return {
        fault
        for each in exchanges
        if each.status is not None
        for fault in answer_faults(provider, each.method, each.path, each.status, each.response_body)
    }


def listed(provider: Provider) -> set[AnswerFault]:
    return {AnswerFault(one.place, one.problem) for one in DIFFERENCES[provider]}


class DocumentedCalls:
    """Requests to Stripe that must succeed."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def post(self, path: str, **fields: str) -> str:
        return str(self._client.post(f"/v1/{path}", data=fields).raise_for_status().json()["id"])

    def get(self, *paths: str) -> None:
        for path in paths:
            self._client.get(f"/v1/{path}").raise_for_status()

    def delete(self, *paths: str) -> None:
        for path in paths:
            self._client.delete(f"/v1/{path}").raise_for_status()


def drive_invoices(stripe: DocumentedCalls, client: httpx.Client, customer: str, subscription: str) -> None:
    first = str(client.get(f"/v1/invoices?subscription={subscription}").json()["data"][0]["id"])
    stripe.post(f"invoices/{first}", **{"auto_advance": "false", "metadata[a]": "1"})
    stripe.post(f"invoices/{first}/finalize", **{"expand[]": "parent.subscription_details.subscription"})
    item = client.get(f"/v1/subscriptions/{subscription}").json()["items"]["data"][0]["id"]
    stripe.post(f"subscriptions/{subscription}", **{"items[0][id]": item, "items[0][quantity]": "2"})
    pending = client.get(f"/v1/invoiceitems?pending=true&customer={customer}").json()["data"]
    stripe.get(f"invoiceitems/{pending[0]['id']}")
    stripe.delete(f"invoiceitems/{pending[0]['id']}")
    stripe.get(f"credit_notes/preview?invoice={first}&amount=100")
    note = stripe.post("credit_notes", invoice=first, amount="100", **{"expand[]": "invoice"})
    stripe.get(f"credit_notes/{note}", f"credit_notes?invoice={first}")
    stripe.post(f"credit_notes/{note}/void")
    stripe.post(f"invoices/{first}/mark_uncollectible")
    stripe.post(f"invoices/{first}/pay", paid_out_of_band="true")
    stripe.post("credit_notes", invoice=first, amount="100", credit_amount="100")
    stripe.post(f"customers/{customer}/balance_transactions", amount="5", currency="usd")
    balance = f"customers/{customer}/balance_transactions"
    stripe.get(balance, f"{balance}?expand[]=data.credit_note", f"invoices/{first}?expand[]=customer")
    stripe.get("invoices?expand[]=data.customer", f"invoices/{first}/lines")
    with SandboxClient(str(client.base_url)) as hand:
        stripe.post(f"invoices/{hand.create('stripe', 'invoices', customer=customer)['id']}/void")
    assert client.delete(f"/v1/invoices/{first}").is_client_error


def drive_unusual_terms(stripe: DocumentedCalls, client: httpx.Client, customer: str, price: str) -> None:
    """A trial, a discount, tiers and usage."""
    monthly = {"currency": "usd", "product_data[name]": "x", "recurring[interval]": "month"}
    tiers = {"tiers[0][up_to]": "inf", "tiers[0][unit_amount]": "5", "tiers_mode": "volume"}
    stripe.post("prices", billing_scheme="tiered", **tiers, **monthly)
    usage = {"recurring[usage_type]": "metered", "recurring[meter]": "mtr_1"}
    metered = stripe.post("prices", unit_amount="2", **usage, **monthly)
    with SandboxClient(str(client.base_url)) as hand:
        coupon = hand.create("stripe", "coupons", percent_off=20, duration="repeating", duration_in_months=3)["id"]
        hand.patch("stripe", "customers", customer, coupon=coupon)
    terms = {"trial_period_days": "14", "discounts[0][coupon]": coupon, "items[1][price]": metered}
    by_invoice = {"collection_method": "send_invoice", "days_until_due": "30"}
    stripe.post("subscriptions", customer=customer, **by_invoice, **terms, **{"items[0][price]": price})
    stripe.get(f"customers/{customer}", "subscriptions", "subscriptions?expand[]=data.discounts")
    stripe.get("subscriptions?expand[]=data.discounts.source.coupon", "coupons")


def test_stripes_answers_fit_its_document(client: httpx.Client, exchanges: list[Exchange]) -> None:
    stripe = DocumentedCalls(client)
    address = {"metadata[a]": "1", "address[city]": "Berlin"}
    customer = stripe.post("customers", name="Acme", email="a@acme.test", **address)
    stripe.post(f"customers/{customer}", phone="1", **{"shipping[name]": "n", "shipping[address][line1]": "1"})
    product = stripe.post("products", name="Starter")
    stripe.post(f"products/{product}", name="Start")
    recurring = {"recurring[interval]": "month", "lookup_key": "starter"}
    price = stripe.post("prices", product=product, currency="usd", unit_amount="1900", **recurring)
    stripe.post(f"prices/{price}", nickname="s")
    by_invoice = {"collection_method": "send_invoice", "days_until_due": "30"}
    item = {"items[0][price]": price, "expand[]": "customer"}
    subscription = stripe.post("subscriptions", customer=customer, **by_invoice, **item)
    stripe.post("invoices/create_preview", subscription=subscription)
    paused = {"pause_collection[behavior]": "void"}
    stripe.post(f"subscriptions/{subscription}", cancel_at_period_end="true", **paused)
    drive_invoices(stripe, client, customer, subscription)
    events = client.get("/v1/events?limit=100").json()["data"]
    stripe.get(
        "account",
        f"events/{events[0]['id']}",
        "webhook_endpoints",
        "customers",
        f"customers/{customer}?expand[]=subscriptions",
    )
    stripe.get("customers/search?query=name:'Acme'", "products", f"products/{product}")
    stripe.get("prices?expand[]=data.product", f"prices/{price}", "subscriptions", f"subscriptions/{subscription}")
    drive_unusual_terms(stripe, client, customer, price)
    stripe.delete(
        f"subscriptions/{subscription}", f"customers/{customer}", f"products/{stripe.post('products', name='x')}"
    )
    stripe.get(f"customers/{customer}")
    for path in ("customers/cus_no", "customers?limit=0", "nothing"):
        assert client.get(f"/v1/{path}").is_client_error
    assert faults("stripe", exchanges) == listed("stripe")
    assert {each.operation for each in exchanges} >= StripeApi(SandboxState()).operations()


def test_lagos_answers_fit_its_document(client: httpx.Client, exchanges: list[Exchange]) -> None:
    def send(method: str, path: str, root: str, **fields: object) -> None:
        client.request(method, f"/api/v1/{path}", json={root: fields})

    for code, cents in (("starter", 1900), ("free", 0)):
        plan = {"name": code, "code": code, "interval": "monthly", "amount_cents": cents, "pay_in_advance": True}
        send("POST", "plans", "plan", **plan, amount_currency="USD")
    send("PUT", "plans/starter", "plan", name="Starter")
    link = {"payment_provider": "stripe", "payment_provider_code": "stripe_main"}
    metadata = [{"key": "a", "value": "1"}]
    send("POST", "customers", "customer", external_id="org_2")
    send("POST", "customers", "customer", external_id="org_2", billing_configuration=link)
    link["provider_customer_id"] = "cus_1"
    linked = {**link, "sync_with_provider": False}
    send("POST", "customers", "customer", external_id="org_1", metadata=metadata, billing_configuration=linked)
    for code in ("starter", "free"):
        ids = {"external_customer_id": "org_1", "external_id": "org_1"}
        send("POST", "subscriptions", "subscription", **ids, plan_code=code)
    send("PUT", "subscriptions/org_1", "subscription", name="Main")
    usage = "customers/org_1/current_usage?external_subscription_id=org_1"
    with SandboxClient(str(client.base_url)) as hand:
        hand.create("lago", "invoices", external_customer_id="org_1")
        hand.create("lago", "applied_coupons", external_customer_id="org_1", coupon_code="c", percentage_rate="20.0")
        charges = [{"charge_model": "standard", "properties": {"amount": "1"}}]
        used = {"name": "used", "code": "used", "interval": "monthly", "amount_cents": 0, "pay_in_advance": True}
        hand.create("lago", "plans", **used, amount_currency="USD", charges=charges)
    unpaid = "invoices?external_customer_id=org_1&payment_statuses[]=failed"
    object_types = ("plans", "plans/free", "customers", "customers/org_1", "subscriptions", "subscriptions/org_1")
    coupons = ("applied_coupons", "customers/org_1/applied_coupons")
    for path in (*object_types, *coupons, usage, unpaid, "customers/org_1/subscriptions"):
        client.get(f"/api/v1/{path}")
    for path in ("subscriptions/org_1?status=pending", "subscriptions/org_1"):
        client.delete(f"/api/v1/{path}")
    assert {exchange.status for exchange in exchanges} == {200}
    client.post("/api/v1/customers", content=b"{")
    overrides = {"plan_overrides": {"amount_cents": 1}}
    send("POST", "subscriptions", "subscription", **ids, plan_code="starter", **overrides)
    for path in (usage, "customers/org_3", "plans/none"):
        assert client.get(f"/api/v1/{path}").is_client_error
    client.delete("/api/v1/customers/org_1")
    assert faults("lago", exchanges) == listed("lago")
