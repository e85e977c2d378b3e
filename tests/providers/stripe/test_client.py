"""What leaves the door to Stripe: named errors with ids in them, never a key, a name, an address or an SDK object."""

from __future__ import annotations

import contextlib
import pickle
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from core.ports.errors import (
    LeaseLostError,
    MisconfiguredError,
    OutcomeUnknownError,
    ProviderError,
    RejectedError,
    ThrottledError,
    UnavailableError,
)
from providers.stripe.client import StripeClient, with_idempotency_key, with_new_idempotency_key
from providers.stripe.responses import StripeCustomer, StripePage
from providers.transport.permits import UnlimitedPermits
from tests.support.in_memory_attempt import InMemoryAttempt
from tests.support.stripe_stub import EMAIL, KEY, NAME, StripeStub, running

INVALID = "invalid_request_error"


@pytest.fixture
def stub() -> Iterator[StripeStub]:
    with running() as stub:
        yield stub


@contextlib.contextmanager
def opened(url: str, seconds: float = 10.0) -> Iterator[StripeClient]:
    client = StripeClient(KEY, url, seconds)
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def client(stub: StripeStub) -> Iterator[StripeClient]:
    with opened(stub.url) as client:
        yield client


def update(client: StripeClient, attempt: InMemoryAttempt | None = None) -> StripeCustomer:
    options = with_new_idempotency_key("test")
    return client.send(
        attempt or UnlimitedPermits(may_write=True),
        "POST /v1/customers/{id}",
        "update customer cus_1",
        lambda: client.v1.customers.update("cus_1", {"name": NAME, "email": EMAIL}, options),
        StripeCustomer,
    )


def failure(client: StripeClient) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        update(client)
    return caught.value


class Case(NamedTuple):
    status: int
    error: dict[str, str]
    kind: type[ProviderError]
    message: str


CASES = [
    Case(400, {"type": INVALID, "code": "parameter_missing", "param": "items"}, RejectedError, "correct"),
    Case(400, {"type": INVALID, "code": "parameter_unknown", "param": "nam"}, RejectedError, "run `billing-sync retry"),
    Case(400, {"type": INVALID, "code": "parameter_invalid_empty", "param": "x"}, RejectedError, "correct"),
    Case(400, {"type": INVALID, "code": "parameter_invalid_integer"}, RejectedError, "correct"),
    Case(400, {"type": INVALID, "code": "parameters_exclusive"}, RejectedError, "correct"),
    Case(400, {"type": INVALID, "code": "email_invalid", "param": "email"}, RejectedError, "the email address"),
    Case(400, {"type": INVALID, "code": "url_invalid"}, RejectedError, "correct"),
    Case(400, {"type": INVALID}, RejectedError, "names no field"),
    Case(404, {"type": INVALID, "code": "resource_missing", "param": "id"}, RejectedError, "no such object"),
    Case(400, {"type": INVALID, "code": "resource_missing", "param": "customer"}, RejectedError, "no such"),
    Case(400, {"type": INVALID, "code": "resource_already_exists"}, RejectedError, "already exists"),
    Case(400, {"type": INVALID, "code": "invalid_canceled_subscription_fields"}, RejectedError, "ended"),
    Case(400, {"type": INVALID, "code": "customer_max_subscriptions"}, RejectedError, "duplicates"),
    Case(400, {"type": INVALID, "code": "livemode_mismatch"}, MisconfiguredError, "STRIPE_SECRET_KEY"),
    Case(400, {"type": INVALID, "code": "testmode_charges_only"}, MisconfiguredError, "STRIPE_SECRET_KEY"),
    Case(400, {"type": "idempotency_error"}, OutcomeUnknownError, "idempotency key"),
    Case(401, {"type": INVALID}, MisconfiguredError, "STRIPE_SECRET_KEY"),
    Case(401, {"type": INVALID, "code": "api_key_expired"}, MisconfiguredError, "STRIPE_SECRET_KEY"),
    Case(402, {"type": "card_error", "code": "card_declined"}, RejectedError, "customer must act"),
    Case(403, {"type": INVALID}, MisconfiguredError, "permission"),
    Case(424, {"type": "api_error"}, UnavailableError, "depends on"),
    Case(429, {"type": INVALID, "code": "rate_limit"}, ThrottledError, "too many"),
    Case(400, {"type": INVALID, "code": "rate_limit"}, ThrottledError, "too many"),
    Case(500, {"type": "api_error"}, UnavailableError, "failed"),
    Case(503, {"type": "api_error"}, UnavailableError, "failed"),
    Case(400, {"type": INVALID, "code": "made_up_tomorrow"}, RejectedError, "unlisted"),
    Case(418, {"type": "teapot_error"}, RejectedError, "unlisted"),
]


