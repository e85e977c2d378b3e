"""The adoption of one row, in one transaction: an organization whose links have the identities that are there.

Nothing is written at a provider. A link that is adopted says that the provider has what is desired, so the reconcile
after it finds nothing to do but our marks. With ``change-to-catalog`` the charging provider's plan counts as unknown,
so once the organization is managed, a reconcile brings it to the catalog's price.

An organization is new if the row names none. A repeated row finds the organization by the identities, which belong to
one organization each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from core.adoption import guards
from core.adoption.guards import DISCOVER_AGAIN, NotAdoptedError, Objects
from core.adoption.provider_objects import ProviderObjects
from core.adoption.row import AdoptionRow, ValueSource, side_ids
from core.catalog.plans import Catalog, CatalogPlan
from core.common.validation import InvalidChangeError
from core.compare.desired_state import PayerPolicy, contact_fingerprint, customer_fingerprint, desired_state
from core.db import leases
from core.db.database import acquire_advisory_locks
from core.db.models.billing_links import NO_ERROR, NO_TARGET, BillingLink, MarksState
from core.db.models.organizations import Organization
from core.db.models.providers import ProviderStatus
from core.events import link_history, outbox
from core.events.event_types import ChangeContext
from core.organizations import commands, link_states, plan_changes
from core.organizations.commands import NameTakenError, NewOrganization
from core.organizations.links import end_attempts, mark_for_sync
from core.ports import arrangement
from core.ports.errors import RejectedError
from core.ports.spec import PROVIDER_NAMES, PROVIDERS, Provider

# Where Stripe charges, Lago has a subscription without a payer.
_UNPAID: Final[tuple[Provider, Provider]] = ("lago", "stripe")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptionRules:
    """``with_marks`` False: Stripe's metadata stays as it is.

    ``takes_their_plan``: an organization that is on another plan than the one that is paid gets that one, unless it is
    of another version than ``shown_version``, to which somebody agreed.
    """

    catalog: Catalog
    policy: PayerPolicy
    with_marks: bool = True
    takes_their_plan: bool = False
    shown_version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptedOrganization:
    """``remarks``: what an operator should know, in sentences. ``is_adopted_before``: nothing was stored."""

    org_id: str
    is_new: bool = False
    remarks: tuple[str, ...] = ()
    is_adopted_before: bool = False


def adopted_before(session: Session, row: AdoptionRow) -> str | None:
    """The organization that has the row's customers since an earlier adoption. None: not all of them are adopted."""
    found: set[str] = set()
    for provider, side in row.sides.items():
        link = session.scalars(
            select(BillingLink).where(BillingLink.provider == provider, BillingLink.customer_id == side.customer_id)
        ).one_or_none()
        if link is None or not (_is_adopted(link) or guards.is_ours(link)):
            return None
        found.add(link.org_id)
    return found.pop() if len(found) == 1 and (row.org_id is None or row.org_id in found) else None


def adopt(change: ChangeContext, row: AdoptionRow, objects: Objects, rules: AdoptionRules) -> AdoptedOrganization:
    """``objects``: what was just read for the row's sides. Raises ``NotAdoptedError``; nothing may be stored then."""
    plan = guards.plan_of(row, rules.catalog)
    guards.refuse_objects(row, plan, objects, rules.catalog)
    acquire_advisory_locks(change.session, *guards.identity_names(objects))
    # Another run may have adopted it while this one waited, and its reads were newer.
    if (adopted_id := adopted_before(change.session, row)) is not None:
        return AdoptedOrganization(org_id=adopted_id, is_adopted_before=True)
    guards.refuse_marks(change.session, row, objects)
    try:
        organization = _organization(change, row, objects, plan, rules)
        links = _links(change.session, organization.id)
        for provider in PROVIDERS:
            guards.refuse_link(links[provider], objects.get(provider))
        is_new = row.org_id is None
        if not is_new:
            _take_over_values(change, organization, row, objects, rules.catalog)
        _take_over_plan(change, organization, plan, objects, rules.catalog)
    except InvalidChangeError as error:
        raise _unusable_value(error) from error
    for provider, found in objects.items():
        if not guards.is_ours(links[provider]):
            _adopt_link(change, organization, provider, found, row, plan, rules)
    # A webhook of before is not lost: an observing attempt stores neither payment problems nor credit.
    end_attempts(change, organization.id)
    outbox.record(change, "organization.adopted", organization.id, {"action": row.action})
    if not is_new:
        mark_for_sync(change, organization)
    links = _links(change.session, organization.id)
    _store_fingerprints(organization, links, objects, rules)
    return AdoptedOrganization(
        org_id=organization.id,
        is_new=is_new,
        remarks=(*_remarks(row, plan, objects, links), *_mode_remarks(organization)),
    )


