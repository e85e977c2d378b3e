"""What keeps a row from being adopted, whoever wrote it. Each refusal is one sentence with the way out.

``refuse_objects`` judges what was read at the providers. The other functions read our rows, in the transaction that
adopts: what they find holds until it commits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.adoption import matching
from core.adoption.matching import AccountCustomer
from core.adoption.prices import catalog_text, interval_name, interval_text
from core.adoption.provider_objects import ProviderObjects
from core.adoption.row import AdoptionRow, adopt_command
from core.catalog.plans import Catalog, CatalogPlan
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.db.models.providers import ProviderStatus
from core.ports.external_ids import unaddressable_reason
from core.ports.inventory import InventoryItem, InventorySubscription
from core.ports.minor_units import amount_text
from core.ports.spec import PROVIDER_NAMES, Provider

Objects = Mapping[Provider, ProviderObjects]

_ADOPTABLE_STATUSES: Final = frozenset({"active", "trialing", "past_due"})
DISCOVER_AGAIN: Final = "run `billing-sync adopt discover` again"
_FOR_ONE: Final = {DISCOVER_AGAIN: "run this command again", "then discover again": "then run this command again"}


def for_one(reason: str) -> str:
    """The sentence of a row as `billing-sync adopt ORG` says it, which needs no table."""
    for of_table, of_one in _FOR_ONE.items():
        reason = reason.replace(of_table, of_one)
    return reason


class NotAdoptedError(Exception):
    """``is_left``: nothing is wrong with the row, but it is too late or too early for it."""

    def __init__(self, reason: str, *, is_left: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_left = is_left


def plan_of(row: AdoptionRow, catalog: Catalog) -> CatalogPlan:
    if row.plan_tier is None:
        message = "the row names no plan_tier: write one of plans.toml into it, or `skip`"
        raise NotAdoptedError(message)
    plan = catalog.plans.get(row.plan_tier)
    if plan is None:
        message = (
            f"plan_tier {row.plan_tier} is not in plans.toml, which has {', '.join(catalog.tiers())}: add it, or "
            "correct the row"
        )
        raise NotAdoptedError(message)
    return plan


def refuse_objects(row: AdoptionRow, plan: CatalogPlan, objects: Objects, catalog: Catalog) -> None:
    """Raises ``NotAdoptedError`` for the first thing at the providers that cannot be adopted."""
    if not objects:
        message = f"the row has no customer at Stripe or Lago: {DISCOVER_AGAIN}"
        raise NotAdoptedError(message)
    for provider, found in objects.items():
        _refuse_customer(provider, found, plan)
    _refuse_two_charges(objects)
    for provider, found in objects.items():
        if found.subscription is not None:
            _refuse_subscription(provider, found.subscription, plan, catalog)
    _refuse_two_charging_providers(plan, objects)
    if plan.charged_by == "lago" and "lago" in objects:
        _refuse_other_payer(objects)
    if row.action == "adopt" and (paid := objects.get(plan.charged_by)) is not None:
        _refuse_other_price(paid, plan)
    if row.action == "change-to-catalog":
        _refuse_unchangeable(objects, plan)


def _refuse_customer(provider: Provider, found: ProviderObjects, plan: CatalogPlan) -> None:
    customer, name = found.customer, PROVIDER_NAMES[provider]
    if customer.deleted:
        message = f"customer {customer.id} is deleted at {name}: write `skip` into the row"
        raise NotAdoptedError(message)
    if customer.other_payer is not None:
        message = (
            f"Lago charges customer {customer.external_id} by {customer.other_payer}, and billing-sync knows only "
            "Stripe as the payer: write `skip` into the row"
        )
        raise NotAdoptedError(message)
    external_ids = [customer.external_id, found.subscription.external_id if found.subscription else None]
    for external_id in external_ids if provider == "lago" else ():
        reason = unaddressable_reason(external_id) if external_id is not None else None
        if reason is not None:
            message = (
                f"Lago's API cannot address the external id {external_id!r}, because {reason}: give the customer "
                "another one, which Lago allows while it has no subscription, or write `skip`"
            )
            raise NotAdoptedError(message)
    if customer.currency not in {None, plan.currency}:
        message = (
            f"customer {customer.id} pays in {customer.currency} at {name}, and plan {plan.tier} costs "
            f"{plan.currency}: write a plan_tier in {customer.currency} into the row, or add one to plans.toml"
        )
        raise NotAdoptedError(message)


def _refuse_subscription(
    provider: Provider, subscription: InventorySubscription, plan: CatalogPlan, catalog: Catalog
) -> None:
    name = PROVIDER_NAMES[provider]
    waits_for_payment = subscription.arrangement is not None and subscription.arrangement.waits_for_payment
    if subscription.status not in _ADOPTABLE_STATUSES or waits_for_payment:
        state = "waits for a payment" if waits_for_payment else f"is {subscription.status}"
        message = f"subscription {subscription.id} at {name} {state}: adopt it when it is active, or end it"
        raise NotAdoptedError(message, is_left=True)
    if len(subscription.items) != 1:
        message = (
            f"subscription {subscription.id} at {name} has {len(subscription.items)} prices, and a plan has one: write "
            "`skip` into the row"
        )
        raise NotAdoptedError(message)
    item = subscription.items[0]
    if item.amount is None or item.interval is None:
        message = f"{item.price_id} at {name} has no flat amount, and a plan has one: write `skip` into the row"
        raise NotAdoptedError(message)
    if item.currency != plan.currency:
        message = (
            f"subscription {subscription.id} is paid in {item.currency} at {name}, and plan {plan.tier} costs "
            f"{plan.currency}: write a plan_tier in {item.currency} into the row, or add one to plans.toml"
        )
        raise NotAdoptedError(message)
    if interval_name(item) != plan.interval:
        message = (
            f"subscription {subscription.id} at {name} is paid every {interval_text(item)}, and plan {plan.tier} "
            f"{plan.interval}: write a plan_tier of that interval into the row, or add one to plans.toml"
        )
        raise NotAdoptedError(message)
    _refuse_code(provider, item, plan, catalog)
    if subscription.next_code is not None:
        _refuse_next_plan(provider, subscription.next_code, plan, catalog)


def _refuse_next_plan(provider: Provider, next_code: str, plan: CatalogPlan, catalog: Catalog) -> None:
    name, next_tier = PROVIDER_NAMES[provider], catalog.tier_of(provider, next_code)
    if next_tier is None:
        message = (
            f"{next_code} is scheduled at {name}, and is no plan of plans.toml: add it, or cancel the change at {name}"
        )
        raise NotAdoptedError(message)
    next_plan = catalog.plan(next_tier)
    if provider == plan.charged_by != next_plan.charged_by:
        message = (
            f"{next_code} is scheduled at {name}, and {PROVIDER_NAMES[next_plan.charged_by]} charges for it, which "
            f"neither provider can schedule: cancel the change at {name}, or let one provider charge for both plans"
        )
        raise NotAdoptedError(message)


def _refuse_code(provider: Provider, item: InventoryItem, plan: CatalogPlan, catalog: Catalog) -> None:
    """A Stripe price may have another lookup key or none. A plan in Lago is known by its code only."""
    tier = None if item.code is None else catalog.tier_of(provider, item.code)
    if tier is not None and tier != plan.tier:
        message = (
            f"it is on {item.code} at {PROVIDER_NAMES[provider]}, which is plan {tier}, and the row says {plan.tier}: "
            f"write {tier} into plan_tier"
        )
        raise NotAdoptedError(message)
    if tier is None and provider == "lago":
        message = (
            f"Lago's plan {item.code} is not in plans.toml: add it to former_codes of plans.{plan.tier}, or as a plan "
            "of its own"
        )
        raise NotAdoptedError(message)
    if item.code is not None and tier is not None and not plan.may_keep_code(provider, item.code):
        message = (
            f"Lago's plan {item.code} is the plan of {tier} for the case that Stripe charges, and Lago charges for "
            f"{tier}: change it to {plan.lago_plan_code} in Lago, then {DISCOVER_AGAIN}"
        )
        raise NotAdoptedError(message)


def _refuse_two_charges(objects: Objects) -> None:
    """Whatever plan the row says: no plan_tier makes one of the two."""
    stripe, lago = objects.get("stripe"), objects.get("lago")
    if stripe is None or lago is None or stripe.item is None or lago.item is None or lago.subscription is None:
        return
    if lago.customer.payer_id is None or lago.subscription.is_paid_manually or lago.item.amount == 0:
        return
    message = (
        f"Stripe charges {price_text(stripe.item)}, and Lago charges {price_text(lago.item)} to "
        f"{lago.customer.payer_id}: end one of the two, then {DISCOVER_AGAIN}"
    )
    raise NotAdoptedError(message)


def _refuse_two_charging_providers(plan: CatalogPlan, objects: Objects) -> None:
    stripe, lago = objects.get("stripe"), objects.get("lago")
    if plan.charged_by == "lago" and stripe is not None and stripe.subscription is not None:
        message = (
            f"Lago charges for plan {plan.tier}, and Stripe charges for subscription {stripe.subscription.id}, too: "
            "end one of them, or set charged_by in plans.toml to `stripe`"
        )
        raise NotAdoptedError(message)
    if plan.charged_by == "stripe" and lago is not None and lago.customer.payer_id is not None:
        message = (
            f"Stripe charges for plan {plan.tier}, and Lago charges {lago.customer.payer_id}, too: remove the payer in "
            "Lago"
        )
        raise NotAdoptedError(message)


def _refuse_other_payer(objects: Objects) -> None:
    payer = objects["lago"].customer.payer_id
    customer = objects["stripe"].customer.id if "stripe" in objects else None
    if payer is not None and payer != customer:
        own = f"the Stripe customer in the row is {customer}" if customer else "the row has no Stripe customer"
        message = f"Lago charges the Stripe customer {payer}, and {own}: correct the payer in Lago, or {DISCOVER_AGAIN}"
        raise NotAdoptedError(message)


def _refuse_other_price(paid: ProviderObjects, plan: CatalogPlan) -> None:
    item = paid.item
    if item is None:
        return
    if (item.amount, item.quantity) == (plan.amount, 1):
        return
    message = (
        f"it pays {price_text(item)}, and plan {plan.tier} costs {catalog_text(plan)}: write `adopt-keep-price` or "
        "`change-to-catalog` into the row"
    )
    raise NotAdoptedError(message)


def _refuse_unchangeable(objects: Objects, plan: CatalogPlan) -> None:
    """A price of its own has the code of its plan in Lago, and Lago changes nothing without another code (B12).

    What costs less per year begins at the end of the period there (lago.md 5.1).
    """
    lago = objects.get("lago")
    item = lago.item if lago is not None else None
    if plan.charged_by != "lago" or item is None:
        return
    way_out = "change it in Lago, and then adopt it, or write `adopt-keep-price` into the row"
    if item.code == plan.lago_plan_code:
        message = f"Lago cannot change a price of its own to the price of the same plan ({item.code}): {way_out}"
        raise NotAdoptedError(message)
    if item.amount is None or item.amount > plan.amount:
        message = f"Lago lowers a price only at the end of a period, and it pays {price_text(item)} now: {way_out}"
        raise NotAdoptedError(message)


def price_text(item: InventoryItem) -> str:
    """``3 x 19.00 USD a month``."""
    times = "" if item.quantity == 1 else f"{item.quantity} x "
    amount = "an unknown amount" if item.amount is None else amount_text(item.amount, item.currency)
    return f"{times}{amount} a {interval_text(item) or 'period'}"


def refuse_organization(organization: Organization, plan: CatalogPlan, ids: Mapping[Provider, str]) -> None:
    """``ids``: the customers of the row, as ``adopt_command`` names them."""
    if organization.status == "deleted":
        message = (
            f"{organization.id} is deleted: write another org_id into the row, none for a new organization, or `skip`"
        )
        raise NotAdoptedError(message)
    if plan.tier not in {organization.plan_tier, organization.pending_plan_tier}:
        way_out = (
            f"`billing-sync set {organization.id} --plan {plan.tier}`"
            if plan.offered
            else adopt_command(organization.id, ids, "--their-plan")
        )
        message = (
            f"{organization.id} has plan {organization.plan_tier}, and pays for {plan.tier}: run {way_out} if they are "
            "right, or change the plan at the provider"
        )
        raise NotAdoptedError(message)
    if organization.currency not in {None, plan.currency}:
        message = (
            f"{organization.id} has currency {organization.currency}, and plan {plan.tier} costs {plan.currency}: "
            f"write a plan_tier in {organization.currency} into the row"
        )
        raise NotAdoptedError(message)


def refuse_changed_values(organization: Organization, row: AdoptionRow) -> None:
    """A name or address that is ours and that the row does not show must not be overwritten.

    A row without our name shows nothing of ours: an operator wrote the organization into it.
    """
    if row.our_name is None:
        return
    values = {
        "name": (row.our_name, organization.name),
        "email": (row.our_email, organization.billing_email),
    }
    changed = [
        f"our {field} of {organization.id} was {before or 'none'} and is {now or 'none'}"
        for field, (before, now) in values.items()
        if (before or None) != (now or None)
    ]
    if changed:
        message = f"it changed: {'; '.join(changed)}: {DISCOVER_AGAIN}"
        raise NotAdoptedError(message, is_left=True)


def refuse_marks(session: Session, row: AdoptionRow, objects: Objects) -> None:
    """Complete marks name one organization, which must be the row's.

    Those that another database wrote count, too, if they name an organization of ours (``core.adoption.matching``).
    """
    database_id = session.get_one(ProviderStatus, "stripe").database_id
    for provider, found in objects.items():
        subscriptions = (found.subscription,) if found.subscription is not None else ()
        customer = AccountCustomer(provider=provider, customer=found.customer, subscriptions=subscriptions)
        marked = matching.marks_of(customer)
        our_ids = set(session.scalars(select(Organization.id).where(Organization.id.in_(marked))))
        for reason in matching.foreign_marks(customer, our_ids, database_id):
            raise NotAdoptedError(reason)
        for org_id in sorted(our_ids - {row.org_id}):
            message = (
                f"{customer.phrase} has the marks of {org_id}: write that into org_id, or remove its "
                "billing_sync_org_id metadata"
            )
            raise NotAdoptedError(message)


def refuse_link(link: BillingLink, found: ProviderObjects | None) -> None:
    """``found`` None: the row has nothing at this provider."""
    name = PROVIDER_NAMES["stripe" if link.provider == "stripe" else "lago"]
    if link.intent is not None:
        message = (
            f"a request to {name} for {link.org_id} has no answer yet: apply the table again when `billing-sync status "
            f"{link.org_id}` shows none"
        )
        raise NotAdoptedError(message, is_left=True)
    if link.state == "on_hold" and not link.is_conflict:
        message = f"its link at {name} is on hold: `billing-sync parked` shows the reason and the way out"
        raise NotAdoptedError(message)
    if found is None:
        if link.ownership == "theirs":
            message = (
                f"{link.org_id} has customer {link.customer_id} at {name}, which the row leaves out: {DISCOVER_AGAIN}"
            )
            raise NotAdoptedError(message)
        return
    # An import may have brought Lago's external id.
    if link.customer_id not in {None, found.customer.id, found.customer.external_id}:
        message = (
            f"{link.org_id} has customer {link.customer_id} at {name}, not {found.customer.id}: correct the row, or "
            f"run `billing-sync set-customer-id {link.org_id} --{link.provider} {found.customer.id}`"
        )
        raise NotAdoptedError(message)
    subscription_id = found.subscription.id if found.subscription else None
    if is_ours(link) and link.subscription_id != subscription_id:
        message = (
            f"billing-sync made customer {link.customer_id} at {name}, whose subscription is "
            f"{link.subscription_id or 'none'}, not {subscription_id or 'none'}: end {subscription_id} at {name}"
            if subscription_id
            else f"subscription {link.subscription_id} of {link.org_id} has ended at {name}: run `billing-sync drift "
            "check`"
        )
        raise NotAdoptedError(message)


def is_ours(link: BillingLink) -> bool:
    """Whether we wrote its customer. One whose id came from outside was never confirmed."""
    return link.ownership == "ours" and link.customer_state in {"unknown", "applied"}


def owners(session: Session, objects: Objects) -> dict[str, str]:
    """The organizations that have one of these identities, each with one that it has.

    An external id that is the id of an organization belongs to that one, since Lago knows it by its id.
    """
    found: dict[str, str] = {}
    for provider, each in objects.items():
        named = f"{PROVIDER_NAMES[provider]} customer {each.customer.id}"
        ids = [each.customer.id, *filter(None, [each.customer.external_id])]
        conditions: list[ColumnElement[bool]] = [BillingLink.customer_id.in_(ids)]
        for column, external_id in _external_ids(each):
            conditions.append(column == external_id)
            if (owner := session.get(Organization, external_id)) is not None:
                found[owner.id] = f"external id {external_id}"
        links = select(BillingLink.org_id).where(BillingLink.provider == provider, or_(*conditions))
        found |= dict.fromkeys(session.scalars(links), named)
    return found


def identity_names(objects: Objects) -> list[str]:
    """Of the locks that two applications of one identity wait for, as ``provider_ids`` names them."""
    external = [external_id for each in objects.values() for _, external_id in _external_ids(each)]
    return [
        *(f"{provider}:{each.customer.id}" for provider, each in objects.items()),
        *(f"lago external id:{external_id}" for external_id in external),
    ]


def _external_ids(found: ProviderObjects) -> Iterator[tuple[InstrumentedAttribute[str | None], str]]:
    if found.customer.external_id is not None:
        yield BillingLink.external_customer_id, found.customer.external_id
    if found.subscription is not None and found.subscription.external_id is not None:
        yield BillingLink.external_subscription_id, found.subscription.external_id