@pytest.mark.parametrize("case", CASES)
def test_each_failure_is_named_once_and_after_one_request(stub: StripeStub, client: StripeClient, case: Case) -> None:
    stub.refuse(case.status, case.error)
    named = failure(client)
    assert type(named) is case.kind
    assert case.message in named.message
    assert "update customer cus_1" in named.message
    assert named.request_id == "req_1"
    assert case.error.get("param", "") in named.message
    assert case.error.get("code") in {named.code, None}
    assert len(stub.requests) == 1


MISSING_RIGHT = (
    f"The provided key '{KEY}' does not have the required permissions for this endpoint on account 'acct_1'. Having "
    "{} would allow this request to continue."
)
ONE_RIGHT = MISSING_RIGHT.format("the 'rak_credit_note_write' permission")
TWO_RIGHTS = MISSING_RIGHT.format("the 'rak_invoice_read', 'rak_credit_note_write' permissions")
NEW_WORDS = (
    "Permission denied. Enabling \"Credit notes Write\" ('credit_note_write') permissions on this key would allow this"
)


def forbidden(stub: StripeStub, client: StripeClient, operation: str, message: str) -> ProviderError:
    stub.refuse(403, {"type": INVALID, "message": message})
    with pytest.raises(ProviderError) as caught:
        client.send(
            UnlimitedPermits(may_write=True),
            operation,
            "ask Stripe",
            lambda: client.v1.customers.retrieve("cus_1"),
            StripeCustomer,
        )
    assert KEY not in repr(vars(caught.value))
    return caught.value


@pytest.mark.parametrize(
    ("operation", "message", "named"),
    [
        ("POST /v1/credit_notes", ONE_RIGHT, "permission rak_credit_note_write,"),
        ("GET /v1/invoices", TWO_RIGHTS, "permission rak_invoice_read or rak_credit_note_write,"),
        ("POST /v1/invoices/{id}/finalize", NEW_WORDS, "permission credit_note_write,"),
        ("GET /v1/prices", MISSING_RIGHT.format("more permissions"), "status 403"),
    ],
)
def test_a_right_that_only_some_requests_need_parks_what_needs_it_and_is_named(
    stub: StripeStub, client: StripeClient, operation: str, message: str, named: str
) -> None:
    error = forbidden(stub, client, operation, message)
    assert (type(error), error.code) == (RejectedError, "missing_permission")
    assert named in error.message
    assert "grant it to STRIPE_SECRET_KEY" in error.message
    assert "`billing-sync retry --error missing_permission`" in error.message


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ("GET /v1/account", ONE_RIGHT),
        ("POST /v1/customers/{id}", ONE_RIGHT),
        ("GET /v1/customers/search", ONE_RIGHT),
        ("DELETE /v1/subscriptions/{id}", ONE_RIGHT),
        ("POST /v1/credit_notes", "The API key does not allow requests from your IP address."),
    ],
)
def test_a_right_that_everything_needs_and_a_refused_key_concern_all_organizations(
    stub: StripeStub, client: StripeClient, operation: str, message: str
) -> None:
    error = forbidden(stub, client, operation, message)
    assert type(error) is MisconfiguredError
    assert ("permission rak_credit_note_write" in error.message) == (message == ONE_RIGHT)


TRANSIENT_ERRORS = [(429, "lock_timeout"), (409, "idempotency_key_in_use"), (409, "")]


@pytest.mark.parametrize(("status", "code"), TRANSIENT_ERRORS)
def test_blip_is_bridged_under_the_same_key(stub: StripeStub, client: StripeClient, status: int, code: str) -> None:
    stub.refuse(status, {"type": INVALID, **({"code": code} if code else {})})
    stub.answer(200, {"id": "cus_1", "object": "customer"})
    attempt = InMemoryAttempt()
    assert update(client, attempt).id == "cus_1"
    assert len({headers["Idempotency-Key"] for _, headers in stub.requests}) == 1
    assert (len(stub.requests), attempt.request_count) == (2, 2)


