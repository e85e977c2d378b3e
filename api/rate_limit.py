"""How often one caller may ask: a bucket for each, refilled at the rate, full after a pause.

The whole of a bucket is one moment, from which its caller is owed nothing (GCRA); kept libraries either count windows
or bring the buckets' own clock, and fall over without Redis.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

SECOND: Final = 1_000_000  # whole microseconds, so that no rounding adds up
DEFAULT_RATE: Final = 50.0  # requests a second
BURST_SECONDS: Final = 2.0  # of the rate may come at once after a pause
MOST_CALLERS: Final = 20_000


class Paces(Protocol):
    def take(self, caller: str, /) -> float:
        """0: go. Else the seconds until the caller may; nothing was taken."""


class LocalPaces:
    """Of one process; who asked longest ago is forgotten, and is owed a full bucket by then, or soon."""

    def __init__(self, rate: float, monotonic: Callable[[], float] = time.monotonic, most: int = MOST_CALLERS) -> None:
        self._interval = int(SECOND / rate)
        self._ahead = ahead_of(rate)
        self._monotonic, self._most = monotonic, most
        self._due: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, caller: str) -> float:
        now = int(self._monotonic() * SECOND)
        with self._lock:
            due = max(self._due.get(caller, now), now)
            if due - now > self._ahead:
                return (due - now - self._ahead) / SECOND
            self._due[caller] = due + self._interval
            self._due.move_to_end(caller)
            while len(self._due) > self._most:
                self._due.popitem(last=False)
        return 0.0


def ahead_of(rate: float) -> int:
    """Microseconds that a caller may be ahead of the rate when he asks: the burst, less the one that he asks for."""
    return max(0, int(BURST_SECONDS * SECOND) - int(SECOND / rate))


def anonymous(caller: str) -> str:
    """The same caller without a name: a user's id may be an address."""
    return hashlib.sha256(caller.encode()).hexdigest()[:32]
