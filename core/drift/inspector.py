"""A closer look at one organization: what a list showed is believed only when both billers show it again now.

Nothing is said of an organization that moves while it is looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from core.common.clock import Clock
from core.compare import local_state as our_side
from core.compare.diff import Rules, compare
from core.compare.findings import Drift, Finding, Kind, OurWrite, Round, TheirWrite
from core.compare.local_state import Ours
from core.db.database import Database
from core.drift.provider_reader import Asking
from core.ports.observed import Repair, Sight, Write
from core.ports.provider import Auditor
from core.ports.spec import Provider

Moves = Literal["moves"]
MOVES: Moves = "moves"


@dataclass(frozen=True, slots=True, kw_only=True)
class Looking:
    database: Database
    ask: Asking
    rules: Rules
    clock: Clock

    def at(self, org_id: str, customer_ids: Mapping[Provider, Collection[str]]) -> Drift | Moves | None:
        """``None``: nothing has drifted. Raises ``ProviderError`` when a biller cannot be asked."""
        before = self._ours(org_id)
        if before is None or before.moves(self.clock()):
            return MOVES
        sights = {
            provider: self.ask(provider, partial(_look, org_id, customer_ids.get(provider, ())))
            for provider in sorted(self.ask.auditors)
        }
        after = self._ours(org_id)
        if after is None or after.moves(self.clock()) or after.basis != before.basis:
            return MOVES
        compared = compare(after, sights, self.rules)
        if not compared.findings:
            return None
        return Drift(
            org_id=org_id,
            name=after.organization.name,
            basis=after.basis,
            looked={provider: tuple(customer_ids.get(provider, ())) for provider in sights},
            findings=tuple(compared.findings),
            rounds=tuple(
                self._round(provider, repair, compared.findings) for provider, repair in compared.repairs.items()
            ),
        )

    def with_writers(self, drift: Drift, writes: Mapping[str, Write]) -> Drift:
        """The same, with who last wrote it here and there; ``writes`` by the id of what was written."""
        if drift.org_id is None:
            return drift
        with self.database.read() as session:
            here = our_side.last_writes(session, drift.org_id)
        return replace(drift, findings=tuple(_signed(each, here, writes) for each in drift.findings))

    def _ours(self, org_id: str) -> Ours | None:
        with self.database.read() as session:
            return our_side.load(session, org_id)

    def _round(self, provider: Provider, repair: Repair, findings: Collection[Finding]) -> Round:
        repaired = [each for each in findings if each.repaired and each.provider == provider]
        return Round(
            provider=provider,
            customer=repair.customer,
            subscription=any(each.about_subscription for each in repaired),
            calls=tuple(self.ask.auditors[provider].calls(repair)),
        )


def _look(org_id: str, customer_ids: Collection[str], auditor: Auditor) -> Sight:
    return auditor.look(org_id, customer_ids)


def _signed(finding: Finding, here: Mapping[Kind, OurWrite], writes: Mapping[str, Write]) -> Finding:
    there = writes.get(finding.object_id or "")
    if there is None:
        return replace(finding, our_write=here.get(finding.kind))
    their_write = TheirWrite(by="us" if there.ours else "not us", at=there.at, evidence=there.evidence)
    return replace(finding, our_write=here.get(finding.kind), their_write=their_write)
