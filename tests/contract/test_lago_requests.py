"""The check allows the requests of a billing sync, and reports those that Lago would reject or partly ignore."""

import json

import pytest

from tests.contract import available, violations, where
from tests.contract.documents import Json, Object

pytestmark = pytest.mark.skipif(not available(), reason=where())

JSON = "application/json"
CUSTOMERS = "/api/v1/customers"
SUBSCRIPTIONS = "/api/v1/subscriptions"
PLANS = "/api/v1/plans"
UUID = "1a901a90-1a90-4a90-8a90-1a901a901a90"
PLAN: Object = {
    "name": "Team",
    "code": "team_m",
    "interval": "monthly",
    "amount_cents": 4900,
    "amount_currency": "EUR",
    "pay_in_advance": True,
}


def customer(**more: Json) -> Object:
    return {"customer": {"external_id": "org_1", **more}}


def subscription(**more: Json) -> Object:
    return {"subscription": {"external_customer_id": "org_1", "external_id": "org_1", "plan_code": "team_m", **more}}


def plan(**more: Json) -> Object:
    return {"plan": {**PLAN, **more}}


def billing(**more: Json) -> Object:
    return customer(billing_configuration={"payment_provider": "stripe", "payment_provider_code": "main", **more})


def entry(**more: Json) -> Object:
    return customer(metadata=[{"key": "org_id", "value": "org_1", **more}])


ALLOWED: list[tuple[str, str, str, Json]] = [
    ("POST", CUSTOMERS, "", customer(name="Acme GmbH", email="ap@acme.test, cfo@acme.test", currency="EUR")),
    ("POST", CUSTOMERS, "", customer(name=None, email=None, country="DE", timezone="Europe/Berlin", tax_codes=[])),
    ("POST", CUSTOMERS, "", billing(provider_customer_id="cus_7", provider_payment_methods=["card"], sync=True)),
    ("POST", CUSTOMERS, "", billing(payment_provider=None)),
    ("POST", CUSTOMERS, "", entry(id=UUID, display_in_invoice=False)),
    ("POST", CUSTOMERS, "", entry()),
    ("POST", CUSTOMERS, "", customer(metadata=[], shipping_address={"city": "Berlin"}, net_payment_term=14)),
    ("GET", CUSTOMERS, "page=1&per_page=100", None),
    ("GET", CUSTOMERS, "external_id=org_1", None),
    ("GET", CUSTOMERS, "search_term=acme&currencies[]=EUR&currencies%5B%5D=USD&has_customer_type=true", None),
    ("GET", CUSTOMERS, "metadata[org_id]=org_1&metadata[synced]=", None),
    ("GET", f"{CUSTOMERS}/org_1", "", None),
    ("GET", f"{CUSTOMERS}/org%2F1", "", None),
    ("DELETE", f"{CUSTOMERS}/org_1", "", None),
    ("GET", f"{CUSTOMERS}/org_1/subscriptions", "status[]=pending", None),
    ("GET", f"{CUSTOMERS}/org_1/current_usage", "external_subscription_id=org_1&apply_taxes=false", None),
    ("POST", f"{CUSTOMERS}/org_1/checkout_url", "", None),
    ("POST", SUBSCRIPTIONS, "", subscription()),
    ("POST", SUBSCRIPTIONS, "", subscription(subscription_at="2026-11-23T07:00:00Z", ending_at=None, name="Main")),
    ("POST", SUBSCRIPTIONS, "", subscription(billing_time="anniversary", plan_overrides={"amount_cents": 100})),
    ("GET", SUBSCRIPTIONS, "external_customer_id=org_1&status[]=active&status[]=pending", None),
    ("GET", SUBSCRIPTIONS, "external_id=org_1&status[]=incomplete", None),
    ("GET", f"{SUBSCRIPTIONS}/org_1", "status=pending", None),
    ("PUT", f"{SUBSCRIPTIONS}/org_1", "", {"subscription": {"name": "Main"}}),
    ("PUT", f"{SUBSCRIPTIONS}/org_1", "status=pending", {"subscription": {"ending_at": "2027-01-01T00:00:00+01:00"}}),
    ("PUT", f"{SUBSCRIPTIONS}/org_1", "", {"subscription": {"on_termination_invoice": "skip"}}),
    ("DELETE", f"{SUBSCRIPTIONS}/org_1", "", None),
    ("DELETE", f"{SUBSCRIPTIONS}/org_1", "status=pending", None),
    ("DELETE", f"{SUBSCRIPTIONS}/org_1", "on_termination_credit_note=offset&on_termination_invoice=skip", None),
    ("POST", PLANS, "", plan(trial_period=14.5, tax_codes=[], charges=[], description=None)),
    ("GET", PLANS, "per_page=1", None),
    ("GET", f"{PLANS}/team_m", "", None),
    ("PUT", f"{PLANS}/team_m", "", {"plan": {"name": "Team"}}),
    ("GET", "/api/v1/organizations", "", None),
    ("GET", "/health", "", None),
    ("GET", "/api/v1/webhooks/json_public_key", "", None),
    (
        "POST",
        "/api/v1/webhook_endpoints",
        "",
        {"webhook_endpoint": {"webhook_url": "http://a.test"}},
    ),
    (
        "POST",
        "/api/v1/events",
        "",
        {
            "event": {
                "transaction_id": "u-1",
                "external_subscription_id": "org_1",
                "code": "api_calls",
                "timestamp": 1795417200.5,
                "properties": {"n": 3, "region": "eu", "share": 0.5},
            }
        },
    ),
]

