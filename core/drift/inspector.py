"""Second read of one organization: a difference in a listing counts only if both providers show it again now.

Nothing is reported about an organization that changes meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from core.common.clock import Clock
from core.compare import local_state
from core.compare.diff import DiffRules, compare
from core.compare.findings import DriftItem, Finding, FindingKind, OurWrite, RepairStep, TheirWrite
from core.compare.local_state import LocalState
from core.db.database import Database
from core.drift.provider_reader import DriftReader
from core.ports.external_ids import ExternalIds
from core.ports.observed import ObservedState, RemoteWrite, Repair
from core.ports.provider import StateReader
from core.ports.spec import Provider

InFlux = Literal["in_flux"]
IN_FLUX: InFlux = "in_flux"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspector:
    database: Database
    provider_reader: DriftReader
    rules: DiffRules
    clock: Clock

    def inspect(self, org_id: str, customer_ids: Mapping[Provider, Collection[str]]) -> DriftItem | InFlux | None:
        """``None``: there is no drift. Raises ``ProviderError`` if a provider cannot be read."""
        before = self._local_state(org_id)
        if before is None or before.is_in_flux(self.clock()):
            return IN_FLUX
        observed_states = {
            provider: self.provider_reader(
                provider,
                partial(_read_state, org_id, customer_ids.get(provider, ()), before.external_ids(provider)),
            )
            for provider in sorted(self.provider_reader.readers)
        }
        after = self._local_state(org_id)
        if after is None or after.is_in_flux(self.clock()) or after.row_versions != before.row_versions:
            return IN_FLUX
        result = compare(after, observed_states, self.rules)
        if not result.findings:
            return None
        return DriftItem(
            org_id=org_id,
            name=after.organization.name,
            row_versions=after.row_versions,
            inspected_customer_ids={provider: tuple(customer_ids.get(provider, ())) for provider in observed_states},
            findings=tuple(result.findings),
            repairs=tuple(
                self._repair_step(provider, repair, result.findings) for provider, repair in result.repairs.items()
            ),
        )

    def with_writers(self, drift: DriftItem, writes: Mapping[str, RemoteWrite]) -> DriftItem:
        """The same item with the last writes, ours and the provider's. ``writes``: by the id of the object."""
        if drift.org_id is None:
            return drift
        with self.database.read() as session:
            our_writes = local_state.last_writes(session, drift.org_id)
        return replace(drift, findings=tuple(_with_writers(each, our_writes, writes) for each in drift.findings))

    def _local_state(self, org_id: str) -> LocalState | None:
        with self.database.read() as session:
            return local_state.load(session, org_id)

    def _repair_step(self, provider: Provider, repair: Repair, findings: Collection[Finding]) -> RepairStep:
        repairable = [each for each in findings if each.repairable and each.provider == provider]
        return RepairStep(
            provider=provider,
            customer=repair.updates_customer,
            subscription=any(each.is_about_subscription for each in repairable),
            calls=tuple(self.provider_reader.readers[provider].planned_requests(repair)),
        )


def _read_state(
    org_id: str, customer_ids: Collection[str], known_as: ExternalIds, reader: StateReader
) -> ObservedState:
    return reader.read(org_id, customer_ids, known_as)


def _with_writers(
    finding: Finding, our_writes: Mapping[FindingKind, OurWrite], writes: Mapping[str, RemoteWrite]
) -> Finding:
    remote_write = writes.get(finding.object_id or "")
    if remote_write is None:
        return replace(finding, our_write=our_writes.get(finding.kind))
    their_write = TheirWrite(
        by="us" if remote_write.by_us else "not us", at=remote_write.written_at, evidence=remote_write.evidence
    )
    return replace(finding, our_write=our_writes.get(finding.kind), their_write=their_write)
