"""The contract check accepts what the SDKs really send, costs almost nothing, and says when documents are missing."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal, Protocol, cast

import pytest
import requests
import stripe
from lago_python_client import Client
from lago_python_client.exceptions import LagoApiError
from lago_python_client.models import Customer, Subscription

from tests.contract import available, lago_requests, stripe_requests, violations, where

needs_documents = pytest.mark.skipif(not available(), reason=where())

FORM = "application/x-www-form-urlencoded"
Sent = tuple[str, str, str, bytes, str]


class LagoResource(Protocol):
    """The methods of the SDK's resources; their own types require arguments that do not exist (lago.md 1.4)."""

    def create(self, body: object) -> object: ...
    def find(self, resource_id: str) -> object: ...
    def find_all(self, options: dict[str, object]) -> object: ...
    def update(self, body: object, resource_id: str) -> object: ...
    def destroy(self, resource_id: str, options: dict[str, object]) -> object: ...


class Recorder(ThreadingHTTPServer):
    """Loopback server that stores its requests and responds 404 in a format that both SDKs understand."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), RefuseAll)
        self.sent: list[Sent] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class RefuseAll(BaseHTTPRequestHandler):
    def answer(self) -> None:
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        cast(Recorder, self.server).sent.append((self.command, path, query, body, self.headers.get("Content-Type", "")))
        content = b'{"status": 404, "error": {"type": "invalid_request_error", "message": "refused"}}'
        self.send_response(404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - the names the standard library calls

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the standard library
        """Log nothing to the test's output."""


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def stripe_calls(client: stripe.StripeClient) -> list[Callable[[], object]]:
    v1 = client.v1
    new: stripe.params.SubscriptionCreateParams = {
        "customer": "cus_1",
        "items": [{"price": "price_1", "quantity": 3}],
        "collection_method": "send_invoice",
        "days_until_due": 30,
        "metadata": {"org_id": "org_1"},
        "billing_mode": {"type": "flexible"},
    }
    return [
        lambda: v1.customers.create({"name": "Acme & Söhne", "email": "a+b@acme.test", "metadata": {"org_id": "1"}}),
        lambda: v1.customers.update("cus_1", {"name": "", "metadata": {"old": ""}}),
        lambda: v1.customers.list({"created": {"gte": 1, "lte": 2}, "limit": 100}),
        lambda: v1.customers.search({"query": "metadata['org_id']:'org_1'"}),
        lambda: v1.prices.list({"lookup_keys": ["team_m", "pro_m"], "active": True, "expand": ["data.product"]}),
        lambda: v1.subscriptions.create(new),
        lambda: v1.subscriptions.update("sub_1", {"items": [{"id": "si_1", "price": "p"}]}),
        lambda: v1.subscriptions.update("sub_1", {"billing_cycle_anchor": {"type": "now"}}),
        lambda: v1.subscriptions.cancel("sub_1", {"invoice_now": True, "prorate": False}),
        lambda: v1.subscriptions.pause("sub_1", {"type": "subscription"}),
        lambda: v1.subscriptions.list({"customer": "cus_1", "status": "all"}),
        lambda: v1.events.list({"type": "customer.created", "created": {"gte": 1}}),
        v1.accounts.retrieve_current,
    ]


def lago_calls(client: Client) -> list[Callable[[], object]]:
    customers, subscriptions, plans = (
        cast(LagoResource, resource) for resource in (client.customers, client.subscriptions, client.plans)
    )
    configuration = {"payment_provider": "stripe", "payment_provider_code": "main", "provider_customer_id": "cus_1"}
    customer = {"external_id": "org_1", "name": "Acme", "billing_configuration": configuration, "currency": "EUR"}
    subscription = {"external_id": "org_1", "external_customer_id": "org_1", "plan_code": "team_m"}
    return [
        lambda: customers.create(Customer.parse_obj({**customer, "metadata": [{"key": "org_id", "value": "1"}]})),
        lambda: customers.find("org_1"),
        lambda: customers.find_all({"page": 1, "per_page": 100}),
        lambda: subscriptions.create(Subscription.parse_obj(subscription)),
        lambda: subscriptions.update(Subscription.parse_obj({"name": "Main"}), "org_1"),
        lambda: subscriptions.find_all({"external_customer_id": "org_1", "status[]": ["active", "pending"]}),
        lambda: subscriptions.destroy("org_1", {"status": "pending"}),
        lambda: plans.find("team_m"),
        lambda: plans.find_all({"per_page": 1}),
    ]


