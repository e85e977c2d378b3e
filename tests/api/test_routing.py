"""Who has no credentials is answered before the body, and what all bodies take in memory is bounded."""

from __future__ import annotations

import select
import socket
from contextlib import ExitStack

import pytest

from api.request_limits import (
    MAX_BODY_MEMORY_OF_CALLER,
    MAX_PUBLIC_BODY_MEMORY,
    MAX_PUBLIC_BODY_MEMORY_OF_ADDRESS,
)
from api.routes.events import EVENT_BATCH_MEDIA_TYPE
from api.routing import MAX_API_BODY_BYTES, MAX_EVENT_BATCH_BYTES
from providers.stripe.webhooks import StripeWebhookParser
from tests.support.api_client import Api
from tests.support.waiting import until

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def stripe_webhooks() -> StripeWebhookParser | None:
    return StripeWebhookParser("whsec_of_the_tests")


def begin(
    api: Api, path: str, size: int, authorization: str = "", *headers: str, address: str = "127.0.0.1"
) -> socket.socket:
    """Send the head of a request and all of its body but the last byte."""
    server = ("127.0.0.1", int(api.url.rsplit(":", 1)[1]))
    connection = socket.create_connection(server, timeout=60, source_address=(address, 0))
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {size}", *headers]
    if authorization:
        lines.append(f"Authorization: {authorization}")
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + b" " * (size - 1))
    return connection


def status(connection: socket.socket) -> int:
    return int(connection.recv(12).split()[1])


@pytest.mark.parametrize("authorization", ["", "Bearer bsk_0000000000000000_" + "A" * 43, "Basic abc"])
def test_a_caller_without_credentials_is_answered_before_the_body(api: Api, authorization: str) -> None:
    for path in ("/api/events", "/api/organizations"):
        with begin(api, path, 1000, authorization, "Expect: 100-continue") as connection:
            assert status(connection) == 401
            assert b"connection: close" in connection.recv(65_536).lower()


def test_a_length_that_is_too_large_is_refused_before_the_body(api: Api) -> None:
    key = api.as_service()["Authorization"]
    for path, max_bytes in (("/api/organizations", MAX_API_BODY_BYTES), ("/api/events", MAX_EVENT_BATCH_BYTES)):
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nContent-Length: {max_bytes + 1}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", int(api.url.rsplit(":", 1)[1])), timeout=60) as connection:
            connection.sendall(head.encode())
            assert status(connection) == 413


@pytest.mark.parametrize("option", ["close", "TE, close"])
@pytest.mark.parametrize("path", ["/api/events", "/nowhere"])
def test_a_client_that_closes_gets_the_response_to_a_body_that_nobody_reads(api: Api, path: str, option: str) -> None:
    """As nginx does: it sends the whole body and closes. An earlier response would be lost with the connection."""
    with begin(api, path, 8_000_000, "", f"Connection: {option}") as connection:
        connection.sendall(b" ")
        assert status(connection) == (401 if path == "/api/events" else 404)


@pytest.mark.slow
def test_bodies_of_unknown_callers_take_a_bounded_amount_of_memory(api: Api) -> None:
    size = MAX_API_BODY_BYTES
    count = MAX_PUBLIC_BODY_MEMORY_OF_ADDRESS // size
    with ExitStack() as stack:
        begun = [stack.enter_context(begin(api, "/webhooks/stripe", size)) for _ in range(count + 1)]
        assert status_of_the_answered(begun) == 429
        assert whole(api, "/api/events", size, api.as_service()["Authorization"]) == 422
    until(lambda: whole(api, "/webhooks/stripe", size, "") == 401, "the memory is given back")


@pytest.mark.slow
def test_bodies_that_never_arrive_keep_no_webhook_out(api: Api) -> None:
    size = MAX_API_BODY_BYTES
    of_address = MAX_PUBLIC_BODY_MEMORY_OF_ADDRESS // size
    with ExitStack() as stack:
        begun = [
            stack.enter_context(begin(api, "/webhooks/stripe", size, address=f"127.0.0.{20 + number // of_address}"))
            for number in range(MAX_PUBLIC_BODY_MEMORY // size + 1)
        ]
        assert status_of_the_answered(begun) == 408
        assert whole(api, "/webhooks/stripe", size, "") == 401


@pytest.mark.slow
def test_bodies_of_one_caller_take_a_bounded_amount_of_memory(api: Api) -> None:
    mine, others = api.as_service()["Authorization"], api.as_service(account="others")["Authorization"]
    size = MAX_EVENT_BATCH_BYTES
    count = MAX_BODY_MEMORY_OF_CALLER // size
    with ExitStack() as stack:
        begun = [stack.enter_context(begin(api, "/api/events", size, mine)) for _ in range(count + 1)]
        assert status_of_the_answered(begun) == 429
        assert whole(api, "/api/events", size, others) == 422
    until(lambda: whole(api, "/api/events", size, mine) == 422, "the memory is given back")


def status_of_the_answered(begun: list[socket.socket]) -> int:
    """None has sent its last byte, so each answer is a refusal; there is one."""
    until(lambda: select.select(begun, [], [], 0)[0], "one is answered")
    (answered,) = select.select(begun, [], [], 0)[0]
    assert isinstance(answered, socket.socket)
    return status(answered)


def whole(api: Api, path: str, size: int, authorization: str) -> int:
    with begin(api, path, size, authorization, f"Content-Type: {EVENT_BATCH_MEDIA_TYPE}") as connection:
        connection.sendall(b" ")
        return status(connection)
