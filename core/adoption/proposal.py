"""What is proposed for a match: a row of the adoption table. Pure.

``adopt`` is proposed for a plain subscription at the catalog's price, ``adopt-keep-price`` for any other that can be
adopted without a change of what is paid. ``change-to-catalog`` is never proposed: only an operator decides it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from core.adoption.conflicts import (
    SidePrices,
    has_usable_name,
    is_reason_to_ask,
    lago_charges,
    likely_the_same,
    name_problem,
    price_conflicts,
    unknown_tier,
)
from core.adoption.matching import AccountCustomer, Match
from core.adoption.prices import SidePrice, catalog_text, read_price
from core.adoption.row import AdoptionAction, AdoptionRow, ValueSource
from core.adoption.sides import adoption_side
from core.catalog.plans import Catalog, CatalogPlan
from core.common.validation import InvalidChangeError
from core.organizations.validation import checked_email
from core.ports.spec import PROVIDER_NAMES, PROVIDERS, Provider


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalRules:
    """``takes_their_plan``: an organization that is on another plan gets the one that is paid."""

    catalog: Catalog
    takes_their_plan: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """``paid`` None: nothing is paid, so the whole price of ``plan`` is new."""

    action: AdoptionAction
    reason: str
    plan: CatalogPlan | None = None
    paid: SidePrice | None = None
    suggestion: str | None = None

    @property
    def difference(self) -> int | None:
        """What the catalog's price is above what is paid now, for one period. The quantity stays."""
        if self.plan is None:
            return None
        if self.paid is None:
            return self.plan.amount
        same_terms = (self.paid.item.currency, self.paid.interval) == (self.plan.currency, self.plan.interval)
        return self.plan.amount * self.paid.item.quantity - self.paid.total if same_terms else None


def propose(match: Match, rules: ProposalRules) -> AdoptionRow:
    proposal = _proposal(match, rules)
    organization, plan, difference = match.organization, proposal.plan, proposal.difference
    return AdoptionRow(
        org_id=organization.id if organization is not None else None,
        sides={provider: adoption_side(side) for provider, side in match.sides.items()},
        matched_by=match.matched_by,
        plan_tier=plan.tier if plan is not None else None,
        difference=difference,
        currency=plan.currency if plan is not None and difference is not None else None,
        name_source=_source(match, plan, {each: has_usable_name(side) for each, side in match.sides.items()}),
        email_source=_source(match, plan, {each: _has_usable_email(side) for each, side in match.sides.items()}),
        our_name=organization.name if organization is not None else None,
        our_email=organization.email if organization is not None else None,
        action=proposal.action,
        reason="; ".join(filter(None, [proposal.reason, _plan_change_text(match, proposal)])),
        suggestion=proposal.suggestion,
        proposed_org_id=organization.id if organization is not None else None,
    )


def _plan_change_text(match: Match, proposal: Proposal) -> str:
    organization, plan = match.organization, proposal.plan
    if organization is None or plan is None or proposal.action not in {"adopt", "adopt-keep-price"}:
        return ""
    is_changed = organization.plan_tier != plan.tier
    return f"{organization.id} changes from {organization.plan_tier} to {plan.tier}" if is_changed else ""


def _proposal(match: Match, rules: ProposalRules) -> Proposal:
    if match.conflict is not None:
        return Proposal(action="conflict", reason=match.conflict)
    org_tier = match.organization.plan_tier if match.organization is not None else None
    prices: dict[Provider, SidePrice] = {}
    for provider in PROVIDERS:
        price = read_price(match.sides[provider], rules.catalog, org_tier) if provider in match.sides else None
        if isinstance(price, str):
            return Proposal(action="conflict", reason=price)
        if price is not None:
            prices[provider] = price
    # Stripe charges for each of its subscriptions; Lago may have one beside it that nobody pays.
    paid = prices.get("stripe") or prices.get("lago")
    if paid is None:
        return _without_subscription(match, rules)
    plan = rules.catalog.plans.get(paid.tier) if paid.tier is not None else None
    if rules.takes_their_plan and plan is not None:
        match = _on_their_plan(match, plan)
    conflict = next(price_conflicts(match, prices, paid, plan, rules.catalog), None)
    if conflict is not None or plan is None:
        return Proposal(action="conflict", reason=conflict or "", plan=plan, paid=paid)
    return _new_organization_conflict(match, paid, plan) or _adoption(match, prices, paid, plan)


def _on_their_plan(match: Match, plan: CatalogPlan) -> Match:
    """As if the organization had the plan that is paid. What else keeps it from being adopted is found as ever."""
    organization = match.organization
    if organization is None or plan.tier in {organization.plan_tier, organization.next_plan_tier}:
        return match
    return replace(match, organization=replace(organization, plan_tier=plan.tier, next_plan_tier=None))


def _new_organization_conflict(match: Match, paid: SidePrice, plan: CatalogPlan) -> Proposal | None:
    if match.organization is not None:
        return None
    same = next(likely_the_same(match), None)
    if same is not None:
        return Proposal(action="conflict", reason=same[0], plan=plan, paid=paid, suggestion=same[1])
    problem = name_problem(match)
    return Proposal(action="conflict", reason=problem, plan=plan, paid=paid) if problem is not None else None


