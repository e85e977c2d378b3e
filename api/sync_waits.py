"""Requests that wait until a version is in sync: one poll of the database for all of them, and no thread for any."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection
from collections.abc import Set as AbstractSet
from http import HTTPStatus
from typing import Final

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.types import Receive

from api.problems import ProblemError
from core.db.database import DATABASE_UNAVAILABLE_ERRORS
from core.reporting.sync_status import OrganizationVersion

SYNC_POLL_SECONDS: Final = 0.1
# A slow database is asked less often: a poll takes at most a fifth of the time.
_PAUSE_FACTOR: Final = 4


class SyncWaits:
    """For one event loop. ``read`` returns those of the versions that are in sync. ``stopping`` ends every wait."""

    def __init__(
        self,
        read: Callable[[Collection[OrganizationVersion]], AbstractSet[OrganizationVersion]],
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
        if self._poll is None or self._poll.done():
            self._poll = asyncio.create_task(self._poll_until_none_waits())
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

    async def _poll_until_none_waits(self) -> None:
        thread = CapacityLimiter(1)
        pause = SYNC_POLL_SECONDS
        while self._waits:
            await asyncio.sleep(pause)
            started_at = time.monotonic()
            try:
                ended: AbstractSet[OrganizationVersion] = await run_sync(self._read, tuple(self._waits), limiter=thread)
            except DATABASE_UNAVAILABLE_ERRORS:
                ended = set()  # each wait ends at its own time, and reads the database itself
            if self._stopping.is_set():
                ended = set(self._waits)
            for version in ended:
                for in_sync in self._waits.get(version, ()):
                    if not in_sync.done():
                        in_sync.set_result(None)
            pause = max(SYNC_POLL_SECONDS, _PAUSE_FACTOR * (time.monotonic() - started_at))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
