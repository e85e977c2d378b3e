"""What every request passes, whatever its route: an id, a bounded body, headers that browsers obey, a line in the log.

The log holds the route's template and never a token, a query, a user's id or an address: those may be personal.
"""

from __future__ import annotations

import asyncio
import re
import time
from http import HTTPStatus
from typing import Final
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from api.auth.authorization import Admission
from api.metrics import Measures
from api.problems import ProblemError
from core.access.api_keys import Service
from core.inbox.event_schemas import LARGEST_BYTES

log = structlog.get_logger()

REQUEST_ID: Final = "X-Request-ID"
LARGEST_BODY: Final = 1024 * 1024
# A whole batch of events, each of which may be as large as one that comes alone.
LARGEST_BATCH: Final = 100 * LARGEST_BYTES + LARGEST_BODY
_BATCHES: Final = "/api/events"
BODY_SECONDS: Final = 20.0
_USABLE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_NOTHING = "default-src 'none'; frame-ancestors 'none'"


class Door:
    """The ASGI application around the routes. ``secure``: browsers reach it by https and are told to keep to it."""

    def __init__(self, inner: ASGIApp, measures: Measures, *, secure: bool = False) -> None:
        self._inner = inner
        self._measures = measures
        self._secure = secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        began, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                self._add_headers(message, request_id)
            await send(message)

        try:
            await self._pass(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - began
            self._measures.saw(scope["method"], _route(scope), status, seconds)
            _log(scope, status, seconds)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await _body(receive, LARGEST_BATCH if scope["path"] == _BATCHES else LARGEST_BODY)
        except ProblemError as problem:
            refusal = problems.response(problem, scope["state"]["request_id"])
            refusal.headers["Connection"] = "close"
            await refusal(scope, receive, send)
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._inner(scope, again, send)

    def _add_headers(self, message: Message, request_id: str) -> None:
        headers = MutableHeaders(scope=message)
        for name, value in _HEADERS.items():
            headers.setdefault(name, value)
        headers.setdefault("Content-Security-Policy", _NOTHING)
        if self._secure:
            headers.setdefault("Strict-Transport-Security", "max-age=31536000")
        headers[REQUEST_ID] = request_id


def _request_id(scope: Scope) -> str:
    """The caller's own where it is one that a log can hold, so that both sides find the same request."""
    given = Headers(scope=scope).get(REQUEST_ID, "")
    return given if _USABLE_ID.fullmatch(given) else uuid4().hex


async def _body(receive: Receive, largest: int) -> bytes:
    """The whole body, within bounds of size and time. Raises ``ProblemError``."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                part = message.get("body", b"")
                size += len(part)
                if size > largest:
                    raise _too_large(largest)
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        detail = f"The body did not arrive within {BODY_SECONDS:.0f} s."
        raise ProblemError(HTTPStatus.REQUEST_TIMEOUT, "too-slow", detail) from None


def _too_large(largest: int) -> ProblemError:
    detail = f"A body holds at most {largest} bytes."
    return ProblemError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", detail)


def _route(scope: Scope) -> str | None:
    """The template: a path itself may hold an address."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else None


def _log(scope: Scope, status: int, seconds: float) -> None:
    admission = scope["state"].get("admission")
    known = admission if isinstance(admission, Admission) else None
    fields = {
        "method": scope["method"],
        "route": _route(scope),
        "status": status,
        "ms": round(seconds * 1000, 1),
        "request_id": scope["state"]["request_id"],
        "organization": known.organization.organization.id if known and known.organization else None,
        "role": known.role if known else None,
        "key": known.caller.id if known and isinstance(known.caller, Service) else None,
    }
    log.info("request", **fields)
