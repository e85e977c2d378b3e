"""The sandbox's answers have the shapes of the providers' own documents, where those lie beside the checkout."""

import json
import re
from collections.abc import Iterator

import httpx
import pytest
from jsonschema import Draft7Validator, Draft202012Validator
from jsonschema.exceptions import ValidationError

from sandbox.client import SandboxClient
from sandbox.http import Exchange
from sandbox.server import Sandbox
from tests import contract
from tests.contract.documents import Json, Object, lago_document, obj, stripe_document

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


def nullable(node: Json) -> Json:
    """OpenAPI 3.0's ``nullable`` as JSON Schema says it."""
    if isinstance(node, list):
        return [nullable(each) for each in node]
    if not isinstance(node, dict):
        return node
    schema = {name: nullable(each) for name, each in node.items() if name != "nullable"}
    return {"anyOf": [{"type": "null"}, schema]} if node.get("nullable") is True else schema


def schema_of(document: Object, method: str, path: str) -> Object:
    paths = obj(document["paths"])
    for name in sorted(paths, key=lambda name: name.count("{")):
        if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", name), path):
            answer = obj(obj(obj(obj(paths[name])[method.lower()])["responses"])["200"])
            schema = obj(obj(obj(answer["content"])["application/json"])["schema"])
            return {**schema, "components": document["components"]}
    raise AssertionError(path)


def faults(exchange: Exchange) -> list[ValidationError]:
    if exchange.provider == "stripe":
        document = obj(nullable(stripe_document()))
        validator = Draft7Validator(schema_of(document, exchange.method, exchange.path))
        return list(validator.iter_errors(json.loads(exchange.response_body)))
    schema = schema_of(lago_document(), exchange.method, exchange.path.removeprefix("/api/v1"))
    errors = Draft202012Validator(schema).iter_errors(json.loads(exchange.response_body))
    # Lago's server sends null in fields its document does not call nullable (lago.md 3.1, 4, 5.1).
    return [error for error in errors if error.instance is not None]


def test_stripes_answers_fit_its_document(client: httpx.Client, exchanges: list[Exchange]) -> None:
    def post(path: str, **fields: str) -> str:
        return str(client.post(f"/v1/{path}", data=fields).json()["id"])

    customer = post("customers", name="Acme", email="a@acme.test", **{"metadata[a]": "1", "address[city]": "Berlin"})
    post(f"customers/{customer}", phone="1", **{"shipping[name]": "n", "shipping[address][line1]": "1"})
    product = post("products", name="Starter")
    recurring = {"recurring[interval]": "month", "lookup_key": "starter"}
    price = post("prices", product=product, currency="usd", unit_amount="1900", **recurring)
    subscription = post(
        "subscriptions",
        customer=customer,
        collection_method="send_invoice",
        days_until_due="30",
        **{"items[0][price]": price, "expand[]": "customer"},
    )
    post("invoices/create_preview", subscription=subscription)
    post(f"subscriptions/{subscription}", cancel_at_period_end="true", **{"pause_collection[behavior]": "void"})
    for path in (
        "customers",
        f"customers/{customer}",
        "customers/search?query=name:'Acme'",
        "products",
        f"products/{product}",
        "prices?expand[]=data.product",
        f"prices/{price}",
        "subscriptions",
        f"subscriptions/{subscription}",
        "events?limit=100",
    ):
        client.get(f"/v1/{path}")
    client.delete(f"/v1/subscriptions/{subscription}")
    client.delete(f"/v1/customers/{customer}")
    client.get(f"/v1/customers/{customer}")
    assert {exchange.status for exchange in exchanges} == {200}
    assert {exchange.operation: found for exchange in exchanges if (found := faults(exchange))} == {}


def test_lagos_answers_fit_its_document(client: httpx.Client, exchanges: list[Exchange]) -> None:
    def send(method: str, path: str, root: str, **fields: object) -> None:
        client.request(method, f"/api/v1/{path}", json={root: fields})

    for code, cents in (("starter", 1900), ("free", 0)):
        plan = {"name": code, "code": code, "interval": "monthly", "amount_cents": cents, "pay_in_advance": True}
        send("POST", "plans", "plan", **plan, amount_currency="USD")
    send("PUT", "plans/starter", "plan", name="Starter")
    link = {"payment_provider": "stripe", "payment_provider_code": "stripe_main", "provider_customer_id": "cus_1"}
    metadata = [{"key": "a", "value": "1"}]
    send("POST", "customers", "customer", external_id="org_1", metadata=metadata, billing_configuration=link)
    for code in ("starter", "free"):
        ids = {"external_customer_id": "org_1", "external_id": "org_1"}
        send("POST", "subscriptions", "subscription", **ids, plan_code=code)
    send("PUT", "subscriptions/org_1", "subscription", name="Main")
    usage = "customers/org_1/current_usage?external_subscription_id=org_1"
    with SandboxClient(str(client.base_url)) as hand:
        hand.create("lago", "invoices", external_customer_id="org_1")
    unpaid = "invoices?external_customer_id=org_1&payment_statuses[]=failed"
    object_types = ("plans", "plans/free", "customers", "customers/org_1", "subscriptions", "subscriptions/org_1")
    for path in (*object_types, usage, unpaid):
        client.get(f"/api/v1/{path}")
    for path in ("subscriptions/org_1?status=pending", "subscriptions/org_1", "customers/org_1"):
        client.delete(f"/api/v1/{path}")
    assert {exchange.status for exchange in exchanges} == {200}
    assert {exchange.operation: found for exchange in exchanges if (found := faults(exchange))} == {}
