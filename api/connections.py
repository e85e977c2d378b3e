"""The connections of the API's port: each has a deadline that no byte renews, and all together have bounds.

A request's head must be complete within ``HEAD_SECONDS`` of the connection or of its own first byte, and a response
must be read within ``RESPONSE_SECONDS``. An address has at most a part of all connections; a trusted proxy, which
brings the requests of many, has no such bound. When there are too many connections, or too many bytes that are buffered
for them, the connection that has been without a request longest, or has had such bytes longest, is closed. So a new
request is always served.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Final

import h11
import structlog
from uvicorn.protocols.http.h11_impl import H11Protocol

log = structlog.get_logger()

HEAD_SECONDS: Final = 10.0
BODY_TIMEOUT_SECONDS: Final = 20.0
RESPONSE_SECONDS: Final = 30.0
MAX_CONNECTIONS: Final = 4096
MAX_CONNECTIONS_OF_ADDRESS: Final = 256
# Of all connections together: unfinished heads, bodies that nobody has read, responses that no client has read.
MAX_BUFFERED_BYTES: Final = 32 * 1024 * 1024
# Files and connections of the rest of the process: the database, the broker, the providers.
RESERVED_FILES: Final = 256
_REFUSALS_LOG_SECONDS: Final = 60.0
_TOO_SLOW: Final = b"The request did not arrive in time."


class Connections:
    """Used in the thread of the server's event loop only. ``is_proxy``: whether an address is a trusted proxy's."""

    def __init__(self, is_proxy: Callable[[str], bool], max_connections: int) -> None:
        self._is_proxy = is_proxy
        self._max_connections = max_connections
        self._max_of_address = min(MAX_CONNECTIONS_OF_ADDRESS, max_connections // 4)
        self._count = 0
        self._counts: Counter[str] = Counter()
        # The one that has been without a request longest is first.
        self._without_request: dict[BoundedConnection, None] = {}
        # Those with buffered bytes, and how many. The one that has had some longest is first.
        self._buffered: dict[BoundedConnection, int] = {}
        self._buffered_bytes = 0
        self._refused, self._logged_at = 0, float("-inf")

    def add(self, connection: BoundedConnection, host: str) -> bool:
        """False: its address has too many already."""
        address = connection_address(host)
        self._count += 1
        self._counts[address] += 1
        if self._counts[address] > self._max_of_address and not self._is_proxy(host):
            self._log_refusal()
            return False
        self._without_request[connection] = None
        if self._count > self._max_connections:
            self._close(next(iter(self._without_request)))
        return True

    def remove(self, connection: BoundedConnection, host: str) -> None:
        address = connection_address(host)
        self.begin_request(connection)
        self.set_buffered(connection, 0)
        self._count -= 1
        self._counts[address] -= 1
        if not self._counts[address]:
            del self._counts[address]

    def begin_request(self, connection: BoundedConnection) -> None:
        self._without_request.pop(connection, None)

    def end_request(self, connection: BoundedConnection) -> None:
        self._without_request.setdefault(connection)

    def set_buffered(self, connection: BoundedConnection, size: int) -> None:
        self._buffered_bytes += size - self._buffered.get(connection, 0)
        if size:
            self._buffered[connection] = size
        else:
            self._buffered.pop(connection, None)

    def check_buffered(self) -> None:
        """Close connections until the buffered bytes are within the bound."""
        if self._buffered_bytes > MAX_BUFFERED_BYTES:
            for connection in tuple(self._buffered):
                connection.measure()
        while self._buffered_bytes > MAX_BUFFERED_BYTES:
            self._close(next(iter(self._buffered)))

    def _close(self, connection: BoundedConnection) -> None:
        self.begin_request(connection)
        self.set_buffered(connection, 0)
        connection.abort()
        self._log_refusal()

    def _log_refusal(self) -> None:
        """One line a minute: each refused connection is one that somebody sends on purpose."""
        self._refused += 1
        if time.monotonic() - self._logged_at >= _REFUSALS_LOG_SECONDS:
            log.warning("connections_refused", count=self._refused, open=self._count)
            self._refused, self._logged_at = 0, time.monotonic()


class BoundedConnection(H11Protocol):
    """One connection. The server calls ``check`` every second."""

    limits: Connections
    _head_since: float | None = None
    _unread_since: float | None = None
    _closing_since: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # for the type: a TCP connection's always is
        super().connection_made(transport)
        self._head_since = self.loop.time()
        if not self.limits.add(self, self._host):
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.limits.remove(self, self._host)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_since is None and not self._has_request:
            self._head_since = self.loop.time()
        if not self.transport.is_closing():
            super().data_received(data)
            self._note_request()
            self.measure()
            self.limits.check_buffered()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_request()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread_since is None:
            self._unread_since = self.loop.time()
        self.measure()
        self.limits.check_buffered()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread_since = None

    def abort(self) -> None:
        self.transport.abort()

    def measure(self) -> None:
        """Count the bytes that are in memory for this connection."""
        if self.transport.is_closing():
            return
        body = len(self.cycle.body) if self.cycle is not None else 0
        size = len(self.conn.trailing_data[0]) + body + self.transport.get_write_buffer_size()
        self.limits.set_buffered(self, size)

    def check(self, now: float) -> None:
        """Close the connection if a deadline has passed."""
        self.measure()
        if self.transport.is_closing():
            # A closed connection stays until its client has read the rest.
            self._closing_since = self._closing_since or now
        waiting_since = self._closing_since or self._unread_since
        # The rest of a body may still come after its early response.
        seconds = BODY_TIMEOUT_SECONDS if self.conn.their_state is h11.SEND_BODY else HEAD_SECONDS
        if waiting_since is not None and now - waiting_since > RESPONSE_SECONDS:
            self.abort()
        elif self._head_since is not None and now - self._head_since > seconds:
            self._refuse_slow_head()

    @property
    def _host(self) -> str:
        return self.client[0] if self.client else ""

    @property
    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _note_request(self) -> None:
        if self._has_request:
            self._head_since = None
            self.limits.begin_request(self)
        elif self.cycle is not None:
            self.limits.end_request(self)

    def _refuse_slow_head(self) -> None:
        self._head_since = None
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(_TOO_SLOW))), ("Connection", "close")]
            for event in (h11.Response(status_code=408, headers=headers), h11.Data(data=_TOO_SLOW), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def connection_class(limits: Connections) -> type[BoundedConnection]:
    """The class of one server's connections: the server makes them itself, without arguments of ours."""

    class ServerConnection(BoundedConnection):
        pass

    ServerConnection.limits = limits
    return ServerConnection


def connection_address(host: str) -> str:
    """What counts as one address: with IPv6 a network of 64 bits, since each customer of a provider has a whole one."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return address.exploded[:19]


def max_connections() -> int:
    """As many files as this process may open, which is raised to what the system allows, less those of the rest."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = MAX_CONNECTIONS + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(min(MAX_CONNECTIONS, soft - RESERVED_FILES), 64)
