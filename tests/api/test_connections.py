"""Connections of the port: each has a deadline that no byte renews, and no address has them all."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from api.connections import (
    BODY_TIMEOUT_SECONDS,
    MAX_BUFFERED_BYTES,
    MAX_CONNECTIONS_OF_ADDRESS,
    connection_address,
)
from api.context import ApiContext
from api.middleware import DISCARD_SECONDS
from api.rate_limit import LocalClientRateLimiter
from api.server import MAX_HEAD_BYTES, ApiServer
from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.db.database import Database
from tests.support.api_client import Api
from tests.support.waiting import until

one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

SLACK_SECONDS = 8.0  # for a machine that does much else
RESPONSES = 8
UNFINISHED_HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: "
FORGED = "Bearer bsk_0000000000000000_" + "A" * 43


def connect(url: str, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=60, source_address=(address, 0))


def connect_with_a_small_buffer(url: str) -> socket.socket:
    """Of the system, for what the client has not read."""
    connection = socket.socket()
    connection.settimeout(60)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    connection.connect(("127.0.0.1", int(url.rsplit(":", 1)[1])))
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed it; what it sent before does not count."""
    connection.settimeout(0)
    try:
        while connection.recv(65_536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True


@one_database
@pytest.mark.slow
def test_bytes_renew_no_deadline_of_a_connection_without_a_request(api: Api) -> None:
    with ExitStack() as stack:
        names = ("silent", "dripping", "reused", "lingering")
        open_connections = {name: stack.enter_context(connect(api.url)) for name in names}
        _assert_all_are_closed(open_connections)
    assert api.get("/healthz").is_success


def _assert_all_are_closed(open_connections: dict[str, socket.socket]) -> None:
    dripping, reused, lingering = (open_connections[name] for name in ("dripping", "reused", "lingering"))
    reused.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert reused.recv(12) == b"HTTP/1.1 200"
    dripping.sendall(UNFINISHED_HEAD)
    reused.sendall(UNFINISHED_HEAD)
    # It is answered before its body, which then comes a byte a second.
    lingering.sendall(b"POST /api/events HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n")
    assert lingering.recv(12) == b"HTTP/1.1 401"
    began = time.monotonic()
    while open_connections and time.monotonic() - began < BODY_TIMEOUT_SECONDS + SLACK_SECONDS:
        time.sleep(1)
        for name, connection in list(open_connections.items()):
            if is_closed(connection):
                del open_connections[name]
            elif name != "silent":
                connection.send(b"a")
    assert not open_connections


@one_database
def test_liveness_waits_for_no_body(api: Api) -> None:
    """It is outside the bound of requests, so one that waited would keep a place for ``DISCARD_SECONDS``."""
    with connect(api.url) as unfinished:
        unfinished.settimeout(DISCARD_SECONDS - 1)
        unfinished.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9\r\n\r\n")
        assert unfinished.recv(12) == b"HTTP/1.1 200"


@one_database
@pytest.mark.slow
def test_a_head_that_does_not_come_is_answered(api: Api) -> None:
    with connect(api.url) as slow:
        slow.sendall(UNFINISHED_HEAD)
        answer = b""
        while part := slow.recv(65_536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert answer.endswith(b"The request did not arrive in time.")


@pytest.mark.slow
@one_database
def test_one_address_does_not_take_all_connections(api: Api) -> None:
    with ExitStack() as stack:
        connections = [
            stack.enter_context(connect(api.url, "127.0.0.9")) for _ in range(MAX_CONNECTIONS_OF_ADDRESS + 3)
        ]
        until(lambda: sum(map(is_closed, connections)) == 3, "three are closed")
        assert api.get("/healthz").is_success
    with connect(api.url, "127.0.0.9") as later:
        later.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert later.recv(12) == b"HTTP/1.1 200"


@pytest.mark.slow
@one_database
def test_unfinished_heads_take_a_bounded_amount_of_memory(api: Api) -> None:
    part = UNFINISHED_HEAD + b"a" * (MAX_HEAD_BYTES - 1024)
    count = MAX_BUFFERED_BYTES // len(part) + 10
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(api.url)) for _ in range(count)]
        for connection in connections:
            connection.sendall(part)
        until(lambda: sum(map(is_closed, connections)) >= 10, "the oldest are closed")
        assert not is_closed(connections[-1])
        assert api.get("/healthz").is_success


@pytest.mark.slow
@one_database
def test_responses_that_nobody_reads_take_a_bounded_amount_of_memory(api: Api) -> None:
    """The system holds the first bytes of each connection; so what is left of the response differs in size."""
    size = len(api.get("/docs/swagger-ui-bundle.js").content)
    request, smaller = (
        f"GET /docs/swagger-ui{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for name in ("-bundle.js", ".css")
    )
    with ExitStack() as stack:
        count = 4 * MAX_BUFFERED_BYTES // size
        connections = [stack.enter_context(connect_with_a_small_buffer(api.url)) for _ in range(count)]
        for number, connection in enumerate(connections):
            connection.sendall(smaller * (number % 10) + request * RESPONSES)
        until(lambda: any(line["event"] == "connections_refused" for line in api.log), "the oldest is closed")
        assert api.get("/healthz").is_success
        received = 0
        while part := connections[0].recv(1_000_000):
            received += len(part)
        assert received < RESPONSES * size