def test_every_response_tells_the_attempt_its_request_id(stub: StripeStub, client: StripeClient) -> None:
    stub.refuse(409, {"type": INVALID}, {"Request-Id": "req_refused"})
    stub.answer(200, {"id": "cus_1", "object": "customer"}, {"Request-Id": "req_done"})
    attempt = InMemoryAttempt()
    update(client, attempt)
    assert attempt.request_ids == ["req_refused", "req_done"]


@pytest.mark.parametrize(("status", "code"), TRANSIENT_ERRORS)
def test_blip_that_stays_is_unavailable_after_three_tries(
    stub: StripeStub, client: StripeClient, status: int, code: str
) -> None:
    stub.refuse(status, {"type": INVALID, **({"code": code} if code else {})})
    assert type(failure(client)) is UnavailableError
    assert len(stub.requests) == 3


def test_limiter_is_the_code_and_a_named_wait_is_passed_on(stub: StripeStub, client: StripeClient) -> None:
    stub.refuse(429, {"code": "rate_limit"}, {"Stripe-Rate-Limited-Reason": "endpoint-rate", "Retry-After": "7"})
    named = failure(client)
    assert isinstance(named, ThrottledError)
    assert (named.code, named.retry_after) == ("endpoint-rate", 7.0)
    assert len(stub.requests) == 1


@pytest.mark.parametrize("header", [{"Idempotent-Replayed": "true"}, {"Stripe-Should-Retry": "false"}])
def test_failure_that_would_come_back_for_ever_is_told_apart_by_its_header(
    stub: StripeStub, client: StripeClient, header: dict[str, str]
) -> None:
    stub.refuse(500, {"type": "api_error"}, header)
    assert type(failure(client)) is OutcomeUnknownError


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (502, "<html>Bad Gateway</html>", UnavailableError),
        (200, "<html>Log in to the hotel's network</html>", MisconfiguredError),
        (404, "<html>not here</html>", MisconfiguredError),
        (404, '{"error": "no such route"}', MisconfiguredError),
        (503, '{"error": "no healthy upstream"}', UnavailableError),
        (429, '{"message": "slow down"}', ThrottledError),
        (302, "", MisconfiguredError),
        (200, '"a text"', MisconfiguredError),
        (200, '[{"id": "cus_1"}]', MisconfiguredError),
        (200, '{"object": "customer"}', UnavailableError),
    ],
)
def test_answer_that_is_not_stripes_never_counts_as_success(
    stub: StripeStub, client: StripeClient, status: int, body: str, kind: type[ProviderError]
) -> None:
    stub.answer(status, body)
    assert type(failure(client)) is kind


@pytest.mark.parametrize("status", [400, 401, 404, 409, 429, 500])
def test_error_tells_no_key_no_name_and_no_address_however_it_is_printed(
    stub: StripeStub, client: StripeClient, status: int
) -> None:
    stub.refuse(status, {"type": INVALID, "param": "email"})
    named = failure(client)
    told = [
        str(named),
        repr(named),
        repr(vars(named)),
        pickle.dumps(named).decode("latin-1"),
        "".join(traceback.format_exception(named)),
        repr(client),
    ]
    for secret in (KEY, NAME, EMAIL):
        assert not [text for text in told if secret in text]
    assert (named.__cause__, named.__context__) == (None, None)
    again = pickle.loads(pickle.dumps(named))  # noqa: S301 - our own bytes
    assert (type(again), again.args) == (type(named), named.args)


def test_sdk_logs_nothing_of_a_request(
    stub: StripeStub, client: StripeClient, caplog: pytest.LogCaptureFixture
) -> None:
    stub.refuse(400, {"type": INVALID})
    with caplog.at_level("DEBUG"):
        failure(client)
    for secret in (KEY, NAME, EMAIL, "Secret+Customer"):
        assert secret not in caplog.text


def test_refused_connection_is_tried_three_times_and_then_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    attempt = InMemoryAttempt()
    with opened(f"http://127.0.0.1:{port}") as client, pytest.raises(UnavailableError, match="nothing was sent"):
        update(client, attempt)
    assert attempt.request_count == 3


