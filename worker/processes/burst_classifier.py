"""Which messages are fresh and which are a crowd: what comes faster than its biller takes it is handled as bulk work.

A crowd is rung at the pace at which it is taken, as far as the sweep's grace reaches; the rest is left to the sweep. So
two thousand sign-ups do not fill the queues, and the change that comes after them does not stand behind them. Counted
in this process alone: to be wrong costs seconds, nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from core.organizations.links import SWEEP_GRACE
from core.ports.spec import PROVIDERS, Provider
from tasks.routing import Ring

NO_CROWD: Final = 50  # messages to one biller that may come at once and are fresh all the same


@dataclass(slots=True)
class _Way:
    """To one biller. ``room`` for so many more at once; a crowd is spread up to ``crowd_until``."""

    room: float = NO_CROWD
    crowd_until: float = 0.0


class Turnstile:
    """``pace``: rounds a second at a biller. For one thread."""

    def __init__(self, pace: Callable[[Provider], float], now: Callable[[], float] = time.monotonic) -> None:
        self._pace = pace
        self._now = now
        self._ways = {provider: _Way() for provider in PROVIDERS}
        self._counted_at = now()

    def sort(self, rings: Iterable[Ring]) -> Iterator[Ring]:
        """Those that are to be rung now, in their order."""
        now = self._now()
        for provider, way in self._ways.items():
            way.room = min(NO_CROWD, way.room + (now - self._counted_at) * self._pace(provider))
        self._counted_at = now
        for ring in rings:
            way = self._ways[ring.provider]
            begins = max(now, way.crowd_until)
            if way.room >= 1:
                way.room -= 1
                yield ring
            elif begins - now <= SWEEP_GRACE.total_seconds():
                way.crowd_until = begins + 1 / self._pace(ring.provider)
                yield replace(ring, bulk=True, after=begins - now)
