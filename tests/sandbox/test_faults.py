"""The fault plan: each kind does what it says, to the call it was meant for, over real TCP."""

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import stripe

from sandbox.client import SandboxClient, SandboxError
from sandbox.server import Sandbox

CREATE = "POST /v1/customers"
UPSERT = "POST /api/v1/customers"


def make(raw: httpx.Client) -> httpx.Response:
    return raw.post("/v1/customers", data={"name": "Acme"}, headers={"Idempotency-Key": "k"})


def upsert(lago: httpx.Client) -> httpx.Response:
    return lago.post("/customers", json={"customer": {"external_id": "org_1"}})


def made(sandbox: SandboxClient) -> tuple[int, int]:
    state = sandbox.state()
    return len(state["stripe"]["customers"]), len(state["lago"]["customers"])


def test_a_lost_answer_is_done_and_the_connection_just_ends(
    raw: httpx.Client, lago: httpx.Client, sandbox: SandboxClient
) -> None:
    sandbox.add_fault("*", "*", "lost_answer", times=2)
    with pytest.raises(httpx.RemoteProtocolError):
        make(raw)
    with pytest.raises(httpx.RemoteProtocolError):
        upsert(lago)
    assert made(sandbox) == (1, 1)
    assert make(raw).headers["Idempotent-Replayed"] == "true"
    assert upsert(lago).status_code == 200
    assert made(sandbox) == (1, 1)
    assert [call.status for call in sandbox.calls("stripe")] == [None, 200]
    assert sandbox.counters().lago.statuses == {"dropped": 1, "200": 1}


def test_a_reset_connection_did_nothing(raw: httpx.Client, lago: httpx.Client, sandbox: SandboxClient) -> None:
    sandbox.add_fault("*", "*", "reset", times=2)
    with pytest.raises(httpx.ReadError, match="reset"):
        make(raw)
    with pytest.raises(httpx.ReadError, match="reset"):
        upsert(lago)
    assert made(sandbox) == (0, 0)


def test_the_sdk_sees_a_dropped_connection_as_one(billing: stripe.StripeClient, sandbox: SandboxClient) -> None:
    sandbox.add_fault("stripe", CREATE, "lost_answer")
    with pytest.raises(stripe.APIConnectionError) as error:
        billing.v1.customers.create({"name": "Acme"})
    assert error.value.should_retry


def test_a_hang_is_silent_then_closes_and_blocks_nobody(
    raw: httpx.Client, lago: httpx.Client, sandbox: SandboxClient
) -> None:
    sandbox.add_fault("stripe", CREATE, "hang", seconds=0.6)
    begun = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(make, raw)
        while sandbox.faults():
            time.sleep(0.005)
        assert upsert(lago).status_code == 200
        assert not hanging.done()
        with pytest.raises(httpx.RemoteProtocolError):
            hanging.result(5)
    assert time.monotonic() - begun >= 0.6
    assert made(sandbox) == (0, 1)


@pytest.mark.slow
def test_slow_and_drip_take_their_time_and_are_right(
    raw: httpx.Client, lago: httpx.Client, sandbox: SandboxClient
) -> None:
    sandbox.add_fault("stripe", CREATE, "slow", seconds=0.3)
    sandbox.add_fault("lago", UPSERT, "drip", seconds=0.3)
    begun = time.monotonic()
    assert make(raw).status_code == 200
    assert time.monotonic() - begun >= 0.3
    begun = time.monotonic()
    assert upsert(lago).status_code == 200
    assert time.monotonic() - begun >= 0.3
    sandbox.settings(latency_ms=200)
    begun = time.monotonic()
    assert lago.get("/customers/org_1").status_code == 200
    assert time.monotonic() - begun >= 0.2


def test_a_drip_never_lets_a_read_timeout_strike(lago: httpx.Client, sandbox: SandboxClient) -> None:
    sandbox.add_fault("lago", UPSERT, "drip", seconds=0.6)
    body = {"customer": {"external_id": "org_1"}}
    assert lago.post("/customers", json=body, timeout=httpx.Timeout(0.2)).status_code == 200


def test_stripes_429_names_its_reason_unless_told_not_to(raw: httpx.Client, sandbox: SandboxClient) -> None:
    sandbox.add_fault("stripe", CREATE, "429", reason="global-rate", retry_after=3)
    sandbox.add_fault("stripe", CREATE, "429", headers=False)
    sandbox.add_fault("stripe", CREATE, "lock_timeout")
    full, bare, lock = (make(raw) for _ in range(3))
    assert full.headers["Stripe-Rate-Limited-Reason"] == "global-rate"
    assert full.headers["Retry-After"] == "3"
    assert "Stripe-Rate-Limited-Reason" not in bare.headers
    assert "Stripe-Rate-Limited-Reason" not in lock.headers
    assert lock.headers["Stripe-Should-Retry"] == "true"
    codes = [(answer.status_code, answer.json()["error"]["code"]) for answer in (full, bare, lock)]
    assert codes == [(429, "rate_limit"), (429, "rate_limit"), (429, "lock_timeout")]


