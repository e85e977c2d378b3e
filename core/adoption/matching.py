"""Who is who: which customers of both accounts are one organization's. Pure: it reads nothing.

Only strong keys join, because only they are unique: our complete marks in Stripe, a link that has the id, a Lago
external id that is an organization's id, and the Stripe customer that Lago charges. Complete marks name the database
that wrote them. Those of another database count only if the organization is in ours: ids of organizations are random,
so it is the same one, and the database was copied or restored. Otherwise another deployment owns the customer.

What the strong keys join must be one organization, one customer at Stripe and one at Lago. If it is more, or if
anything says that somebody else owns a part, every customer of it is a conflict. Names, addresses and a merchant's own
``org_id`` metadata join nothing; they are ``Likeness``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from core.db.models.billing_links import Ownership
from core.db.models.organizations import OrganizationStatus
from core.ports.inventory import InventoryCustomer, InventorySubscription
from core.ports.spec import PROVIDER_NAMES, Provider

MAX_CLUSTER_CUSTOMERS: Final = 50

StrongKey = Literal["marks", "link", "external id", "payer"]
Similarity = Literal["name", "address", "metadata"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkIdentity:
    """The ids that a billing link has. ``customer_id``: of Lago the ``lago_id``, or what an import brought."""

    customer_id: str | None
    external_customer_id: str | None = None
    ownership: Ownership = "ours"

    def is_of(self, customer: InventoryCustomer) -> bool:
        if self.customer_id is not None and self.customer_id in {customer.id, customer.external_id}:
            return True
        return self.external_customer_id is not None and self.external_customer_id == customer.external_id

    @property
    def has_customer(self) -> bool:
        return self.customer_id is not None or self.external_customer_id is not None

    @property
    def shown_id(self) -> str:
        return self.customer_id or self.external_customer_id or "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptionOrganization:
    """An organization of ours, with the ids of its links."""

    id: str
    name: str
    email: str | None
    plan_tier: str
    next_plan_tier: str | None = None
    currency: str | None = None
    status: OrganizationStatus = "active"
    links: Mapping[Provider, LinkIdentity]


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountCustomer:
    """A customer in one of the accounts, with its subscriptions that have not ended."""

    provider: Provider
    customer: InventoryCustomer
    subscriptions: tuple[InventorySubscription, ...] = ()

    @property
    def shown_id(self) -> str:
        """What an operator finds it by."""
        return self.customer.external_id or self.customer.id

    @property
    def phrase(self) -> str:
        return f"{self.shown_id} at {PROVIDER_NAMES[self.provider]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """Something that two objects share and that proves nothing. ``org_id``, or a customer of the provider."""

    similarity: Similarity
    org_id: str | None = None
    provider: Provider | None = None
    customer_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """All customers that strong keys join, directly or over others.

    ``organizations``: those of ours that the customers may name. ``database_id``: ours.
    """

    customers: tuple[AccountCustomer, ...]
    organizations: Mapping[str, AdoptionOrganization]
    database_id: str
    is_cut: bool = False
    """It has more than ``MAX_CLUSTER_CUSTOMERS``, and the others are left out."""

    def at(self, provider: Provider) -> list[AccountCustomer]:
        return [each for each in self.customers if each.provider == provider]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What becomes one row. ``conflict``: a sentence; None: one organization, and at most one customer on each side."""

    organization: AdoptionOrganization | None
    sides: Mapping[Provider, AccountCustomer]
    matched_by: StrongKey | None
    conflict: str | None = None
    likenesses: tuple[Likeness, ...] = ()


def named_organizations(
    each: AccountCustomer, organizations: Mapping[str, AdoptionOrganization]
) -> dict[str, StrongKey]:
    """The organizations of ours that strong keys of this customer name, and by which key; usually none or one."""
    named: dict[str, StrongKey] = {}
    for org_id in marks_of(each):
        if org_id in organizations:
            named[org_id] = "marks"
    for organization in organizations.values():
        link = organization.links.get(each.provider)
        if link is not None and link.is_of(each.customer):
            named.setdefault(organization.id, "link")
    external_id = each.customer.external_id
    if external_id is not None and external_id in organizations:
        named.setdefault(external_id, "external id")
    return named


def is_managed(match: Match) -> bool:
    """Whether every customer of it is one that billing-sync made or has adopted, so that nothing is left to do."""
    if match.organization is None or match.conflict is not None or not match.sides:
        return False
    links = match.organization.links
    return all(
        (link := links.get(provider)) is not None and link.ownership != "theirs" and link.is_of(side.customer)
        for provider, side in match.sides.items()
    )


