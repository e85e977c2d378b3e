"""The sandbox's server on loopback: one port for Stripe (``/v1``), Lago (``/api/v1``, ``/health``) and ``/sandbox``.

A fault that drops the connection closes or resets the TCP connection; no HTTP error is sent.
"""

import asyncio
import signal
import socket
import struct
import threading
from email.utils import formatdate
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from sandbox.control import control_app
from sandbox.http import ConnectionDropped, ProviderResponse
from sandbox.lago_api.provider import LagoApi
from sandbox.pipeline import ExchangeObserver, RequestPipeline
from sandbox.state import SandboxState
from sandbox.stripe_api.provider import StripeApi

MAX_SANDBOX_BODY_BYTES = 4 * 1024 * 1024
SANDBOX_START_SECONDS = 15.0
SANDBOX_STOP_SECONDS = 15.0
KEEP_ALIVE_SECONDS = 75
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # close() then sends RST instead of FIN


class _Connections:
    """The open connections by the peer's address, so that the connection of a request can be closed."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], asyncio.Transport] = {}

    def add(self, client: tuple[str, int], transport: asyncio.Transport) -> None:
        self._open[client] = transport

    def remove(self, client: tuple[str, int]) -> None:
        self._open.pop(client, None)

    def abort(self, client: tuple[str, int], *, reset: bool) -> None:
        transport = self._open.get(client)
        if transport is None:
            return
        if reset:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        transport.abort()

    def abort_all(self) -> None:
        for transport in list(self._open.values()):
            transport.abort()


def _protocol_class(connections: _Connections) -> type[asyncio.Protocol]:
    class AbortableProtocol(H11Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)  # noqa: S101  # for the type: a TCP connection's always is
            # Head and body leave as two segments; without this the second waits 40 ms for the client's ACK.
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            super().connection_made(transport)
            if self.client is not None:
                connections.add(self.client, transport)

        def connection_lost(self, exc: Exception | None) -> None:
            if self.client is not None:
                connections.remove(self.client)
            super().connection_lost(exc)

    return AbortableProtocol


class _SandboxApp:
    """The ASGI application: provider requests go to the pipeline as raw bytes, all others to the control routes."""

    def __init__(self, state: SandboxState, observer: ExchangeObserver | None, connections: _Connections) -> None:
        stripe = StripeApi(state)
        lago = LagoApi(state, stripe)
        state.open()
        self._pipeline = RequestPipeline(state, {"stripe": stripe, "lago": lago}, observer)
        self._control = control_app(state, stripe, lago)
        self._connections = connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith("/sandbox"):
            await self._control(scope, receive, send)
            return
        provider = "stripe" if scope["path"].startswith("/v1/") else "lago"
        try:
            await self._serve(provider, scope, receive, send)
        except asyncio.CancelledError:
            return  # the server is stopping and has closed the connection, so no response can be sent

    async def _serve(self, provider: str, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        if body is None:
            await _send(send, ProviderResponse.of(413, {"error": "The sandbox accepts bodies of at most 4 MiB."}))
            return
        result = await self._pipeline.serve(
            provider,
            scope["method"],
            scope["raw_path"].decode("ascii"),
            scope["query_string"].decode("ascii"),
            {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]},
            body,
        )
        if isinstance(result, ConnectionDropped):
            self._connections.abort(scope["client"], reset=result.reset)
            await receive()  # returns once the connection is gone, so that nothing is sent on it
        elif result.drip_seconds:
            await _drip(send, result)
        else:
            await _send(send, result)


async def _body(receive: Receive) -> bytes | None:
    """The request's body; None if it is too large."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_SANDBOX_BODY_BYTES:
            return None
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _response_start(response: ProviderResponse) -> dict[str, object]:
    headers = [(b"content-type", response.content_type.encode()), (b"content-length", str(len(response.body)).encode())]
    headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
    headers.append((b"date", formatdate(usegmt=True).encode()))  # real time: a caller compares its own clock with it
    return {"type": "http.response.start", "status": response.status, "headers": headers}


async def _send(send: Send, response: ProviderResponse) -> None:
    await send(_response_start(response))
    await send({"type": "http.response.body", "body": response.body})


async def _drip(send: Send, response: ProviderResponse) -> None:
    await send(_response_start(response))
    for number in range(len(response.body)):
        await send({"type": "http.response.body", "body": response.body[number : number + 1], "more_body": True})
        await asyncio.sleep(response.drip_seconds / len(response.body))
    await send({"type": "http.response.body", "body": b""})


class _SandboxServer(uvicorn.Server):
    """uvicorn without its signal handling and its waits: when stopped, it closes every connection at once."""

    def __init__(self, config: uvicorn.Config, connections: _Connections) -> None:
        super().__init__(config)
        self._connections = connections
        self._stopping = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self) -> None:
        await self._stopping.wait()

    def stop(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        self._connections.abort_all()
        await asyncio.sleep(0)  # lets every connection see that it was closed
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Sandbox:
    """Stripe and Lago on one loopback port.

    With ``limits``, requests above the published rates get 429. ``state_file`` stores the state over a restart or
    kill -9. ``observer`` is called in the server's thread with every exchange; if it raises, the request fails.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        limits: bool = True,
        state_file: Path | None = None,
        observer: ExchangeObserver | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._limits = limits
        self._state_file = state_file
        self._observer = observer
        self._server: _SandboxServer | None = None
        self._thread: threading.Thread | None = None
        self._state: SandboxState | None = None

    @property
    def url(self) -> str:
        """The origin for STRIPE_API_BASE and LAGO_API_URL, without a slash at the end."""
        return f"http://{self._host}:{self._port}"

    def start(self) -> Self:
        """Start; the server listens when this returns. Raises OSError if the port is in use."""
        listener = socket.create_server((self._host, self._port), backlog=512)
        self._port = listener.getsockname()[1]
        connections = _Connections()
        self._state = SandboxState(limits=self._limits, state_file=self._state_file)
        config = uvicorn.Config(
            _SandboxApp(self._state, self._observer, connections),
            loop="asyncio",
            http=_protocol_class(connections),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        self._server = _SandboxServer(config, connections)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="sandbox", daemon=True)
        self._thread.start()
        if not self._server.ready.wait(SANDBOX_START_SECONDS):
            message = f"The sandbox did not start within {SANDBOX_START_SECONDS:.0f} s."
            raise TimeoutError(message)
        return self

    def stop(self) -> None:
        """Close all connections and stop. Safe to repeat; the same port can be used again."""
        if self._server is None or self._thread is None or self._state is None:
            return
        self._server.stop()
        self._thread.join(SANDBOX_STOP_SECONDS)
        self._state.close()
        self._server = self._thread = self._state = None

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM; call it in the main thread."""
        stopping = threading.Event()

        def stop(_signal: int, _frame: FrameType | None) -> None:
            stopping.set()

        previous_handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with self:
                stopping.wait()
        finally:
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)

    def __enter__(self) -> Self:
        return self if self._thread is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
