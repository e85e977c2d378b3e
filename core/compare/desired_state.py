"""Desired state of an organization at one provider, computed from its row and the plan catalog, and nowhere else.

An unknown plan is a ``RejectedError``: it parks the link and never means a free plan. Two charging providers at once
are a ``RejectedError``, too, and so is a plan in another currency than the organization's.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import timedelta

from core.catalog.plans import Catalog, CatalogPlan
from core.compare import charging
from core.compare.advice import Advice
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.ports.errors import RejectedError
from core.ports.spec import CustomerSpec, Provider


@dataclass(frozen=True, slots=True, kw_only=True)
class PayerPolicy:
    """Settings of the deployment. ``sends_payer_to_lago``: Lago gets the id of the Stripe customer that it charges."""

    sends_payer_to_lago: bool = False
    payer_wait: timedelta = timedelta(seconds=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredState:
    """``plan_code`` None: no subscription of ours may be active. ``active`` False: nothing new is created either.

    ``is_charging``: this provider charges, so it decides when a scheduled plan has taken effect.
    ``uncharged_plan_code``: the code that the plan would have if this provider charged for it.
    """

    customer: CustomerSpec
    active: bool = True
    plan_code: str | None = None
    next_plan_code: str | None = None
    is_charging: bool = False
    waits_for_payer: bool = False
    provides_payer: bool = False
    uncharged_plan_code: str | None = None


def desired_state(
    provider: Provider, organization: Organization, other_link: BillingLink, catalog: Catalog, policy: PayerPolicy
) -> DesiredState:
    """``other_link`` is the organization's link at the other provider. Raises ``RejectedError``."""
    spec = CustomerSpec(
        org_id=organization.id,
        name=organization.name,
        email=organization.billing_email,
        currency=organization.currency,
    )
    if organization.status == "deleted":
        return DesiredState(customer=spec, active=False)
    plan = _sold_plan(provider, organization.plan_tier, organization.currency, catalog)
    pending_tier = organization.pending_plan_tier
    next_plan = _sold_plan(provider, pending_tier, organization.currency, catalog) if pending_tier else None
    if next_plan is not None and next_plan.charged_by != plan.charged_by:
        raise charging.charging_provider_would_change(provider, plan, next_plan)
    if plan.charged_by == provider:
        charging.refuse_double_charging(other_link)
    if provider == "stripe":
        return _at_stripe(spec, plan, next_plan, policy)
    return _at_lago(spec, plan, next_plan, other_link, policy)


def _at_stripe(
    spec: CustomerSpec, plan: CatalogPlan, next_plan: CatalogPlan | None, policy: PayerPolicy
) -> DesiredState:
    """Always a customer, who is the payer; a subscription only if Stripe charges (money.md 1)."""
    if plan.charged_by == "lago":
        customer = replace(spec, charged_by_other_provider=True)
        return DesiredState(
            customer=customer, provides_payer=policy.sends_payer_to_lago, uncharged_plan_code=plan.stripe_lookup_key
        )
    return DesiredState(
        customer=spec,
        plan_code=plan.stripe_lookup_key,
        next_plan_code=next_plan.stripe_lookup_key if next_plan else None,
        is_charging=True,
    )


def _at_lago(
    spec: CustomerSpec, plan: CatalogPlan, next_plan: CatalogPlan | None, other_link: BillingLink, policy: PayerPolicy
) -> DesiredState:
    """Always a customer and a subscription; a payer only if Lago charges."""
    sends_payer = policy.sends_payer_to_lago and plan.charged_by == "lago"
    payer_id = charging.payer_id(other_link) if sends_payer else None
    return DesiredState(
        customer=replace(spec, payer_id=payer_id, charged_by_other_provider=plan.charged_by != "lago"),
        plan_code=plan.lago_plan_code,
        next_plan_code=next_plan.lago_plan_code if next_plan else None,
        is_charging=plan.charged_by == "lago",
        waits_for_payer=sends_payer and payer_id is None,
    )


def customer_fingerprint(spec: CustomerSpec) -> str:
    """Digest of a customer spec, which does not contain its name and email.

    It is stored with every link. If a key of ``fields`` changes, each customer looks changed and costs a write.
    """
    fields = {
        "currency": spec.currency,
        "email": spec.email,
        "name": spec.name,
        "org_id": spec.org_id,
        "payer_id": spec.payer_id,
        "unlinked": spec.charged_by_other_provider,
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _sold_plan(provider: Provider, tier: str, currency: str | None, catalog: Catalog) -> CatalogPlan:
    """Lago takes a plan in another currency than the customer's and mixes the two, so no provider is asked for it."""
    plan = catalog.plans.get(tier)
    if plan is None:
        advice = Advice("plan_not_in_catalog", {"tier": tier, "tiers": ", ".join(catalog.tiers())})
        raise RejectedError(provider, advice.sentence, "unknown_plan")
    if currency is not None and currency != plan.currency:
        advice = Advice("plan_in_other_currency", {"tier": tier, "plan_currency": plan.currency, "currency": currency})
        raise RejectedError(provider, advice.sentence, "plan_in_other_currency")
    return plan
