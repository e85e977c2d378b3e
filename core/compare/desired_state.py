"""Desired state of an organization at one provider, computed from its row and the plan catalog, and nowhere else.

An unknown plan is a ``RejectedError``: it parks the link and never means a free plan. Two charging providers at once
are a ``RejectedError``, too, and so is a plan in another currency than the organization's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

from core.catalog.plans import Catalog, CatalogPlan
from core.compare import charging_guard
from core.compare.advice import Advice
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.ports.errors import RejectedError
from core.ports.external_ids import ExternalIds
from core.ports.spec import PROVIDER_NAMES, CustomerSpec, Provider, SoldPrice, SubscriptionSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PayerPolicy:
    """Settings of the deployment. ``sends_payer_to_lago``: Lago gets the id of the Stripe customer that it charges."""

    sends_payer_to_lago: bool = False
    payer_wait: timedelta = timedelta(seconds=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredState:
    """``plan_code`` None: no subscription of ours may be active. ``active`` False: nothing new is created either.

    What was sold under a former code stays on it: ``plan_code`` is the code that was sold, if it is one of the plan.
    While that is not known, the former codes are named beside the current one.

    ``is_charging``: this provider charges, so it decides when a scheduled plan has taken effect.
    ``uncharged_plan_code``: the code that the plan would have if this provider charged for it.
    ``lago_plan_is_unpaid``: ``plan_code`` is the plan in Lago that costs nothing, because Stripe charges.
    ``removes_payer``: Lago charges still, and an operator said that it is to stop. Nothing else is done before that.
    """

    customer: CustomerSpec
    active: bool = True
    plan_code: str | None = None
    next_plan_code: str | None = None
    former_plan_codes: frozenset[str] = frozenset()
    former_next_plan_codes: frozenset[str] = frozenset()
    next_plan_amount: int | None = None
    is_charging: bool = False
    waits_for_payer: bool = False
    waits_for_lago: bool = False
    provides_payer: bool = False
    uncharged_plan_code: str | None = None
    lago_plan_is_unpaid: bool = False
    removes_payer: bool = False

    def is_plan(self, code: str | None) -> bool:
        return code == self.plan_code or code in self.former_plan_codes

    def is_next_plan(self, code: str | None) -> bool:
        return code == self.next_plan_code or code in self.former_next_plan_codes

    def subscription_spec(self, org_id: str, customer_id: str) -> SubscriptionSpec | None:
        """``None``: no subscription of ours may be active."""
        if self.plan_code is None:
            return None
        return SubscriptionSpec(
            org_id=org_id,
            customer_id=customer_id,
            plan_code=self.plan_code,
            next_plan_code=self.next_plan_code,
            former_plan_codes=self.former_plan_codes,
            former_next_plan_codes=self.former_next_plan_codes,
            next_plan_amount=self.next_plan_amount,
            charged_by_other_provider=not self.is_charging,
            has_billing_email=self.customer.email is not None,
            external_ids=self.customer.external_ids,
            writes_marks=self.customer.writes_marks,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SoldCode:
    """The code of a plan for one link: the one that was sold, or else today's, with the former codes beside it."""

    code: str
    former: frozenset[str] = frozenset()

    @classmethod
    def of(cls, plan: CatalogPlan, provider: Provider, *stored_codes: str | None) -> SoldCode:
        """``stored_codes``: those of the link. Who is on the plan of amount 0, or will be, does not leave it again."""
        known = [code for code in stored_codes if code is not None and plan.may_keep_code(provider, code)]
        usage = [code for code in known if provider == "lago" and plan.is_usage_code(code)]
        sold = next(iter(usage or known), None)
        return (
            cls(code=plan.code(provider), former=frozenset(plan.former(provider))) if sold is None else cls(code=sold)
        )


def stored_codes(link: BillingLink) -> tuple[str | None, ...]:
    """The codes of the link, from the one that decides: where an operator moves it, that one, else what was sold."""
    target = None if link.target_at_period_end else link.target_plan
    return (target, link.sold_plan, link.applied_next_plan)


def sold_price(link: BillingLink) -> SoldPrice | None:
    """The price that was sold; None if it is not known."""
    if link.sold_plan is None or link.sold_price_id is None:
        return None
    return SoldPrice(plan_code=link.sold_plan, price_id=link.sold_price_id)


