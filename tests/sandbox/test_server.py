"""The sandbox as a server: limits, log, observer, what hands do at the dashboards, and what survives a kill."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from sandbox.client import SandboxClient, SandboxError
from sandbox.http import Exchange, ProviderRequest, ProviderResponse
from sandbox.lago_api.provider import LagoApi
from sandbox.server import Sandbox
from sandbox.state import SandboxState
from sandbox.stripe_api.provider import StripeApi
from tests.support.waiting import PATIENCE_SECONDS, until

KEY = {"Authorization": "Bearer sk_test_sandbox"}
PLAN = {"name": "s", "code": "s", "interval": "monthly", "amount_cents": 1900, "amount_currency": "USD",
        "pay_in_advance": True}  # fmt: skip


def rejections(api: StripeApi | LagoApi, provider: str, path: str, times: int) -> list[ProviderResponse]:
    """Of so many requests at once, without a server in between that takes time."""
    operation = api.operation_name("GET", path)
    headers = {"authorization": KEY["Authorization"]}
    request = ProviderRequest("req_1", provider, operation, "GET", path, "", headers, b"")
    return [response for _ in range(times) if (response := api.reject(request)) is not None]


def test_limits_are_25_an_operation_100_in_all_and_50_at_lago() -> None:
    stripe = StripeApi(state := SandboxState())
    refused = rejections(stripe, "stripe", "/v1/customers/cus_1", 40)
    assert 10 <= len(refused) <= 15
    assert {dict(each.headers)["Stripe-Rate-Limited-Reason"] for each in refused} == {"endpoint-rate"}
    assert rejections(stripe, "stripe", "/v1/prices", 1) == []
    others = [
        rejections(stripe, "stripe", f"/v1/{each}", 25) for each in ("subscriptions", "invoices", "events", "prices")
    ]
    reasons = {dict(each.headers)["Stripe-Rate-Limited-Reason"] for each in itertools.chain(*others)}
    assert "global-rate" in reasons
    many = rejections(LagoApi(state, stripe), "lago", "/api/v1/customers/org_1", 150)
    assert {each.status for each in many} == {429}
    assert dict(many[0].headers)["x-ratelimit-limit"] == "50"


def test_limits_can_be_switched_off(raw: httpx.Client, sandbox: SandboxClient) -> None:
    sandbox.settings(limits=False)
    assert [raw.get("/v1/customers/cus_1").status_code for _ in range(40)] == [404] * 40


def test_every_call_is_logged_and_counted_by_operation(
    raw: httpx.Client, lago: httpx.Client, sandbox: SandboxClient
) -> None:
    raw.post("/v1/customers", data={"name": "Acme"}, headers={"Idempotency-Key": "k"})
    raw.get("/v1/customers/cus_1")
    lago.get("/customers/org_1?x=1")
    calls = sandbox.calls()
    assert [(call.operation, call.status) for call in calls] == [
        ("POST /v1/customers", 200),
        ("GET /v1/customers/{id}", 404),
        ("GET /api/v1/customers/{id}", 404),
    ]
    assert (calls[0].idempotency_key, calls[0].body, calls[2].query) == ("k", "name=Acme", "x=1")
    counters = sandbox.counters()
    assert (counters.stripe.total, counters.lago.total) == (2, 1)
    assert counters.stripe.of("POST /v1/customers") == 1
    sandbox.reset_calls()
    assert (sandbox.calls(), sandbox.counters().stripe.total) == ([], 0)


def test_the_observer_sees_each_exchange_without_the_key() -> None:
    seen: list[Exchange] = []
    with Sandbox(limits=False, observer=seen.append) as server, httpx.Client(headers=KEY, trust_env=False) as client:
        client.post(f"{server.url}/v1/customers", data={"name": "Acme"})
        with SandboxClient(server.url) as control:
            control.add_fault("lago", "*", "reset")
        with pytest.raises(httpx.ReadError):
            client.get(f"{server.url}/api/v1/customers?page=1")
    first, second = seen
    assert (first.provider, first.method, first.path, first.body) == ("stripe", "POST", "/v1/customers", b"name=Acme")
    assert (first.status, json.loads(first.response_body)["name"]) == (200, "Acme")
    assert (second.status, second.fault, second.query) == (None, "reset", "page=1")
    assert "sk_test" not in repr([dict(exchange.headers) for exchange in seen])
    assert "sk_test" not in repr(seen)


def test_hands_at_the_dashboards_make_change_and_delete(sandbox: SandboxClient) -> None:
    acme = {"id": "cus_1", "name": "Acme", "email": "a@acme.test", "metadata": {"org_id": "1"}, "created": 1}
    sandbox.preload_stripe_customers([acme])
    price = sandbox.preload_stripe_prices(
        [{"currency": "usd", "unit_amount": 1900, "recurring": {"interval": "month"}, "product_data": {"name": "s"}}]
    )[0]["id"]
    rogue = sandbox.preload_stripe_subscription("cus_1", price, quantity=2)
    assert (rogue["status"], rogue["items"]["data"][0]["quantity"]) == ("active", 2)
    assert sandbox.patch("stripe", "customers", "cus_1", name=None, metadata={"org_id": "2"})["name"] is None
    sandbox.preload_lago_plans([PLAN])
    chosen = "11111111-1111-4111-8111-111111111111"
    kept = sandbox.preload_lago_customers([{"external_id": "old.id", "lago_id": chosen, "name": "Old"}])[0]
    assert (kept["lago_id"], kept["external_id"], kept["name"]) == (chosen, "old.id", "Old")
    assert sandbox.preload_lago_subscription("old.id", "s", "sub")["status"] == "active"
    sandbox.delete("lago", "subscriptions", "sub")
    sandbox.delete("lago", "customers", "old.id")
    sandbox.delete("stripe", "customers", "cus_1")
    state = sandbox.state()
    assert state["lago"]["customers"] == []
    assert state["stripe"]["customers"] == [{"id": "cus_1", "object": "customer", "deleted": True}]
    assert sandbox.calls() == []
    with pytest.raises(SandboxError, match="No such customer"):
        sandbox.delete("stripe", "customers", "cus_1")
    with pytest.raises(SandboxError, match="already a Stripe customer"):
        sandbox.preload_stripe_customers([{"id": "cus_1"}])


def test_outlines_of_two_worlds_are_equal_when_the_same_was_achieved(sandbox: SandboxClient) -> None:
    def build() -> None:
        cus = sandbox.preload_stripe_customers([{"name": "Acme", "metadata": {"org_id": "1"}}])[0]["id"]
        sandbox.preload_lago_plans([PLAN])
        link = {"payment_provider": "stripe", "payment_provider_code": "stripe_main", "provider_customer_id": cus}
        sandbox.preload_lago_customers([{"external_id": "org_1", "name": "Acme", "billing_configuration": link}])
        sandbox.preload_lago_subscription("org_1", "s", "org_1")

    build()
    before, outline = sandbox.state(), sandbox.summary()
    assert sandbox.state() == before
    assert outline["lago"]["customers"][0]["linked_to"]["metadata"] == {"org_id": "1"}
    sandbox.reset()
    assert sandbox.summary() != outline
    build()
    assert sandbox.summary() == outline
    assert sandbox.state() != before


def test_the_clock_runs_on_from_where_it_is_put(sandbox: SandboxClient) -> None:
    assert abs(sandbox.clock() - datetime.now(UTC)) < timedelta(seconds=5)
    moment = datetime(2030, 6, 1, tzinfo=UTC)
    assert timedelta() <= sandbox.set_clock(moment) - moment < timedelta(seconds=2)
    assert timedelta(hours=1) <= sandbox.advance(timedelta(hours=1)) - moment < timedelta(hours=1, seconds=2)
    with pytest.raises(SandboxError, match="advance"):
        sandbox.advance(-1)


def test_what_only_an_older_version_stored_is_dropped_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "world.jsonl"
    file.write_text(json.dumps([["stripe.prorations", "sub_1", {"lines": []}]]) + "\n")
    with Sandbox(state_file=file) as server, SandboxClient(server.url) as control:
        assert control.state()["invoices"] == []


def test_the_state_survives_a_restart_and_counts_on(tmp_path: Path) -> None:
    state = tmp_path / "world.jsonl"
    headers = {**KEY, "Idempotency-Key": "k"}
    with Sandbox(limits=False, state_file=state) as server, SandboxClient(server.url) as control:
        control.set_clock(datetime(2027, 1, 12, tzinfo=UTC))
        control.preload_lago_plans([PLAN])
        control.preload_lago_subscription("org_1", "s", "org_1")
        made = httpx.post(f"{server.url}/v1/customers", data={"name": "Acme"}, headers=headers, trust_env=False).json()
        before = control.state()
        port = int(server.url.rsplit(":", 1)[1])
    with state.open("a") as file:
        file.write('[["stripe.customers", "cus_torn"')
    with Sandbox(port=port, state_file=state) as server, SandboxClient(server.url) as control:
        assert control.state() == before
        assert control.settings()["limits"] is False
        again = httpx.post(f"{server.url}/v1/customers", data={"name": "Acme"}, headers=headers, trust_env=False)
        assert (again.json(), again.headers["Idempotent-Replayed"]) == (made, "true")
        control.advance(timedelta(days=25))
        assert [charge["reason"] for charge in control.charges()] == ["subscription_create", "renewal"]


PROGRAM = """
import sys
from pathlib import Path
from sandbox.server import Sandbox
sandbox = Sandbox(port=int(sys.argv[1]), limits=False, state_file=Path(sys.argv[2]))
sandbox.run()
print("ended well")
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).is_success
    except httpx.TransportError:
        return False