def _is_adopted(link: BillingLink) -> bool:
    return link.ownership == "adopted" and link.marks != "removal"


def _organization(
    change: ChangeContext, row: AdoptionRow, objects: Objects, plan: CatalogPlan, rules: AdoptionRules
) -> Organization:
    """The locked organization, or a new one. Raises ``NotAdoptedError`` and ``InvalidChangeError``."""
    for owner, identity in guards.owners(change.session, objects).items():
        if owner != row.org_id:
            message = f"{identity} belongs to organization {owner}: {DISCOVER_AGAIN}"
            raise NotAdoptedError(message)
    if row.org_id is None:
        return _new_organization(change, row, objects, plan, rules.catalog)
    organization = commands.lock(change.session, row.org_id)
    if organization is None:
        message = f"there is no organization {row.org_id}: leave org_id empty for a new one, or correct the row"
        raise NotAdoptedError(message)
    if rules.takes_their_plan and any(found.subscription is not None for found in objects.values()):
        _take_their_plan(change, organization, plan, rules.shown_version)
    guards.refuse_organization(organization, plan, side_ids(row))
    guards.refuse_changed_values(organization, row)
    return organization


def _take_their_plan(
    change: ChangeContext, organization: Organization, plan: CatalogPlan, shown_version: int | None
) -> None:
    """Also one that is sold no longer: whoever pays for it stays on it. Raises ``NotAdoptedError``."""
    is_on_it = plan.tier in {organization.plan_tier, organization.pending_plan_tier}
    if not is_on_it and organization.status != "deleted":
        if shown_version not in {None, organization.version}:
            message = f"organization {organization.id} changed since it was shown: run the command again"
            raise NotAdoptedError(message, is_left=True)
        plan_changes.adopt_plan(change, organization, plan.tier, by="change")


def _new_organization(
    change: ChangeContext, row: AdoptionRow, objects: Objects, plan: CatalogPlan, catalog: Catalog
) -> Organization:
    name = _value("name", row.name_source, row.our_name, objects)
    if name is None:
        message = (
            "it has no name at Stripe or Lago, and an organization needs one: give it a name there, then discover again"
        )
        raise NotAdoptedError(message)
    email = _value("email", row.email_source, row.our_email, objects)
    new = NewOrganization(
        name=name,
        plan_tier=plan.tier,
        billing_email=email,
        has_plan_already=any(found.subscription is not None for found in objects.values()),
    )
    return commands.create(change, new, catalog)


def _take_over_values(
    change: ChangeContext, organization: Organization, row: AdoptionRow, objects: Objects, catalog: Catalog
) -> None:
    name = _value("name", row.name_source, organization.name, objects)
    if name is not None:
        commands.rename(change, organization, name)
    email = _value("email", row.email_source, organization.billing_email, objects)
    commands.change_billing_details(change, organization, catalog, billing_email=email)


def _value(field: str, source: ValueSource, ours: str | None, objects: Objects) -> str | None:
    """Of the source that the row names, or else of the others: an empty value replaces none."""
    theirs: Mapping[str, str | None] = {provider: getattr(found.customer, field) for provider, found in objects.items()}
    values = {"ours": ours, **theirs}
    order = [source, *(each for each in values if each != source)]
    return next((value for each in order if (value := (values.get(each) or "").strip())), None)


