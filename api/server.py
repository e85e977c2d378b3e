"""API server on one port, in a thread of its own: listening when ``start`` returns, closed when ``stop`` does."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Collection, Sequence
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from types import TracebackType
from typing import Final, Self

import uvicorn

from api.app import build_app
from api.connections import BoundedConnection, Connections, connection_class, max_connections
from api.context import ApiContext
from api.oidc import Issuer

API_START_SECONDS: Final = 15.0
API_STOP_SECONDS: Final = 10.0  # running requests may finish; then they are cut off
# Bytes, for a request line with its headers. Lago's jwt signature has the whole body of a webhook in it, escaped and in
# base64: 31 kB were seen, and an invoice with many fees has more (lago-differences B8).
# The loop accepts so many connections before it counts them; the system keeps further ones waiting.
ACCEPTED_AT_ONCE: Final = 64
BACKLOG: Final = 2048
MAX_HEAD_BYTES: Final = 256 * 1024


class ApiServer:
    """``secure``: it is behind https. ``allowed_origins``: the origins whose pages may call it from a browser.
    ``trusted_proxies``: addresses or networks of proxies, whose ``X-Forwarded-For`` names the client.

    The caller closes what ``context`` contains, after ``stop``.
    """

    def __init__(  # noqa: PLR0913 - the settings of one server, all named
        self,
        context: ApiContext,
        host: str,
        port: int,
        *,
        version: str,
        secure: bool = False,
        allowed_origins: Collection[str] = (),
        trusted_proxies: Collection[str] = (),
    ) -> None:
        self._host, self._port = host, port
        connections = max_connections()
        application, self._app = build_app(
            context, version=version, max_connections=connections, secure=secure, allowed_origins=allowed_origins
        )
        proxies = [ip_network(each) for each in trusted_proxies]
        self._server = _UvicornServer(
            uvicorn.Config(
                application,
                loop="asyncio",
                http=connection_class(Connections(partial(_is_in, proxies), connections)),
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(proxies),
                forwarded_allow_ips=list(trusted_proxies),
                timeout_graceful_shutdown=int(API_STOP_SECONDS),
                backlog=ACCEPTED_AT_ONCE,
            ),
            context.issuer,
        )
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}"

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> Self:
        """Raises ``OSError`` when the port is in use."""
        listener = socket.create_server((self._host, self._port), backlog=BACKLOG)
        # asyncio sets this only on sockets that it creates; without it a response waits for the client's ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._port = listener.getsockname()[1]
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="api", daemon=True)
        self._thread.start()
        if not self._server.ready.wait(API_START_SECONDS):
            message = f"The API did not start within {API_START_SECONDS:.0f} s."
            raise TimeoutError(message)
        return self

    def stop(self) -> None:
        """Safe to repeat."""
        self._app.state.stopping.set()
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(API_STOP_SECONDS + 5)

    def __enter__(self) -> Self:
        return self if self._thread is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _UvicornServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, issuer: Issuer | None) -> None:
        super().__init__(config)
        self._issuer = issuer
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)
        if self._issuer is not None:
            self._issuer.begin_fetch()  # nobody waits for it; what is wrong with the service is logged
        self.ready.set()

    async def on_tick(self, counter: int) -> bool:
        """The server calls it ten times a second."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in tuple(self.server_state.connections):
                if isinstance(connection, BoundedConnection):
                    connection.check(now)
        return await super().on_tick(counter)


def _is_in(networks: Sequence[IPv4Network | IPv6Network], address: str) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in networks)
