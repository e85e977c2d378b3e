"""A discovery: lists both accounts, joins what belongs together, and proposes a row for each organization.

It only reads at the providers. Organizations of ours that may be one with a customer in a conflict are observed until
that is decided (``suggested_organizations``). Each step is stored before the next one starts, so any process can resume
a run that was killed. No transaction is open during a request, and memory holds one page, or one batch of customers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from core.adoption import discovery_listings, discovery_store, suggested_organizations
from core.adoption.clusters import ClusterFinder, load_organizations
from core.adoption.discovery_listings import CustomerKey
from core.adoption.discovery_store import DiscoveryRun, DiscoveryStage
from core.adoption.matching import (
    AdoptionOrganization,
    Cluster,
    Likeness,
    Match,
    is_managed,
    matches_of,
    missing_customer,
    named_organizations,
)
from core.adoption.proposal import ProposalRules, propose
from core.adoption.row import AdoptionAction, AdoptionRow, AdoptionSide
from core.common.clock import Clock
from core.db.database import Database
from core.db.models.adoption import DiscoveryProposal
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.events.event_types import BY_SYSTEM, Cause, ChangeContext
from core.ports.inventory import Inventory, InventoryCustomer, InventoryDiscount, InventorySubscription
from core.ports.observed import ObservedPage
from core.ports.spec import PROVIDERS, Provider
from core.reconcile.account_guard import AccountGuard
from core.reconcile.low_priority_reader import LowPriorityReader

ORGANIZATIONS_PER_DISCOVERY_STEP: Final = 500
CUSTOMERS_PER_DISCOVERY_STEP: Final = 200
MAX_LIKENESSES_OF_A_MATCH: Final = 10
SUGGESTED_PER_TRANSACTION: Final = 100
DISCOVERY_PURPOSE: Final = "discovery"
_GOES_ON: Final = "goes on"  # the cursor of matching, which takes whatever is not matched yet

OnDiscoveryProgress = Callable[[DiscoveryStage, int], None]
ListedPage = ObservedPage[InventoryCustomer] | ObservedPage[InventorySubscription] | ObservedPage[InventoryDiscount]


def _ignore_discovery_progress(_stage: DiscoveryStage, _processed: int) -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    database: Database
    reader: LowPriorityReader[Inventory]
    account_guard: AccountGuard
    rules: ProposalRules
    clock: Clock
    cause: Cause = BY_SYSTEM

    def run(self, on_progress: OnDiscoveryProgress = _ignore_discovery_progress) -> DiscoveryRun:
        """Runs or resumes a discovery until everything is proposed. A page is not read again, but matching begins anew.

        Raises ``ProviderError``, ``WrongAccountError`` and ``DiscoveryTakenOverError``.
        """
        for provider in self.reader.readers:
            self.account_guard.fetch(provider)
        with self.database.write() as session:
            run = discovery_store.resume(session, self.clock())
            discovery_store.match_again(session, run)
        while run.stage is not None:
            on_progress(run.stage, run.processed)
            self.step(run)
        self._observe_undecided(run)
        return run

    def counts(self, run: DiscoveryRun) -> dict[AdoptionAction, int]:
        with self.database.read() as session:
            return discovery_store.counts(session, run)

    def rows(self, run: DiscoveryRun) -> Iterator[AdoptionRow]:
        return discovery_store.read_rows(self.database, run)

    def end(self, run: DiscoveryRun) -> None:
        """Call when the table is written: what was listed is deleted."""
        with self.database.write() as session:
            discovery_store.end(session, run)

    def step(self, run: DiscoveryRun) -> None:
        """One page, or one batch. The result is stored when it returns."""
        match run.stage:
            case "organizations":
                self._organizations_step(run)
            case "matching":
                self._matching_step(run)
            case "missing":
                self._missing_step(run)
            case None:
                return
            case _:
                self._list_page(run, run.stage)

    def _organizations_step(self, run: DiscoveryRun) -> None:
        with self.database.write() as session:
            organizations = session.scalars(
                select(Organization)
                .where(Organization.id > (run.cursor or ""), Organization.status != "deleted")
                .order_by(Organization.id)
                .limit(ORGANIZATIONS_PER_DISCOVERY_STEP)
            ).all()
            discovery_listings.add_organizations(session, run.id, organizations)
            run.advance(organizations[-1].id if organizations else None, len(organizations))
            discovery_store.save_progress(session, run)

    def _list_page(self, run: DiscoveryRun, stage: DiscoveryStage) -> None:
        provider: Provider = "stripe" if stage.startswith("stripe") else "lago"
        page = self.reader(provider, lambda inventory: _page(inventory, stage, run.cursor))
        with self.database.write() as session:
            run.advance(page.next_cursor, len(page.rows))
            discovery_store.save_progress(session, run)
            discovery_listings.add_page(session, run.id, provider, page.rows)

    def _matching_step(self, run: DiscoveryRun) -> None:
        with self.database.read() as session:
            seeds = discovery_listings.unmatched(session, run.id, CUSTOMERS_PER_DISCOVERY_STEP)
            clusters = ClusterFinder(session, run.id).clusters(seeds)
            customers = {(each.provider, each.customer.id): each for cluster in clusters for each in cluster.customers}
            before = discovery_listings.matched_before(session, run.id, customers)
            likenesses = discovery_listings.likenesses(session, run.id, customers)
        matches = [each for cluster in clusters for each in matches_of(cluster) if not _keys_of(each) <= before]
        rows = [propose(_with_likenesses(each, likenesses), self.rules) for each in matches if not is_managed(each)]
        run.managed += len(matches) - len(rows)
        undecided = {key for row in rows if _is_undecided(row) for key in _row_keys(row)}
        run.suggested |= _named_in_conflicts(rows, clusters)
        with self.database.write() as session:
            run.suggested |= discovery_listings.like_organizations(
                session, run.id, [each.customer for key, each in customers.items() if key in undecided]
            )
            discovery_store.add_proposals(session, run, rows)
            discovery_listings.mark_matched(session, run.id, customers)
            run.advance(_GOES_ON if seeds else None, len(customers.keys() - before))
            discovery_store.save_progress(session, run)

    def _observe_undecided(self, run: DiscoveryRun) -> None:
        """Before the table is written. One that a row adopts is not in question: its own customer was found."""
        with self.database.read() as session:
            suggested = sorted(run.suggested - discovery_store.adopted_org_ids(session, run))
        for first in range(0, len(suggested), SUGGESTED_PER_TRANSACTION):
            org_ids = suggested[first : first + SUGGESTED_PER_TRANSACTION]
            with self.database.write() as session:
                discovery_store.save_progress(session, run)
                change = ChangeContext(session, self.clock(), self.cause)
                run.observed += suggested_organizations.observe_undecided(change, org_ids)

    def _missing_step(self, run: DiscoveryRun) -> None:
        """Organizations whose links name a customer that neither account lists."""
        theirs = exists().where(
            BillingLink.org_id == Organization.id,
            or_(BillingLink.ownership == "theirs", BillingLink.customer_state == "unconfirmed"),
        )
        proposed = exists().where(DiscoveryProposal.run_id == run.id, DiscoveryProposal.org_id == Organization.id)
        with self.database.write() as session:
            org_ids = session.scalars(
                select(Organization.id)
                .where(Organization.id > (run.cursor or ""), Organization.status != "deleted", theirs, ~proposed)
                .order_by(Organization.id)
                .limit(ORGANIZATIONS_PER_DISCOVERY_STEP)
            ).all()
            organizations = load_organizations(session, org_ids)
            missing = _missing_providers(session, run, organizations.values())
            rows = [_missing_row(organizations[org_id], missing[org_id]) for org_id in org_ids if missing[org_id]]
            discovery_store.add_proposals(session, run, rows)
            run.advance(org_ids[-1] if org_ids else None, len(org_ids))
            discovery_store.save_progress(session, run)


def _page(inventory: Inventory, stage: DiscoveryStage, cursor: str | None) -> ListedPage:
    if stage.endswith("customers"):
        return inventory.customers(cursor)
    if stage.endswith("subscriptions"):
        return inventory.subscriptions(cursor)
    return inventory.discounts(cursor)


def _keys_of(match: Match) -> set[CustomerKey]:
    return {(provider, side.customer.id) for provider, side in match.sides.items()}


def _is_undecided(row: AdoptionRow) -> bool:
    """Whether somebody may pay for it already, and nobody knows which organization it is."""
    return row.action == "conflict" and row.org_id is None


def _named_in_conflicts(rows: Iterable[AdoptionRow], clusters: Iterable[Cluster]) -> set[str]:
    """The organizations that strong keys of customers in conflicts name."""
    conflicts = [row for row in rows if row.action == "conflict"]
    keys = {key for row in conflicts for key in _row_keys(row)}
    named = {
        org_id
        for cluster in clusters
        for each in cluster.customers
        if (each.provider, each.customer.id) in keys
        for org_id in named_organizations(each, cluster.organizations)
    }
    return named | {row.org_id for row in conflicts if row.org_id is not None}


def _row_keys(row: AdoptionRow) -> set[CustomerKey]:
    return {(provider, side.customer_id) for provider, side in row.sides.items()}


def _with_likenesses(match: Match, likenesses: Mapping[CustomerKey, list[Likeness]]) -> Match:
    own = {(provider, side.shown_id) for provider, side in match.sides.items()}
    likes = [
        like for key in _keys_of(match) for like in likenesses[key] if (like.provider, like.customer_id) not in own
    ]
    in_order = sorted(dict.fromkeys(likes), key=lambda like: like.org_id is None)
    return replace(match, likenesses=tuple(in_order[:MAX_LIKENESSES_OF_A_MATCH]))


def _missing_providers(
    session: Session, run: DiscoveryRun, organizations: Collection[AdoptionOrganization]
) -> dict[str, list[Provider]]:
    """Where each organization has a customer by its link and not by the provider's list."""
    missing: dict[str, list[Provider]] = {each.id: [] for each in organizations}
    for provider in PROVIDERS:
        links = {each.id: link for each in organizations if (link := each.links.get(provider)) is not None}
        named = {org_id: link.shown_id for org_id, link in links.items() if link.has_customer}
        listed = discovery_listings.listed_ids(session, run.id, provider, set(named.values()))
        for org_id, shown_id in named.items():
            if shown_id not in listed and links[org_id].ownership == "theirs":
                missing[org_id].append(provider)
    return missing


def _missing_row(organization: AdoptionOrganization, missing: Sequence[Provider]) -> AdoptionRow:
    sides = {
        provider: AdoptionSide(
            customer_id=organization.links[provider].shown_id,
            external_customer_id=organization.links[provider].external_customer_id,
        )
        for provider in missing
    }
    return AdoptionRow(
        org_id=organization.id,
        sides=sides,
        matched_by=None,
        plan_tier=None,
        difference=None,
        currency=None,
        name_source="ours",
        email_source="ours",
        our_name=organization.name,
        our_email=organization.email,
        action="conflict",
        reason=missing_customer(organization, missing[0]),
        proposed_org_id=organization.id,
    )
