"""A route of the API: it authorizes the caller before it reads the body, and reads a bounded body."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from http import HTTPStatus
from typing import Any, Final

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import Message

from api.auth.authorization import Principal, authorize, prepare_token, rule_of
from api.connections import BODY_TIMEOUT_SECONDS, connection_address
from api.context import get_context
from api.problems import ProblemError
from api.request_limits import RequestLimits, Share
from core.inbox.event_schemas import MAX_SERVICE_EVENT_BYTES

MAX_API_BODY_BYTES: Final = 1024 * 1024
# A full batch of events, each of which may be as large as a single one.
MAX_EVENT_BATCH_BYTES: Final = 100 * MAX_SERVICE_EVENT_BYTES + MAX_API_BODY_BYTES
# Load balancers and monitoring ask these. They have threads of their own, and no bound that others could exhaust.
LIVENESS_PATH: Final = "/healthz"
PROBE_PATHS: Final = frozenset({LIVENESS_PATH, "/readyz", "/metrics"})
PROBE_THREADS: Final = 3
_EVENTS_PATH: Final = "/api/events"
_METHODS_WITHOUT_BODY: Final = frozenset({"GET", "HEAD"})

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class ApiRoute(APIRoute):
    """Every router of the API makes its routes of this class."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        is_probe = self.path in PROBE_PATHS
        max_bytes = MAX_EVENT_BATCH_BYTES if self.path == _EVENTS_PATH else MAX_API_BODY_BYTES

        async def handle_authorized(request: Request) -> Response:
            context, rule = await get_context(request), rule_of(request)
            if not (rule.public and rule.is_unlimited):
                if rule.allows_users or rule.public:
                    await prepare_token(request, context)
                await run_sync(authorize, request, context, limiter=probe_threads(request) if is_probe else None)
            if request.method in _METHODS_WITHOUT_BODY:
                return await handle(request)
            with ExitStack() as stack:
                with_body = await _read_body(request, max_bytes, stack.enter_context(_body_share(request)))
                return await handle(with_body)

        return handle_authorized


def request_limits(request: Request) -> RequestLimits:
    limits = request.app.state.limits
    if not isinstance(limits, RequestLimits):
        message = "the app must be created by api.app.build_app"
        raise TypeError(message)
    return limits


def probe_threads(request: Request) -> CapacityLimiter:
    """The threads of the probes. They are made in the event loop that uses them."""
    state = request.app.state
    if state.probe_threads is None:
        state.probe_threads = CapacityLimiter(PROBE_THREADS)
    threads = state.probe_threads
    if not isinstance(threads, CapacityLimiter):
        message = "the app must be created by api.app.build_app"
        raise TypeError(message)
    return threads


def client_address(request: Request) -> str:
    return connection_address(request.client.host if request.client else "")


def _body_share(request: Request) -> Share:
    limits, principal = request_limits(request), getattr(request.state, "principal", None)
    if isinstance(principal, Principal):
        return Share(limits.bodies, principal.name)
    return Share(limits.public_bodies, client_address(request))


async def _read_body(request: Request, max_bytes: int, share: Share) -> Request:
    """The request with its whole body, bounded in size and time. Raises ``ProblemError``."""
    size = 0

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        chunk = len(message.get("body", b""))
        size += chunk
        if size > max_bytes:
            raise _body_too_large(max_bytes)
        share.add(chunk)
        return message

    if int(request.headers.get("Content-Length", 0)) > max_bytes:
        raise _body_too_large(max_bytes)
    with_body, loop = Request(request.scope, receive), asyncio.get_running_loop()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_SECONDS) as deadline:
            with share.evictable(lambda: deadline.reschedule(loop.time())):
                await with_body.body()
    except TimeoutError:
        raise _body_missing(f"The body did not arrive within {BODY_TIMEOUT_SECONDS:.0f} s.") from None  # noqa: TRY003
    except ClientDisconnect:
        raise _body_missing("The client did not send the whole body.") from None  # noqa: TRY003
    return with_body


def _body_missing(detail: str) -> ProblemError:
    headers = {"Connection": "close"}
    return ProblemError(HTTPStatus.REQUEST_TIMEOUT, "too-slow", detail, headers=headers)


def _body_too_large(max_bytes: int) -> ProblemError:
    detail = f"The body may have at most {max_bytes} bytes."
    return ProblemError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", detail)
