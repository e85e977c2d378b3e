"""A turn's way to a biller: a lane of this process, then a place in the quota, before each request.

A turn that would have to wait gives its thread back (``MustWaitError``) before it has written or sent anything; one
that has begun goes before others and waits a moment inside. A biller that answers slowly fills its own lanes only: the
other threads of the process stay free for the other biller.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from core.flow_control.rate_limiter import Quota, Unlimited, Urgency
from core.ports.errors import MustWaitError, ObjectThrottledError, ThrottledError
from core.ports.spec import PROVIDERS, Provider

# How much the latest turn counts in the mean length of turns, by which those who find the lanes full are spread.
NEWEST: Final = 0.2
SOONEST: Final = 0.5  # seconds
LATEST: Final = 10.0  # seconds; the broker holds no longer waits (``links.LONGEST_RETRY``)


class Lanes:
    """As many turns of one process as may be at one biller at once. The others come back one after the other.

    Bulk work never has all of them, where there are two, and fresh work does not come back behind it.
    """

    def __init__(self, width: int, now: Callable[[], float] = time.monotonic) -> None:
        self._width = width
        self._now = now
        self._taken = 0
        self._bulk = 0  # of those taken
        self._mean = SOONEST
        self._next_at = {False: 0.0, True: 0.0}  # by whether it is bulk work
        self._lock = threading.Lock()

    def enter(self, *, bulk: bool = False) -> float | None:
        """None: a lane is yours until you ``leave``. Else the seconds until one should be free for you."""
        with self._lock:
            room = max(1, self._width - 1) if bulk else self._width
            if self._taken < self._width and not (bulk and self._bulk == room):
                self._taken += 1
                self._bulk += bulk
                return None
            now = self._now()
            # Never further ahead than anybody is sent away: whoever comes back then is as early as those who come now.
            self._next_at[bulk] = min(max(self._next_at[bulk] + self._mean / room, now + SOONEST), now + LATEST)
            return self._next_at[bulk] - now

    def leave(self, seconds: float, *, bulk: bool = False) -> None:
        """``seconds``: how long the lane was taken; ``bulk``: as it was entered."""
        with self._lock:
            self._taken -= 1
            self._bulk -= bulk
            self._mean += NEWEST * (seconds - self._mean)


@dataclass(slots=True)
class Gate:
    """One turn's. ``urgency`` is what it begins with; whoever passed once is ``started``."""

    quota: Quota
    lanes: Lanes
    provider: Provider
    org_id: str
    urgency: Urgency = "fresh"
    _entered_at: float | None = None
    _as_bulk: bool = False
    _operation: str = ""
    _paid: bool = False

    def book(self, operation: str) -> None:
        """Pass for the next request ahead of it, so that what must wait has written nothing about it."""
        self._pass(operation)
        self._paid = True

    def hold(self, operation: str) -> None:
        """Pass for a request that is sent now."""
        if not (self._paid and operation == self._operation):
            self._pass(operation)
        self._paid = False

    def throttled(self, error: ThrottledError) -> None:
        """The biller says that the last request was one too many: everybody goes more slowly for a while.

        Not where it speaks of one object: more slowly, that one's limit would be met all the same.
        """
        if isinstance(error, ObjectThrottledError):
            return
        self.quota.slow_down(self.provider, self._operation, error.code, error.retry_after or 0.0)

    def leave(self) -> None:
        """The turn is over."""
        if self._entered_at is not None:
            self.lanes.leave(time.monotonic() - self._entered_at, bulk=self._as_bulk)
            self._entered_at = None

    def _pass(self, operation: str) -> None:
        if self._entered_at is None:
            self._as_bulk = self.urgency == "bulk"
            if (seconds := self.lanes.enter(bulk=self._as_bulk)) is not None:
                raise MustWaitError(seconds, in_line=True)
            self._entered_at = time.monotonic()
        slot = self.quota.take(self.provider, operation, self.org_id, self.urgency)
        if slot.state != "go":
            raise MustWaitError(slot.seconds, in_line=slot.state == "queued")
        self._operation = operation
        self.urgency = "started"
        time.sleep(slot.seconds)


class Gates:
    """Of one process. ``threads``: how many it works with; a quarter of them is out of each biller's reach."""

    def __init__(self, quota: Quota | None = None, threads: int = 8) -> None:
        self.quota: Quota = quota or Unlimited()
        self._lanes = {provider: Lanes(max(1, threads - max(1, threads // 4))) for provider in PROVIDERS}

    def to(self, provider: Provider, org_id: str, urgency: Urgency) -> Gate:
        return Gate(self.quota, self._lanes[provider], provider, org_id, urgency)
