"""Rate limiter for the callers of the API: one bucket for each, refilled at the rate, full after a pause.

A bucket is stored as one moment, the one at which it is full again (GCRA). Maintained libraries either count windows or
use a clock of their own, and fail without Redis.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

CLIENT_TICKS_PER_SECOND: Final = 1_000_000  # whole microseconds, so that no rounding adds up
DEFAULT_CLIENT_RATE: Final = 50.0  # requests a second
CLIENT_BURST_SECONDS: Final = 2.0  # seconds' worth of the rate that may come at once after a pause
MAX_TRACKED_CLIENTS: Final = 20_000


class ClientRateLimiter(Protocol):
    def acquire(self, caller: str, /) -> float:
        """0: the request may proceed. Else the seconds until it may; nothing was taken from the bucket."""


class LocalClientRateLimiter:
    """Of one process. The caller that was idle longest is dropped first: its bucket is full by then, or soon."""

    def __init__(
        self, rate: float, monotonic: Callable[[], float] = time.monotonic, max_clients: int = MAX_TRACKED_CLIENTS
    ) -> None:
        self._interval = int(CLIENT_TICKS_PER_SECOND / rate)
        self._burst_tolerance = burst_tolerance(rate)
        self._monotonic, self._max_clients = monotonic, max_clients
        self._full_at: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def acquire(self, caller: str) -> float:
        now = int(self._monotonic() * CLIENT_TICKS_PER_SECOND)
        with self._lock:
            full_at = max(self._full_at.get(caller, now), now)
            if full_at - now > self._burst_tolerance:
                return (full_at - now - self._burst_tolerance) / CLIENT_TICKS_PER_SECOND
            self._full_at[caller] = full_at + self._interval
            self._full_at.move_to_end(caller)
            while len(self._full_at) > self._max_clients:
                self._full_at.popitem(last=False)
        return 0.0


def burst_tolerance(rate: float) -> int:
    """Microseconds that a caller may be ahead of the rate: the burst, less the request itself."""
    return max(0, int(CLIENT_BURST_SECONDS * CLIENT_TICKS_PER_SECOND) - int(CLIENT_TICKS_PER_SECOND / rate))


def client_key(caller: str) -> str:
    """A hash that stands for the caller, since a user's id may be an address."""
    return hashlib.sha256(caller.encode()).hexdigest()[:32]
