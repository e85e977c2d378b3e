"""A subscriber's own server on loopback: keeps what it is sent, and answers as the test says."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True, slots=True)
class Sent:
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Says:
    """``after``: seconds until anything is said. ``drips``: this body, a byte each twentieth of a second."""

    status: int = 200
    after: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    drips: bool = False
    hangs_up: bool = False


class Receiver:
    """``answers`` are given one by one, then the last of them for ever."""

    def __init__(self) -> None:
        self.answers: list[Says] = [Says()]
        self.sent: list[Sent] = []
        self._came = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                receiver._take(self)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def wait(self, count: int, seconds: float = 10.0) -> list[Sent]:
        """Until so many have come."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.sent) >= count, seconds), f"{len(self.sent)} of {count} came"
            return list(self.sent)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _take(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        with self._came:
            says = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            self.sent.append(Sent(request.path, dict(request.headers.items()), body))
            self._came.notify_all()
        time.sleep(says.after)
        with contextlib.suppress(OSError):
            _answer(request, says)


def _answer(request: BaseHTTPRequestHandler, says: Says) -> None:
    if says.hangs_up:
        request.close_connection = True
        return
    request.send_response(says.status)
    for name, value in says.headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(says.body)))
    request.end_headers()
    for start in range(len(says.body)) if says.drips else ():
        request.wfile.write(says.body[start : start + 1])
        request.wfile.flush()
        time.sleep(0.05)
    if not says.drips:
        request.wfile.write(says.body)


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    try:
        yield receiver
    finally:
        receiver.close()