def test_lagos_429_brings_its_headers_or_a_retry_after_or_neither(lago: httpx.Client, sandbox: SandboxClient) -> None:
    sandbox.settings(limits=True)
    sandbox.add_fault("lago", UPSERT, "429", retry_after=7)
    sandbox.add_fault("lago", UPSERT, "429", headers=False, retry_after=7)
    sandbox.add_fault("lago", UPSERT, "429", headers=False)
    full, after, bare = (upsert(lago) for _ in range(3))
    assert [answer.status_code for answer in (full, after, bare)] == [429] * 3
    assert (full.headers["x-ratelimit-reset"], full.headers["x-ratelimit-remaining"]) == ("7", "0")
    assert after.headers["Retry-After"] == "7"
    assert "x-ratelimit-limit" not in after.headers
    assert not {"x-ratelimit-limit", "retry-after"} & set(bare.headers)


def test_the_other_kinds_answer_as_named_and_do_nothing(
    raw: httpx.Client, lago: httpx.Client, sandbox: SandboxClient
) -> None:
    for kind, status in (("html_502", 502), ("401", 401), ("500_before", 500), ("500_stored", 500)):
        sandbox.add_fault("lago", UPSERT, kind)
        answer = upsert(lago)
        assert answer.status_code == status
        assert ("<html>" in answer.text) is (kind == "html_502")
    sandbox.add_fault("*", "*", "status", status=520, body='{"odd": true}', times=2)
    assert [(a.status_code, a.json()) for a in (make(raw), upsert(lago))] == [(520, {"odd": True})] * 2
    sandbox.add_fault("stripe", CREATE, "401")
    assert "Invalid API Key" in make(raw).json()["error"]["message"]
    sandbox.add_fault("stripe", CREATE, "403", reason="rak_customer_write")
    refused = make(raw)
    assert (refused.status_code, refused.json()["error"]["type"]) == (403, "invalid_request_error")
    assert "Having the 'rak_customer_write' permission would allow" in refused.json()["error"]["message"]
    assert made(sandbox) == (0, 0)


def test_lago_saves_then_complains_about_stripe_or_fails(lago: httpx.Client, sandbox: SandboxClient) -> None:
    sandbox.add_fault("lago", UPSERT, "422_third_party")
    refused = upsert(lago)
    assert (refused.status_code, refused.json()["code"]) == (422, "third_party_error")
    assert made(sandbox) == (0, 1)
    sandbox.add_fault("lago", UPSERT, "500_after")
    failed = lago.post("/customers", json={"customer": {"external_id": "org_2"}})
    assert failed.json() == {"status": 500, "error": "Internal Server Error"}
    assert made(sandbox) == (0, 2)


def test_a_fault_waits_for_its_call_passes_some_and_is_spent(
    raw: httpx.Client, lago: httpx.Client, sandbox: SandboxClient
) -> None:
    sandbox.add_fault("lago", "GET /api/v1/customers/{id}", "500_before", skip=1, times=2)
    sandbox.add_fault("stripe", "*", "500_before", match="org_13", times=0)
    assert upsert(lago).status_code == 200
    assert [lago.get("/customers/org_1").status_code for _ in range(4)] == [200, 500, 500, 200]
    hit = [raw.post("/v1/customers", data={"metadata[org_id]": f"org_{n}"}).status_code for n in (12, 13, 13)]
    assert hit == [200, 500, 500]
    assert [fault["match"] for fault in sandbox.faults()] == ["org_13"]
    sandbox.clear_faults()
    assert sandbox.faults() == []


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"kind": "explode"}, "explode"),
        ({"provider": "paypal"}, "provider"),
        ({"seconds": 9999}, "seconds"),
        ({"times": -1}, "times"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_with_the_field(
    sandbox: SandboxClient, server: Sandbox, fields: dict[str, object], named: str
) -> None:
    assert sandbox.faults() == []
    with httpx.Client(trust_env=False) as client:
        body = {"provider": "stripe", "operation": "*", "kind": "reset", **fields}
        answer = client.post(f"{server.url}/sandbox/faults", json=body)
    assert answer.status_code == 400
    assert named in answer.json()["error"]
    with pytest.raises(SandboxError, match="no setting 'limit'"):
        sandbox.settings(limit=True)