def _take_over_plan(
    change: ChangeContext, organization: Organization, plan: CatalogPlan, objects: Objects, catalog: Catalog
) -> None:
    """The pending plan that is paid already, and the one that is scheduled there. Raises ``NotAdoptedError``."""
    if organization.plan_tier != plan.tier:
        plan_changes.record_scheduled_plan_took_effect(change, organization, plan.tier)
    paid = objects.get(plan.charged_by)
    next_code = paid.subscription.next_code if paid is not None and paid.subscription is not None else None
    next_tier = None if next_code is None else catalog.tier_of(plan.charged_by, next_code)
    pending = organization.pending_plan_tier
    if pending not in {None, next_tier} and any(found.subscription is not None for found in objects.values()):
        # A managed reconcile would schedule it on what somebody pays.
        message = (
            f"{organization.id} changes to {pending} when the period ends, and that is not scheduled at the provider: "
            f"run `billing-sync set {organization.id} --plan {plan.tier}`, which cancels it, or schedule it there"
        )
        raise NotAdoptedError(message)
    if next_tier in {None, organization.pending_plan_tier}:
        return
    # What a provider schedules and what an upgrade would do at once are told apart by the rank.
    plan_changes.change_plan(change, organization, next_tier or plan.tier, catalog, is_theirs=True)
    if organization.pending_plan_tier != next_tier:
        message = f"{next_code} is scheduled at the provider, and is no lower plan than {plan.tier}: cancel it there"
        raise NotAdoptedError(message)


def _links(session: Session, org_id: str) -> dict[Provider, BillingLink]:
    return {
        provider: session.get_one(BillingLink, (org_id, provider), populate_existing=True) for provider in PROVIDERS
    }