@pytest.mark.processes
def test_a_kill_loses_nothing_that_was_answered_and_sigterm_ends_it_well(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-c", PROGRAM, str(port), str(tmp_path / "world.jsonl")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, env=environment) as first:
        until(lambda: answers(port), "the sandbox")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=KEY, trust_env=False) as client:
            names = [client.post("/v1/customers", data={"name": f"n{n}"}).json()["name"] for n in range(50)]
            first.send_signal(signal.SIGKILL)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as second:
        until(lambda: answers(port), "the sandbox")
        with SandboxClient(f"http://127.0.0.1:{port}") as control:
            found = [customer["name"] for customer in control.state()["stripe"]["customers"]]
        second.send_signal(signal.SIGTERM)
        output, _ = second.communicate(timeout=PATIENCE_SECONDS)
    assert sorted(found) == sorted(names)
    assert (second.returncode, output.strip()) == (0, "ended well")


def test_it_stops_at_once_with_a_call_hanging_and_starts_again(caplog: pytest.LogCaptureFixture) -> None:
    server = Sandbox(limits=False).start()
    with SandboxClient(server.url) as control:
        control.add_fault("stripe", "*", "hang", seconds=60)
        port = int(server.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as hanging:
            hanging.sendall(b"GET /v1/customers HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n\r\n")
            until(lambda: not control.faults(), "the call hangs")
            begun = time.monotonic()
            server.stop()
            server.stop()
            assert time.monotonic() - begun < 10  # the call would hang for 60
            assert hanging.recv(100) == b""
    with Sandbox(port=port), SandboxClient(f"http://127.0.0.1:{port}") as control:
        assert control.faults() == []
    assert caplog.records == []


def test_no_answer_waits_for_an_acknowledgement(raw: httpx.Client) -> None:
    """Here 400 calls take half a second; an acknowledgement that is 40 ms late each time would make it sixteen."""
    raw.post("/v1/customers", data={"name": "Acme"})
    port = raw.base_url.port
    request = b"GET /v1/account HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port or 0)) as connection:
        begun = time.monotonic()
        for _ in range(400):
            connection.sendall(request)
            answer = b""
            while b'"standard"}' not in answer:
                answer += connection.recv(65536)
        assert time.monotonic() - begun < 8


def test_a_body_too_large_is_refused(raw: httpx.Client) -> None:
    assert raw.post("/v1/customers", content=b"x" * (5 * 1024 * 1024)).status_code == 413
