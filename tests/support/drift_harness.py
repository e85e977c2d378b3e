"""Drift checks and repairs over one database and the sandbox, and what tests expect of a finding."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import select

from core.compare.diff import DiffRules
from core.compare.findings import DriftItem, Finding
from core.db.models.billing_links import BillingLink
from core.drift import report_store
from core.drift.conflict_resolver import ConflictResolver
from core.drift.detector import DriftDetector
from core.drift.provider_reader import DriftReader
from core.drift.repairer import DriftRepairer, RepairResult
from core.drift.report_store import DriftReport
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.organizations.commands import NewOrganization
from tests.support.sync_world import SyncWorld


@dataclass
class DriftHarness:
    world: SyncWorld

    @property
    def detector(self) -> DriftDetector:
        """A new detector, as in another process: it has no state but the rows."""
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
        """The findings of a new drift check."""
        return [finding for drift in self.drifts(self.check()) for finding in drift.findings]

    def repair(self, report: DriftReport) -> RepairResult:
        return self.repairer.repair(report)

    def sent_writes(self) -> list[str]:
        """The requests other than reads since the last call."""
        calls = [
            f"{call.method} {call.path}{'?' + call.query if call.query else ''}"
            for call in self.world.sandbox.calls()
            if call.method != "GET"
        ]
        self.world.sandbox.reset_calls()
        return calls


def conflict_resolver_of(world: SyncWorld) -> ConflictResolver:
    reader = replace(DriftReader.for_reconciler(world.reconciler), sleep=world.wait)
    rules = DiffRules(catalog=world.catalog, policy=world.policy, is_remote_check=True)
    return ConflictResolver(database=world.database, provider_reader=reader, rules=rules, clock=world.clock)


def price_of(world: SyncWorld, tier: str) -> str:
    prices = {price["lookup_key"]: str(price["id"]) for price in world.stripe_objects("prices")}
    if not prices:
        (made,) = world.sandbox.preload_stripe_prices(
            [
                {
                    "lookup_key": f"{tier}_by_hand",
                    "currency": "usd",
                    "unit_amount": 1900,
                    "recurring": {"interval": "month"},
                    "product_data": {"name": tier},
                }
            ]
        )
        return str(made["id"])
    return prices[world.catalog.plan(tier).stripe_lookup_key]


def synced_organization(world: SyncWorld, **fields: str) -> str:
    org_id = world.create(**fields)
    world.reconcile_until_idle(org_id)
    world.advance_time(minutes=5)
    world.count_requests()
    return org_id


def single_finding(drift_harness: DriftHarness) -> tuple[Finding, DriftItem, DriftReport]:
    """The single finding of a new drift check."""
    report = drift_harness.check()
    (drift,) = drift_harness.drifts(report)
    (finding,) = drift.findings
    return finding, drift, report


def assert_repaired(world: SyncWorld, drift_harness: DriftHarness) -> Finding:
    """There is one finding. Its repair sends exactly the writes that the report lists, and then no drift is left."""
    finding, drift, report = single_finding(drift_harness)
    assert finding.repairable
    world.sandbox.reset_calls()
    assert drift_harness.repair(report).not_repaired == []
    listed = [call for each in drift.repairs for call in each.calls]
    assert drift_harness.sent_writes() == [call for call in listed if not call.startswith("GET ")]
    assert drift_harness.findings() == []
    return finding


def assert_needs_an_operator(world: SyncWorld, drift_harness: DriftHarness) -> Finding:
    """There is one finding, which no repair fixes: nothing is sent, and it is found again."""
    finding, drift, report = single_finding(drift_harness)
    assert not finding.repairable
    assert drift.repairs == ()
    before = world.sandbox.state()
    world.sandbox.reset_calls()
    assert drift_harness.repair(report).organizations == 0
    assert world.sandbox.state() == before
    assert drift_harness.check().id == report.id
    return finding


def in_sync(world: SyncWorld, count: int) -> list[str]:
    """Organizations in sync, created at both providers by hand: reconciling each would take minutes."""
    org_ids = [f"org_{number:06}" for number in range(count)]
    names = [f"Acme {number}" for number in range(count)]
    rows = list(zip(org_ids, names, strict=True))
    for start in range(0, count, 1000):
        part = rows[start : start + 1000]
        world.sandbox.preload_stripe_customers(
            [{"id": f"cus_{org}", "name": name, "metadata": {"billing_sync_org_id": org}} for org, name in part]
        )
        world.sandbox.preload_lago_customers(
            [{"external_id": org, "lago_id": f"lago_{org}", "name": name} for org, name in part]
        )
        for org_id, _ in part:
            world.sandbox.preload_lago_subscription(org_id, "starter", org_id)
    with world.database.write() as session:
        for org_id, name in rows:
            new = NewOrganization(name=name, plan_tier="starter", org_id=org_id)
            commands.create(ChangeContext(session, world.now), new, world.catalog)
        session.flush()
        for link in session.scalars(select(BillingLink)):
            at = "cus" if link.provider == "stripe" else "lago"
            link.customer_id, link.applied_version = f"{at}_{link.org_id}", 1
            link.customer_state, link.customer_fingerprint = "applied", "made"
            link.plan_state = "applied" if link.provider == "lago" else "unknown"
            link.applied_plan = "starter" if link.provider == "lago" else None
    world.sandbox.reset_calls()
    return org_ids