def violated(provider: Literal["stripe", "lago"], sent: list[Sent]) -> list[str]:
    return [sentence for request in sent for sentence in violations(provider, *request)]


@needs_documents
def test_what_the_stripe_sdk_sends_is_allowed(recorder: Recorder) -> None:
    stripe.enable_telemetry = False  # it would write an id into the home folder (stripe.md 1.7)
    with requests.Session() as session:
        http = stripe.RequestsClient(session=session)
        calls = stripe_calls(stripe.StripeClient("sk_test_1", http_client=http, base_addresses={"api": recorder.url}))
        for call in calls:
            with pytest.raises(stripe.InvalidRequestError):
                call()
    assert len(recorder.sent) == len(calls)
    assert violated("stripe", recorder.sent) == []


@needs_documents
def test_what_the_lago_sdk_sends_is_allowed(recorder: Recorder) -> None:
    calls = lago_calls(Client(api_key="key", api_url=recorder.url))
    for call in calls:
        with pytest.raises(LagoApiError):
            call()
    assert len(recorder.sent) == len(calls)
    assert violated("lago", recorder.sent) == []


def test_a_checkout_without_the_documents_says_so_and_names_no_path_of_the_machine(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parent, tmp_path / "repository" / "tests" / "contract")
    (tmp_path / "repository" / "tests" / "__init__.py").touch()
    code = "import json; from tests import contract; print(json.dumps([contract.available(), contract.where()]))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "repository", capture_output=True, check=True)
    is_available, sentence = json.loads(ended.stdout)
    assert not is_available
    assert "../shared/specs" in sentence
    assert "lago-openapi.yaml" in sentence
    assert str(tmp_path) not in sentence


@needs_documents
def test_every_difference_of_the_overlays_still_says_something_its_document_does_not() -> None:
    assert stripe_requests.operations().superfluous() == []
    assert lago_requests.operations().superfluous() == []


@needs_documents
def test_every_operation_of_both_documents_compiles() -> None:
    assert stripe_requests.operations().compile_all() >= 150
    assert lago_requests.operations().compile_all() >= 200


LONG_FORM = "&".join(
    ["customer=c", *(f"items[{n}][price]=p{n}" for n in range(5)), *(f"metadata[k{n}]=v" for n in range(10))]
).encode()
CUSTOMER = b'{"customer": {"external_id": "org_1", "country": "ZW", "currency": "ZMW", "timezone": "UTC"}}'
KNOWN: list[tuple[Literal["stripe", "lago"], Sent, int]] = [
    ("stripe", ("POST", "/v1/subscriptions", "", LONG_FORM, FORM), 0),
    ("stripe", ("GET", "/v1/events", "created[gte]=1", b"", ""), 0),
    ("stripe", ("POST", "/v1/customers", "", b"naem=Acme", FORM), 1),
    ("lago", ("POST", "/api/v1/customers", "", CUSTOMER, "application/json"), 0),
    ("lago", ("GET", "/api/v1/subscriptions", "status=pending", b"", ""), 1),
]


@needs_documents
@pytest.mark.parametrize(("provider", "request_", "count"), KNOWN)
def test_a_check_costs_less_than_a_millisecond_after_the_first(
    provider: Literal["stripe", "lago"], request_: Sent, count: int
) -> None:
    spent = []
    for _ in range(50):
        started = time.perf_counter()
        assert len(violations(provider, *request_)) == count
        spent.append(time.perf_counter() - started)
    assert min(spent) < 0.001


@needs_documents
def test_threads_that_meet_at_the_first_use_agree() -> None:
    stripe_requests.operations.cache_clear()
    lago_requests.operations.cache_clear()
    together = threading.Barrier(8)

    def counts(_: int) -> list[int]:
        together.wait(10)
        return [len(violations(provider, *request)) for provider, request, _ in KNOWN * 20]

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(counts, range(8)))
    assert answers == [[count for _, _, count in KNOWN * 20]] * 8


@needs_documents
def test_noise_is_answered_with_sentences_and_never_with_an_exception() -> None:
    noise = [b"", b"\x00", b"=", b"&&", b"[]=1", b"a[=1", b"a]=1", b"a[][]=1", b"a" + b"[b]" * 5000 + b"=1", b"\xff=1"]
    for body in noise:
        violations("stripe", "POST", "/v1/customers", "", body, FORM)
        violations("stripe", "GET", "/v1/customers", body.decode("latin-1"), b"", "")
        violations("lago", "POST", "/api/v1/customers", body.decode("latin-1"), body, "application/json")