def matches_of(cluster: Cluster) -> list[Match]:
    """One match; or one for each pair that Lago's payers join, and each customer that is left, with the conflict."""
    named = _all_named(cluster)
    conflict = next(_conflicts(cluster, named), None)
    if conflict is None:
        return [
            Match(
                organization=cluster.organizations[next(iter(named))] if named else None,
                sides={each.provider: each for each in cluster.customers},
                matched_by=_best_key(named, cluster),
            )
        ]
    return [
        Match(
            organization=_only_organization(sides.values(), cluster),
            sides=sides,
            matched_by=None,
            conflict=conflict,
        )
        for sides in _pairs(cluster)
    ]


def _all_named(cluster: Cluster) -> dict[str, list[tuple[AccountCustomer, StrongKey]]]:
    named: dict[str, list[tuple[AccountCustomer, StrongKey]]] = {}
    for each in cluster.customers:
        for org_id, key in named_organizations(each, cluster.organizations).items():
            named.setdefault(org_id, []).append((each, key))
    return named


def _best_key(named: Mapping[str, list[tuple[AccountCustomer, StrongKey]]], cluster: Cluster) -> StrongKey | None:
    keys = {key for found in named.values() for _, key in found}
    order: tuple[StrongKey, ...] = ("marks", "link", "external id")
    best = next((key for key in order if key in keys), None)
    return best or ("payer" if len(cluster.customers) > 1 else None)


def _only_organization(sides: Collection[AccountCustomer], cluster: Cluster) -> AdoptionOrganization | None:
    org_ids = {org_id for each in sides for org_id in named_organizations(each, cluster.organizations)}
    return cluster.organizations[org_ids.pop()] if len(org_ids) == 1 else None


def _pairs(cluster: Cluster) -> Iterator[dict[Provider, AccountCustomer]]:
    stripe = {each.customer.id: each for each in cluster.at("stripe")}
    paired: set[str] = set()
    for lago in cluster.at("lago"):
        payer = stripe.get(lago.customer.payer_id or "")
        if payer is None:
            yield {"lago": lago}
        else:
            paired.add(payer.customer.id)
            yield {"stripe": payer, "lago": lago}
    for each in stripe.values():
        if each.customer.id not in paired:
            yield {"stripe": each}


def marks_of(each: AccountCustomer) -> dict[str, str | None]:
    """The organizations in the marks of the customer and of its subscriptions, with the database that wrote each."""
    marks = {each.customer.org_id: each.customer.database_id}
    for subscription in each.subscriptions:
        marks.setdefault(subscription.org_id, subscription.database_id)
    return {org_id: database_id for org_id, database_id in marks.items() if org_id is not None}


def _conflicts(cluster: Cluster, named: Mapping[str, list[tuple[AccountCustomer, StrongKey]]]) -> Iterator[str]:
    """Whatever keeps the cluster from being one organization; the first is the one to solve first."""
    if cluster.is_cut:
        yield (
            f"more than {MAX_CLUSTER_CUSTOMERS} customers name each other as payers or belong to one organization; "
            "leave one customer at Stripe and one at Lago for each organization"
        )
    for each in cluster.customers:
        yield from foreign_marks(each, cluster.organizations, cluster.database_id)
    if len(named) > 1:
        yield _several_organizations(named)
    yield from _payer_conflicts(cluster)
    yield from _several_customers(cluster, named)
    for each in cluster.customers:
        yield from _unusable(each)
    for org_id in named:
        yield from _other_links(cluster, cluster.organizations[org_id])


def foreign_marks(each: AccountCustomer, our_ids: Collection[str], database_id: str) -> Iterator[str]:
    """A sentence for each mark that names none of the organizations ``our_ids``. ``database_id``: ours."""
    for org_id, written_by in marks_of(each).items():
        if org_id in our_ids:
            continue
        if written_by == database_id:
            yield (
                f"{each.phrase} has the marks of {org_id}, which this database wrote and does not have: it was "
                "restored to an earlier time; restore what was lost, or remove its billing_sync_org_id metadata"
            )
        else:
            yield (
                f"{each.phrase} has the marks of {org_id}, which another database wrote: another billing-sync manages "
                "it; leave it to that one, or remove its billing_sync_org_id metadata"
            )