def external_ids(link: BillingLink) -> ExternalIds:
    return ExternalIds(customer_id=link.external_customer_id, subscription_id=link.external_subscription_id)


def desired_state(
    provider: Provider,
    organization: Organization,
    links: Mapping[Provider, BillingLink],
    catalog: Catalog,
    policy: PayerPolicy,
) -> DesiredState:
    """``links`` are both links of the organization. Raises ``RejectedError``."""
    link, other_link = links[provider], links["lago" if provider == "stripe" else "stripe"]
    keeps_contact = link.ownership == "adopted" and link.adopted_fingerprint == contact_fingerprint(organization)
    spec = CustomerSpec(
        org_id=organization.id,
        name=None if keeps_contact else organization.name,
        email=None if keeps_contact else organization.billing_email,
        currency=organization.currency,
        external_ids=external_ids(link),
        writes_marks=link.marks not in {"none", "removal"},
    )
    if organization.status == "deleted":
        return DesiredState(customer=spec, active=False)
    plan = _sold_plan(provider, organization, organization.plan_tier, catalog)
    pending_tier = organization.pending_plan_tier
    next_plan = _sold_plan(provider, organization, pending_tier, catalog) if pending_tier else None
    if next_plan is not None and next_plan.charged_by != plan.charged_by:
        raise charging_guard.charging_provider_would_change(provider, organization.id, plan, next_plan)
    if plan.charged_by == provider:
        charging_guard.refuse_double_charging(other_link)
    _refuse_unlisted_code(provider, link, catalog)
    if provider == "stripe":
        return _at_stripe(spec, plan, next_plan, links, policy)
    desired = _at_lago(spec, plan, next_plan, links, policy)
    plan_before = _plan_before_in_lago(desired, plan, link, catalog)
    return desired if plan_before is None else replace(desired, plan_code=plan_before)


def _refuse_unlisted_code(provider: Provider, link: BillingLink, catalog: Catalog) -> None:
    """A code that was sold and is in no plan may be the former code of any; to guess would bill at another price."""
    code = link.sold_plan
    if code is not None and catalog.tier_of(provider, code) is None:
        parameters = {"code": code, "provider_name": PROVIDER_NAMES[provider], "provider": provider}
        advice = Advice("sold_code_not_in_catalog", parameters | {"org_id": link.org_id})
        raise RejectedError(provider, advice.sentence, "sold_code_not_in_catalog")


def _at_stripe(
    spec: CustomerSpec,
    plan: CatalogPlan,
    next_plan: CatalogPlan | None,
    links: Mapping[Provider, BillingLink],
    policy: PayerPolicy,
) -> DesiredState:
    """Always a customer, who is the payer; a subscription only if Stripe charges (money.md 1)."""
    link = links["stripe"]
    sold = SoldCode.of(plan, "stripe", *stored_codes(link))
    if plan.charged_by == "lago":
        customer = replace(spec, charged_by_other_provider=True)
        return DesiredState(customer=customer, provides_payer=policy.sends_payer_to_lago, uncharged_plan_code=sold.code)
    sold_next = _sold_next("stripe", link, plan, next_plan, sold)
    return DesiredState(
        customer=spec,
        plan_code=sold.code,
        next_plan_code=sold_next.code if sold_next else None,
        former_plan_codes=sold.former,
        former_next_plan_codes=sold_next.former if sold_next else frozenset(),
        is_charging=True,
        waits_for_lago=link.subscription_id is None and charging_guard.is_unread(links["lago"]),
    )


