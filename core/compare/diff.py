"""Compares the desired and the observed state of one organization; ``core.compare.desired_state`` computes the former.

It sends no request. ``customer_rules`` and ``subscription_rules`` find the differences; ``advice`` has the sentences.
Of a link that is parked, or on hold since an import, only what may cost money is reported, because it has an error
already. One that is on hold for a conflict is compared as if it was active, and not repaired.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from core.catalog.plans import Catalog
from core.compare.customer_rules import customer_findings, wrong_account
from core.compare.desired_state import DesiredState, PayerPolicy, sold_price
from core.compare.findings import Finding
from core.compare.local_state import LocalState
from core.compare.provider_side import ProviderSide
from core.compare.subscription_rules import subscription_findings
from core.ports.errors import RejectedError
from core.ports.observed import ObservedState, ObservedSubscription, Repair
from core.ports.spec import Provider

MAX_CUSTOMERS_INSPECTED = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffRules:
    """``accounts``: the accounts of our API keys, if they were read.

    ``is_remote_check``: the result decides whether a link is on hold for a conflict.
    """

    catalog: Catalog
    policy: PayerPolicy
    accounts: Mapping[Provider, str] = field(default_factory=dict)
    is_remote_check: bool = False


class DiffResult(NamedTuple):
    findings: list[Finding]
    repairs: dict[Provider, Repair]


def compare(local: LocalState, observed_states: Mapping[Provider, ObservedState], rules: DiffRules) -> DiffResult:
    """Without an observed state of a provider there are no findings about it."""
    findings: list[Finding] = []
    repairs: dict[Provider, Repair] = {}
    for provider, observed in sorted(observed_states.items()):
        side = ProviderSide(
            local=local,
            provider=provider,
            observed=relevant_to(local, provider, observed),
            catalog=rules.catalog,
            policy=rules.policy,
            key_account=rules.accounts.get(provider),
            is_remote_check=rules.is_remote_check,
        )
        provider_findings = _findings_at(side)
        findings += provider_findings
        if (repair := _repair_for(side, provider_findings)) is not None:
            repairs[provider] = repair
    return DiffResult(findings, repairs)


def _findings_at(side: ProviderSide) -> list[Finding]:
    if (in_wrong_account := wrong_account(side)) is not None:
        return [side.finding(in_wrong_account)]
    return [side.finding(each) for each in (*customer_findings(side), *subscription_findings(side))]


def relevant_to(local: LocalState, provider: Provider, observed: ObservedState) -> ObservedState:
    """The part about the organization: its linked customer, those with its org_id, and their subscriptions."""
    org_id, linked_id = local.organization.id, local.links[provider].customer_id
    customers = {each.id: each for each in observed.customers if each.id == linked_id or each.org_id == org_id}
    customer_ids = {*customers, *({linked_id} if linked_id else ())}
    subscriptions = {
        each.id: each for each in observed.subscriptions if each.org_id == org_id or each.customer_id in customer_ids
    }
    return ObservedState(
        customers=tuple(sorted(customers.values(), key=lambda each: each.id)),
        subscriptions=tuple(sorted(subscriptions.values(), key=lambda each: each.id)),
    )


def customers_to_inspect(local: LocalState, provider: Provider, observed: ObservedState) -> tuple[str, ...]:
    """The customers that must be read for the organization, the linked one first."""
    linked_id = local.links[provider].customer_id
    observed_ids = {each.id for each in observed.customers} | {each.customer_id for each in observed.subscriptions}
    others = sorted(observed_ids - {linked_id, ""} - {None})
    return tuple([*([linked_id] if linked_id else []), *others][:MAX_CUSTOMERS_INSPECTED])


def _repair_for(side: ProviderSide, findings: list[Finding]) -> Repair | None:
    """What one attempt writes again. Nothing for a deleted organization: an attempt at that ends what it finds."""
    desired, customer_id = side.desired, side.link.customer_id
    repairable = [each for each in findings if each.repairable]
    if not repairable or isinstance(desired, RejectedError) or customer_id is None:
        return None
    repairs_subscription = any(each.is_about_subscription for each in repairable)
    return Repair(
        org_id=side.organization.id,
        customer_id=customer_id,
        updates_customer=any(not each.is_about_subscription for each in repairable),
        subscription=desired.subscription_spec(side.organization.id, customer_id)
        if repairs_subscription or _needs_plan_date(side, desired)
        else None,
        observed=_as_sold(side),
    )


def _as_sold(side: ProviderSide) -> ObservedSubscription | None:
    """Our subscription. At the price that was sold it is on the plan that was sold, whatever the provider shows."""
    observed, sold = side.subscription, sold_price(side.link)
    is_as_sold = observed is not None and sold is not None and observed.price_id == sold.price_id
    return replace(observed, plan_code=sold.plan_code) if observed and sold and is_as_sold else observed


def _needs_plan_date(side: ProviderSide, desired: DesiredState) -> bool:
    """An attempt that does not know when the pending plan takes effect reads the subscription for that."""
    return desired.is_charging and desired.next_plan_code is not None and side.organization.plan_effective_at is None
