"""A look at one biller after a hint: read how things are there, under the link's own turn, and write nothing there.

So no webhook, true, late, doubled or forged, makes us charge, end or change anything, and a look makes no new event.
What somebody changed about money is parked with a sentence; names and addresses are left for `billing-sync drift
check`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from core.catalog.plans import Catalog
from core.compare import diff
from core.compare.desired_state import DesiredState, PayerPolicy
from core.compare.diff import PROVIDER_NAMES, DiffRules
from core.compare.findings import Finding, FindingKind
from core.compare.local_state import LocalState
from core.ports.errors import RejectedError
from core.ports.observed import ObservedState
from core.ports.provider import StateReader
from core.reconcile.attempt import SyncAttempt

# Whose customer it is, what is charged, and by whom. The rest is no reason to stop an organization.
_PARKING_FINDINGS: Final[frozenset[FindingKind]] = frozenset(
    {"missing", "deleted", "wrong_plan", "double_charging", "foreign_subscription", "broken_link"}
)
CHANGED_AT_PROVIDER: Final = "changed_at_provider"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """``came``: the plan that waits has taken effect there. ``has_unpaid_invoice``: a payment failed and is still
    open.
    """

    scheduled_change_took_effect: bool
    has_unpaid_invoice: bool


def check(
    reader: StateReader, attempt: SyncAttempt, desired: DesiredState, catalog: Catalog, policy: PayerPolicy
) -> CheckResult | None:
    """``None``: nothing of ours can be there. Raises what a biller raises, and ``RejectedError`` for a person."""
    org_id, customer_id = attempt.organization.id, attempt.link.customer_id
    if customer_id is None:
        return None
    reader = reader.with_throttle(attempt)
    observed = reader.read(org_id, [customer_id])
    local_state = LocalState(organization=attempt.organization, links=attempt.links)
    for finding in diff.compare(
        local_state, {attempt.provider: observed}, DiffRules(catalog=catalog, policy=policy)
    ).findings:
        if finding.kind in _PARKING_FINDINGS and not (finding.kind == "broken_link" and finding.repairable):
            raise RejectedError(attempt.provider, _parking_message(finding, org_id), CHANGED_AT_PROVIDER)
    return CheckResult(
        scheduled_change_took_effect=_scheduled_change_took_effect(observed, desired),
        has_unpaid_invoice=reader.has_unpaid_invoice(org_id, observed),
    )


def _scheduled_change_took_effect(observed: ObservedState, desired: DesiredState) -> bool:
    """Nothing differs, so what is there is ours."""
    if not desired.is_charging or desired.next_plan_code in {None, desired.plan_code}:
        return False
    return any(
        subscription.started and subscription.plan_code == desired.next_plan_code
        for subscription in observed.subscriptions
    )


def _parking_message(finding: Finding, org_id: str) -> str:
    """What was found, and the way on where a usual round is one; whoever retries decides for it."""
    provider_name = PROVIDER_NAMES[finding.provider]
    retry_command = f"`billing-sync retry {org_id}`"
    if not finding.is_about_subscription or finding.kind not in {"missing", "wrong_plan"}:
        return f"{finding.object_id} in {provider_name}: {finding.advice}"
    if finding.kind == "missing" and finding.repairable:
        return (
            f"its subscription ended in {provider_name}, and not by us, so nothing is charged again by "
            f"itself: {retry_command} makes "
            "it again; if it is to end, give the organization the status deleted"
        )
    if finding.kind == "missing":
        return f"subscription {finding.object_id}: {finding.advice}"
    verb = "is on" if finding.field == "plan" else "goes on to"
    return (
        f"subscription {finding.object_id} {verb} {finding.theirs or 'no other plan'} in {provider_name}, here it is "
        f"{finding.ours or 'none'}, and that was not by us: change the plan here to what was meant, or "
        f"{retry_command} has "
        "it made ours there"
    )
