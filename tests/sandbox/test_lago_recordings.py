"""The sandbox answers as the recorded Lago did: status, error, keys, types, nulls, and the values that decide.

The recorded calls are sent in their order. What still differs is listed in ``lago_differences.toml``, each with its
reason; a difference that is not listed fails, and so does a listed one that is gone.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest

from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.support.lago_recordings import ADOPTION, CALLS_IN_ORDER, RecordedCall, calls, webhooks
from tests.support.webhook_receiver import receiving

LISTED = Path(__file__).with_name("lago_differences.toml")
RECORDED_AT = datetime(2026, 11, 28, 20, 50, 50, tzinfo=UTC)
CLOCK_OF_STEP = {
    "after midnight, before the clock job": datetime(2026, 12, 1, 0, 0, 20, tzinfo=UTC),
    "after the clock job": datetime(2026, 12, 1, 0, 12, 30, tzinfo=UTC),
}
ADOPTION_RECORDED_AT = datetime(2026, 11, 28, 21, 40, 29, tzinfo=UTC)
BETWEEN_CALLS = 0.3  # seconds, as recorded: rows of one second are sorted by their parts of it
UNKNOWN_ROUTE_WITH_A_WRONG_KEY = "calls:3"
FIRST_LIST_OF_INVOICES = "calls:138"
# Ids, times and numbers that count up differ in every run. These decide what a caller does next.
VALUES = {
    *("status", "name", "email", "currency", "plan_code", "next_plan_code", "previous_plan_code", "billing_time"),
    *("downgrade_plan_date", "ending_at", "on_termination_invoice", "on_termination_credit_note", "amount_cents"),
    *("payment_provider", "payment_provider_code", "provider_customer_id", "next_page", "total_count"),
}
NOT_SENT = {
    *("plan.created", "plan.updated", "billable_metric.created"),  # set up in Lago
    *("invoice.created", "credit_note.created"),
}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z")
DATE = re.compile(r"\d{4}-\d\d-\d\d")

pytestmark = pytest.mark.sends_wrong_requests


def test_recorded_calls_are_answered_as_by_lago_but_for_what_is_listed(server: Sandbox, sandbox: SandboxClient) -> None:
    sandbox.set_clock(RECORDED_AT)
    found: set[str] = set()
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as http:
        for call in calls()[:CALLS_IN_ORDER]:
            if call.step in CLOCK_OF_STEP:
                sandbox.set_clock(CLOCK_OF_STEP[call.step])
            if call.place == FIRST_LIST_OF_INVOICES:
                # The sandbox makes none by itself, but shows one that is put in as Lago does.
                customer = dict(parse_qsl(call.query))["external_customer_id"]
                sandbox.create("lago", "invoices", external_customer_id=customer, payment_status="succeeded")
            found |= {f"{call.operation}: {each}" for each in differences(call, _send(http, call))}
            sandbox.advance(BETWEEN_CALLS)
    _assert_all_listed(found, "differences")


def test_webhooks_have_the_keys_of_the_recorded_ones_but_for_what_is_listed(
    sandbox: SandboxClient, lago: httpx.Client
) -> None:
    with receiving() as receiver:
        sandbox.set_webhooks(lago={"url": receiver.url, "secret": "secret"})
        _cause_webhooks(sandbox, lago)
        sent = [json.loads(request.body) for request in receiver.wait(16)]
    recorded = {webhook.payload["webhook_type"]: webhook.payload for webhook in webhooks()}
    found: set[str] = set()
    for payload in sent:
        kind = payload["webhook_type"]
        differing = {each for each in _compare(recorded[kind], payload, "") if _is_about_a_key(each)}
        found |= {f"{kind}: {each}" for each in differing}
    assert {payload["webhook_type"] for payload in sent} == recorded.keys() - NOT_SENT
    _assert_all_listed(found, "webhook_differences")


def test_the_recorded_adoptions_are_answered_as_by_lago(server: Sandbox, sandbox: SandboxClient) -> None:
    """Customers and subscriptions under ids of their own, on other plans, and without payers or subscriptions."""
    recorded = [each for each in calls(ADOPTION) if each.operation != "GET organizations"]  # in the other recording
    sandbox.set_clock(ADOPTION_RECORDED_AT)
    for each in recorded:
        if each.operation == "GET plans/{id}":
            plan = each.response["plan"]
            names = ("code", "name", "interval", "amount_cents", "amount_currency", "pay_in_advance")
            sandbox.preload_lago_plans([{name: plan[name] for name in names}])
    payers = {payer for each in recorded if (payer := _payer(each.request)) is not None}
    sandbox.preload_stripe_customers([{"id": payer} for payer in sorted(payers)])
    found: set[str] = set()
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as http:
        for each in recorded:
            found |= {f"{each.operation}: {difference}" for difference in differences(each, _send(http, each))}
            sandbox.advance(BETWEEN_CALLS)
    assert found == set()


def _payer(request: Any) -> str | None:  # noqa: ANN401 - any JSON
    customer = request.get("customer", {}) if isinstance(request, dict) else {}
    payer: str | None = customer.get("billing_configuration", {}).get("provider_customer_id")
    return payer


def _is_about_a_key(difference: str) -> bool:
    """A null or a type depends on what happened to the object, and so do the keys of a payer."""
    return difference.endswith((" is missing", " is not Lago's")) and ".billing_configuration." not in difference


def _cause_webhooks(sandbox: SandboxClient, lago: httpx.Client) -> None:
    for code, cents in (("starter", 1900), ("professional", 4900)):
        plan = {"name": code, "code": code, "interval": "monthly", "amount_currency": "USD", "pay_in_advance": True}
        sandbox.preload_lago_plans([{**plan, "amount_cents": cents}])
    sandbox.preload_stripe_customers([{"id": "cus_1"}])
    payer = {"payment_provider": "stripe", "provider_customer_id": "cus_1", "sync_with_provider": False}
    for name in ("Acme", "Acme GmbH"):
        customer = {"external_id": "org_1", "name": name, "billing_configuration": payer}
        lago.post("/customers", json={"customer": customer})
    for code in ("starter", "professional", "starter"):
        ids = {"external_customer_id": "org_1", "external_id": "org_1"}
        lago.post("/subscriptions", json={"subscription": {**ids, "plan_code": code}})
    lago.delete("/subscriptions/org_1", params={"status": "pending"})
    lago.delete("/subscriptions/org_1")
    invoice = sandbox.create("lago", "invoices", external_customer_id="org_1")
    for event in ({"payment_overdue": True}, {"payment_dispute_lost": True}):
        sandbox.patch("lago", "invoices", invoice["lago_id"], **event)
    sandbox.create("lago", "payer_errors", external_customer_id="org_1")


def differences(call: RecordedCall, answer: httpx.Response) -> Iterator[str]:
    body = answer.json() if answer.content else None
    if answer.status_code != call.status:
        yield f"{_outcome(answer.status_code, body)} instead of {_outcome(call.status, call.response)} ({call.place})"
    elif answer.is_error and body != call.response:
        yield f"{json.dumps(body)} ({call.place})"
    else:
        yield from _compare(call.response, body, "")


def _send(http: httpx.Client, call: RecordedCall) -> httpx.Response:
    is_wrong = call.status == httpx.codes.UNAUTHORIZED or call.place == UNKNOWN_ROUTE_WITH_A_WRONG_KEY
    headers = {"Authorization": f"Bearer {'bad' if is_wrong else 'lago_key'}", "Content-Type": "application/json"}
    url = f"{call.path}?{call.query}" if call.query else call.path
    return http.request(call.method, url, headers=headers, content=call.request_bytes)


def _outcome(status: int | None, body: object) -> str:
    code = body.get("code") if isinstance(body, Mapping) else None
    return f"{status} {code}" if code else f"{status}"


def _compare(lago: Any, ours: Any, where: str) -> Iterator[str]:  # noqa: ANN401 - any JSON
    if isinstance(lago, dict) and isinstance(ours, dict):
        yield from (f"{where}.{key} is missing" for key in lago.keys() - ours.keys() - {"_trimmed"})
        yield from (f"{where}.{key} is not Lago's" for key in ours.keys() - lago.keys())
        for key in lago.keys() & ours.keys():
            yield from _compare(lago[key], ours[key], f"{where}.{key}")
    elif isinstance(lago, list) and isinstance(ours, list):
        if bool(lago) != bool(ours):
            yield f"{where} is {'a list' if ours else 'empty'}"
        for one, other in zip(lago, ours, strict=False):
            yield from _compare(one, other, f"{where}[]")
    elif _kind(lago) != _kind(ours):
        yield f"{where} is {_kind(ours)} instead of {_kind(lago)}"
    elif where.rpartition(".")[2] in VALUES and lago != ours:
        yield f"{where} is {ours!r} instead of {lago!r}"


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str() if match := TIME.fullmatch(value):
            return "a time with milliseconds" if match[1] else "a time"
        case str():
            return "a date" if DATE.fullmatch(value) else "a text"
        case _:
            return type(value).__name__


def _assert_all_listed(found: set[str], section: str) -> None:
    entries = tomllib.loads(LISTED.read_text(encoding="utf-8"))[section]
    listed = [each for entry in entries for each in entry["found"]]
    assert all(entry["reason"] for entry in entries)
    assert len(set(listed)) == len(listed), "a difference is listed twice"
    new, gone = sorted(found.difference(listed)), sorted(set(listed) - found)
    assert not new, "not as Lago: " + "\n".join(new)
    assert not gone, "as Lago now, so remove it from the list: " + "\n".join(gone)
