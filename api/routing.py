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
# Load balancers and monitoring ask these. They have threads of their own, and a bound of their own.
LIVENESS_PATH: Final = "/healthz"
PROBE_PATHS: Final = frozenset({LIVENESS_PATH, "/readyz", "/metrics"})
PROBE_THREADS: Final = 3
# Hundreds of requests that wait begin and end at the same time, so they have few threads of their own, too.
WAIT_PATH: Final = "/api/organizations/{org_id}/sync"
WAIT_THREADS: Final = 6
_EVENTS_PATH: Final = "/api/events"
_METHODS_WITHOUT_BODY: Final = frozenset({"GET", "HEAD"})

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class ApiRoute(APIRoute):
    """Every router of the API makes its routes of this class."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        max_bytes = MAX_EVENT_BATCH_BYTES if self.path == _EVENTS_PATH else MAX_API_BODY_BYTES

        async def handle_authorized(request: Request) -> Response:
            context, rule = await get_context(request), rule_of(request)
            if not (rule.public and rule.is_unlimited):
                if rule.allows_users:
                    await prepare_token(request, context)
                await run_sync(authorize, request, context, limiter=threads_of(request))
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


class RouteThreads:
    """The threads of the routes that have their own. Made in the event loop that uses them."""

    def __init__(self) -> None:
        probes, waits = CapacityLimiter(PROBE_THREADS), CapacityLimiter(WAIT_THREADS)
        self.by_path = {**dict.fromkeys(PROBE_PATHS, probes), WAIT_PATH: waits}


def threads_of(request: Request) -> CapacityLimiter | None:
    """For ``run_sync``; None: the threads that all other routes share."""
    state = request.app.state
    if state.threads is None:
        state.threads = RouteThreads()
    threads = state.threads
    if not isinstance(threads, RouteThreads):
        message = "the app must be created by api.app.build_app"
        raise TypeError(message)
    return threads.by_path.get(request.scope["route"].path)


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
