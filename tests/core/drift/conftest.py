"""A comparison over the world of the sync's tests: real billers in the sandbox, one database."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from core.compare.findings import DriftItem, Finding
from core.drift import report_store
from core.drift.detector import DriftDetector
from core.drift.repairer import DriftRepairer, RepairResult
from core.drift.report_store import DriftReport
from tests.core.fakes import World


@dataclass
class DriftHarness:
    world: World

    @property
    def detector(self) -> DriftDetector:
        """As one of another process: it knows nothing but the rows."""
        detector = DriftDetector.for_reconciler(self.world.reconciler)
        return replace(detector, provider_reader=replace(detector.provider_reader, sleep=self.world.wait))

    @property
    def repairer(self) -> DriftRepairer:
        repairer = DriftRepairer.for_reconciler(self.world.reconciler)
        reader = replace(repairer.inspector.provider_reader, sleep=self.world.wait)
        return replace(repairer, inspector=replace(repairer.inspector, provider_reader=reader))

    def check(self) -> DriftReport:
        return self.detector.check()

    def drifts(self, report: DriftReport) -> list[DriftItem]:
        return list(report_store.read_drifts(self.world.database, report))

    def findings(self) -> list[Finding]:
        """Of a plan made now."""
        return [finding for drift in self.drifts(self.check()) for finding in drift.findings]

    def repair(self, report: DriftReport) -> RepairResult:
        return self.repairer.repair(report)

    def sent_writes(self) -> list[str]:
        """What was sent since last asked that is not a read."""
        calls = [
            f"{call.method} {call.path}{'?' + call.query if call.query else ''}"
            for call in self.world.sandbox.calls()
            if call.method != "GET"
        ]
        self.world.sandbox.reset_calls()
        return calls


@pytest.fixture
def drift_harness(world: World) -> DriftHarness:
    return DriftHarness(world)
