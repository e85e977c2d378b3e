"""A Lago stub with scripted replies, one for each request, for responses that no healthy Lago gives.

Each request is checked as it was sent against Lago's official document, if that is present.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from core.common.json_types import Json
from tests import contract

Body = Json | bytes

NO_ID = "0b7c0000-0000-4000-8000-000000000000"


@dataclass(frozen=True)
class Reply:
    """``status`` 0 drops the connection without a response."""

    status: int
    body: Body = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordedLagoRequest:
    method: str
    target: str
    headers: dict[str, str]
    body: Json


class ScriptedLago:
    def __init__(self, port: int = 0) -> None:
        self.replies: deque[Reply] = deque()
        self.requests: list[RecordedLagoRequest] = []
        self.violations: list[str] = []
        self.connections = 0
        script = self

        class ScriptedLagoHandler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm: ClassVar[bool] = True

            def setup(self) -> None:
                script.connections += 1
                super().setup()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

            def answer(self) -> None:
                length = int(self.headers.get("content-length", 0))
                script.answer(self, self.rfile.read(length))

            do_GET = do_POST = do_DELETE = answer  # noqa: N815 - the base class's names

        self._server = ThreadingHTTPServer(("127.0.0.1", port), ScriptedLagoHandler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def respond_with(self, *replies: Reply) -> None:
        self.replies.extend(replies)

    def answer(self, handler: BaseHTTPRequestHandler, raw: bytes) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.requests.append(
            RecordedLagoRequest(handler.command, handler.path, headers, json.loads(raw) if raw else None)
        )
        if contract.available():
            path, _, query = handler.path.partition("?")
            kind = headers.get("content-type", "")
            self.violations += contract.violations("lago", handler.command, path, query, raw, kind)
        reply = self.replies.popleft() if self.replies else Reply(599, {"code": "no_reply_scripted"})
        if reply.status == 0:
            handler.close_connection = True
            return
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        handler.send_response(reply.status)
        for name, value in {"Content-Length": str(len(body)), **reply.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def customer(**changed: Json) -> Reply:
    """200 with a customer in Lago's format, created just now; ``changed`` replaces fields."""
    shown: dict[str, Json] = {
        "lago_id": NO_ID,
        "external_id": "org_1",
        "created_at": "2999-01-01T00:00:00Z",
        "updated_at": "2999-01-01T00:00:00Z",
        "applicable_timezone": "UTC",
        **changed,
    }
    return Reply(200, {"customer": shown})


def subscription(**changed: Json) -> Reply:
    shown: dict[str, Json] = {
        "lago_id": "3a000000-0000-4000-8000-000000000000",
        "external_id": "org_1",
        "lago_customer_id": NO_ID,
        "external_customer_id": "org_1",
        "plan_code": "starter",
        "status": "active",
        "created_at": "2026-11-23T07:00:01Z",
        "started_at": "2026-11-23T07:00:00.000Z",
        "next_plan_code": None,
        "downgrade_plan_date": None,
        **changed,
    }
    return Reply(200, {"subscription": shown})


def refusal(status: int, code: str | None = None, /, **details: Json) -> Reply:
    body: dict[str, Json] = {"status": status, "error": "Refused"}
    if code:
        body["code"] = code
    if details:
        body["error_details"] = details
    return Reply(status, body)
