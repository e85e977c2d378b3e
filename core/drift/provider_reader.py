"""The reads of drift checks and repairs. A check that fails, since a provider is down for longer, can be resumed."""

from __future__ import annotations

from dataclasses import dataclass

from core.ports.provider import StateReader
from core.reconcile.low_priority_reader import LowPriorityReader
from core.reconcile.reconciler import Reconciler

DRIFT_PURPOSE = "drift"


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReader(LowPriorityReader[StateReader]):
    purpose: str = DRIFT_PURPOSE

    @classmethod
    def for_reconciler(cls, reconciler: Reconciler) -> DriftReader:
        return cls(
            readers={each: provider.reader for each, provider in reconciler.providers.items()},
            gates=reconciler.request_gates,
        )
