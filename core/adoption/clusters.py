"""Finds what strong keys join, among what a discovery listed: from some customers on, level by level.

A level looks up the organizations that its customers name, and then the customers that those organizations and the
payers name. A cluster that goes on beyond ``MAX_CLUSTER_CUSTOMERS`` is cut and says so, so each lookup stays bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.adoption.discovery_listings import CustomerKey, load_customers
from core.adoption.guards import is_ours
from core.adoption.matching import (
    MAX_CLUSTER_CUSTOMERS,
    AccountCustomer,
    AdoptionOrganization,
    Cluster,
    LinkIdentity,
    named_organizations,
)
from core.db.models.adoption import DiscoveryListing
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.db.models.providers import ProviderStatus
from core.ports.spec import PROVIDERS, Provider

MAX_CLUSTER_LEVELS: Final = 8

Node = CustomerKey | str
"""A customer, or the id of an organization."""


class ClusterFinder:
    """One batch: what is joined to ``seeds``."""

    def __init__(self, session: Session, run_id: str) -> None:
        self._session = session
        self._run_id = run_id
        self._customers: dict[CustomerKey, AccountCustomer] = {}
        self._organizations: dict[str, AdoptionOrganization] = {}
        self._parents: dict[Node, Node] = {}
        self._cut: set[Node] = set()

    def clusters(self, seeds: Sequence[CustomerKey]) -> list[Cluster]:
        frontier = set(seeds)
        for _ in range(MAX_CLUSTER_LEVELS):
            if not frontier:
                break
            frontier = self._without_large(self._next_level(frontier))
        self._cut |= frontier
        return self._grouped()

    def _without_large(self, frontier: set[CustomerKey]) -> set[CustomerKey]:
        """Those that belong to clusters which are small enough to go on."""
        sizes = Counter(self._root(key) for key in self._customers)
        large = {key for key in frontier if sizes[self._root(key)] > MAX_CLUSTER_CUSTOMERS}
        self._cut |= large
        return frontier - large

    def _next_level(self, frontier: Collection[CustomerKey]) -> set[CustomerKey]:
        """Loads these customers; returns those that they name and that are not loaded yet."""
        loaded = load_customers(self._session, self._run_id, frontier)
        self._customers |= loaded
        new_ids = self._named_org_ids(loaded) - self._organizations.keys()
        new_organizations = load_organizations(self._session, new_ids)
        self._organizations |= new_organizations
        for key, each in loaded.items():
            for org_id in named_organizations(each, self._organizations):
                self._join(key, org_id)
        joined = self._joined_by_payers(loaded) | self._joined_by_organizations(new_organizations)
        return joined - self._customers.keys()

    def _named_org_ids(self, loaded: dict[CustomerKey, AccountCustomer]) -> set[str]:
        customers = [each.customer for each in loaded.values()]
        marked = {each.org_id for each in customers} | {
            subscription.org_id for each in loaded.values() for subscription in each.subscriptions
        }
        external_ids = {each.external_id for each in customers}
        named = (marked | external_ids) - {None}
        found = set(self._session.scalars(select(Organization.id).where(Organization.id.in_(named))))
        ids = {customer_id for _, customer_id in loaded} | (external_ids - {None})
        links = select(BillingLink.org_id).where(
            or_(BillingLink.customer_id.in_(ids), BillingLink.external_customer_id.in_(external_ids - {None}))
        )
        return found | set(self._session.scalars(links))

    def _joined_by_payers(self, loaded: dict[CustomerKey, AccountCustomer]) -> set[CustomerKey]:
        payer_ids = {each.customer.payer_id for each in loaded.values()} - {None}
        stripe_ids = {customer_id for provider, customer_id in loaded if provider == "stripe"}
        shared = self._too_often(DiscoveryListing.payer_id, stripe_ids)
        self._cut |= {("stripe", payer_id) for payer_id in shared}
        for key, each in loaded.items():
            if each.customer.payer_id is not None:
                self._join(key, ("stripe", each.customer.payer_id))
        found: set[CustomerKey] = set()
        condition = or_(
            and_(DiscoveryListing.provider == "stripe", DiscoveryListing.id.in_(payer_ids)),
            and_(DiscoveryListing.provider == "lago", DiscoveryListing.payer_id.in_(stripe_ids - shared)),
        )
        for key, payer_id in self._listed(condition):
            found.add(key)
            if payer_id is not None:
                self._join(key, ("stripe", payer_id))
        return found

    def _joined_by_organizations(self, organizations: dict[str, AdoptionOrganization]) -> set[CustomerKey]:
        if not organizations:
            return set()
        marked_often = self._too_often(DiscoveryListing.org_id, organizations)
        self._cut |= marked_often
        org_ids = organizations.keys() - marked_often
        links = [link for each in organizations.values() for link in each.links.values()]
        ids = {link.customer_id for link in links} - {None}
        external_ids = {link.external_customer_id for link in links} - {None}
        condition = or_(
            DiscoveryListing.org_id.in_(org_ids),
            DiscoveryListing.id.in_(ids),
            DiscoveryListing.external_id.in_({*organizations, *ids, *external_ids}),
        )
        marked = select(DiscoveryListing.customer_id).where(
            DiscoveryListing.run_id == self._run_id,
            DiscoveryListing.object_type == "subscription",
            DiscoveryListing.org_id.in_(org_ids),
        )
        stripe: Provider = "stripe"
        marked_keys = {(stripe, customer_id) for customer_id in self._session.scalars(marked) if customer_id}
        return marked_keys | {key for key, _ in self._listed(condition)}

    def _too_often(self, column: InstrumentedAttribute[str | None], values: Collection[str]) -> set[str]:
        """Those that more objects name than a cluster may have."""
        found = self._session.scalars(
            select(column)
            .where(DiscoveryListing.run_id == self._run_id, column.in_(values))
            .group_by(column)
            .having(func.count() > MAX_CLUSTER_CUSTOMERS)
        )
        return {value for value in found if value is not None}

    def _listed(self, condition: ColumnElement[bool]) -> list[tuple[CustomerKey, str | None]]:
        """Customers with their payers."""
        rows = self._session.execute(
            select(DiscoveryListing.provider, DiscoveryListing.id, DiscoveryListing.payer_id).where(
                DiscoveryListing.run_id == self._run_id, DiscoveryListing.object_type == "customer", condition
            )
        )
        return [((each, row[1]), row[2]) for row in rows for each in PROVIDERS if each == row[0]]

    def _join(self, one: Node, other: Node) -> None:
        self._parents[self._root(one)] = self._root(other)

    def _root(self, node: Node) -> Node:
        while (parent := self._parents.get(node, node)) != node:
            node = parent
        return node

    def _grouped(self) -> list[Cluster]:
        members: dict[Node, list[CustomerKey]] = {}
        for key in sorted(self._customers):
            members.setdefault(self._root(key), []).append(key)
        cut_roots = {self._root(node) for node in self._cut}
        database_id = self._session.get_one(ProviderStatus, "stripe").database_id
        return [
            Cluster(
                customers=tuple(self._customers[key] for key in keys),
                organizations={
                    org_id: each for org_id, each in self._organizations.items() if self._root(org_id) == root
                },
                database_id=database_id,
                is_cut=root in cut_roots or len(keys) > MAX_CLUSTER_CUSTOMERS,
            )
            for root, keys in members.items()
        ]


def load_organizations(session: Session, org_ids: Collection[str]) -> dict[str, AdoptionOrganization]:
    """Also deleted ones. The customer of a link may be theirs although no import said so: nobody confirmed its id."""
    if not org_ids:
        return {}
    links: dict[str, dict[Provider, LinkIdentity]] = {}
    for link in session.scalars(select(BillingLink).where(BillingLink.org_id.in_(org_ids))):
        provider: Provider = "stripe" if link.provider == "stripe" else "lago"
        links.setdefault(link.org_id, {})[provider] = LinkIdentity(
            customer_id=link.customer_id,
            external_customer_id=link.external_customer_id,
            ownership="theirs" if link.ownership == "ours" and not is_ours(link) else link.ownership,
        )
    return {
        each.id: AdoptionOrganization(
            id=each.id,
            name=each.name,
            email=each.billing_email,
            plan_tier=each.plan_tier,
            next_plan_tier=each.pending_plan_tier,
            currency=each.currency,
            status="deleted" if each.status == "deleted" else "suspended" if each.status == "suspended" else "active",
            links=links.get(each.id, {}),
        )
        for each in session.scalars(select(Organization).where(Organization.id.in_(org_ids)))
    }
