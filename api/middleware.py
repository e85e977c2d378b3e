"""Middleware of every request: a request id, a bounded number at once, security headers, and a line in the log.

The log line has the route's template and never a token, a query, a user's id or an address: those may be personal.
"""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import ExitStack, suppress
from http import HTTPStatus
from typing import Final
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from api.auth.authorization import Principal
from api.connections import connection_address
from api.metrics import HttpMetrics
from api.problems import ProblemError
from api.request_limits import RequestLimits
from api.routing import LIVENESS_PATH, PROBE_PATHS
from core.access.api_keys import ServiceCaller

log = structlog.get_logger()

REQUEST_ID_HEADER: Final = "X-Request-ID"
DISCARD_SECONDS: Final = 10.0
# A load balancer calls these every few seconds: an answer that all is well is logged at DEBUG.
_PROBE_ROUTES = frozenset({"/healthz", "/readyz"})
_REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_DENY_ALL_CSP = "default-src 'none'; frame-ancestors 'none'"


class RequestMiddleware:
    """The ASGI application around the routes. ``secure``: browsers reach it by https and are told to use only https."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics, limits: RequestLimits, *, secure: bool = False) -> None:
        self._app = app
        self._metrics = metrics
        self._limits = limits
        self._secure = secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        started_at, status = time.perf_counter(), 500

        body = _Body(receive)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                self._add_headers(message, request_id)
                if not body.is_read and "Expect" in Headers(scope=scope):
                    # Nobody knows whether the client will send the body now (RFC 9110 10.1.1).
                    MutableHeaders(scope=message)["Connection"] = "close"
                elif _client_closes(scope):
                    await body.discard()
            await send(message)

        try:
            await self._forward(scope, body, send_with_headers)
        finally:
            seconds = time.perf_counter() - started_at
            self._metrics.record(scope["method"], _route_template(scope), status, seconds)
            _log_request(scope, status, seconds)

    async def _forward(self, scope: Scope, body: _Body, send: Send) -> None:
        client = scope["client"]
        is_probe = scope["method"] == "GET" and scope["path"] in PROBE_PATHS
        with ExitStack() as reserved:
            # Liveness is answered at once, so it needs no bound, if nothing waits for a body that it does not have.
            if is_probe and scope["path"] == LIVENESS_PATH:
                body.is_left = True
            else:
                amount = self._limits.probes if is_probe else self._limits.requests
                try:
                    reserved.enter_context(amount.reserve(connection_address(client[0] if client else "")))
                except ProblemError as problem:
                    body.is_left = True
                    await problems.response(problem, scope["state"]["request_id"])(scope, body, send)
                    return
            await self._app(scope, body, send)

    def _add_headers(self, message: Message, request_id: str) -> None:
        headers = MutableHeaders(scope=message)
        for name, value in _SECURITY_HEADERS.items():
            headers.setdefault(name, value)
        headers.setdefault("Content-Security-Policy", _DENY_ALL_CSP)
        if self._secure:
            headers.setdefault("Strict-Transport-Security", "max-age=31536000")
        headers[REQUEST_ID_HEADER] = request_id


class _Body:
    """The body of a request, as the application receives it; what the application leaves can be discarded."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.is_read = False
        self.is_left = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self.is_read = not message.get("more_body", False)
        return message

    async def discard(self) -> None:
        """Read the rest within ``DISCARD_SECONDS``, and keep nothing of it. Nobody waits for one that is left."""
        if self.is_left:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_SECONDS):
                while not self.is_read:
                    await self()


def _client_closes(scope: Scope) -> bool:
    """Whether the connection ends with the response. Then a response to a body that was not read would be lost."""
    options = ",".join(Headers(scope=scope).getlist("Connection")).lower().split(",")
    return scope["http_version"] == "1.0" or "close" in (option.strip() for option in options)


def _request_id(scope: Scope) -> str:
    """The caller's own id if it is fit for a log, so that both sides find the same request."""
    given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID_PATTERN.fullmatch(given) else uuid4().hex


def _route_template(scope: Scope) -> str | None:
    """The template, since the path itself may contain an address."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else None


def _log_request(scope: Scope, status: int, seconds: float) -> None:
    state_value = scope["state"].get("principal")
    principal = state_value if isinstance(state_value, Principal) else None
    service = principal.caller if principal and isinstance(principal.caller, ServiceCaller) else None
    fields = {
        "method": scope["method"],
        "route": _route_template(scope),
        "status": status,
        "ms": round(seconds * 1000, 1),
        "request_id": scope["state"]["request_id"],
        "organization": principal.organization.organization.id if principal and principal.organization else None,
        "role": principal.role if principal else None,
        "account": service.account_id if service else None,
        "key": service.key_id if service else None,
    }
    is_probe = fields["route"] in _PROBE_ROUTES and status < HTTPStatus.BAD_REQUEST
    write = log.debug if is_probe else log.info
    write("request", **fields)