def _several_organizations(named: Mapping[str, list[tuple[AccountCustomer, StrongKey]]]) -> str:
    parts = [f"{found[0][0].phrase} is {org_id} ({found[0][1]})" for org_id, found in sorted(named.items())]
    return f"{' and '.join(parts)}, and they belong together; correct one of them, so that they name one organization"


def _payer_conflicts(cluster: Cluster) -> Iterator[str]:
    stripe = {each.customer.id: each for each in cluster.at("stripe")}
    for lago in cluster.at("lago"):
        payer_id = lago.customer.payer_id
        if lago.customer.other_payer is not None:
            yield (
                f"Lago charges {lago.shown_id} by {lago.customer.other_payer}, and billing-sync knows only Stripe as "
                "the payer; leave it as it is"
            )
        if payer_id is None:
            continue
        if payer_id not in stripe:
            yield (
                f"Lago charges {payer_id} for {lago.shown_id}, and Stripe does not have it: it was deleted, or it is "
                "in another account; correct the payer in Lago"
            )
        others = [each for each in stripe if each != payer_id]
        if others:
            yield (
                f"Lago charges {payer_id} for {lago.shown_id}, and {others[0]} is its customer at Stripe, too; "
                "correct the payer in Lago, or the ids that name the other one"
            )
    payers = [each.customer.payer_id for each in cluster.at("lago") if each.customer.payer_id is not None]
    for payer_id in dict.fromkeys(payers):
        if payers.count(payer_id) > 1:
            ids = ", ".join(each.shown_id for each in cluster.at("lago") if each.customer.payer_id == payer_id)
            yield f"Lago charges {payer_id} for several customers: {ids}; an organization has a payer of its own"


def _several_customers(cluster: Cluster, named: Mapping[str, list[tuple[AccountCustomer, StrongKey]]]) -> Iterator[str]:
    providers: tuple[Provider, ...] = ("stripe", "lago")
    for provider in providers:
        found = cluster.at(provider)
        if len(found) > 1:
            of = f"organization {next(iter(named))}" if named else "one customer"
            ids = ", ".join(each.shown_id for each in found)
            yield (
                f"{of} has several customers at {PROVIDER_NAMES[provider]}: {ids}; decide which one to adopt: "
                f"{_way_to_choose(provider, next(iter(named), None))}"
            )


def _way_to_choose(provider: Provider, org_id: str | None) -> str:
    if org_id is None:
        return "remove what joins the others with it"
    return f"`billing-sync adopt {org_id} --{provider} {'cus_…' if provider == 'stripe' else 'EXTERNAL_ID'}`"


def _unusable(each: AccountCustomer) -> Iterator[str]:
    if each.customer.deleted:
        yield f"{each.phrase} was deleted; set another customer with `billing-sync set-customer-id`"
    if not each.customer.is_addressable:
        yield _not_addressable(each.shown_id, "customer")
    for subscription in each.subscriptions:
        if not subscription.is_addressable:
            yield _not_addressable(subscription.external_id or subscription.id, "subscription")


def _not_addressable(shown_id: str, what: str) -> str:
    return (
        f"Lago's API cannot address {shown_id}, because it reads what follows a dot as a format, and drops a blank at "
        f"an end; give the {what} another external id in Lago, or leave it as it is"
    )


def _other_links(cluster: Cluster, organization: AdoptionOrganization) -> Iterator[str]:
    """Customers that the organization's links name and that are not in the cluster."""
    for provider, link in organization.links.items():
        found = cluster.at(provider)
        if not link.has_customer or any(link.is_of(each.customer) for each in found):
            continue
        if found:
            yield (
                f"{found[0].phrase} names {organization.id}, whose customer is {link.shown_id}; decide which one it "
                f"is: {_set_customer_id(organization.id, provider)}"
            )
        else:
            yield missing_customer(organization, provider)


def missing_customer(organization: AdoptionOrganization, provider: Provider) -> str:
    """Why an organization is a conflict whose link names a customer that the provider does not list."""
    link = organization.links[provider]
    return (
        f"{PROVIDER_NAMES[provider]} does not have {link.shown_id}, the customer of {organization.id}: it was deleted, "
        f"or it is in another account; set the right one: {_set_customer_id(organization.id, provider)}"
    )


def _set_customer_id(org_id: str, provider: Provider) -> str:
    if provider == "stripe":
        return f"`billing-sync set-customer-id {org_id} --stripe cus_…`"
    return f"`billing-sync set-customer-id {org_id} --lago ID`"