REFUSED: list[tuple[str, str, str, Json, str]] = [
    ("POST", CUSTOMERS, "", {"customer": {"name": "Acme"}}, "customer: 'external_id' is a required property"),
    ("POST", CUSTOMERS, "", {"external_id": "org_1"}, "'customer' is a required property"),
    ("POST", CUSTOMERS, "", [], "is not of type 'object'"),
    (
        "POST",
        CUSTOMERS,
        "",
        customer(adress_line1="Weg 1"),
        "'adress_line1' is not in the document, but 'address_line1'",
    ),
    ("POST", CUSTOMERS, "", customer(external_id=42), "customer.external_id: 42 is not of type 'string'"),
    ("POST", CUSTOMERS, "", customer(external_id=" org_1"), "customer.external_id: ' org_1' does not match"),
    ("POST", CUSTOMERS, "", customer(external_id=""), "customer.external_id: "),
    ("POST", CUSTOMERS, "", customer(currency="eur"), "customer.currency: 'eur' is not one of"),
    ("POST", CUSTOMERS, "", customer(country="Germany"), "customer.country: "),
    ("POST", CUSTOMERS, "", customer(email="ap@acme.test, cfo"), "is not a 'email'"),
    ("POST", CUSTOMERS, "", customer(name="n" * 256), "customer.name: "),
    ("POST", CUSTOMERS, "", customer(finalize_zero_amount_invoice=True), "finalize_zero_amount_invoice: True"),
    ("POST", CUSTOMERS, "", customer(metadata={"org_id": "org_1"}), "customer.metadata: "),
    ("POST", CUSTOMERS, "", entry(lago_id=UUID), "customer.metadata[0]: 'lago_id' is not in the document"),
    ("POST", CUSTOMERS, "", entry(id="m1"), "customer.metadata[0].id: 'm1' is not a 'uuid'"),
    ("POST", CUSTOMERS, "", entry(key="k" * 21), "customer.metadata[0].key: "),
    (
        "POST",
        CUSTOMERS,
        "",
        customer(metadata=[{"key": k, "value": "v"} for k in "abcdef"]),
        "customer.metadata: ",
    ),
    (
        "POST",
        CUSTOMERS,
        "",
        billing(provider="stripe"),
        "billing_configuration: 'provider' is not in the document",
    ),
    ("POST", CUSTOMERS, "", billing(payment_provider="paypal"), "billing_configuration.payment_provider: 'paypal'"),
    ("POST", CUSTOMERS, "external_id=org_1", customer(), "query: 'external_id' is not in the document"),
    ("PUT", f"{CUSTOMERS}/org_1", "", customer(), "no such operation"),
    ("GET", CUSTOMERS, "limit=10", None, "query: 'limit' is not in the document"),
    ("GET", CUSTOMERS, "page=first", None, "query: page: 'first' is not of type 'integer'"),
    ("GET", CUSTOMERS, "currencies=EUR", None, "'currencies' is not in the document, but 'currencies[]' is"),
    ("GET", CUSTOMERS, "page=1&page=2", None, "'page' is given twice"),
    ("GET", f"{CUSTOMERS}/", "", None, "no such operation"),
    ("GET", "/customers", "", None, "no such operation"),
    ("GET", "/api/api/v1/customers", "", None, "no such operation"),
    ("GET", f"{CUSTOMERS}/org_1/current_usage", "", None, "'external_subscription_id' is a required property"),
    (
        "POST",
        SUBSCRIPTIONS,
        "",
        {"subscription": {"plan_code": "team_m", "external_id": "org_1"}},
        "'external_customer_id'",
    ),
    ("POST", SUBSCRIPTIONS, "", subscription(external_customer_id="org_1 "), "subscription.external_customer_id: "),
    ("POST", SUBSCRIPTIONS, "", subscription(quantity=3), "subscription: 'quantity' is not in the document"),
    ("POST", SUBSCRIPTIONS, "", subscription(subscription_at="2026-11-23"), "is not a 'date-time'"),
    ("POST", SUBSCRIPTIONS, "", subscription(subscription_at="2026-11-23T07:00:00"), "is not a 'date-time'"),
    ("POST", SUBSCRIPTIONS, "", subscription(billing_time="monthly"), "subscription.billing_time: 'monthly'"),
    ("POST", SUBSCRIPTIONS, "", subscription(plan_overrides={"amount": 1}), "subscription.plan_overrides: 'amount'"),
    ("GET", SUBSCRIPTIONS, "status=pending", None, "query: 'status' is not in the document, but 'status[]' is"),
    ("GET", SUBSCRIPTIONS, "status[0]=pending", None, "query: 'status' is not in the document"),
    ("GET", SUBSCRIPTIONS, "status[]=cancelled", None, "query: status[][0]: 'cancelled' is not one of"),
    ("GET", SUBSCRIPTIONS, "customer=org_1", None, "query: 'customer' is not in the document"),
    (
        "GET",
        f"{SUBSCRIPTIONS}/org_1",
        "status[]=pending",
        "",
        "'status[]' is not in the document, but 'status' is",
    ),
    (
        "PUT",
        f"{SUBSCRIPTIONS}/org_1",
        "",
        {"subscription": {"plan_code": "pro_m"}},
        "'plan_code' is not in the document",
    ),
    ("PATCH", f"{SUBSCRIPTIONS}/org_1", "", {"subscription": {"name": "x"}}, "no such operation"),
    ("DELETE", f"{SUBSCRIPTIONS}/org_1", "status=canceled", None, "query: status: 'canceled' is not one of"),
    ("DELETE", f"{SUBSCRIPTIONS}/org_1", "on_termination_credit_note=none", None, "on_termination_credit_note: 'none'"),
    ("DELETE", f"{SUBSCRIPTIONS}/org_1", "", {"status": "pending"}, "this operation has no body"),
    ("POST", PLANS, "", plan(interval="month"), "plan.interval: 'month' is not one of"),
    ("POST", PLANS, "", plan(amount_cents=49.5), "plan.amount_cents: 49.5 is not of type 'integer'"),
    ("POST", PLANS, "", plan(tier="team"), "plan: 'tier' is not in the document"),
    ("GET", PLANS, "code=team_m", None, "query: 'code' is not in the document"),
]


def violated(method: str, path: str, query: str, value: Json) -> list[str]:
    body = b"" if value is None else json.dumps(value).encode()
    return violations("lago", method, path, query, body, JSON)


@pytest.mark.parametrize(("method", "path", "query", "value"), ALLOWED)
def test_a_request_lago_obeys_is_allowed(method: str, path: str, query: str, value: Json) -> None:
    assert violated(method, path, query, value) == []


@pytest.mark.parametrize(("method", "path", "query", "value", "reason"), REFUSED)
def test_a_request_lago_refuses_or_half_obeys_is_named(
    method: str, path: str, query: str, value: Json, reason: str
) -> None:
    assert reason in "\n".join(violated(method, path, query, value))


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"customer": NaN}', b"[" * 100_000])
def test_a_body_that_is_not_json_is_named(body: bytes) -> None:
    assert violations("lago", "POST", CUSTOMERS, "", body, JSON) == [
        "lago POST /api/v1/customers: the body is not JSON"
    ]


def test_a_form_for_lago_is_named_by_its_content_type() -> None:
    found = violations(
        "lago", "POST", CUSTOMERS, "", b"customer[external_id]=org_1", "application/x-www-form-urlencoded"
    )
    assert "the body must be application/json" in found[0]
