"""A call ends in time and by httpx's own error, whatever the server on the other side of a real socket does."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from providers.transport import deadline
from tests.support.waiting import PATIENCE_SECONDS, until

Serve = Callable[[socket.socket], None]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"


class LoopbackServer:
    """Accepts on loopback; each connection is given to ``serve`` in a thread of its own, then reset or closed."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._served: list[tuple[threading.Thread, socket.socket]] = []
        self.connections = 0
        self.stopping = threading.Event()
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/"

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self.stopping.is_set():
                connection.close()
                return
            self.connections += 1
            thread = threading.Thread(target=self._one, args=(connection,))
            thread.start()
            self._served.append((thread, connection))

    def _one(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._serve(connection)

    def close(self) -> None:
        self.stopping.set()
        with socket.create_connection(self._listener.getsockname()):
            self._acceptor.join()
        for thread, connection in self._served:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()
        self._listener.close()


@pytest.fixture
def server() -> Iterator[Callable[[Serve], LoopbackServer]]:
    with contextlib.ExitStack() as stack:

        def start(serve: Serve) -> LoopbackServer:
            running = LoopbackServer(serve)
            stack.callback(running.close)
            return running

        yield start


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with deadline.client(10.0, max_connections=2) as client:
        yield client


@pytest.fixture
def hasty() -> Iterator[httpx.Client]:
    with deadline.client(0.4, max_connections=2) as client:
        yield client


def drip(data: bytes, before: bytes = b"") -> Serve:
    """Ask nothing, then send ``data`` byte by byte, each far inside any per-read timeout, for half a minute."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(before)
        for byte in itertools.islice(itertools.cycle(data), 600):
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    return serve


def never_answer(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def answer(connection: socket.socket) -> None:
    while connection.recv(65536):
        connection.sendall(HEAD + b"hello")


@contextlib.contextmanager
def ending_soon() -> Iterator[None]:
    """Far later than the deadline of half a second, and far sooner than what the other side does."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "serve",
    [
        pytest.param(drip(b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 700), id="drips headers"),
        pytest.param(drip(b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"), id="drips body"),
        pytest.param(drip(b"1\r\nx\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), id="drips chunks"),
        pytest.param(drip(b"HTTP/1.1 102 Processing\r\n\r\n"), id="sends interim answers for ever"),
        pytest.param(never_answer, id="never answers"),
    ],
)
def test_slow_answer_ends_at_the_deadline(
    server: Callable[[Serve], LoopbackServer], hasty: httpx.Client, serve: Serve
) -> None:
    url = server(serve).url
    with ending_soon(), pytest.raises(httpx.ReadTimeout):
        hasty.get(url)


def test_deadline_can_be_set_for_one_call(server: Callable[[Serve], LoopbackServer]) -> None:
    url = server(never_answer).url
    with deadline.client(30.0) as client, ending_soon(), pytest.raises(httpx.ReadTimeout):
        client.get(url, extensions={"deadline": 0.2})


def test_body_that_nobody_reads_ends_at_the_deadline(
    server: Callable[[Serve], LoopbackServer], hasty: httpx.Client
) -> None:
    def take_a_sip_a_moment(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        while connection.recv(20_000):
            time.sleep(0.05)

    url = server(take_a_sip_a_moment).url
    with ending_soon(), pytest.raises(httpx.WriteTimeout):
        hasty.post(url, content=b"x" * 50_000_000)


def test_waiting_for_a_free_connection_counts(server: Callable[[Serve], LoopbackServer]) -> None:
    released = threading.Event()

    def hold(connection: socket.socket) -> None:
        released.wait(PATIENCE_SECONDS)
        connection.close()

    running = server(hold)
    with deadline.client(30.0, max_connections=1) as client:

        def occupy() -> None:
            with pytest.raises(httpx.TransportError):
                client.get(running.url)

        other = threading.Thread(target=occupy)
        other.start()
        until(lambda: running.connections == 1, "the other has the connection")
        with ending_soon(), pytest.raises(httpx.PoolTimeout):
            client.get(running.url, extensions={"deadline": 0.1})
        released.set()
        other.join()


def test_tls_handshake_that_never_comes_ends_at_the_deadline(
    server: Callable[[Serve], LoopbackServer], hasty: httpx.Client
) -> None:
    url = server(never_answer).url.replace("http:", "https:")
    with ending_soon(), pytest.raises(httpx.ConnectTimeout):
        hasty.get(url)


def test_refused_connection_is_a_connect_error(http: httpx.Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(httpx.ConnectError):
        http.get(f"http://127.0.0.1:{port}/")


def test_host_that_cannot_be_looked_up_is_a_connect_error(http: httpx.Client) -> None:
    no_name_at_all = "a" * 70  # refused before any name server is asked
    with pytest.raises(httpx.ConnectError):
        http.get(f"http://{no_name_at_all}/")


def test_reset_after_the_request_is_a_read_error(server: Callable[[Serve], LoopbackServer], http: httpx.Client) -> None:
    def reset(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    with pytest.raises(httpx.ReadError):
        http.get(server(reset).url)


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe", b"220 smtp.example\r\n"], ids=repr
)
def test_answer_that_stops_or_is_no_http_is_a_protocol_error(
    server: Callable[[Serve], LoopbackServer], http: httpx.Client, said: bytes
) -> None:
    def say(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(said)

    with pytest.raises(httpx.RemoteProtocolError):
        http.get(server(say).url)


def test_endless_answer_is_cut(server: Callable[[Serve], LoopbackServer]) -> None:
    def pour(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(40):
            connection.sendall(b"x" * 2**20)

    url = server(pour).url
    with deadline.client(10.0) as client, pytest.raises(httpx.RemoteProtocolError, match="the response exceeds"):
        client.get(url)


def test_many_calls_share_one_connection_and_a_timeout_does_not_poison_it(
    server: Callable[[Serve], LoopbackServer], http: httpx.Client
) -> None:
    running = server(answer)
    silent = server(never_answer)
    assert [http.get(running.url).text for _ in range(20)] == ["hello"] * 20
    with pytest.raises(httpx.ReadTimeout):
        http.get(silent.url, extensions={"deadline": 0.2})
    assert http.get(running.url).text == "hello"
    assert running.connections == 1


def test_proxy_of_the_environment_is_not_used(
    server: Callable[[Serve], LoopbackServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    url = server(answer).url
    with deadline.client(10.0) as client:
        assert client.get(url).text == "hello"
