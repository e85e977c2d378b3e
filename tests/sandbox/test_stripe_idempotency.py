"""Idempotency keys as stripe.md 2 has them."""

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import stripe

from sandbox.client import SandboxClient

KEY = {"Idempotency-Key": "create:org_1"}


def make(raw: httpx.Client, name: str = "Acme", path: str = "/v1/customers") -> httpx.Response:
    return raw.post(path, data={"name": name}, headers=KEY)


def test_the_same_key_replays_the_first_answer_as_it_was(raw: httpx.Client, sandbox: SandboxClient) -> None:
    first = make(raw)
    raw.post(f"/v1/customers/{first.json()['id']}", data={"name": "Renamed"})
    second = make(raw)
    assert second.json() == first.json()
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true"
    assert [call.replayed for call in sandbox.calls("stripe")] == [False, False, True]
    assert len(sandbox.state()["stripe"]["customers"]) == 1


def test_other_parameters_or_another_endpoint_under_the_key_are_refused(raw: httpx.Client) -> None:
    customer_id = make(raw).json()["id"]
    for answer in (
        make(raw, "Other"),
        make(raw, "Acme", "/v1/products"),
        make(raw, "Acme", f"/v1/customers/{customer_id}"),
    ):
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "idempotency_error")
        assert "code" not in answer.json()["error"]


def test_a_key_in_flight_is_409_and_free_afterwards(raw: httpx.Client, sandbox: SandboxClient) -> None:
    sandbox.add_fault("stripe", "POST /v1/customers", "slow", seconds=0.5)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(make, raw)
        while sandbox.faults() and not slow.done():  # taken: the slow one has arrived and holds the key
            time.sleep(0.005)
        second = make(raw)
        assert (second.status_code, second.json()["error"]["code"]) == (409, "idempotency_key_in_use")
        assert second.json()["error"]["type"] == "invalid_request_error"
        assert slow.result(5).status_code == 200
    assert make(raw).headers["Idempotent-Replayed"] == "true"


def test_validation_is_not_stored_but_a_refusal_of_the_endpoint_is(raw: httpx.Client, sandbox: SandboxClient) -> None:
    assert raw.post("/v1/customers", data={"email": "bad"}, headers=KEY).status_code == 400
    assert make(raw).status_code == 200
    other = {"Idempotency-Key": "update:gone"}
    assert raw.post("/v1/customers/cus_gone", data={"name": "x"}, headers=other).status_code == 404
    sandbox.preload_stripe_customers([{"id": "cus_gone"}])
    again = raw.post("/v1/customers/cus_gone", data={"name": "x"}, headers=other)
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (404, "true")


def test_a_500_is_stored_when_it_says_so_and_only_then(raw: httpx.Client, sandbox: SandboxClient) -> None:
    sandbox.add_fault("stripe", "POST /v1/customers", "500_before")
    assert [make(raw).status_code for _ in range(2)] == [500, 200]
    sandbox.reset()
    sandbox.add_fault("stripe", "POST /v1/customers", "500_stored")
    assert [make(raw).status_code for _ in range(3)] == [500, 500, 500]
    assert sandbox.state()["stripe"]["customers"] == []


def test_a_500_after_the_commit_replays_and_the_customer_is_there(raw: httpx.Client, sandbox: SandboxClient) -> None:
    sandbox.add_fault("stripe", "POST /v1/customers", "500_after")
    answers = [make(raw) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [500, 500]
    assert answers[0].json()["error"]["type"] == "api_error"
    assert answers[1].headers["Idempotent-Replayed"] == "true"
    assert len(sandbox.state()["stripe"]["customers"]) == 1


def test_a_429_is_not_stored(raw: httpx.Client, sandbox: SandboxClient) -> None:
    sandbox.add_fault("stripe", "POST /v1/customers", "429")
    assert [make(raw).status_code for _ in range(2)] == [429, 200]


def test_a_key_is_forgotten_after_a_day_of_the_sandboxs_clock(raw: httpx.Client, sandbox: SandboxClient) -> None:
    first = make(raw).json()["id"]
    sandbox.advance(24 * 3600 - 60)
    assert make(raw).json()["id"] == first
    sandbox.advance(120)
    assert make(raw).json()["id"] != first
    assert len(sandbox.state()["stripe"]["customers"]) == 2


def test_the_sdk_meets_the_mismatch_as_its_own_error(billing: stripe.StripeClient) -> None:
    billing.v1.customers.create({"name": "Acme"}, {"idempotency_key": "k"})
    with pytest.raises(stripe.IdempotencyError) as error:
        billing.v1.customers.create({"name": "Other"}, {"idempotency_key": "k"})
    assert error.value.http_status == 400
