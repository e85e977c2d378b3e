"""Final check of a scenario for lost or duplicate effects: the rows, the objects at both providers, and the charges.

No period ends in a scenario, so the prices charged for an organization add up to the price of its plan. A change that
was charged twice, or a second subscription, would make it more. What Lago bills of a price depends on the day.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import select

from core.catalog.plans import Catalog
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.history import LinkHistory
from core.db.models.inbox import ServiceEvent
from core.db.models.organizations import Organization
from sandbox.client import CallCounters
from sandbox.http import JsonDocument
from sandbox.stripe_api.subscriptions import ENDED_STATUSES
from tests.chaos.changes import HANDLED_STATUSES, ChaosChanges, DesiredOrganization


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What one organization has at both providers. ``charged`` is the sum for each provider, in minor units."""

    at_stripe: list[JsonDocument]
    at_lago: list[JsonDocument]
    sold_by_stripe: list[JsonDocument]
    sold_by_lago: list[JsonDocument]
    charged: Counter[str]


def received_writes(counters: CallCounters) -> Counter[str]:
    """How many of each write the providers received, also those whose response was lost."""
    operations = Counter(counters.stripe.operations) + Counter(counters.lago.operations)
    return Counter({name: count for name, count in operations.items() if not name.startswith("GET ")})


def writes_in_history(database: Database) -> Counter[str]:
    """A write is stored before it is sent, so of a process that died there may be more than were received."""
    with database.read() as session:
        rows = session.scalars(select(LinkHistory.data).where(LinkHistory.kind == "attempt")).all()
    return Counter(request["operation"] for data in rows for request in data["requests"])


def problems(database: Database, plans: Catalog, generated: ChaosChanges, state: JsonDocument) -> Iterator[str]:
    """One sentence for each problem. ``state`` is that of both providers."""
    with database.read() as session:
        organizations = {each.id: each for each in session.scalars(select(Organization))}
        statuses = Counter(session.scalars(select(ServiceEvent.status)))
        parked = session.scalars(select(BillingLink.error_message).where(BillingLink.state != "active")).all()
    yield from (f"parked: {message}" for message in parked)
    if sum(statuses[each] for each in HANDLED_STATUSES) != len(generated.messages):
        yield f"{len(generated.messages)} changes, but the statuses are {dict(statuses)}"
    customers = len(state["stripe"]["customers"]), len(state["lago"]["customers"])
    if customers != (len(generated.desired),) * 2:
        yield f"{len(generated.desired)} organizations, but {customers[0]} Stripe and {customers[1]} Lago customers"
    holdings = _holdings(state)
    for org_id, desired in generated.desired.items():
        if (row := organizations.get(org_id)) is None:
            yield f"{org_id} was lost"
            continue
        yield from (f"{org_id}: {problem}" for problem in _of_one(row, desired, plans, holdings[org_id]))


def observed_problems(database: Database, generated: ChaosChanges, state: JsonDocument) -> Iterator[str]:
    """One sentence for each link that is not observed, and for each object that a provider has."""
    with database.read() as session:
        links = session.execute(
            select(BillingLink.org_id, BillingLink.provider, BillingLink.state, BillingLink.observation)
        ).all()
    if len({each.org_id for each in links}) != len(generated.desired):
        yield f"{len(generated.desired)} organizations, but the links are of {len({each.org_id for each in links})}"
    yield from (f"{each.org_id} is {each.state} at {each.provider}" for each in links if each.state != "observed")
    yield from (f"{each.org_id} has no observation" for each in links if each.observation is None)
    for provider, noun in (("stripe", "customers"), ("stripe", "subscriptions"), ("lago", "customers")):
        if state[provider][noun]:
            yield f"{provider} has {len(state[provider][noun])} {noun}"


def _holdings(state: JsonDocument) -> defaultdict[str, Holdings]:
    found: defaultdict[str, Holdings] = defaultdict(
        lambda: Holdings(at_stripe=[], at_lago=[], sold_by_stripe=[], sold_by_lago=[], charged=Counter())
    )
    whose: dict[str, str] = {}
    for row in state["stripe"]["customers"]:
        whose[row["id"]] = str(row["metadata"].get("billing_sync_org_id"))
        found[whose[row["id"]]].at_stripe.append(row)
    for row in state["lago"]["customers"]:
        found[row["external_id"]].at_lago.append(row)
    for row in state["stripe"]["subscriptions"]:
        if row["status"] not in ENDED_STATUSES:
            found[whose[row["customer"]]].sold_by_stripe.append(row)
    for row in state["lago"]["subscriptions"]:
        if row["status"] == "active":
            found[row["external_customer_id"]].sold_by_lago.append(row)
    for charge in state["charges"]:
        org_id = whose.get(charge["customer"], charge["customer"])
        found[org_id].charged[charge["provider"]] += charge["price"]
    return found


def _of_one(row: Organization, desired: DesiredOrganization, plans: Catalog, holdings: Holdings) -> Iterator[str]:
    tier = row.pending_plan_tier or row.plan_tier
    if (row.name, row.billing_email, tier) != (desired.name, desired.email, desired.tier):
        yield f"the last change was to {desired}, but the row is {row.name}, {row.billing_email}, {tier}"
    customers = [(each["name"], each["email"]) for each in holdings.at_stripe + holdings.at_lago]
    if customers != [(desired.name, desired.email)] * 2:
        yield f"the providers have {customers}, not {desired.name} once each"
    now, later = plans.plan(row.plan_tier), plans.plan(row.pending_plan_tier) if row.pending_plan_tier else None
    by_stripe = now.charged_by == "stripe"

    sold = [(each["plan_code"], each["next_plan_code"]) for each in holdings.sold_by_lago]
    if sold != [(now.lago_plan_code, later.lago_plan_code if later else None)]:
        yield f"Lago has the plans {sold}, but the row has {now.tier}, then {later and later.tier}"
    sold = [
        (each["metadata"].get("billing_sync_plan"), each["metadata"].get("billing_sync_next_plan"))
        for each in holdings.sold_by_stripe
    ]
    if sold != ([(now.stripe_lookup_key, later.stripe_lookup_key if later else None)] if by_stripe else []):
        tiers = f"{now.tier}, then {later and later.tier}"
        yield f"Stripe has the plans {sold}, but the row has {tiers}, charged by {now.charged_by}"
    payers = [each["billing_configuration"].get("provider_customer_id") for each in holdings.at_lago]
    if payers != ([None] if by_stripe else [each["id"] for each in holdings.at_stripe]):
        yield f"Lago charges {payers}, but the charging provider is {now.charged_by}"
    lago, stripe = holdings.charged["lago"], holdings.charged["stripe"]
    if (lago, stripe) != (now.amount, now.amount if by_stripe else 0):
        yield f"Lago charged {lago}, Stripe {stripe}; {now.tier} costs {now.amount}, charged by {now.charged_by}"