def _without_subscription(match: Match, rules: ProposalRules) -> Proposal:
    organization = match.organization
    if organization is None:
        same = next(likely_the_same(match), None)
        reason = "it has no subscription, so nothing is there to adopt"
        return Proposal(action="skip", reason=reason, suggestion=same[1] if same is not None else None)
    if organization.status == "deleted":
        return Proposal(action="skip", reason=f"{organization.id} is deleted, and the customer has no subscription")
    plan = rules.catalog.plans.get(organization.plan_tier)
    if plan is None:
        return Proposal(action="conflict", reason=unknown_tier(organization))
    reason = f"it has no subscription; {_begun_text(match, {}, plan)}"
    return Proposal(action="adopt", reason=reason, plan=plan)


def _adoption(match: Match, prices: SidePrices, paid: SidePrice, plan: CatalogPlan) -> Proposal:
    own = list(_own_terms(match, prices, paid, plan))
    remarks = [text for text in (_begun_text(match, prices, plan), _shared_address(match)) if text]
    if _has_no_payer(match, plan):
        remarks.append("Lago has no payer for it, so it charges nobody, and adopting gives it none")
    # Where nobody charges for it yet, the whole price is new.
    is_charged = paid.provider == plan.charged_by or lago_charges(match, prices)
    reasons = (
        [f"it pays {paid.text} for {plan.tier}, {catalog_text(plan)} in the catalog", *own]
        if own
        else [f"it is at the catalog's price of {plan.tier}, {catalog_text(plan)}"]
    )
    return Proposal(
        action="adopt-keep-price" if own else "adopt",
        reason="; ".join([*reasons, *remarks]),
        plan=plan,
        paid=paid if is_charged else None,
    )


def _own_terms(match: Match, prices: SidePrices, paid: SidePrice, plan: CatalogPlan) -> Iterator[str]:
    """Whatever keeps it from being a plain subscription at the catalog's price."""
    if paid.by_amount:
        yield f"{paid.code_text} is no price of plans.toml and costs the same"
    elif paid.item.amount != plan.amount:
        yield f"a price of its own ({paid.code_text})"
    if paid.item.quantity != 1:
        yield f"quantity {paid.item.quantity}"
    for side in match.sides.values():
        yield from side.customer.discounts
    for price in prices.values():
        yield from _unusual_terms(price, is_paid=price is paid)


def _unusual_terms(price: SidePrice, *, is_paid: bool) -> Iterator[str]:
    subscription, name = price.subscription, PROVIDER_NAMES[price.provider]
    yield from subscription.discounts
    yield from price.item.unusual
    if subscription.trial_ends_at is not None:
        yield f"a trial until {subscription.trial_ends_at:%Y-%m-%d}"
    if subscription.arrangement is not None:
        yield f"{subscription.arrangement.phrase} at {name}"
    if subscription.is_paid_manually and is_paid:
        yield "its invoices are mailed" if price.provider == "stripe" else "its invoices are paid by hand"
    if subscription.status == "past_due":
        yield f"{name} could not charge its last invoice"


def _begun_text(match: Match, prices: SidePrices, plan: CatalogPlan) -> str:
    begun = " and ".join(_begun(match, prices, plan))
    return f"once it is managed, billing-sync begins {begun}" if begun else ""


def _begun(match: Match, prices: SidePrices, plan: CatalogPlan) -> Iterator[str]:
    """What a managed organization on this plan has, and this one has not."""
    if "stripe" not in match.sides:
        yield "a customer at Stripe"
    if "lago" not in prices:
        customer = "" if "lago" in match.sides else "a customer and "
        is_free = plan.charged_by == "stripe" or _has_no_payer(match, plan)
        yield f"{customer}{plan.tier} at Lago ({'which charges nobody' if is_free else catalog_text(plan)})"
    if plan.charged_by == "stripe" and "stripe" not in prices:
        yield f"{plan.tier} at Stripe ({catalog_text(plan)})"


def _has_no_payer(match: Match, plan: CatalogPlan) -> bool:
    """Whatever connection to Stripe is configured: one that is configured later gives it no payer either."""
    if plan.charged_by != "lago" or "lago" not in match.sides:
        return False
    return match.sides["lago"].customer.payer_id is None


def _shared_address(match: Match) -> str:
    """A remark only: one address may well pay for several organizations."""
    if match.organization is not None:
        return ""
    sharers = [
        f"{each.customer_id} at {PROVIDER_NAMES[each.provider]}"
        for each in match.likenesses
        if each.provider is not None and each.similarity == "address" and not is_reason_to_ask(match, each)
    ]
    return f"{sharers[0]} has the same address" if sharers else ""


def _has_usable_email(side: AccountCustomer) -> bool:
    try:
        checked_email(side.customer.email or "")
    except InvalidChangeError:
        return False
    return True


def _source(match: Match, plan: CatalogPlan | None, usable: Mapping[Provider, bool]) -> ValueSource:
    """Theirs, first of the provider that charges; ours if an organization cannot have what they have."""
    first: Provider = plan.charged_by if plan is not None else "stripe"
    return next((each for each in (first, *match.sides) if usable.get(each, False)), "ours")
