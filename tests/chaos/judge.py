"""What was lost, or is there twice, when all is over: the rows, what both billers hold, and what they charged.

No period ends in a story, so what a biller charged an organization comes to the price of the plan that it has: a step
charged twice, or a second subscription, would make it more.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import select

from core.catalog.plans import Catalog
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.inbox import ServiceEvent
from core.db.models.organizations import Organization
from sandbox.http import Doc
from sandbox.stripe_api.subscriptions import ENDED
from tests.chaos.changes import TAKEN, Story, Wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What one organization has at both billers. ``charged``: by biller, all in all, in minor units."""

    at_stripe: list[Doc]
    at_lago: list[Doc]
    sold_by_stripe: list[Doc]
    sold_by_lago: list[Doc]
    charged: Counter[str]


def problems(database: Database, plans: Catalog, tale: Story, state: Doc) -> Iterator[str]:
    """A sentence each. ``state``: both billers'."""
    with database.read() as session:
        organizations = {each.id: each for each in session.scalars(select(Organization))}
        verdicts = Counter(session.scalars(select(ServiceEvent.status)))
        parked = session.scalars(select(BillingLink.error_message).where(BillingLink.state != "open")).all()
    yield from (f"parked: {message}" for message in parked)
    if sum(verdicts[each] for each in TAKEN) != len(tale.messages):
        yield f"{len(tale.messages)} changes, but the verdicts are {dict(verdicts)}"
    made = len(state["stripe"]["customers"]), len(state["lago"]["customers"])
    if made != (len(tale.wanted),) * 2:
        yield f"{len(tale.wanted)} organizations, but {made[0]} Stripe and {made[1]} Lago customers"
    holdings = _holdings(state)
    for org_id, wanted in tale.wanted.items():
        if (row := organizations.get(org_id)) is None:
            yield f"{org_id} was lost"
            continue
        yield from (f"{org_id}: {problem}" for problem in _of_one(row, wanted, plans, holdings[org_id]))


def _holdings(state: Doc) -> defaultdict[str, Holdings]:
    found: defaultdict[str, Holdings] = defaultdict(
        lambda: Holdings(at_stripe=[], at_lago=[], sold_by_stripe=[], sold_by_lago=[], charged=Counter())
    )
    whose: dict[str, str] = {}
    for row in state["stripe"]["customers"]:
        whose[row["id"]] = str(row["metadata"].get("org_id"))
        found[whose[row["id"]]].at_stripe.append(row)
    for row in state["lago"]["customers"]:
        found[row["external_id"]].at_lago.append(row)
    for row in state["stripe"]["subscriptions"]:
        if row["status"] not in ENDED:
            found[whose[row["customer"]]].sold_by_stripe.append(row)
    for row in state["lago"]["subscriptions"]:
        if row["status"] == "active":
            found[row["external_customer_id"]].sold_by_lago.append(row)
    for charge in state["charges"]:
        org_id = whose.get(charge["customer"], charge["customer"])
        found[org_id].charged[charge["biller"]] += charge["amount"]
    return found


def _of_one(row: Organization, wanted: Wanted, plans: Catalog, held: Holdings) -> Iterator[str]:
    tier = row.pending_plan_tier or row.plan_tier
    if (row.name, row.billing_email, tier) != (wanted.name, wanted.email, wanted.tier):
        yield f"the last word was {wanted}, the row is {row.name}, {row.billing_email}, {tier}"
    customers = [(each["name"], each["email"]) for each in held.at_stripe + held.at_lago]
    if customers != [(wanted.name, wanted.email)] * 2:
        yield f"the billers hold {customers}, not {wanted.name} once each"
    now, later = plans.plan(row.plan_tier), plans.plan(row.pending_plan_tier) if row.pending_plan_tier else None
    by_stripe = now.charged_by == "stripe"

    sold = [(each["plan_code"], each["next_plan_code"]) for each in held.sold_by_lago]
    if sold != [(now.lago_plan_code, later.lago_plan_code if later else None)]:
        yield f"Lago sells {sold}, the row says {now.tier}, then {later and later.tier}"
    sold = [(each["metadata"].get("plan"), each["metadata"].get("next_plan")) for each in held.sold_by_stripe]
    if sold != ([(now.stripe_lookup_key, later.stripe_lookup_key if later else None)] if by_stripe else []):
        yield f"Stripe sells {sold}, the row says {now.tier}, then {later and later.tier}, by {now.charged_by}"
    payers = [each["billing_configuration"].get("provider_customer_id") for each in held.at_lago]
    if payers != ([None] if by_stripe else [each["id"] for each in held.at_stripe]):
        yield f"Lago charges {payers}, and {now.charged_by} is to charge"
    lago, stripe = held.charged["lago"], held.charged["stripe"]
    if (lago, stripe) != (now.amount, now.amount if by_stripe else 0):
        yield f"Lago charged {lago} in all, Stripe {stripe}; {now.tier} costs {now.amount}, by {now.charged_by}"
