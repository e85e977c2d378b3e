"""Drift repair: carries out exactly one drift report, and only while our rows and the providers are as reported.

A repair invalidates the last-known state in our rows, and the usual reconciling corrects the provider. A crash in
between leaves links that are behind, and the sweep finishes them. Findings that are not repairable are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from core.compare import local_state
from core.compare.diff import DiffRules
from core.compare.findings import DriftItem, RepairStep
from core.drift import report_store
from core.drift.inspector import Inspector
from core.drift.provider_reader import DriftReader
from core.drift.report_store import DriftReport
from core.events.event_types import ChangeContext
from core.organizations import commands as organization_commands
from core.organizations.link_states import LinkEvent
from core.ports.errors import ParkedError, RetryableError
from core.ports.spec import Provider
from core.reconcile import commands
from core.reconcile.reconciler import Reconciler

OBSERVED_REASON = "the organization is observed, so nothing was written; `billing-sync management` changes that"
MAX_REPAIR_ATTEMPTS = 5  # of one link, at most ``MAX_REPAIR_WAIT_SECONDS`` apart; then the workers continue with it
MAX_REPAIR_WAIT_SECONDS = 10.0

OnRepairProgress = Callable[[str], None]


class ChangedSinceReportError(Exception):
    """Something changed since the report, so nothing was repaired. The message names the organizations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRepaired:
    """A link that is still not in sync. ``parked``: it needs an operator; else it is retried automatically."""

    org_id: str
    provider: Provider
    parked: bool
    reason: str | None


@dataclass(slots=True, kw_only=True)
class RepairResult:
    organizations: int = 0
    not_repaired: list[NotRepaired] = field(default_factory=list)


def _ignore_repair_progress(_org_id: str) -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftRepairer:
    inspector: Inspector
    reconciler: Reconciler

    @classmethod
    def for_reconciler(cls, reconciler: Reconciler) -> DriftRepairer:
        """Raises ``WrongAccountError``, and the provider's error if the account of a key cannot be read."""
        accounts = {provider: reconciler.account_guard.fetch(provider).id for provider in reconciler.providers}
        inspector = Inspector(
            database=reconciler.database,
            provider_reader=DriftReader.for_reconciler(reconciler),
            rules=DiffRules(catalog=reconciler.catalog, policy=reconciler.policy, accounts=accounts),
            clock=reconciler.clock,
        )
        return cls(inspector=inspector, reconciler=reconciler)

    def repair(
        self,
        report: DriftReport,
        on_inspected: OnRepairProgress = _ignore_repair_progress,
        on_repaired: OnRepairProgress = _ignore_repair_progress,
    ) -> RepairResult:
        """Raises ``ChangedSinceReportError``, or ``ProviderError`` if a provider cannot be read, before any repair."""
        database = self.inspector.database
        self._reject_if_changed(report, on_inspected)
        with database.write() as session:
            report_store.mark_repair_started(session, report, self.inspector.clock())
        result = RepairResult()
        provider_error: RetryableError | None = None
        for drift in report_store.read_drifts(database, report, repairable=True):
            result.organizations += 1
            if provider_error is None:
                try:
                    result.not_repaired += self._repair_organization(drift)
                except RetryableError as error:
                    provider_error = error  # it was retried already; the other organizations would only fail as well
            if provider_error is not None:
                result.not_repaired += _skipped(drift, f"it could not be inspected: {provider_error.message}")
            on_repaired(str(drift.org_id))
        return result

    def _reject_if_changed(self, report: DriftReport, on_inspected: OnRepairProgress) -> None:
        if report.repair_started_at is not None:
            message = (
                f"drift report {report.id[:12]} was already repaired; run `billing-sync drift check` for a new one"
            )
            raise ChangedSinceReportError(message)
        changed = []
        for drift in report_store.read_drifts(self.inspector.database, report, repairable=True):
            if not self._is_unchanged(drift):
                changed.append(str(drift.org_id))
            on_inspected(str(drift.org_id))
        if changed:
            others = f" and {len(changed) - 5} more" if len(changed) > 5 else ""  # noqa: PLR2004 - as many as a line holds
            message = (
                f"nothing was repaired: {', '.join(changed[:5])}{others} changed since drift report {report.id[:12]}, "
                "in our database or at a provider; run `billing-sync drift check` for a new report"
            )
            raise ChangedSinceReportError(message)

    def _is_unchanged(self, drift: DriftItem) -> bool:
        current = self.inspector.inspect(str(drift.org_id), drift.inspected_customer_ids)
        return not isinstance(current, str) and drift.is_same_as(current)

    def _repair_organization(self, drift: DriftItem) -> list[NotRepaired]:
        """Raises ``RetryableError`` if a provider cannot be read, before any repair."""
        org_id = str(drift.org_id)
        try:
            # Checked again, since the organizations before took time: a change made at the provider meanwhile is kept.
            if not (self._is_unchanged(drift) and self._invalidate(org_id, drift)):
                return _skipped(drift, "it changed during the repair")
        except ParkedError as error:
            return _skipped(drift, f"it could not be inspected: {error.message}")
        not_repaired = [self._reconcile(org_id, each.provider) for each in drift.repairs]
        return [each for each in not_repaired if each is not None]

    def _invalidate(self, org_id: str, drift: DriftItem) -> bool:
        """Locks the row of the organization, so that exactly the inspected state is invalidated."""
        now = self.inspector.clock()
        with self.inspector.database.write() as session:
            organization_commands.lock(session, org_id)
            local = local_state.load(session, org_id)
            if local is None or local.is_in_flux(now) or local.row_versions != drift.row_versions:
                return False
            for each in drift.repairs:
                change = ChangeContext(session, now)
                commands.repair(change, org_id, each.provider, _repair_events(each))
        return True

    def _reconcile(self, org_id: str, provider: Provider) -> NotRepaired | None:
        for _ in range(MAX_REPAIR_ATTEMPTS):
            result = self.reconciler.run(org_id, provider)
            if (
                result.kind in {"synced", "observed", "parked", "on_hold"}
                or result.requeue_after is None
                or result.requeue_after > MAX_REPAIR_WAIT_SECONDS
            ):
                break
            self.inspector.provider_reader.sleep(result.requeue_after)
        return self._not_repaired(org_id, provider)

    def _not_repaired(self, org_id: str, provider: Provider) -> NotRepaired | None:
        with self.inspector.database.read() as session:
            local = local_state.load(session, org_id)
        link = local.links[provider] if local is not None else None
        if link is None or (link.state == "active" and link.applied_version == link.desired_version):
            return None
        is_parked = link.state in {"parked", "on_hold"}
        reason = OBSERVED_REASON if link.state == "observed" else link.error_message
        return NotRepaired(org_id=org_id, provider=provider, parked=is_parked, reason=reason)


def _repair_events(step: RepairStep) -> list[LinkEvent]:
    events: list[LinkEvent] = []
    if step.customer:
        events.append("customer_repaired")
    if step.subscription:
        events.append("plan_repaired")
    return events


def _skipped(drift: DriftItem, reason: str) -> list[NotRepaired]:
    reason = f"{reason}; it was not repaired"
    return [
        NotRepaired(org_id=str(drift.org_id), provider=each.provider, parked=False, reason=reason)
        for each in drift.repairs
    ]
