"""Requests that wait until a version is in sync: one poll of the database for all of them, and no thread for any."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from http import HTTPStatus
from typing import Final

import structlog
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.types import Receive

from api.problems import ProblemError
from core.db.database import DATABASE_UNAVAILABLE_ERRORS
from core.reporting.sync_status import OrganizationVersion

log = structlog.get_logger()

SYNC_POLL_SECONDS: Final = 0.1
MAX_POLL_PAUSE_SECONDS: Final = 1.0
# A slow database is asked less often: a poll takes about a fifth of the time.
_PAUSE_FACTOR: Final = 4


class SyncWaits:
    """For one event loop. ``read`` returns those of the versions that are in sync. ``stopping`` ends every wait."""

    def __init__(
        self,
        read: Callable[[Collection[OrganizationVersion]], Collection[OrganizationVersion]],
        stopping: threading.Event,
    ) -> None:
        self._read, self._stopping = read, stopping
        self._waits: dict[OrganizationVersion, set[asyncio.Future[None]]] = {}
        self._poll: asyncio.Task[None] | None = None

    async def wait(self, version: OrganizationVersion, seconds: float, receive: Receive) -> bool:
        """True: the version is in sync, or the server stops. False: the time is over.

        Raises ``ProblemError`` if the client has gone; nobody reads the response then.
        """
        in_sync = asyncio.get_running_loop().create_future()
        gone = asyncio.create_task(_disconnected(receive))
        self._waits.setdefault(version, set()).add(in_sync)
        self._ensure_poll()
        try:
            await asyncio.wait({in_sync, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                detail = "The client did not wait for the response."
                raise ProblemError(HTTPStatus.REQUEST_TIMEOUT, "too-slow", detail)
            return in_sync.done()
        finally:
            gone.cancel()
            self._remove(version, in_sync)

    def _remove(self, version: OrganizationVersion, in_sync: asyncio.Future[None]) -> None:
        waiting = self._waits[version]
        waiting.discard(in_sync)
        if not waiting:
            del self._waits[version]

    def _ensure_poll(self) -> None:
        if self._waits and (self._poll is None or self._poll.done()):
            self._poll = asyncio.create_task(self._poll_until_none_waits())
            self._poll.add_done_callback(self._restart_after_error)

    def _restart_after_error(self, poll: asyncio.Task[None]) -> None:
        if not poll.cancelled() and (error := poll.exception()) is not None:
            log.error("sync_poll_failed", error=type(error).__name__)
            asyncio.get_running_loop().call_later(MAX_POLL_PAUSE_SECONDS, self._ensure_poll)

    async def _poll_until_none_waits(self) -> None:
        thread = CapacityLimiter(1)
        pause = SYNC_POLL_SECONDS
        while self._waits:
            await asyncio.sleep(pause)
            if self._stopping.is_set():
                self._end(tuple(self._waits))
                return
            started_at = time.monotonic()
            with suppress(
                *DATABASE_UNAVAILABLE_ERRORS
            ):  # each wait ends at its own time, and reads the database itself
                self._end(await run_sync(self._read, tuple(self._waits), limiter=thread))
            pause = max(SYNC_POLL_SECONDS, _PAUSE_FACTOR * (time.monotonic() - started_at))
            pause = min(pause, MAX_POLL_PAUSE_SECONDS)

    def _end(self, versions: Collection[OrganizationVersion]) -> None:
        for version in versions:
            for in_sync in self._waits.get(version, ()):
                if not in_sync.done():
                    in_sync.set_result(None)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