@one_database
def test_the_rest_of_a_body_after_an_early_response_closes_no_other_connection(api: Api) -> None:
    size = MAX_BUFFERED_BYTES + 1_000_000
    with connect(api.url) as bystander, connect(api.url) as uploader:
        bystander.sendall(UNFINISHED_HEAD)
        uploader.sendall(f"POST /api/events HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
        assert uploader.recv(12) == b"HTTP/1.1 401"
        uploader.sendall(b" " * size)
        bystander.sendall(b"a\r\n\r\n")
        assert bystander.recv(12) == b"HTTP/1.1 200"


@pytest.mark.slow
@one_database
def test_requests_without_their_bodies_keep_nobody_out(api: Api) -> None:
    """Each would wait for the rest of its body before the response that closes, if nothing bounded them."""
    with ExitStack() as stack:
        for path in ("/healthz", "/nowhere"):
            for number in range(2 * MAX_CONNECTIONS_OF_ADDRESS):
                address = f"127.0.0.{100 + number % 4}"
                connection = stack.enter_context(connect(api.url, address))
                head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9\r\n\r\n"
                connection.sendall(head.encode())
        assert [api.get("/healthz").status_code for _ in range(5)] == [200] * 5
        assert api.get("/docs").status_code == 200


@contextmanager
def server_behind_a_proxy(database: Database, plans: Catalog, trusted: list[str]) -> Iterator[str]:
    context = ApiContext(
        database=database, catalog=plans, clock=utc_now, rate_limiter=LocalClientRateLimiter(1, lambda: 0.0)
    )
    with ApiServer(context, "127.0.0.1", 0, version="test", trusted_proxies=trusted) as server:
        yield server.url


@one_database
def test_a_trusted_proxy_names_the_client(database: Database, plans: Catalog) -> None:
    def statuses(url: str) -> list[int]:
        clients = ["198.51.100.1"] * 3 + ["198.51.100.2", "2001:db8::1", "2001:db8::2", "2001:db8::3"]
        return [
            httpx.get(
                f"{url}/api/organizations",
                headers={"Authorization": FORGED, "X-Forwarded-For": f"203.0.113.9, {client}"},
                trust_env=False,
            ).status_code
            for client in clients
        ]

    with server_behind_a_proxy(database, plans, ["127.0.0.0/8"]) as url:
        assert statuses(url) == [401, 401, 429, 401, 401, 401, 429]
    with server_behind_a_proxy(database, plans, []) as url:
        assert statuses(url) == [401, 401, 429, 429, 429, 429, 429]


@pytest.mark.slow
@one_database
def test_a_trusted_proxy_may_have_more_connections(database: Database, plans: Catalog) -> None:
    with server_behind_a_proxy(database, plans, ["127.0.0.9"]) as url, ExitStack() as stack:
        connections = [stack.enter_context(connect(url, "127.0.0.9")) for _ in range(MAX_CONNECTIONS_OF_ADDRESS + 3)]
        for connection in connections:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert {connection.recv(12) for connection in connections} == {b"HTTP/1.1 200"}


def test_a_network_of_ipv6_counts_as_one_address() -> None:
    assert connection_address("2001:db8::1") == connection_address("2001:db8:0:0:ffff::2")
    assert connection_address("2001:db8::1") != connection_address("2001:db8:0:1::1")
    assert connection_address("::ffff:192.0.2.1") == connection_address("192.0.2.1") == "192.0.2.1"
    assert connection_address("fe80::1%eth0") == connection_address("fe80::2")


@pytest.mark.processes
def test_a_process_with_few_files_closes_the_oldest_silent_connections(tmp_path: Path) -> None:
    """Of 400 files, 144 are for connections; 300 silent ones from twelve addresses leave the others their place."""
    program = Path(sys.executable).with_name("billing-sync")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [program, "api", "--port", str(port)],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "DATA_DIR": str(tmp_path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400)),  # noqa: PLW1509 - no thread runs
    )
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: _answers(url), "the API")
        with ExitStack() as stack:
            # Also those whose body never comes, and whose response would end the connection.
            missing = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9\r\n\r\n"
            for head in (b"", missing):
                for number in range(300):
                    stack.enter_context(connect(url, f"127.0.0.{number % 12 + 10}")).sendall(head)
                assert [_answers(url) for _ in range(5)] == [True] * 5
    finally:
        process.terminate()
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", trust_env=False, timeout=30).is_success
    except httpx.TransportError:
        return False
