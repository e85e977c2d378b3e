"""A subscriber's own server on loopback: stores what it receives, and responds as the test sets it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.waiting import until


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverReply:
    """``after`` is the delay in seconds. With ``drips``, the body is sent byte by byte, one each 0.05 seconds."""

    status: int = 200
    after: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    drips: bool = False
    hangs_up: bool = False


class WebhookReceiver:
    """``replies`` are used one by one; the last one is repeated. ``cut_short`` counts those not read to the end."""

    def __init__(self) -> None:
        self.replies: list[ReceiverReply] = [ReceiverReply()]
        self.requests: list[ReceivedRequest] = []
        self.cut_short = 0
        self._lock = threading.Lock()
        receiver = self

        class WebhookReceiverHandler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                receiver._receive(self)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), WebhookReceiverHandler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def wait(self, count: int) -> list[ReceivedRequest]:
        """Wait until ``count`` requests have arrived."""
        until(lambda: len(self.requests) >= count, f"{count} requests", details=lambda: len(self.requests))
        return list(self.requests)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _receive(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        with self._lock:
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
            self.requests.append(ReceivedRequest(request.path, dict(request.headers.items()), body))
        time.sleep(reply.after)
        try:
            _reply(request, reply)
        except OSError:
            self.cut_short += 1


def _reply(request: BaseHTTPRequestHandler, reply: ReceiverReply) -> None:
    if reply.hangs_up:
        request.close_connection = True
        return
    request.send_response(reply.status)
    for name, value in reply.headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(reply.body)))
    request.end_headers()
    for start in range(len(reply.body)) if reply.drips else ():
        request.wfile.write(reply.body[start : start + 1])
        request.wfile.flush()
        time.sleep(0.05)
    if not reply.drips:
        request.wfile.write(reply.body)


@contextlib.contextmanager
def receiving() -> Iterator[WebhookReceiver]:
    receiver = WebhookReceiver()
    try:
        yield receiver
    finally:
        receiver.close()
