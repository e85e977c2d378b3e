"""A comparison over the world of the sync's tests: real billers in the sandbox, one database."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from core.compare.findings import Drift, Finding
from core.drift import report_store
from core.drift.detector import Planner
from core.drift.repairer import Applied, Applier
from core.drift.report_store import Plan
from tests.core.fakes import World


@dataclass
class Audit:
    world: World

    @property
    def planner(self) -> Planner:
        """As one of another process: it knows nothing but the rows."""
        planner = Planner.beside(self.world.sync)
        return replace(planner, ask=replace(planner.ask, sleep=self.world.wait))

    @property
    def applier(self) -> Applier:
        applier = Applier.beside(self.world.sync)
        ask = replace(applier.looking.ask, sleep=self.world.wait)
        return replace(applier, looking=replace(applier.looking, ask=ask))

    def plan(self) -> Plan:
        return self.planner.plan()

    def drifts(self, plan: Plan) -> list[Drift]:
        return list(report_store.found_by(self.world.database, plan))

    def findings(self) -> list[Finding]:
        """Of a plan made now."""
        return [finding for drift in self.drifts(self.plan()) for finding in drift.findings]

    def apply(self, plan: Plan) -> Applied:
        return self.applier.apply(plan)

    def writes(self) -> list[str]:
        """What was sent since last asked that is not a read."""
        calls = [
            f"{call.method} {call.path}{'?' + call.query if call.query else ''}"
            for call in self.world.sandbox.calls()
            if call.method != "GET"
        ]
        self.world.sandbox.reset_calls()
        return calls


@pytest.fixture
def audit(world: World) -> Audit:
    return Audit(world)
