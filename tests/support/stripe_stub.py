"""A Stripe stub with scripted responses, in Stripe's format or not, for responses that no healthy Stripe gives."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Stripe's messages repeat what was sent; here they even repeat the key.
KEY = "sk_test_do_not_tell"
NAME = "Secret Customer GmbH"
EMAIL = "someone@private.example"
HEADERS = {"Request-Id": "req_1"}


@dataclass
class StripeStub:
    """Responds to every request with the next of ``answers``, and repeats the last one; records the requests."""

    answers: list[tuple[int, Mapping[str, str], bytes]] = field(default_factory=list)
    requests: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    connections: set[tuple[str, int]] = field(default_factory=set)
    url: str = ""

    def answer(self, status: int, body: object, headers: Mapping[str, str] = HEADERS) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        self.answers.append((status, headers, text.encode()))

    def refuse(self, status: int, error: Mapping[str, str], headers: Mapping[str, str] = HEADERS) -> None:
        """Respond with Stripe's error body, whose message repeats what we sent."""
        self.answer(status, {"error": {"message": f"{NAME} <{EMAIL}> {KEY}", **error}}, headers)


@contextlib.contextmanager
def running() -> Iterator[StripeStub]:
    stub = StripeStub()

    class StripeStubHandler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet: otherwise each response waits 40 ms for an acknowledgement

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            stub.requests.append((f"{self.command} {self.path}", dict(self.headers)))
            stub.connections.add(self.client_address)
            status, headers, body = stub.answers.pop(0) if len(stub.answers) > 1 else stub.answers[0]
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815 - the name that http.server calls

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002, ARG002 - http.server's signature
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), StripeStubHandler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield stub
    server.shutdown()
    server.server_close()
    thread.join()
