"""A server between the product and a provider. It forwards and records every request, and loses an answer if asked.

The product has no part in it: a lost answer is a connection that closes after the provider did what was asked.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx

FORWARD_SECONDS: Final = 60.0
# Of one connection only, or of the encoding of the body, which httpx has undone.
_OWN_HEADERS: Final = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "accept-encoding", "content-encoding", "keep-alive"}
)
# The parts of a path that are no ids, after the name of the resource.
_NAMED_PARTS: Final = frozenset({"search", "create_preview", "finalize", "json_public_key"})


@dataclass(frozen=True, kw_only=True)
class ForwardedRequest:
    """One request and its answer. ``lost``: the product did not get it. ``status`` 0: the provider gave none."""

    method: str
    path: str
    query: str
    sent: dict[str, str]
    status: int
    answer: object
    lost: bool = False

    @property
    def operation(self) -> str:
        return operation_of(self.method, self.path)

    @property
    def is_refused(self) -> bool:
        return self.status >= httpx.codes.BAD_REQUEST


def operation_of(method: str, path: str) -> str:
    """The method and the path with every id as ``{id}``."""
    start = 4 if path.startswith("/api/") else 3
    parts = [
        "{id}" if number >= start and (number - start) % 2 == 0 and part not in _NAMED_PARTS else part
        for number, part in enumerate(path.split("/"))
    ]
    return f"{method} {'/'.join(parts)}"


@dataclass
class AnswerLoss:
    """Lose the answers to the next ``times`` requests of this operation."""

    operation: str
    times: int


class Forwarder:
    """Runs inside a ``with`` block. ``adapted``: answers that we give in the provider's place, by operation.

    ``left_out``: parameters of a form that the provider does not get.
    """

    def __init__(self, target: str, adapted: Mapping[str, Any] | None = None, left_out: Collection[str] = ()) -> None:
        self.requests: list[ForwardedRequest] = []
        self._target = target.rstrip("/")
        self._adapted = dict(adapted or {})
        self._left_out = left_out
        self._losses: list[AnswerLoss] = []
        self._lock = threading.Lock()
        self._client = httpx.Client(timeout=FORWARD_SECONDS, limits=httpx.Limits(max_connections=50))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def lose_answer(self, operation: str, times: int = 1) -> AnswerLoss:
        """``times`` of the result counts down to 0 as the answers get lost."""
        loss = AnswerLoss(operation, times)
        with self._lock:
            self._losses.append(loss)
        return loss

    def stop_losing(self) -> None:
        with self._lock:
            self._losses.clear()

    def forward(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> httpx.Response | None:
        """The provider's answer; ``None``: close the connection without one."""
        parts = urlsplit(target)
        operation = operation_of(method, parts.path)
        if operation in self._adapted:
            return httpx.Response(200, json=self._adapted[operation])
        passed_on = {name: value for name, value in headers.items() if name.lower() not in _OWN_HEADERS}
        sent = _form_of(body)
        if any(name in sent for name in self._left_out):
            body = urlencode({name: value for name, value in sent.items() if name not in self._left_out}).encode()
        try:
            answer = self._client.request(method, self._target + target, headers=passed_on, content=body)
        except httpx.TransportError:
            answer = None
        is_lost = answer is not None and self._is_lost(operation)
        record = ForwardedRequest(
            method=method,
            path=parts.path,
            query=parts.query,
            sent=sent,
            status=answer.status_code if answer is not None else 0,
            answer=_json_of(answer),
            lost=is_lost,
        )
        with self._lock:
            self.requests.append(record)
        return None if is_lost else answer

    def _is_lost(self, operation: str) -> bool:
        with self._lock:
            for loss in self._losses:
                if loss.operation == operation and loss.times > 0:
                    loss.times -= 1
                    return True
        return False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._client.close()


def _handler_of(forwarder: Forwarder) -> type[BaseHTTPRequestHandler]:
    class ForwardingHandler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet: otherwise each response waits 40 ms for an acknowledgement

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = forwarder.forward(self.command, self.path, dict(self.headers), body)
            if answer is None:
                self.close_connection = True
                return
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if name.lower() not in _OWN_HEADERS:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_POST = do_PUT = do_DELETE = do_PATCH = do_GET  # noqa: N815 - the names that http.server calls

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002, ARG002 - http.server's signature
            return

    return ForwardingHandler


def _form_of(body: bytes) -> dict[str, str]:
    text = body.decode(errors="replace")
    return {} if re.match(r"\s*[{\[]", text) else dict(parse_qsl(text, keep_blank_values=True))


def _json_of(answer: httpx.Response | None) -> object:
    if answer is None:
        return None
    try:
        return answer.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return answer.text[:200]
