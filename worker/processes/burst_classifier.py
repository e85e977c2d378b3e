"""Classifies sync requests as interactive or bulk: requests that arrive faster than the provider's rate are bulk.

Bulk requests are delayed so that they reach the provider at its rate. Those that would be delayed for longer than
``SWEEP_GRACE`` are left to the sweep. Two thousand sign-ups therefore do not fill the queues, and a change made after
them does not wait for them. Each process counts only its own requests; a wrong class costs a delay of seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from core.organizations.links import SWEEP_GRACE
from core.ports.spec import PROVIDERS, Provider
from tasks.routing import SyncRequest

INTERACTIVE_BURST_SIZE: Final = 50  # sync requests for one provider that may arrive at once and are still interactive


@dataclass(slots=True)
class _ProviderBudget:
    """One provider: how many more requests are interactive now, and until when bulk requests are already spread."""

    interactive_left: float = INTERACTIVE_BURST_SIZE
    bulk_until: float = 0.0


class BurstClassifier:
    """``rate_of`` returns the sync attempts per second of a provider. Not thread-safe."""

    def __init__(self, rate_of: Callable[[Provider], float], now: Callable[[], float] = time.monotonic) -> None:
        self._rate_of = rate_of
        self._now = now
        self._budgets = {provider: _ProviderBudget() for provider in PROVIDERS}
        self._refilled_at = now()

    def classify(self, requests: Iterable[SyncRequest]) -> Iterator[SyncRequest]:
        """Yield the requests to publish now, in their order; the others are left to the sweep."""
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