def _adopt_link(  # noqa: PLR0913, PLR0917 - one link of one row
    change: ChangeContext,
    organization: Organization,
    provider: Provider,
    found: ProviderObjects,
    row: AdoptionRow,
    plan: CatalogPlan,
    rules: AdoptionRules,
) -> None:
    """The lease must be free. An attempt that comes back later is ended by the caller."""
    status = change.session.get_one(ProviderStatus, provider)
    values = {
        "customer_id": found.customer.id,
        "account_id": status.account_id,
        "livemode": status.livemode,
        "ownership": "adopted",
        **_plan_values(provider, found, row, plan),
        **NO_ERROR,
    }
    if provider == "stripe":
        values["marks"] = _marks(organization.id, status.database_id, found, rules)
    else:
        values |= _lago_values(organization.id, found, plan)
    adopted = change.session.scalars(
        update(BillingLink)
        .where(
            BillingLink.org_id == organization.id,
            BillingLink.provider == provider,
            BillingLink.intent.is_(None),
            leases.is_free(BillingLink, change.now),
        )
        .values(values)
        .returning(BillingLink.org_id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if adopted is None:
        message = f"{organization.id} is being synced now: apply the table again in a minute"
        raise NotAdoptedError(message, is_left=True)
    link_history.record_actions(
        change,
        organization.id,
        [provider],
        "adopted",
        action=row.action,
        customer_id=found.customer.id,
        subscription_id=found.subscription.id if found.subscription else None,
    )


def _plan_values(provider: Provider, found: ProviderObjects, row: AdoptionRow, plan: CatalogPlan) -> dict[str, Any]:
    subscription, item = found.subscription, found.item
    values: dict[str, Any] = {
        **link_states.values_after("adopted"),
        "subscription_id": None,
        "sold_plan": None,
        "sold_price_id": None,
        **NO_TARGET,
        "applied_next_plan": None,
        "replaced_next_plans": None,
        "arrangement": None,
    }
    if subscription is None or item is None:
        return values
    values |= {
        "subscription_id": subscription.id,
        "applied_next_plan": subscription.next_code,
        "arrangement": arrangement.to_json(subscription.arrangement),
    }
    if row.action == "change-to-catalog" and provider == plan.charged_by:
        # The code that is to be sold, so that a former code is none that was sold.
        return values | {"sold_plan": plan.code(provider)}
    code = item.code if item.code is not None and plan.has_code(provider, item.code) else plan.code(provider)
    return values | {
        **link_states.values_after("adopted_with_subscription"),
        "applied_plan": code,
        "sold_plan": code,
        "sold_price_id": item.price_id if provider == "stripe" else item.sold_price_id,
    }


def _marks(org_id: str, database_id: str, found: ProviderObjects, rules: AdoptionRules) -> MarksState:
    """ours: they are there already, as in a restored database. A release must remove them, or the customer counts as
    ours.
    """
    each_has: Iterator[bool] = (
        (each.org_id, each.database_id) == (org_id, database_id)
        for each in (found.customer, found.subscription)
        if each is not None
    )
    return "ours" if any(each_has) else "due" if rules.with_marks else "none"


def _lago_values(org_id: str, found: ProviderObjects, plan: CatalogPlan) -> dict[str, Any]:
    customer, subscription = found.customer, found.subscription
    external_id = subscription.external_id if subscription is not None else None
    return {
        "external_customer_id": customer.external_id if customer.external_id != org_id else None,
        "external_subscription_id": external_id if external_id != org_id else None,
        "payer_id": customer.payer_id,
        "payer_confirmed": customer.payer_id is not None,
        # Whatever connection to Stripe is configured: one that is configured later gives it no payer either.
        "without_payer": plan.charged_by == "lago" and customer.payer_id is None,
        "subscription_requested": subscription is not None,
    }


def _store_fingerprints(
    organization: Organization, links: Mapping[Provider, BillingLink], objects: Objects, rules: AdoptionRules
) -> None:
    """What is there counts as what is desired, so no name, address or payer is written. Raises ``NotAdoptedError``."""
    for provider in objects:
        if links[provider].ownership != "adopted":
            continue
        try:
            links[provider].adopted_fingerprint = contact_fingerprint(organization)
            desired = desired_state(provider, organization, links, rules.catalog, rules.policy)
        except RejectedError as error:
            raise NotAdoptedError(error.message) from error
        links[provider].customer_fingerprint = customer_fingerprint(desired.customer)


def _remarks(
    row: AdoptionRow, plan: CatalogPlan, objects: Objects, links: Mapping[Provider, BillingLink]
) -> Iterator[str]:
    if links["lago"].without_payer:
        yield (
            "Lago charges nobody, because the customer has no payer, and it is given none: "
            "`billing-sync adopt ORG --give-payer` gives it one"
        )
    for provider in PROVIDERS:
        needs_subscription = provider in {"lago", plan.charged_by}
        name = PROVIDER_NAMES[provider]
        unpaid = "; Stripe charges, so nobody pays for it in Lago" if (provider, plan.charged_by) == _UNPAID else ""
        if provider not in objects and links[provider].customer_id is None:
            also = " with a subscription" if needs_subscription else ""
            yield f"a customer{also} will be created at {name} once the organization is managed{unpaid}"
        elif provider in objects and objects[provider].subscription is None and needs_subscription:
            code = plan.code(provider)
            yield f"a subscription to {code} will begin at {name} once the organization is managed{unpaid}"
    if row.action == "change-to-catalog":
        yield "the price changes to the catalog's once the organization is managed"


def _mode_remarks(organization: Organization) -> Iterator[str]:
    if organization.management == "observe":
        yield (
            "it has the mode observe of its own, which `adopt discover` gives to whom two customers could charge: "
            f"`billing-sync management inherit {organization.id}` ends that"
        )


def _unusable_value(error: InvalidChangeError) -> NotAdoptedError:
    if isinstance(error, NameTakenError):
        message = (
            f"{error}, as {error.owner_id}: rename that one with `billing-sync set {error.owner_id} --name NAME`, "
            "choose a name_source that has another name, or set UNIQUE_ORGANIZATION_NAMES=false"
        )
        return NotAdoptedError(message)
    field = "email" if error.field == "billing_email" else error.field
    way_out = f": choose another {field}_source, or correct it at the provider" if field in {"name", "email"} else ""
    return NotAdoptedError(f"{error}{way_out}")
