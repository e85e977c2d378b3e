"""The check of answers finds a wrong type, a missing field, an unknown word and null, wherever the object is nested."""

import json
import time

import pytest

from tests.contract import answer_violations, available, where
from tests.contract.answer_differences import DIFFERENCES
from tests.contract.answers import Provider
from tests.contract.documents import Json, Object

pytestmark = pytest.mark.skipif(not available(), reason=where())

CUSTOMER: Object = {"id": "cus_1", "object": "customer", "created": 1, "livemode": False, "balance": 0}
DELETED: Object = {"id": "cus_1", "object": "customer", "deleted": True}
LIST: Object = {"object": "list", "url": "/v1/customers", "has_more": False}
TRANSACTION: Object = {
    "id": "cbtxn_1",
    "object": "customer_balance_transaction",
    "amount": -100,
    "created": 1,
    "currency": "usd",
    "customer": "cus_1",
    "ending_balance": -100,
    "livemode": False,
    "type": "credit_note",
}
TRANSACTIONS = "/v1/customers/cus_1/balance_transactions/cbtxn_1"
EVENT: Object = {
    "id": "evt_1",
    "object": "event",
    "created": 1,
    "data": {"object": CUSTOMER},
    "livemode": False,
    "pending_webhooks": 0,
    "type": "customer.created",
}


def violated(provider: Provider, path: str, value: Json, status: int = 200) -> list[str]:
    found = answer_violations(provider, "GET", path, status, json.dumps(value).encode())
    return [sentence.partition(f"answered {status}: ")[2] for sentence in found]


ALLOWED: list[tuple[str, Json]] = [
    ("/v1/customers/cus_1", CUSTOMER),
    ("/v1/customers/cus_1", {**CUSTOMER, "email": None, "metadata": {"a": "1"}}),
    ("/v1/customers/cus_1", DELETED),
    ("/v1/customers", {**LIST, "data": [CUSTOMER]}),
    (TRANSACTIONS, TRANSACTION),
    (TRANSACTIONS, {**TRANSACTION, "customer": CUSTOMER}),
    ("/v1/events/evt_1", EVENT),
]
REFUSED: list[tuple[str, Json, str]] = [
    ("/v1/customers/cus_1", {**CUSTOMER, "balance": "0"}, "customer.balance: string instead of integer"),
    ("/v1/customers/cus_1", {**CUSTOMER, "balance": True}, "customer.balance: boolean instead of integer"),
    ("/v1/customers/cus_1", {**CUSTOMER, "livemode": None}, "customer.livemode: null"),
    ("/v1/customers/cus_1", {**CUSTOMER, "emial": "a@b.test"}, "customer.emial: not in the document"),
    ("/v1/customers/cus_1", {**CUSTOMER, "tax_exempt": "yes"}, "customer.tax_exempt: 'yes' is not in the enum"),
    ("/v1/customers/cus_1", {**CUSTOMER, "metadata": {"a": 1}}, "customer.metadata.*: integer instead of string"),
    ("/v1/customers/cus_1", {"id": "cus_1", "object": "customer"}, "deleted_customer.deleted: missing"),
    ("/v1/customers", {**LIST, "data": [CUSTOMER, {**CUSTOMER, "id": 1}]}, "customer.id: integer instead of string"),
    ("/v1/customers", {"object": "list", "data": []}, "GET /v1/customers 200.has_more: missing"),
    (TRANSACTIONS, {**TRANSACTION, "customer": {**CUSTOMER, "created": None}}, "customer.created: null"),
    (
        TRANSACTIONS,
        {**TRANSACTION, "customer": 1},
        "customer_balance_transaction.customer: integer instead of object or string",
    ),
    ("/v1/events/evt_1", {**EVENT, "data": {"object": {**CUSTOMER, "id": None}}}, "customer.id: null"),
]


@pytest.mark.parametrize(("path", "value"), ALLOWED)
def test_an_answer_of_the_document_is_allowed(path: str, value: Json) -> None:
    assert violated("stripe", path, value) == []


@pytest.mark.parametrize(("path", "value", "sentence"), REFUSED)
def test_a_fault_is_named_by_the_nearest_object(path: str, value: Json, sentence: str) -> None:
    assert sentence in violated("stripe", path, value)


def test_a_refusal_has_a_shape_too() -> None:
    assert violated("stripe", "/v1/customers/cus_1", {"error": {"type": "invalid_request_error"}}, 404) == []
    assert violated("stripe", "/v1/customers/cus_1", {"error": {"type": "wrong"}}, 404) == [
        "api_errors.type: 'wrong' is not in the enum"
    ]
    assert violated("lago", "/api/v1/plans/team", {"status": "404"}, 404) != []
    assert violated("lago", "/api/v1/plans/team", {}, 418) == ["status 418: not in the document"]


def test_a_listed_difference_is_no_violation() -> None:
    plan: Object = {
        "lago_id": "1a901a90-1a90-1a90-1a90-1a901a901a90",
        "name": "Team",
        "code": "team",
        "created_at": "2026-11-29T12:00:00Z",
        "interval": "monthly",
        "amount_cents": 1900,
        "amount_currency": "EUR",
    }
    assert violated("lago", "/api/v1/plans/team", {"plan": {**plan, "description": None}}) == []
    assert violated("lago", "/api/v1/plans/team", {"plan": {**plan, "created_at": "today", "name": None}}) == [
        "PlanObject.name: null",
        "PlanObject.created_at: not a date-time",
    ]


def test_each_difference_is_listed_once_and_has_a_reason() -> None:
    for listed in DIFFERENCES.values():
        assert len({(one.place, one.problem) for one in listed}) == len(listed)
        assert all(len(one.reason) > 20 for one in listed)


def test_a_check_of_twenty_objects_costs_less_than_two_milliseconds_after_the_first() -> None:
    body = json.dumps({**LIST, "data": [{**CUSTOMER, "metadata": {"a": "1"}}] * 20}).encode()
    spent = []
    for _ in range(30):
        started = time.perf_counter()
        assert answer_violations("stripe", "GET", "/v1/customers", 200, body) == []
        spent.append(time.perf_counter() - started)
    assert min(spent) < 0.002
