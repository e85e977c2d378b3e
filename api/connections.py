"""The connections of the API's port: each has a deadline that no byte renews, and all together have bounds.

A request's head must be complete within ``HEAD_SECONDS`` of the connection or of its own first byte, and a response
must be read within ``RESPONSE_SECONDS``. When there are too many connections, or too many bytes of unfinished heads,
the connection that has been without a request longest is closed, so a new request is always served. An address has at
most ``MAX_CONNECTIONS_OF_ADDRESS``; a trusted proxy, which brings the requests of many, has no such bound.
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
RESPONSE_SECONDS: Final = 30.0
MAX_CONNECTIONS: Final = 4096
MAX_CONNECTIONS_OF_ADDRESS: Final = 256
MAX_UNFINISHED_HEAD_BYTES: Final = 16 * 1024 * 1024  # of all connections together
# Files and connections of the rest of the process: the database, the broker, the providers.
RESERVED_FILES: Final = 256
_REFUSALS_LOG_SECONDS: Final = 60.0
_TOO_SLOW: Final = b"The request did not arrive in time."


class Connections:
    """Used in the thread of the server's event loop only. ``is_proxy``: whether an address is a trusted proxy's."""

    def __init__(self, is_proxy: Callable[[str], bool], max_connections: int) -> None:
        self._is_proxy = is_proxy
        self._max_connections = max_connections
        self._count = 0
        self._counts: Counter[str] = Counter()
        # The one that has been without a request longest is first. The value: how many bytes of a head it has sent.
        self._without_request: dict[BoundedConnection, int] = {}
        self._head_bytes = 0
        self._refused, self._logged_at = 0, float("-inf")

    def add(self, connection: BoundedConnection, address: str) -> bool:
        """False: its address has too many already."""
        self._count += 1
        self._counts[address] += 1
        if self._counts[address] > MAX_CONNECTIONS_OF_ADDRESS and not self._is_proxy(address):
            self._log_refusal()
            return False
        self._without_request[connection] = 0
        if self._count > self._max_connections:
            self._close_oldest()
        return True

    def remove(self, connection: BoundedConnection, address: str) -> None:
        self.begin_request(connection)
        self._count -= 1
        self._counts[address] -= 1
        if not self._counts[address]:
            del self._counts[address]

    def begin_request(self, connection: BoundedConnection) -> None:
        self._head_bytes -= self._without_request.pop(connection, 0)

    def end_request(self, connection: BoundedConnection) -> None:
        self._without_request.setdefault(connection, 0)

    def add_head_bytes(self, connection: BoundedConnection, size: int) -> None:
        if connection in self._without_request:
            self._without_request[connection] += size
            self._head_bytes += size
            while self._head_bytes > MAX_UNFINISHED_HEAD_BYTES:
                self._close_oldest(with_bytes=True)

    def _close_oldest(self, *, with_bytes: bool = False) -> None:
        oldest = next((each for each, size in self._without_request.items() if size or not with_bytes), None)
        if oldest is not None:
            self.begin_request(oldest)
            oldest.abort()
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
    _address = ""
    _head_since: float | None = None
    _unread_since: float | None = None
    _closing_since: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # for the type: a TCP connection's always is
        super().connection_made(transport)
        self._address = connection_address(self.client[0] if self.client else "")
        self._head_since = self.loop.time()
        if not self.limits.add(self, self._address):
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.limits.remove(self, self._address)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_since is None and not self._has_request:
            self._head_since = self.loop.time()
        self.limits.add_head_bytes(self, len(data))
        if not self.transport.is_closing():
            super().data_received(data)
            self._note_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_request()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread_since is None:
            self._unread_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread_since = None

    def abort(self) -> None:
        self.transport.abort()

    def check(self, now: float) -> None:
        """Close the connection if a deadline has passed."""
        if self.transport.is_closing():
            # A closed connection stays until its client has read the rest.
            self._closing_since = self._closing_since or now
        waiting_since = self._closing_since or self._unread_since
        if waiting_since is not None and now - waiting_since > RESPONSE_SECONDS:
            self.abort()
        elif self._head_since is not None and now - self._head_since > HEAD_SECONDS:
            self._refuse_slow_head()

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
