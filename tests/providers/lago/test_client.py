"""The wire to Lago: what the SDK would send, over one connection, escaped, bounded and without a leak."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from lago_python_client.client import Client
from lago_python_client.models import Customer, Plan, Subscription

from core.catalog.plans import EndingPolicy
from core.ports.errors import LeaseLostError, UnavailableError
from core.ports.spec import CustomerSpec, LastKnown, PriceSpec, SubscriptionSpec
from providers.lago.provider import LagoProvider
from tests.support.in_memory_attempt import InMemoryAttempt
from tests.support.scripted_lago import NO_ID, Reply, ScriptedLago, customer, refusal, subscription

KEY = "lago_key_that_nobody_may_see"
SPEC = CustomerSpec(org_id="org_1", name="Umbra Labs", email="ap@umbra.test", currency="EUR")
ENDING = EndingPolicy(lago_invoice="generate", lago_credit_note="credit", stripe_invoice_now=True, stripe_prorate=True)
OFFER = PriceSpec(code="starter", name="Starter", amount=1900, currency="USD", interval="monthly")
PLAN_SHOWN = Reply(
    200,
    {
        "plan": {
            "lago_id": NO_ID,
            "name": "Starter",
            "code": "starter",
            "created_at": "2026-11-01T00:00:00Z",
            "interval": "monthly",
            "amount_cents": 1900,
            "amount_currency": "USD",
            "pay_in_advance": True,
        }
    },
)


@pytest.fixture
def lago() -> Iterator[ScriptedLago]:
    script = ScriptedLago()
    yield script
    script.close()
    assert script.violations == []


def provider_at(url: str, timeout: float = 10.0) -> LagoProvider:
    return LagoProvider(url, KEY, payment_provider_code="stripe_main", ending=ENDING, timeout=timeout)


@contextlib.contextmanager
def connected(url: str, timeout: float = 10.0) -> Iterator[LagoProvider]:
    with contextlib.closing(provider_at(url, timeout)) as provider:
        yield provider


def test_requests_are_what_the_sdk_sends(lago: ScriptedLago) -> None:
    with connected(lago.url) as provider:
        lago.respond_with(customer(), subscription(), PLAN_SHOWN, PLAN_SHOWN)
        provider.ensure_customer(SPEC, LastKnown(), InMemoryAttempt())
        provider.ensure_subscription(
            SubscriptionSpec(org_id="org_1", customer_id=NO_ID, plan_code="starter"), LastKnown(), InMemoryAttempt()
        )
        provider.create_price(OFFER)
        assert provider.find_price("starter") == OFFER
    # Any, because the SDK's own annotations refuse every one of its calls (lago.md 1.4).
    sdk: Any = Client(api_key=KEY, api_url=lago.url)
    lago.respond_with(customer(), subscription(), PLAN_SHOWN, PLAN_SHOWN)
    ours, lago.requests = lago.requests, []
    sdk.customers.create(
        Customer.parse_obj({"external_id": "org_1", "name": "Umbra Labs", "email": "ap@umbra.test", "currency": "EUR"})
    )
    sdk.subscriptions.create(
        Subscription.parse_obj({"external_customer_id": "org_1", "external_id": "org_1", "plan_code": "starter"})
    )
    sdk.plans.create(
        Plan.parse_obj(
            {
                "name": "Starter",
                "code": "starter",
                "interval": "monthly",
                "amount_cents": 1900,
                "amount_currency": "USD",
                "pay_in_advance": True,
            }
        )
    )
    sdk.plans.find("starter")
    assert ours == lago.requests


def test_many_calls_of_many_threads_share_few_connections(lago: ScriptedLago) -> None:
    lago.respond_with(*[customer()] * 80)
    with connected(lago.url) as provider:
        for _ in range(40):
            provider.ensure_customer(SPEC, LastKnown(), InMemoryAttempt())
        assert lago.connections == 1

        def ten_more() -> None:
            for _ in range(10):
                provider.ensure_customer(SPEC, LastKnown(), InMemoryAttempt())

        threads = [threading.Thread(target=ten_more) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(lago.requests) == 80
    assert lago.connections <= 4


@pytest.mark.parametrize("path", ["", "/", "/api/v1", "/api/v1/"])
def test_address_is_understood_with_or_without_its_path(lago: ScriptedLago, path: str) -> None:
    lago.respond_with(customer())
    with connected(lago.url + path) as provider:
        provider.ensure_customer(SPEC, LastKnown(), InMemoryAttempt())
    assert lago.requests[0].target == "/api/v1/customers"


@pytest.mark.parametrize(
    ("imported", "sent"),
    [
        ("acme.com", "acme%2Ecom"),
        ("..", "%2E%2E"),
        ("a/b?c#d", "a%2Fb%3Fc%23d"),
        ("50%", "50%25"),
        ("né o", "n%C3%A9%20o"),
    ],
)
def test_id_cannot_leave_its_place_in_the_address(lago: ScriptedLago, imported: str, sent: str) -> None:
    lago.respond_with(refusal(404, "customer_not_found"), refusal(404, "customer_not_found"))
    with connected(lago.url) as provider, pytest.raises(Exception, match="has no customer"):
        provider.ensure_customer(SPEC, LastKnown(customer_id=imported), InMemoryAttempt())
    assert lago.requests[1].target == f"/api/v1/customers/{sent}"


def test_slow_answer_ends_at_the_total_deadline() -> None:
    def drip(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(600):  # for half a minute
                connection.sendall(b" ")
                time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=lambda: drip(listener.accept()[0]))
        server.start()
        started = time.monotonic()
        with (
            connected(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=0.4) as provider,
            pytest.raises(UnavailableError, match="ReadTimeout"),
        ):
            provider.ensure_customer(SPEC, LastKnown(), InMemoryAttempt())
        assert time.monotonic() - started < 10
        server.join()


def test_refused_connection_is_tried_three_times_within_one_call() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    attempt = InMemoryAttempt()
    with connected(f"http://127.0.0.1:{port}") as provider, pytest.raises(UnavailableError, match="no connection"):
        provider.ensure_customer(SPEC, LastKnown(), attempt)
    assert attempt.request_count == 3


def test_short_outage_is_bridged() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    attempt = InMemoryAttempt()
    ended: list[str] = []

    def make() -> None:
        with connected(f"http://127.0.0.1:{port}") as provider:
            ended.append(provider.ensure_customer(SPEC, LastKnown(customer_id=NO_ID, confirmed=True), attempt).id)

    caller = threading.Thread(target=make)
    caller.start()
    while attempt.request_count < 2:  # the first try has failed
        time.sleep(0.001)
    back = ScriptedLago(port)
    back.respond_with(customer(billing_configuration={}))
    caller.join()
    back.close()
    assert ended == [NO_ID]
    assert attempt.request_count in (2, 3)


def test_lost_answer_is_not_sent_again(lago: ScriptedLago) -> None:
    lago.respond_with(Reply(0), customer())
    with connected(lago.url) as provider, pytest.raises(UnavailableError, match="outcome is unknown"):
        provider.ensure_customer(SPEC, LastKnown(), InMemoryAttempt())
    assert len(lago.requests) == 1


def test_nothing_is_sent_without_the_lease(lago: ScriptedLago) -> None:
    attempt = InMemoryAttempt()
    attempt.lease_lost_after = 0
    with connected(lago.url) as provider:
        with pytest.raises(LeaseLostError):
            provider.ensure_customer(SPEC, LastKnown(), attempt)
        with pytest.raises(LeaseLostError):
            provider.end_subscription(LastKnown(), "org_1", attempt)
        assert lago.requests == []
        attempt.lease_lost_after = 1
        lago.respond_with(refusal(404, "customer_not_found"))
        with pytest.raises(LeaseLostError):
            provider.ensure_customer(SPEC, LastKnown(customer_id="old"), attempt)
    assert len(lago.requests) == 1


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "sn\u00f6w", "tab\t"])
def test_key_that_no_header_can_hold_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ValueError, match="LAGO_API_KEY") as caught:
        LagoProvider("http://127.0.0.1:1", key, payment_provider_code=None, ending=ENDING)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("url", ["", "api.example.test", "ftp://api.example.test"])
def test_no_address_means_no_biller(url: str) -> None:
    with pytest.raises(ValueError, match="http://"):
        LagoProvider(url, KEY, payment_provider_code=None, ending=ENDING)


def test_neither_reprs_nor_logs_hold_secrets(lago: ScriptedLago, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    lago.respond_with(customer(), refusal(500))
    with connected(lago.url) as provider:
        provider.ensure_customer(SPEC, LastKnown(), InMemoryAttempt())
        with pytest.raises(UnavailableError) as caught:
            provider.ensure_customer(SPEC, LastKnown(), InMemoryAttempt())
        shown = repr(provider) + repr(vars(provider)) + repr(caught.value) + caplog.text
    assert not any(secret in shown for secret in (KEY, "Umbra", "umbra.test"))
