"""The sandbox's time: starts at real time and runs on.

Moved forward, it lets everything due on the way happen in order.
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
        """Inside, it is ``moment``: what happens at a period's end is dated there, not at the end of the jump."""
        self._frozen_at = moment
        try:
            yield
        finally:
            self._frozen_at = None


class TimerQueue:
    """What is due when. An entry only wakes its owner, who looks at the object as it is by then."""

    def __init__(self, clock: SandboxClock) -> None:
        self._clock = clock
        self._timers: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()

    def add(self, due_at: float, callback: Callable[[float], None]) -> None:
        heapq.heappush(self._timers, (due_at, next(self._order), callback))

    def run_due(self) -> None:
        """Everything due by now, oldest first; what that makes due before now is done too."""
        now = self._clock.now()
        while self._timers and self._timers[0][0] <= now:
            due_at, _, callback = heapq.heappop(self._timers)
            with self._clock.frozen_at(due_at):
                callback(due_at)

    def clear(self) -> None:
        self._timers.clear()


def utc_datetime(moment: float) -> datetime:
    return datetime.fromtimestamp(moment, UTC)
