"""A turn's way to a biller: a lane of this process, then a place in the quota, before each request.

A turn that would have to wait gives its thread back (``NoPermitError``) before it has written or sent anything; one
that has begun goes before others and waits a moment inside. A biller that answers slowly fills its own lanes only: the
other threads of the process stay free for the other biller.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from core.flow_control.rate_limiter import Priority, RateLimiter, UnlimitedRateLimiter
from core.ports.errors import NoPermitError, ObjectThrottledError, ThrottledError
from core.ports.spec import PROVIDERS, Provider

# How much the latest turn counts in the mean length of turns, by which those who find the lanes full are spread.
EWMA_WEIGHT: Final = 0.2
MIN_RETURN_SECONDS: Final = 0.5  # seconds
MAX_RETURN_SECONDS: Final = 10.0  # seconds; the broker holds no longer waits (``links.MAX_QUEUE_DELAY_SECONDS``)


class ConcurrencySlots:
    """As many turns of one process as may be at one biller at once. The others come back one after the other.

    Bulk work never has all of them, where there are two, and fresh work does not come back behind it.
    """

    def __init__(self, size: int, now: Callable[[], float] = time.monotonic) -> None:
        self._size = size
        self._now = now
        self._used = 0
        self._bulk_used = 0  # of those taken
        self._mean_seconds = MIN_RETURN_SECONDS
        self._next_at = {False: 0.0, True: 0.0}  # by whether it is bulk work
        self._lock = threading.Lock()

    def acquire(self, *, bulk: bool = False) -> float | None:
        """None: a lane is yours until you ``leave``. Else the seconds until one should be free for you."""
        with self._lock:
            usable = max(1, self._size - 1) if bulk else self._size
            if self._used < self._size and not (bulk and self._bulk_used == usable):
                self._used += 1
                self._bulk_used += bulk
                return None
            now = self._now()
            # Never further ahead than anybody is sent away: whoever comes back then is as early as those who come now.
            self._next_at[bulk] = min(
                max(self._next_at[bulk] + self._mean_seconds / usable, now + MIN_RETURN_SECONDS),
                now + MAX_RETURN_SECONDS,
            )
            return self._next_at[bulk] - now

    def release(self, seconds: float, *, bulk: bool = False) -> None:
        """``seconds``: how long the lane was taken; ``bulk``: as it was entered."""
        with self._lock:
            self._used -= 1
            self._bulk_used -= bulk
            self._mean_seconds += EWMA_WEIGHT * (seconds - self._mean_seconds)


@dataclass(slots=True)
class RequestGate:
    """One turn's. ``urgency`` is what it begins with; whoever passed once is ``started``."""

    rate_limiter: RateLimiter
    slots: ConcurrencySlots
    provider: Provider
    org_id: str
    priority: Priority = "interactive"
    _slot_acquired_at: float | None = None
    _slot_is_bulk: bool = False
    _operation: str = ""
    _is_reserved: bool = False

    def reserve(self, operation: str) -> None:
        """Pass for the next request ahead of it, so that what must wait has written nothing about it."""
        self._acquire(operation)
        self._is_reserved = True

    def before_request(self, operation: str) -> None:
        """Pass for a request that is sent now."""
        if not (self._is_reserved and operation == self._operation):
            self._acquire(operation)
        self._is_reserved = False

    def record_throttle(self, error: ThrottledError) -> None:
        """The biller says that the last request was one too many: everybody goes more slowly for a while.

        Not where it speaks of one object: more slowly, that one's limit would be met all the same.
        """
        if isinstance(error, ObjectThrottledError):
            return
        self.rate_limiter.penalize(self.provider, self._operation, error.code, error.retry_after or 0.0)

    def close(self) -> None:
        """The turn is over."""
        if self._slot_acquired_at is not None:
            self.slots.release(time.monotonic() - self._slot_acquired_at, bulk=self._slot_is_bulk)
            self._slot_acquired_at = None

    def _acquire(self, operation: str) -> None:
        if self._slot_acquired_at is None:
            self._slot_is_bulk = self.priority == "bulk"
            if (seconds := self.slots.acquire(bulk=self._slot_is_bulk)) is not None:
                raise NoPermitError(seconds, reserved=True)
            self._slot_acquired_at = time.monotonic()
        permit = self.rate_limiter.acquire(self.provider, operation, self.org_id, self.priority)
        if permit.state != "go":
            raise NoPermitError(permit.seconds, reserved=permit.state == "queued")
        self._operation = operation
        self.priority = "in_flight"
        time.sleep(permit.seconds)


class RequestGates:
    """Of one process. ``threads``: how many it works with; a quarter of them is out of each biller's reach."""

    def __init__(self, rate_limiter: RateLimiter | None = None, threads: int = 8) -> None:
        self.rate_limiter: RateLimiter = rate_limiter or UnlimitedRateLimiter()
        self._slots = {provider: ConcurrencySlots(max(1, threads - max(1, threads // 4))) for provider in PROVIDERS}

    def open_gate(self, provider: Provider, org_id: str, priority: Priority) -> RequestGate:
        return RequestGate(self.rate_limiter, self._slots[provider], provider, org_id, priority)
