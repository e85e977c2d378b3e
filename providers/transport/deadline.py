"""HTTP calls with one deadline each, which covers connecting, TLS, sending and the last byte of the response.

httpx bounds each phase and each read, so a server that sends one byte a second would block a worker indefinitely. Here
every socket operation gets what is left of its call's seconds. A call that takes too long raises
``httpx.ConnectTimeout``, ``WriteTimeout``, ``ReadTimeout`` or ``PoolTimeout``. Every other network error is an
``httpx.TransportError`` as well. Only ``ConnectError``, ``ConnectTimeout`` and ``PoolTimeout`` prove that nothing of
the request was sent. Resolving a host name is the one wait outside the deadline: the operating system bounds it
(resolv.conf).

    http = deadline.client(seconds=10.0)
    http.get(url)                                   # at most 10 s in all
    http.get(url, extensions={"deadline": 2.0})     # this one at most 2 s

``stripe.HTTPXClient`` takes no transport and no client (it builds both, stripe/_http_client.py). So
``providers.stripe.transport`` is a subclass of the public ``stripe.HTTPClient`` that sends through
``deadline.client()``.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator

import httpcore
import httpx

MAX_HTTP_RESPONSE_BYTES = 16 * 2**20  # on the wire; our list pages are far below one million

# Below the 5 s after which common servers (uvicorn's default) drop an idle connection. A request that is written into
# a connection just being dropped is lost, and we could not tell whether it arrived.
IDLE_CONNECTION_SECONDS = 4.0

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
_TRANSPORT_ERRORS = tuple(_AS_HTTPX)


AddressPolicy = Callable[[str], bool]
"""Whether a numeric address may be connected to."""


class AddressBlockedError(Exception):
    """The host resolves to no allowed address. It is the cause of a ``ConnectError``."""


def client(
    seconds: float,
    *,
    max_connections: int = 20,
    tls: ssl.SSLContext | None = None,
    address_policy: AddressPolicy | None = None,
) -> httpx.Client:
    """A pooled keep-alive client. Each call takes at most ``seconds``, with reading the response.

    TLS is verified. ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` are honoured, for companies with their own authority. Proxy
    variables are ignored, because a proxy would see the keys. Redirects are returned, not followed. Build it after the
    fork: a socket shared by two processes corrupts both streams.
    """
    transport = DeadlineTransport(seconds, max_connections=max_connections, tls=tls, address_policy=address_policy)
    return httpx.Client(transport=transport, timeout=None, trust_env=False, follow_redirects=False)  # noqa: S113 - the transport's deadline


class DeadlineTransport(httpx.BaseTransport):
    def __init__(
        self,
        seconds: float,
        *,
        max_connections: int,
        tls: ssl.SSLContext | None = None,
        address_policy: AddressPolicy | None = None,
    ) -> None:
        self._seconds = seconds
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls or httpx.create_ssl_context(),
            max_connections=max_connections,
            keepalive_expiry=IDLE_CONNECTION_SECONDS,
            network_backend=_PolicedNetworkBackend(address_policy),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if not isinstance(request.stream, httpx.SyncByteStream):
            message = "an async body cannot be sent by a synchronous transport"
            raise TypeError(message)
        remaining = _RemainingSeconds.start(float(request.extensions.get("deadline", self._seconds)))
        timeouts = dict.fromkeys(("pool", "connect", "write", "read"), remaining)
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
            response = self._pool.handle_request(core_request)
        except _TRANSPORT_ERRORS as error:
            raise _AS_HTTPX[type(error)](str(error)) from error
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_ResponseBody(response),
            extensions=response.extensions,
        )

    def close(self) -> None:
        self._pool.close()


class _RemainingSeconds(float):
    """The seconds of a call, which httpcore passes on to each socket operation, and the time when they end."""

    ends_at: float

    @classmethod
    def start(cls, seconds: float) -> _RemainingSeconds:
        remaining = cls(seconds)
        remaining.ends_at = time.monotonic() + seconds
        return remaining


def _remaining_or_raise(timeout: float | None, timeout_error: type[Exception]) -> float | None:
    if not isinstance(timeout, _RemainingSeconds):
        return timeout
    remaining = timeout.ends_at - time.monotonic()
    if remaining <= 0:
        message = f"timed out after {float(timeout):g} s"
        raise timeout_error(message)
    return remaining


class _ResponseBody(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        try:
            for chunk in self._response.iter_stream():
                size += len(chunk)
                if size > MAX_HTTP_RESPONSE_BYTES:
                    message = f"the response exceeds {MAX_HTTP_RESPONSE_BYTES} bytes"
                    raise httpx.RemoteProtocolError(message)
                yield chunk
        except _TRANSPORT_ERRORS as error:
            raise _AS_HTTPX[type(error)](str(error)) from error

    def close(self) -> None:
        self._response.close()


class _PolicedNetworkBackend(httpcore.NetworkBackend):
    def __init__(self, address_policy: AddressPolicy | None) -> None:
        self._backend = httpcore.SyncBackend()
        self._address_policy = address_policy

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            addresses = self._resolve(host, port)
        except (OSError, UnicodeError, AddressBlockedError) as error:
            # Raised inside the handler, so that the error is also the context: httpcore's pool removes the cause.
            raise httpcore.ConnectError(str(error)) from error
        # One by one, because socket.create_connection gives the whole timeout to each address.
        connect_error: httpcore.ConnectError = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            remaining = _remaining_or_raise(timeout, httpcore.ConnectTimeout)
            try:
                stream = self._backend.connect_tcp(address, port, remaining, local_address, socket_options)
            except httpcore.ConnectError as error:
                connect_error = error
            else:
                return _DeadlineStream(stream)
        raise connect_error

    def _resolve(self, host: str, port: int) -> list[str]:
        addresses = [str(address[0]) for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        if self._address_policy is None:
            return addresses
        allowed = [address for address in addresses if self._address_policy(address)]
        if not allowed:
            message = f"{host} resolves to no allowed address"
            raise AddressBlockedError(message)
        return allowed


class _DeadlineStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _remaining_or_raise(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # The wrapped stream's own write would give the whole timeout to every piece that the peer accepts.
        raw: socket.socket = self._stream.get_extra_info("socket")
        try:
            while buffer:
                raw.settimeout(_remaining_or_raise(timeout, httpcore.WriteTimeout))
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
        remaining = _remaining_or_raise(timeout, httpcore.ConnectTimeout)
        return _DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, remaining))

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)
