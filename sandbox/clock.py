"""The sandbox's time: starts at real time and runs on.

Moved forward, it lets everything due on the way happen in order.
"""

import heapq
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime


class Clock:
    """Seconds since the epoch, real time plus an offset."""

    def __init__(self) -> None:
        self.offset = 0.0
        self._held: float | None = None

    def now(self) -> float:
        return time.time() + self.offset if self._held is None else self._held

    def set(self, moment: float) -> None:
        self.offset = moment - time.time()

    @contextmanager
    def held_at(self, moment: float) -> Iterator[None]:
        """Inside, it is ``moment``: what happens at a period's end is dated there, not at the end of the jump."""
        self._held = moment
        try:
            yield
        finally:
            self._held = None


class Agenda:
    """What is due when. An entry only wakes its owner, who looks at the object as it is by then."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()

    def add(self, when: float, wake: Callable[[float], None]) -> None:
        heapq.heappush(self._entries, (when, next(self._order), wake))

    def run(self) -> None:
        """Everything due by now, oldest first; what that makes due before now is done too."""
        now = self._clock.now()
        while self._entries and self._entries[0][0] <= now:
            when, _, wake = heapq.heappop(self._entries)
            with self._clock.held_at(when):
                wake(when)

    def clear(self) -> None:
        self._entries.clear()


def utc(moment: float) -> datetime:
    return datetime.fromtimestamp(moment, UTC)
