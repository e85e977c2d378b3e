"""What a biller must hold for an organization, computed from its row and the catalog; nobody else decides it.

An unknown plan is a ``RejectedError``: it parks billing, it never means free. Two chargers at once are one too.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import timedelta

from core.catalog.plans import Catalog, CatalogPlan
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.ports.errors import RejectedError
from core.ports.spec import CustomerSpec, Provider

DOUBLE_CHARGING = "double_charging"


@dataclass(frozen=True, slots=True, kw_only=True)
class PayerPolicy:
    """Decisions of the deployment. ``links_payer``: Lago is told the Stripe customer that it charges."""

    sends_payer_to_lago: bool = False
    payer_wait: timedelta = timedelta(seconds=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredState:
    """``plan_code`` None: no subscription of ours may live there. ``alive`` False: nothing new is made there either.

    ``is_charging``: this biller charges, so its word decides when a scheduled plan took effect.
    ``uncharged_plan_code``: what the
    plan would be called here if this biller charged for it.
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
    """``other`` is the organization's link at the other biller. Raises ``RejectedError``."""
    spec = CustomerSpec(
        org_id=organization.id,
        name=organization.name,
        email=organization.billing_email,
        currency=organization.currency,
    )
    if organization.status == "deleted":
        return DesiredState(customer=spec, active=False)
    plan = _catalog_plan(provider, organization.plan_tier, catalog)
    next_plan = (
        _catalog_plan(provider, organization.pending_plan_tier, catalog) if organization.pending_plan_tier else None
    )
    if next_plan is not None and next_plan.charged_by != plan.charged_by:
        raise _charging_provider_change_error(provider, plan, next_plan)
    if plan.charged_by == provider:
        refuse_double_charging(other_link)
    if provider == "stripe":
        return _at_stripe(spec, plan, next_plan, policy)
    return _at_lago(spec, plan, next_plan, other_link, policy)


def _at_stripe(
    spec: CustomerSpec, plan: CatalogPlan, next_plan: CatalogPlan | None, policy: PayerPolicy
) -> DesiredState:
    """The payer; a subscription only where Stripe charges (money.md 1)."""
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
    """Customer and subscription always; the payer only where Lago charges, and only one that Stripe has confirmed."""
    sends_payer = policy.sends_payer_to_lago and plan.charged_by == "lago"
    payer_id = other_link.customer_id if sends_payer and other_link.customer_fingerprint is not None else None
    return DesiredState(
        customer=replace(spec, payer_id=payer_id, charged_by_other_provider=plan.charged_by != "lago"),
        plan_code=plan.lago_plan_code,
        next_plan_code=next_plan.lago_plan_code if next_plan else None,
        is_charging=plan.charged_by == "lago",
        waits_for_payer=sends_payer and payer_id is None,
    )


def customer_fingerprint(spec: CustomerSpec) -> str:
    """Names a customer spec without repeating the name and email that are in it.

    The keys are stored with every link: another key makes each customer look changed, and costs a write for each.
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


def _catalog_plan(provider: Provider, tier: str, catalog: Catalog) -> CatalogPlan:
    plan = catalog.plans.get(tier)
    if plan is None:
        raise RejectedError(
            provider,
            f"plan {tier!r} is not in the catalog ({', '.join(catalog.tiers())}): "
            "give the organization one of these, or add a table for it to plans.toml",
            "unknown_plan",
        )
    return plan


def refuse_double_charging(other_link: BillingLink) -> None:
    """Before this biller charges: the other one must not, nor be about to. Raises ``RejectedError``."""
    if other_link.provider == "lago" and other_link.payer_id is not None:
        raise RejectedError(
            "stripe",
            f"the plan is charged by Stripe, but Lago charges {other_link.payer_id}: "
            "unlink the payment provider of its customer in Lago, then retry",
            DOUBLE_CHARGING,
        )
    is_creating = other_link.intent is not None and other_link.intent["operation"] == "create_subscription"
    if other_link.provider == "stripe" and (other_link.subscription_id is not None or is_creating):
        raise RejectedError(
            "lago",
            "the plan is charged by Lago, but Stripe has the subscription "
            f"{other_link.subscription_id or 'in the making'}: "
            "Lago follows once that has ended; what its Stripe link waits for says how",
            DOUBLE_CHARGING,
        )


def _charging_provider_change_error(provider: Provider, plan: CatalogPlan, next_plan: CatalogPlan) -> RejectedError:
    return RejectedError(
        provider,
        f"the downgrade from {plan.tier} to {next_plan.tier} would move it from {plan.charged_by} to "
        f"{next_plan.charged_by} at period end, which neither can schedule: take it back, or let one charge both plans",
        "other_provider_charging",
    )
