"""What the truth about the business says of a table and of the links.

Each function returns what it found, in sentences; none means that everything is as it must be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select

from core.adoption.row import AdoptionRow
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.ports.spec import Provider
from sandbox.business.seeded import Business, BusinessCustomer

ADOPTING: Final = frozenset({"adopt", "adopt-keep-price"})
LEFT: Final = frozenset({"skip", "conflict"})


@dataclass(frozen=True, slots=True)
class AdoptedIdentity:
    """What the links of one organization name, as the providers address it: Stripe's id, Lago's external ids."""

    org_id: str
    stripe_customer: str | None
    stripe_subscription: str | None
    lago_customer: str | None
    lago_subscription: str | None

    @property
    def customers(self) -> frozenset[tuple[Provider, str]]:
        found: dict[Provider, str | None] = {"stripe": self.stripe_customer, "lago": self.lago_customer}
        return frozenset((provider, each) for provider, each in found.items() if each is not None)


def adopted(database: Database) -> list[AdoptedIdentity]:
    """Of each organization that is adopted. A link that is ours counts if its customer was confirmed."""
    links: dict[str, dict[str, BillingLink]] = {}
    with database.read() as session:
        for link in session.scalars(select(BillingLink)):
            links.setdefault(link.org_id, {})[link.provider] = link
    return [
        _identity(org_id, {provider: link for provider, link in found.items() if _is_taken(link)})
        for org_id, found in sorted(links.items())
        if any(link.ownership == "adopted" for link in found.values())
    ]


def _is_taken(link: BillingLink) -> bool:
    return link.ownership == "adopted" or (link.ownership == "ours" and link.customer_state == "applied")


def _identity(org_id: str, links: Mapping[str, BillingLink]) -> AdoptedIdentity:
    stripe, lago = links.get("stripe"), links.get("lago")
    return AdoptedIdentity(
        org_id=org_id,
        stripe_customer=stripe.customer_id if stripe else None,
        stripe_subscription=stripe.subscription_id if stripe else None,
        lago_customer=(lago.external_customer_id or org_id) if lago else None,
        lago_subscription=(lago.external_subscription_id or org_id) if lago and lago.subscription_id else None,
    )


def customers_of(one: BusinessCustomer) -> frozenset[tuple[Provider, str]]:
    stripe: list[tuple[Provider, str]] = [("stripe", each) for each in one.stripe_customers]
    return frozenset([*stripe, *(("lago", each) for each in one.lago_customers)])


def wrong_adoptions(business: Business, identities: Iterable[AdoptedIdentity]) -> Iterator[str]:
    """An adoption is right if it is exactly what a clear customer has, for the organization that it is."""
    truth = {customer: one for one in business.customers for customer in customers_of(one)}
    imported = {each.id for each in business.organizations}
    for identity in identities:
        owners = {truth[each].number for each in identity.customers if each in truth}
        if len(owners) != 1:
            yield f"{identity} is {len(owners)} customers of the business"
            continue
        one = business.customers[owners.pop()]
        if not one.is_clear:
            yield f"{identity} was adopted, which nobody could decide: {one.case}"
        elif identity.customers != customers_of(one):
            yield f"{identity} was adopted without all of its customers: {one}"
        elif [identity.stripe_subscription or "-"] != (one.stripe_subscriptions or ["-"]):
            yield f"{identity} has another subscription in Stripe: {one}"
        elif [identity.lago_subscription or "-"] != (one.lago_subscriptions or ["-"]):
            yield f"{identity} has another subscription in Lago: {one}"
        elif one.org_id != identity.org_id and (one.org_id is not None or identity.org_id in imported):
            yield f"{identity} is another organization than {one}"


def left_although_clear(business: Business, identities: Iterable[AdoptedIdentity]) -> Iterator[str]:
    found = [customer for identity in identities for customer in identity.customers]
    twice = [f"{customer} was adopted {times} times" for customer, times in Counter(found).items() if times > 1]
    yield from twice
    missing = [one for one in business.customers if one.is_clear and not customers_of(one) <= set(found)]
    yield from (f"{one.case}: {one} was not adopted" for one in missing)


def badly_listed(business: Business, rows: Iterable[AdoptionRow]) -> Iterator[str]:
    """Each clear customer is in one row that adopts it; each other one in rows that are left, with their reasons."""
    by_customer: dict[tuple[Provider, str], list[AdoptionRow]] = {}
    by_organization: dict[str, list[AdoptionRow]] = {}
    for row in rows:
        for provider, side in row.sides.items():
            key = side.external_customer_id if provider == "lago" else side.customer_id
            by_customer.setdefault((provider, key or ""), []).append(row)
        if row.org_id is not None:
            by_organization.setdefault(row.org_id, []).append(row)
    for one in business.customers:
        listed = [row for customer in customers_of(one) for row in by_customer.get(customer, [])]
        listed = listed or by_organization.get(one.org_id or "", [])
        if not listed:
            yield f"{one.case}: {one} is in no row"
        for row in listed:
            expected = ADOPTING if one.is_clear else LEFT
            if row.action not in expected or not row.reason:
                yield f"{one.case}: {row.action} because {row.reason!r}"
    for customer, found in by_customer.items():
        if len(found) > 1 and any(row.action in ADOPTING for row in found):
            yield f"{customer} is in {len(found)} rows, one of which is adopted"
