"""Why a customer cannot be adopted as it is: a sentence for each reason, with the way out. Pure.

Adopting must change nothing that somebody pays, and must not charge anybody twice, so whatever could lead to that when
the organization is managed is a conflict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from core.adoption.matching import AccountCustomer, AdoptionOrganization, Likeness, Match
from core.adoption.prices import SidePrice, catalog_text
from core.adoption.row import adopt_command
from core.catalog.plans import Catalog, CatalogPlan
from core.common.validation import InvalidChangeError
from core.organizations.validation import checked_name
from core.ports.spec import PROVIDER_NAMES, Provider

SidePrices = Mapping[Provider, SidePrice]

_SIMILARITY_TEXTS = {"name": "the same name", "address": "the same address", "metadata": "metadata that names it"}


def price_conflicts(
    match: Match, prices: SidePrices, paid: SidePrice, plan: CatalogPlan | None, catalog: Catalog
) -> Iterator[str]:
    """``paid``: the subscription that is paid. ``plan``: the plan of ours that it is on; None: it is on none."""
    organization = match.organization
    if organization is not None and organization.status == "deleted":
        yield f"{organization.id} is deleted, and the customer still pays {paid.text}; end it, or leave it as it is"
    if "stripe" in prices and "lago" in prices and lago_charges(match, prices):
        yield (
            f"Stripe charges {prices['stripe'].text}, and Lago charges {prices['lago'].text} to "
            f"{match.sides['lago'].customer.payer_id}; end one of the two, then discover again"
        )
    for price in prices.values():
        if price.tier is None:
            yield _unknown_price(price)
    if plan is None:
        return
    if organization is not None:
        yield from _other_tier(match, organization, paid, plan, catalog)
    yield from _terms_conflicts(match, prices, plan)
    yield from _charging_conflicts(match, prices, paid, plan)
    yield from _later_conflicts(match, prices, plan, catalog)


def unknown_tier(organization: AdoptionOrganization) -> str:
    return (
        f"{organization.id} is on {organization.plan_tier}, which is not in plans.toml; add it, or choose another: "
        f"`billing-sync set {organization.id} --plan TIER`"
    )


def lago_charges(match: Match, prices: SidePrices) -> bool:
    """Whether Lago charges somebody for its subscription, by itself."""
    if "lago" not in prices:
        return False
    customer, price = match.sides["lago"].customer, prices["lago"]
    has_payer = customer.payer_id is not None or customer.other_payer is not None
    return has_payer and price.total > 0 and not price.subscription.is_paid_manually


def likely_the_same(match: Match) -> Iterator[tuple[str, str]]:
    """A reason and a suggestion for each object that may be one with this customer, organizations first."""
    for likeness in sorted(match.likenesses, key=lambda each: each.org_id is None):
        what = _SIMILARITY_TEXTS[likeness.similarity]
        if likeness.org_id is not None:
            reason = (
                f"it may be {likeness.org_id} ({what}), which proves nothing; if it is, write that into org_id; if "
                "not, leave org_id empty and choose adopt-keep-price, which makes a new organization"
            )
            yield reason, f"{likeness.org_id}: {what}"
        elif likeness.provider is not None and is_reason_to_ask(match, likeness):
            other = f"{likeness.customer_id} at {PROVIDER_NAMES[likeness.provider]}"
            reason = (
                f"it may be one with {other} ({what}), which proves nothing; if it is, "
                f"{_way_to_join(match, likeness)}; if not, choose adopt-keep-price, which makes a new organization"
            )
            yield reason, f"{other}: {what}"


def _way_to_join(match: Match, likeness: Likeness) -> str:
    if likeness.provider is None or likeness.provider in match.sides:
        return "choose skip for one of them"
    return (
        "while MANAGEMENT=observe, adopt this row first with adopt-keep-price, and then the other one into the new "
        f"organization: `billing-sync adopt NEW_ORG --{likeness.provider} {likeness.customer_id}`"
    )


def is_reason_to_ask(match: Match, likeness: Likeness) -> bool:
    """An address is often shared: at the same provider, where nobody is there twice by design, it is a remark."""
    return likeness.similarity == "name" or likeness.provider not in match.sides


def name_problem(match: Match) -> str | None:
    """Why no side has a name that a new organization can have."""
    sides = list(match.sides.values())
    if any(has_usable_name(side) for side in sides):
        return None
    name = sides[0].customer.name
    if not name:
        return (
            f"{sides[0].phrase} has no name, and an organization needs one; give it a name there, then discover again"
        )
    try:
        checked_name(name)
    except InvalidChangeError as error:
        return f"an organization cannot have the name of {sides[0].phrase}: {error}; correct it there"
    return None


def has_usable_name(side: AccountCustomer) -> bool:
    try:
        checked_name(side.customer.name or "")
    except InvalidChangeError:
        return False
    return True


def _unknown_price(price: SidePrice) -> str:
    item, name = price.item, PROVIDER_NAMES[price.provider]
    code = f"the code {item.code}" if item.code else f"{item.price_id}, a price without a code,"
    return (
        f"it pays {price.text} under {code} at {name}, which is in no plan of plans.toml; `billing-sync "
        "plans discover` proposes what to add"
    )


def _other_tier(
    match: Match, organization: AdoptionOrganization, paid: SidePrice, plan: CatalogPlan, catalog: Catalog
) -> Iterator[str]:
    """A plan of ours that is scheduled and is paid already counts as in effect when it is adopted."""
    ours = catalog.plans.get(organization.plan_tier)
    if ours is None and plan.offered:
        yield unknown_tier(organization)
    elif plan.tier not in {organization.plan_tier, organization.next_plan_tier}:
        ids = {provider: side.shown_id for provider, side in match.sides.items()}
        terms = catalog_text(ours) if ours is not None else "which is not in plans.toml"
        yield (
            f"it pays {paid.text} for {plan.tier}, and {organization.id} is on {organization.plan_tier}, {terms}; if "
            f"{plan.tier} is right: {_way_to_their_plan(organization.id, plan, ids)}; if not, change the plan there"
        )
    if organization.currency not in {None, plan.currency}:
        yield (
            f"{organization.id} is billed in {organization.currency}, and {plan.tier} costs {catalog_text(plan)}; an "
            "organization keeps its currency, so choose a plan in it there"
        )


def _way_to_their_plan(org_id: str, plan: CatalogPlan, ids: Mapping[Provider, str]) -> str:
    """How an organization gets the plan that is paid. ``set`` refuses one that is sold no longer."""
    if plan.offered:
        return f"`billing-sync set {org_id} --plan {plan.tier}`, then discover again"
    return f"{adopt_command(org_id, ids, '--their-plan')}, because it is sold no longer"


def _terms_conflicts(match: Match, prices: SidePrices, plan: CatalogPlan) -> Iterator[str]:
    if {price.tier for price in prices.values()} != {plan.tier}:
        parts = [f"{PROVIDER_NAMES[each.provider]} has {each.code_text}, {each.text}" for each in prices.values()]
        yield f"{' and '.join(parts)}; make both the same plan, then discover again"
    for price in prices.values():
        same_terms = (price.item.currency, price.interval) == (plan.currency, plan.interval)
        if not same_terms:
            what = "currency" if price.item.currency != plan.currency else "interval"
            yield (
                f"it pays {price.text} at {PROVIDER_NAMES[price.provider]}, and {plan.tier} costs "
                f"{catalog_text(plan)}: a plan has one {what}; add a plan with this one to plans.toml"
            )

    for side in match.sides.values():
        if side.customer.currency not in {None, plan.currency}:
            yield (
                f"{side.phrase} is billed in {side.customer.currency}, and {plan.tier} costs {catalog_text(plan)}: a "
                "plan has one currency; add a plan in this one to plans.toml"
            )


def _charging_conflicts(match: Match, prices: SidePrices, paid: SidePrice, plan: CatalogPlan) -> Iterator[str]:
    charging = PROVIDER_NAMES[plan.charged_by]
    payer_id = match.sides["lago"].customer.payer_id if "lago" in match.sides else None
    if plan.charged_by == "stripe" and paid.provider == "stripe" and payer_id is not None:
        yield (
            f"Stripe charges for it, and Lago has {payer_id} as its payer, so Lago would charge, too, for what "
            "billing-sync begins there; remove the payer in Lago, then discover again"
        )
    if paid.provider == plan.charged_by or plan.amount == paid.total == 0:
        return
    if paid.provider == "stripe" or lago_charges(match, prices):
        yield (
            f"it pays {paid.text} at {PROVIDER_NAMES[paid.provider]}, and {charging} charges for {plan.tier} by "
            f'plans.toml, so adopting would change who charges; set charged_by = "{paid.provider}" in plans.toml, or '
            "leave it as it is"
        )
    elif match.organization is None:
        yield (
            f"Lago charges nobody for it, and {charging} charges for {plan.tier} by plans.toml, so adopting would "
            "begin to charge; create its organization first if that is meant"
        )


def _later_conflicts(match: Match, prices: SidePrices, plan: CatalogPlan, catalog: Catalog) -> Iterator[str]:
    organization = match.organization
    next_tier = organization.next_plan_tier if organization is not None else None
    scheduled = [price.subscription.next_code for price in prices.values()]
    if organization is not None and next_tier not in {None, plan.tier} and not any(scheduled):
        yield (
            f"{organization.id} changes to {next_tier} when the period ends, and that is not scheduled at the "
            f"provider; `billing-sync set {organization.id} --plan {plan.tier}` cancels it, then discover again"
        )
    for price in prices.values():
        next_code = price.subscription.next_code
        if next_code is not None and (next_tier is None or catalog.tier_of(price.provider, next_code) != next_tier):
            yield (
                f"{next_code} follows at {PROVIDER_NAMES[price.provider]} when the period ends; adopt it after that, "
                "or cancel the change there, then discover again"
            )
