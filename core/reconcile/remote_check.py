"""Remote check after a provider webhook: reads the provider, compares, and never writes to it.

It runs within a sync attempt at the link. A webhook only asks for the check, and what is done follows from what the
provider answers. So a late, repeated or forged webhook cannot make us charge, end or change anything. A change that
concerns money is a conflict: it puts the link on hold until an operator decides. Names and addresses are left to
`billing-sync drift check`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from core.catalog.plans import Catalog
from core.compare import diff
from core.compare.advice import Advice, AdviceCode
from core.compare.desired_state import DesiredState, PayerPolicy, external_ids
from core.compare.diff import DiffRules
from core.compare.findings import Finding, FindingKind
from core.compare.local_state import LocalState
from core.ports.arrangement import Arrangement
from core.ports.errors import ConflictError
from core.ports.observed import ObservedCredit, ObservedPayment, ObservedState
from core.ports.provider import StateReader
from core.ports.spec import CHANGED_AT_PROVIDER, CUSTOMER_DELETED, PAYER_CHANGED, PROVIDER_NAMES
from core.reconcile.attempt import SyncAttempt

# Whose customer it is, what is charged, and by whom. Other differences are no conflict.
_CONFLICT_FINDINGS: Final[frozenset[FindingKind]] = frozenset(
    {"missing", "deleted", "wrong_plan", "double_charging", "foreign_subscription", "broken_link"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """``scheduled_change_took_effect``: the pending plan is active at the provider.

    ``payment``: what is wrong with the invoices. ``arrangement``: of our subscription. ``credit``: on the customer's
    balance, if it was read. ``sold_price_id``: of the plan that the link says was sold; None: not shown.
    """

    scheduled_change_took_effect: bool
    payment: ObservedPayment
    arrangement: Arrangement | None
    credit: ObservedCredit | None
    sold_price_id: str | None


def check(
    reader: StateReader, attempt: SyncAttempt, desired: DesiredState, catalog: Catalog, policy: PayerPolicy
) -> CheckResult | None:
    """Read and compare. ``None``: nothing of ours can be at the provider.

    Raises what the provider raises, and ``ConflictError`` for a difference that an operator must decide.
    """
    org_id, customer_id = attempt.organization.id, attempt.link.customer_id
    if customer_id is None:
        return None
    reader = reader.with_permits(attempt)
    known_as = external_ids(attempt.link)
    observed = reader.read(org_id, [customer_id], known_as)
    local_state = LocalState(organization=attempt.organization, links=attempt.links)
    rules = DiffRules(catalog=catalog, policy=policy, is_remote_check=True)
    for finding in diff.compare(local_state, {attempt.provider: observed}, rules).findings:
        if is_conflict(finding):
            raise ConflictError(attempt.provider, conflict_advice(finding, org_id).sentence, _error_code(finding))
    return CheckResult(
        scheduled_change_took_effect=_scheduled_change_took_effect(observed, desired),
        payment=reader.read_payment(org_id, observed, is_charging=desired.is_charging, external_ids=known_as),
        # The comparison found no conflict, so the subscriptions are ours.
        arrangement=next((each.arrangement for each in observed.subscriptions if each.arrangement is not None), None),
        credit=next((each.credit for each in observed.customers if each.id == customer_id), None),
        sold_price_id=_sold_price_id(observed, attempt.link.sold_plan),
    )


def _sold_price_id(observed: ObservedState, sold_plan: str | None) -> str | None:
    """Somebody may have given the subscription a price of its own in Lago since we wrote it."""
    paid = (each.paid_cents for each in observed.subscriptions if each.plan_code == sold_plan and each.started)
    cents = next(paid, None)
    return None if cents is None else str(cents)


def _scheduled_change_took_effect(observed: ObservedState, desired: DesiredState) -> bool:
    """Whether the pending plan is active. The comparison found no difference, so the subscriptions are ours."""
    if not desired.is_charging or desired.next_plan_code in {None, desired.plan_code}:
        return False
    return any(
        subscription.started and desired.is_next_plan(subscription.plan_code) for subscription in observed.subscriptions
    )


def is_conflict(finding: Finding) -> bool:
    """Whether somebody changed what we charge, whom, or by whom. A payer that Lago never had is sent by an attempt."""
    return finding.kind in _CONFLICT_FINDINGS and not (finding.kind == "broken_link" and finding.repairable)


def _error_code(finding: Finding) -> str:
    match finding.kind:
        case "deleted":
            return CUSTOMER_DELETED  # allows to set another customer id, although the subscription is still stored
        case "broken_link":
            return PAYER_CHANGED
        case _:
            return CHANGED_AT_PROVIDER


def conflict_advice(finding: Finding, org_id: str) -> Advice:
    """What was found, and the ways out."""
    parameters = {
        "org_id": org_id,
        "provider_name": PROVIDER_NAMES[finding.provider],
        "object_id": finding.object_id,
        "advice": finding.advice,
        "ours": finding.ours or "no other plan",
        "theirs": finding.theirs or "no other plan",
        "retry_command": f"billing-sync resolve {org_id} --ours",
    }
    return Advice(_conflict_code(finding), parameters)


def _conflict_code(finding: Finding) -> AdviceCode:
    """``resolve`` is offered only where it can carry out what the sentence says."""
    if finding.kind == "broken_link" and finding.ours is None and finding.theirs is not None:
        return "conflict_payer_set"
    if finding.kind == "broken_link":
        return "conflict_payer" if finding.theirs is not None else "conflict_payer_removed"
    if finding.kind in {"double_charging", "foreign_subscription"}:
        return "conflict_subscription"
    if not finding.is_about_subscription:
        return "conflict_customer"
    if finding.kind == "missing":
        return "conflict_ended_subscription" if finding.repairable else "conflict_missing_subscription"
    return "conflict_plan" if finding.field == "plan" else "conflict_next_plan"