def _at_lago(
    spec: CustomerSpec,
    plan: CatalogPlan,
    next_plan: CatalogPlan | None,
    links: Mapping[Provider, BillingLink],
    policy: PayerPolicy,
) -> DesiredState:
    """Always a customer and a subscription; a payer only if Lago charges.

    Where Stripe charges, a next plan that costs no less in Lago would begin there at once (lago.md 5.1). So it becomes
    the plan there on the day on which Stripe switches.
    """
    link = links["lago"]
    sends_payer = policy.sends_payer_to_lago and plan.charged_by == "lago" and not link.without_payer
    payer_id = charging_guard.payer_id(links["stripe"]) if sends_payer else None
    sold = SoldCode.of(plan, "lago", *stored_codes(link))
    sold_next = _sold_next("lago", link, plan, next_plan, sold)
    if sold_next and next_plan and not _may_schedule_in_lago(plan, sold.code, next_plan, sold_next.code):
        sold_next = None
    return DesiredState(
        customer=replace(
            spec,
            plan_currency=plan.currency,
            payer_id=payer_id,
            charged_by_other_provider=plan.charged_by != "lago",
            without_payer=link.without_payer,
        ),
        plan_code=sold.code,
        next_plan_code=sold_next.code if sold_next else None,
        former_plan_codes=sold.former,
        former_next_plan_codes=sold_next.former if sold_next else frozenset(),
        next_plan_amount=_next_amount(plan, next_plan, sold_next),
        is_charging=plan.charged_by == "lago",
        waits_for_payer=sends_payer and payer_id is None,
        lago_plan_is_unpaid=plan.is_usage_code(sold.code),
        removes_payer=plan.charged_by == "stripe" and link.charging_move is not None and link.payer_id is not None,
    )


def _sold_next(
    provider: Provider, link: BillingLink, plan: CatalogPlan, next_plan: CatalogPlan | None, sold: SoldCode
) -> SoldCode | None:
    """The plan that is scheduled, or else the code to which an operator moves this one at the end of the period."""
    if next_plan is not None:
        return SoldCode.of(next_plan, provider, link.applied_next_plan)
    target = link.target_plan if link.target_at_period_end else None
    if target is None or target == sold.code or not plan.may_keep_code(provider, target):
        return None
    return SoldCode(code=target)


def _next_amount(plan: CatalogPlan, next_plan: CatalogPlan | None, sold_next: SoldCode | None) -> int | None:
    """What the scheduled plan costs for the interval of this one; None for a former code, whose price is not known."""
    if sold_next is None:
        return None
    if (next_plan or plan).is_usage_code(sold_next.code):
        return 0
    if next_plan is not None:
        return next_plan.amount_per(plan.interval)
    return plan.amount if sold_next.code == plan.code("lago") else None


def _may_schedule_in_lago(plan: CatalogPlan, code: str, next_plan: CatalogPlan, next_code: str) -> bool:
    """Where Lago charges, a catalog that it would order differently is told, and its answer is checked."""
    if plan.charged_by == "lago":
        return True
    return plan.yearly_amount_in_lago(code) > next_plan.yearly_amount_in_lago(next_code)


def _plan_before_in_lago(desired: DesiredState, plan: CatalogPlan, link: BillingLink, catalog: Catalog) -> str | None:
    """Where Stripe charges, its period may end first, and the plan is lowered again before Lago's period ends.

    Lago then still has the plan before both, and goes from there to the last one on its own date.
    """
    code = link.applied_plan
    if desired.is_charging or code is None or desired.next_plan_code in {None, desired.plan_code}:
        return None
    is_above = catalog.tier_of("lago", code) in catalog.tiers_above(plan.tier)
    return code if is_above and link.applied_next_plan == desired.next_plan_code else None


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


def contact_fingerprint(organization: Organization) -> str:
    """Digest of our name and address, with which an adopted link remembers those of its adoption."""
    contact = [organization.name, organization.billing_email]
    return hashlib.sha256(json.dumps(contact).encode()).hexdigest()


def _sold_plan(provider: Provider, organization: Organization, tier: str, catalog: Catalog) -> CatalogPlan:
    """Lago takes a plan in another currency than the customer's and mixes the two, so no provider is asked for it."""
    plan = catalog.plans.get(tier)
    if plan is None:
        parameters = {"org_id": organization.id, "tier": tier, "tiers": ", ".join(catalog.tiers())}
        advice = Advice("plan_not_in_catalog", parameters)
        raise RejectedError(provider, advice.sentence, "unknown_plan")
    currency = organization.currency
    if currency is not None and currency != plan.currency:
        parameters = {"org_id": organization.id, "tier": tier, "plan_currency": plan.currency, "currency": currency}
        advice = Advice("plan_in_other_currency", parameters)
        raise RejectedError(provider, advice.sentence, "plan_in_other_currency")
    return plan