def served(serve: Callable[[socket.socket], None]) -> contextlib.AbstractContextManager[str]:
    """One connection, given to ``serve`` in a thread."""

    @contextlib.contextmanager
    def running() -> Iterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def accept() -> None:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    serve(connection)

            thread = threading.Thread(target=accept)
            thread.start()
            yield f"127.0.0.1:{listener.getsockname()[1]}"
            thread.join()

    return running()


def drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(600):  # for half a minute
        connection.sendall(b" ")
        time.sleep(0.05)


def test_dripping_answer_ends_at_the_total_deadline() -> None:
    with served(drip) as address, opened(f"http://{address}", seconds=0.4) as client:
        started = time.monotonic()
        with pytest.raises(UnavailableError, match="outcome is unknown"):
            update(client)
        assert time.monotonic() - started < 10
        client.close()


def test_tls_that_cannot_be_is_a_matter_for_a_person() -> None:
    with served(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as address:
        attempt = InMemoryAttempt()
        with opened(f"https://{address}") as client, pytest.raises(MisconfiguredError, match="TLS"):
            update(client, attempt)
        assert attempt.request_count == 1


def test_lost_lease_stops_before_anything_is_sent(stub: StripeStub, client: StripeClient) -> None:
    stub.answer(200, {"id": "cus_1", "object": "customer"})
    attempt = InMemoryAttempt()
    attempt.lease_lost_after = 0
    with pytest.raises(LeaseLostError):
        update(client, attempt)
    assert stub.requests == []


def test_lease_lost_between_two_tries_stops_the_second(stub: StripeStub, client: StripeClient) -> None:
    stub.refuse(409, {"type": INVALID})
    attempt = InMemoryAttempt()
    attempt.lease_lost_after = 1
    with pytest.raises(LeaseLostError):
        update(client, attempt)
    assert len(stub.requests) == 1


def test_many_calls_of_many_threads_share_few_connections(stub: StripeStub, client: StripeClient) -> None:
    stub.answer(200, {"id": "cus_1", "object": "customer"})
    for _ in range(30):
        update(client)
    assert len(stub.connections) == 1
    for _ in range(20):
        thread = threading.Thread(target=update, args=(client,))
        thread.start()
        thread.join()
    assert len(stub.connections) == 1


def test_nothing_about_the_last_call_is_reported_with_the_next(stub: StripeStub, client: StripeClient) -> None:
    stub.answer(200, {"id": "cus_1", "object": "customer"})
    update(client)
    update(client)
    assert not [headers for _, headers in stub.requests if "X-Stripe-Client-Telemetry" in headers]


def test_list_that_does_not_end_is_ambiguous_not_half_read(stub: StripeStub, client: StripeClient) -> None:
    stub.answer(200, {"object": "list", "has_more": True, "data": [{"id": "cus_1", "object": "customer"}]})
    with pytest.raises(ProviderError, match="too many to be certain"):
        client.list_all(
            UnlimitedPermits(may_write=True),
            "GET /v1/customers",
            "list customers",
            lambda _: client.v1.customers.list({"limit": 100}),
            StripePage[StripeCustomer],
            3,
        )
    assert len(stub.requests) == 3


def test_empty_idempotency_key_is_refused_before_the_sdk_makes_one_up() -> None:
    with pytest.raises(ValueError, match="empty"):
        with_idempotency_key("")


@pytest.mark.parametrize(("key", "base"), [("", "http://127.0.0.1:1"), (KEY, ""), (KEY, "api.stripe.com")])
def test_missing_key_or_address_is_refused_at_once(key: str, base: str) -> None:
    with pytest.raises(ValueError, match=r"STRIPE_(SECRET_KEY|API_BASE)"):
        StripeClient(key, base, 1.0)


@pytest.mark.parametrize("account_id", ["acct_1", None])
def test_an_organization_key_names_its_account_in_each_request(stub: StripeStub, account_id: str | None) -> None:
    stub.answer(200, {"id": "cus_1", "object": "customer"})
    client = StripeClient(KEY, stub.url, 10.0, account_id)
    try:
        update(client)
    finally:
        client.close()
    ((_, headers),) = stub.requests
    assert {name.lower(): value for name, value in headers.items()}.get("stripe-context") == account_id
