"""The row of one organization, read at both providers and matched as ``discover`` does it.

An operator may name the customers. That they belong to the organization is then what the operator says; whatever else
keeps them from being adopted is found as ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from core.adoption.adopter import ReadInventory
from core.adoption.clusters import load_organizations
from core.adoption.guards import NotAdoptedError
from core.adoption.matching import AccountCustomer, AdoptionOrganization, Cluster, LinkIdentity, is_managed, matches_of
from core.adoption.proposal import ProposalRules, propose
from core.adoption.row import AdoptionRow
from core.db.database import Database
from core.db.models.providers import ProviderStatus
from core.ports.spec import PROVIDER_NAMES, Provider


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleRow:
    database: Database
    read: ReadInventory
    rules: ProposalRules

    def propose(self, org_id: str, given: Mapping[Provider, str]) -> AdoptionRow:
        """``given``: Stripe's id, Lago's external id. Raises ``NotAdoptedError`` and what the providers raise."""
        with self.database.read() as session:
            organization = load_organizations(session, [org_id])[org_id]
            database_id = session.get_one(ProviderStatus, "stripe").database_id
        customers = self._customers(organization, given)
        if not customers:
            message = (
                f"neither Stripe nor Lago has a customer that is known to be {org_id}: name it with --stripe cus_…, or "
                "with --lago and its external id"
            )
            raise NotAdoptedError(message)
        named = {name for each in customers for name in _organizations_named_by(each)}
        with self.database.read() as session:
            organizations = load_organizations(session, {*named, org_id})
        organizations[org_id] = _with_given(organization, customers, given)
        cluster = Cluster(customers=tuple(customers), organizations=organizations, database_id=database_id)
        matches = matches_of(cluster)
        ours = [each for each in matches if each.organization is not None and each.organization.id == org_id]
        match = (ours or matches)[0]
        row = propose(match, self.rules)
        if self.rules.takes_their_plan and all(side.subscription_id is None for side in row.sides.values()):
            message = f"{org_id} has no subscription, so it pays for no plan: leave out --their-plan"
            raise NotAdoptedError(message)
        if not is_managed(match):
            self._refuse_unknown_lago_customer(row)
        return row

    def _refuse_unknown_lago_customer(self, row: AdoptionRow) -> None:
        """Lago may charge the Stripe customer already, under any external id, and its API finds nobody by the payer."""
        plan = self.rules.catalog.plans.get(row.plan_tier or "")
        is_safe = row.action in {"skip", "conflict"} or plan is None or plan.charged_by != "lago"
        if is_safe or "lago" in row.sides:
            return
        customer_id = row.sides["stripe"].customer_id
        message = (
            f"Lago charges for plan {row.plan_tier}, and may charge {customer_id} under an external id that is not "
            "known: name its customer with --lago EXTERNAL_ID, or run `billing-sync adopt discover`, which reads all "
            "customers in Lago, and apply its table"
        )
        raise NotAdoptedError(message)

    def _customers(self, organization: AdoptionOrganization, given: Mapping[Provider, str]) -> list[AccountCustomer]:
        lago = self._first("lago", given, _lago_keys(organization))
        payer_id = lago.customer.payer_id if lago is not None else None
        known = organization.links["stripe"].customer_id
        stripe = self._first("stripe", given, [each for each in (known, payer_id) if each is not None])
        return [each for each in (stripe, lago) if each is not None]

    def _first(self, provider: Provider, given: Mapping[Provider, str], keys: list[str]) -> AccountCustomer | None:
        """The first of them that is there. Raises ``NotAdoptedError`` if the given one is not."""
        for key in [given[provider]] if provider in given else keys:
            found = self._read(provider, key)
            if found is not None:
                return found
        if provider in given:
            by = "external id" if provider == "lago" else "id"
            message = (
                f"{PROVIDER_NAMES[provider]} has no customer with the {by} {given[provider]}: correct --{provider}"
            )
            raise NotAdoptedError(message)
        return None

    def _read(self, provider: Provider, key: str) -> AccountCustomer | None:
        customer = self.read(provider, lambda inventory: inventory.customer(key))
        if customer is None:
            return None
        subscriptions = self.read(provider, lambda inventory: inventory.subscriptions_of(key))
        return AccountCustomer(provider=provider, customer=customer, subscriptions=tuple(subscriptions))


def _lago_keys(organization: AdoptionOrganization) -> list[str]:
    """External ids that it may have in Lago, which finds no customer by its own id."""
    link = organization.links["lago"]
    return [each for each in (link.external_customer_id, organization.id, link.customer_id) if each is not None]


def _organizations_named_by(each: AccountCustomer) -> Iterator[str]:
    marked = [each.customer.org_id, *(subscription.org_id for subscription in each.subscriptions)]
    yield from filter(None, [*marked, each.customer.external_id])


def _with_given(
    organization: AdoptionOrganization, customers: list[AccountCustomer], given: Mapping[Provider, str]
) -> AdoptionOrganization:
    """As if its links named the given customers; a link that names another one stays, and is a conflict."""
    links = dict(organization.links)
    for each in customers:
        link = links[each.provider]
        if each.provider in given and not link.has_customer:
            links[each.provider] = LinkIdentity(customer_id=each.customer.id, ownership=link.ownership)
    return replace(organization, links=links)
