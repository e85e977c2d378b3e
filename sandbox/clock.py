"""The sandbox's clock and its timers.

The clock starts at real time and runs on. When it is moved forward, everything that becomes due happens in order.
"""

import heapq
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime


class SandboxClock:
    """Seconds since the epoch, real time plus an offset."""

    def __init__(self) -> None:
        self.offset = 0.0
        self._frozen_at: float | None = None

    def now(self) -> float:
        return time.time() + self.offset if self._frozen_at is None else self._frozen_at

    def set(self, moment: float) -> None:
        self.offset = moment - time.time()

    @contextmanager
    def frozen_at(self, moment: float) -> Iterator[None]:
        """Keep the time at ``moment``, so that a period's end gets its own date, not the date after the jump."""
        self._frozen_at = moment
        try:
            yield
        finally:
            self._frozen_at = None


class TimerQueue:
    """Callbacks by due time. A callback reads its object again, since the object may have changed by then."""

    def __init__(self, clock: SandboxClock) -> None:
        self._clock = clock
        self._timers: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()

    def add(self, due_at: float, callback: Callable[[float], None]) -> None:
        heapq.heappush(self._timers, (due_at, next(self._order), callback))

    def run_due(self) -> None:
        """Run everything that is due, oldest first, also what becomes due by it."""
        now = self._clock.now()
        while self._timers and self._timers[0][0] <= now:
            due_at, _, callback = heapq.heappop(self._timers)
            with self._clock.frozen_at(due_at):
                callback(due_at)

    def clear(self) -> None:
        self._timers.clear()


def utc_datetime(moment: float) -> datetime:
    return datetime.fromtimestamp(moment, UTC)
