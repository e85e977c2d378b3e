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
from tasks.routing import SyncRequest

INTERACTIVE_BURST_SIZE: Final = 50  # messages to one biller that may come at once and are fresh all the same


@dataclass(slots=True)
class _ProviderBudget:
    """To one biller. ``room`` for so many more at once; a crowd is spread up to ``bulk_until``."""

    interactive_left: float = INTERACTIVE_BURST_SIZE
    bulk_until: float = 0.0


class BurstClassifier:
    """``pace``: rounds a second at a biller. For one thread."""

    def __init__(self, rate_of: Callable[[Provider], float], now: Callable[[], float] = time.monotonic) -> None:
        self._rate_of = rate_of
        self._now = now
        self._budgets = {provider: _ProviderBudget() for provider in PROVIDERS}
        self._refilled_at = now()

    def classify(self, requests: Iterable[SyncRequest]) -> Iterator[SyncRequest]:
        """Those that are to be rung now, in their order."""
        now = self._now()
        for provider, budget in self._budgets.items():
            budget.interactive_left = min(
                INTERACTIVE_BURST_SIZE, budget.interactive_left + (now - self._refilled_at) * self._rate_of(provider)
            )
        self._refilled_at = now
        for request in requests:
            budget = self._budgets[request.provider]
            starts_at = max(now, budget.bulk_until)
            if budget.interactive_left >= 1:
                budget.interactive_left -= 1
                yield request
            elif starts_at - now <= SWEEP_GRACE.total_seconds():
                budget.bulk_until = starts_at + 1 / self._rate_of(request.provider)
                yield replace(request, bulk=True, delay_seconds=starts_at - now)
