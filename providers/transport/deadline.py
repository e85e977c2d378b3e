"""HTTP calls that end in time: connecting, TLS, sending and the last byte of the answer share one deadline.

httpx bounds each phase and each read, so a server that drips one byte a second holds a worker for ever. Here every
socket operation gets what is left of its call's seconds. Too late is ``httpx.ConnectTimeout``, ``WriteTimeout``,
``ReadTimeout`` or ``PoolTimeout``; whatever else goes wrong on the wire is httpx's own ``TransportError`` too, and
only ``ConnectError`` and ``ConnectTimeout`` prove that nothing of the request was sent. Looking up a host name is
the one wait that stays outside: the operating system bounds it (resolv.conf).

    http = deadline.client(seconds=10.0)
    http.get(url)                                   # at most 10 s in all
    http.get(url, extensions={"deadline": 2.0})     # this one at most 2 s

For Stripe: ``stripe.HTTPXClient`` takes no transport and no client (it builds both, stripe/_http_client.py), so give
``StripeClient(http_client=…)`` a subclass of the public ``stripe.HTTPClient`` whose ``request`` sends through
``deadline.client()`` and turns ``httpx.TransportError`` into ``stripe.APIConnectionError``.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator

import httpcore
import httpx

LARGEST_ANSWER = 16 * 2**20  # bytes on the wire; a list page of ours is far below one million

# Below the 5 s after which common servers (uvicorn's default) drop an idle connection: a request written into
# one that is just being dropped is lost, and we could not tell whether it arrived.
KEEP_IDLE = 4.0

_AS_HTTPX: dict[type[Exception], type[httpx.TransportError]] = {
    httpcore.ConnectTimeout: httpx.ConnectTimeout,
    httpcore.ReadTimeout: httpx.ReadTimeout,
    httpcore.WriteTimeout: httpx.WriteTimeout,
    httpcore.PoolTimeout: httpx.PoolTimeout,
    httpcore.ConnectError: httpx.ConnectError,
    httpcore.ReadError: httpx.ReadError,
    httpcore.WriteError: httpx.WriteError,
    httpcore.LocalProtocolError: httpx.LocalProtocolError,
    httpcore.RemoteProtocolError: httpx.RemoteProtocolError,
    httpcore.UnsupportedProtocol: httpx.UnsupportedProtocol,
}
_WIRE_ERRORS = tuple(_AS_HTTPX)


Admits = Callable[[str], bool]
"""Whether a numeric address may be connected to."""


class AddressRefusedError(Exception):
    """The host leads to no address that may be connected to: why there was a ``ConnectError``."""


def client(
    seconds: float, *, max_connections: int = 20, tls: ssl.SSLContext | None = None, admits: Admits | None = None
) -> httpx.Client:
    """A pooled keep-alive client: each call, answer read, takes at most ``seconds``.

    TLS is verified; ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` are honoured for companies with their own authority.
    Proxy variables are not: a proxy would see the keys. Redirects are answers, not followed. Build it after the
    fork: a socket shared by two processes corrupts both streams.
    """
    transport = DeadlineTransport(seconds, max_connections=max_connections, tls=tls, admits=admits)
    return httpx.Client(transport=transport, timeout=None, trust_env=False, follow_redirects=False)  # noqa: S113 - the transport's deadline


class DeadlineTransport(httpx.BaseTransport):
    def __init__(
        self,
        seconds: float,
        *,
        max_connections: int,
        tls: ssl.SSLContext | None = None,
        admits: Admits | None = None,
    ) -> None:
        self._seconds = seconds
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls or httpx.create_ssl_context(),
            max_connections=max_connections,
            keepalive_expiry=KEEP_IDLE,
            network_backend=_Network(admits),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if not isinstance(request.stream, httpx.SyncByteStream):
            message = "an async body cannot be sent by a synchronous transport"
            raise TypeError(message)
        left = _Left.of(float(request.extensions.get("deadline", self._seconds)))
        timeouts = dict.fromkeys(("pool", "connect", "write", "read"), left)
        core_request = httpcore.Request(
            method=request.method,
            url=httpcore.URL(
                scheme=request.url.raw_scheme,
                host=request.url.raw_host,
                port=request.url.port,
                target=request.url.raw_path,
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions={**request.extensions, "timeout": timeouts},
        )
        try:
            answer = self._pool.handle_request(core_request)
        except _WIRE_ERRORS as error:
            raise _AS_HTTPX[type(error)](str(error)) from error
        return httpx.Response(
            status_code=answer.status, headers=answer.headers, stream=_Body(answer), extensions=answer.extensions
        )

    def close(self) -> None:
        self._pool.close()


class _Left(float):
    """The seconds a call has, which httpcore hands through to each socket operation, and the moment they end."""

    ends_at: float

    @classmethod
    def of(cls, seconds: float) -> _Left:
        left = cls(seconds)
        left.ends_at = time.monotonic() + seconds
        return left


def _left(timeout: float | None, too_late: type[Exception]) -> float | None:
    if not isinstance(timeout, _Left):
        return timeout
    left = timeout.ends_at - time.monotonic()
    if left <= 0:
        message = f"not done within {float(timeout):g} s"
        raise too_late(message)
    return left


class _Body(httpx.SyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        try:
            for chunk in self._answer.iter_stream():
                size += len(chunk)
                if size > LARGEST_ANSWER:
                    message = f"the answer is larger than {LARGEST_ANSWER} bytes"
                    raise httpx.RemoteProtocolError(message)
                yield chunk
        except _WIRE_ERRORS as error:
            raise _AS_HTTPX[type(error)](str(error)) from error

    def close(self) -> None:
        self._answer.close()


class _Network(httpcore.NetworkBackend):
    def __init__(self, admits: Admits | None) -> None:
        self._sockets = httpcore.SyncBackend()
        self._admits = admits

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            found = self._found(host, port)
        except (OSError, UnicodeError, AddressRefusedError) as error:
            # Within this handler the error is the context, too: httpcore's pool takes its cause away.
            raise httpcore.ConnectError(str(error)) from error
        # One by one, because socket.create_connection gives the whole timeout to each address.
        refused: httpcore.ConnectError = httpcore.ConnectError(f"{host} has no address")
        for address in found:
            left = _left(timeout, httpcore.ConnectTimeout)
            try:
                stream = self._sockets.connect_tcp(address, port, left, local_address, socket_options)
            except httpcore.ConnectError as error:
                refused = error
            else:
                return _Stream(stream)
        raise refused

    def _found(self, host: str, port: int) -> list[str]:
        found = [str(address[0]) for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        if self._admits is None:
            return found
        admitted = [address for address in found if self._admits(address)]
        if not admitted:
            message = f"{host} leads to no address that may be connected to"
            raise AddressRefusedError(message)
        return admitted


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # Not the wrapped stream's write: it gives the whole timeout to every piece that the peer accepts.
        raw: socket.socket = self._stream.get_extra_info("socket")
        try:
            while buffer:
                raw.settimeout(_left(timeout, httpcore.WriteTimeout))
                buffer = buffer[raw.send(buffer) :]
        except TimeoutError as error:
            raise httpcore.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)
