"""What a biller must hold for an organization, computed from its row and the catalog; nobody else decides it.

An unknown plan is a ``RejectedError``: it parks billing, it never means free. Two chargers at once are one too.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import timedelta

from core.catalog.plans import Catalog, Plan
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.ports.errors import RejectedError
from core.ports.spec import CustomerSpec, Provider

SECOND_PAYER = "second_payer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Decisions of the deployment. ``links_payer``: Lago is told the Stripe customer that it charges."""

    links_payer: bool = False
    payer_wait: timedelta = timedelta(seconds=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """``plan_code`` None: no subscription of ours may live there. ``alive`` False: nothing new is made there either.

    ``settles``: this biller charges, so its word decides when a scheduled plan took effect. ``unsold_code``: what the
    plan would be called here if this biller charged for it.
    """

    customer: CustomerSpec
    alive: bool = True
    plan_code: str | None = None
    next_plan_code: str | None = None
    settles: bool = False
    needs_payer: bool = False
    announces_payer: bool = False
    unsold_code: str | None = None


def wish(provider: Provider, organization: Organization, other: BillingLink, catalog: Catalog, policy: Policy) -> Wish:
    """``other`` is the organization's link at the other biller. Raises ``RejectedError``."""
    spec = CustomerSpec(
        org_id=organization.id,
        name=organization.name,
        email=organization.billing_email,
        currency=organization.currency,
    )
    if organization.status == "deleted":
        return Wish(customer=spec, alive=False)
    plan = _plan(provider, organization.plan_tier, catalog)
    following = _plan(provider, organization.pending_plan_tier, catalog) if organization.pending_plan_tier else None
    if following is not None and following.charged_by != plan.charged_by:
        raise _moves_between_chargers(provider, plan, following)
    if plan.charged_by == provider:
        refuse_second_payer(other)
    if provider == "stripe":
        return _at_stripe(spec, plan, following, policy)
    return _at_lago(spec, plan, following, other, policy)


def _at_stripe(spec: CustomerSpec, plan: Plan, following: Plan | None, policy: Policy) -> Wish:
    """The payer; a subscription only where Stripe charges (money.md 1)."""
    if plan.charged_by == "lago":
        unlinked = replace(spec, unlinked=True)
        return Wish(customer=unlinked, announces_payer=policy.links_payer, unsold_code=plan.stripe_lookup_key)
    return Wish(
        customer=spec,
        plan_code=plan.stripe_lookup_key,
        next_plan_code=following.stripe_lookup_key if following else None,
        settles=True,
    )


def _at_lago(spec: CustomerSpec, plan: Plan, following: Plan | None, other: BillingLink, policy: Policy) -> Wish:
    """Customer and subscription always; the payer only where Lago charges, and only one that Stripe has confirmed."""
    linked = policy.links_payer and plan.charged_by == "lago"
    payer = other.customer_id if linked and other.applied_customer is not None else None
    return Wish(
        customer=replace(spec, payer_id=payer, unlinked=plan.charged_by != "lago"),
        plan_code=plan.lago_plan_code,
        next_plan_code=following.lago_plan_code if following else None,
        settles=plan.charged_by == "lago",
        needs_payer=linked and payer is None,
    )


def digest(spec: CustomerSpec) -> str:
    """Names a customer spec without repeating the name and email that are in it.

    The keys are stored with every link: another key makes each customer look changed, and costs a write for each.
    """
    fields = {
        "currency": spec.currency,
        "email": spec.email,
        "name": spec.name,
        "org_id": spec.org_id,
        "payer_id": spec.payer_id,
        "unlinked": spec.unlinked,
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _plan(provider: Provider, tier: str, catalog: Catalog) -> Plan:
    plan = catalog.plans.get(tier)
    if plan is None:
        raise RejectedError(
            provider,
            f"plan {tier!r} is not in the catalog ({', '.join(catalog.tiers())}): "
            "give the organization one of these, or add a table for it to plans.toml",
            "unknown_plan",
        )
    return plan


def refuse_second_payer(other: BillingLink) -> None:
    """Before this biller charges: the other one must not, nor be about to. Raises ``RejectedError``."""
    if other.provider == "lago" and other.payer_id is not None:
        raise RejectedError(
            "stripe",
            f"the plan is charged by Stripe, but Lago charges {other.payer_id}: "
            "unlink the payment provider of its customer in Lago, then retry",
            SECOND_PAYER,
        )
    making = other.intent is not None and other.intent["operation"] == "create_subscription"
    if other.provider == "stripe" and (other.subscription_id is not None or making):
        raise RejectedError(
            "lago",
            f"the plan is charged by Lago, but Stripe has the subscription {other.subscription_id or 'in the making'}: "
            "Lago follows once that has ended; what its Stripe link waits for says how",
            SECOND_PAYER,
        )


def _moves_between_chargers(provider: Provider, plan: Plan, following: Plan) -> RejectedError:
    return RejectedError(
        provider,
        f"the downgrade from {plan.tier} to {following.tier} would move it from {plan.charged_by} to "
        f"{following.charged_by} at period end, which neither can schedule: take it back, or let one charge both plans",
        "other_charger",
    )
