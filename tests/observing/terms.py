"""What somebody pays at a provider, read from the sandbox's documents, independently of ``core`` and ``providers``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from core.ports.planned import PlannedPrice
from core.ports.spec import Provider
from sandbox.stripe_api.subscriptions import ENDED_STATUSES

Doc = dict[str, Any]

PREFIX: Final = "billing_sync_"
INTERVALS: Final = {
    ("month", 1): "monthly",
    ("month", 3): "quarterly",
    ("month", 6): "semiannual",
    ("year", 1): "yearly",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerCard:
    """``is_marked``: it names the organization. ``payer``: whom Lago charges."""

    name: str | None
    email: str | None
    is_marked: bool = False
    payer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """``paid``: for this period; ``next_plan``, ``next_paid``: what is scheduled for the end of it."""

    plan: str | None
    paid: PlannedPrice
    next_plan: str | None = None
    next_paid: PlannedPrice | None = None
    collection: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderTerms:
    """All customers and all subscriptions that have not ended, by id, and all that was ever credited."""

    customers: dict[str, CustomerCard]
    subscriptions: dict[str, Terms]
    credited: int = 0


def read(state: Doc, provider: Provider, org_id: str) -> ProviderTerms:
    if provider == "lago":
        return _lago(state["lago"])
    return replace(_stripe(state["stripe"], org_id), credited=sum(each["amount"] for each in state["credit_notes"]))


def _stripe(state: Doc, org_id: str) -> ProviderTerms:
    prices = {each["id"]: each for each in state["prices"]}
    return ProviderTerms(
        customers={
            each["id"]: CustomerCard(
                name=each.get("name"),
                email=each.get("email"),
                is_marked=(each.get("metadata") or {}).get(f"{PREFIX}org_id") == org_id,
            )
            for each in state["customers"]
            if not each.get("deleted")
        },
        subscriptions={
            each["id"]: _stripe_terms(each, prices)
            for each in state["subscriptions"]
            if each["status"] not in ENDED_STATUSES and len(each["items"]["data"]) == 1
        },
    )


def _stripe_terms(doc: Doc, prices: dict[str, Doc]) -> Terms:
    (item,) = doc["items"]["data"]
    marks = {key.removeprefix(PREFIX): value for key, value in doc["metadata"].items() if key.startswith(PREFIX)}
    quantity = item["quantity"]
    billed = _stripe_price(item["price"], quantity)
    next_plan, next_at = marks.get("next_plan"), marks.get("next_plan_at")
    collection = doc["collection_method"]
    if not (next_plan and next_at and marks.get("plan")):
        return Terms(plan=marks.get("plan"), paid=billed, collection=collection)
    if item["current_period_start"] >= int(next_at):
        return Terms(plan=next_plan, paid=billed, collection=collection)
    seats = quantity or int(marks.get("seats") or 1)
    paid = _stripe_price(prices[marks["plan_price"]], seats)
    return Terms(plan=marks["plan"], paid=paid, next_plan=next_plan, next_paid=billed, collection=collection)


def _stripe_price(price: Doc, quantity: int) -> PlannedPrice:
    recurring = price["recurring"]
    interval = INTERVALS[recurring["interval"], recurring.get("interval_count", 1)]
    return PlannedPrice(amount=price["unit_amount"] * quantity, currency=price["currency"].upper(), interval=interval)


def _lago(state: Doc) -> ProviderTerms:
    plans = {each["code"]: each for each in state["plans"]}
    return ProviderTerms(
        customers={
            each["lago_id"]: CustomerCard(
                name=each["name"],
                email=each["email"],
                payer=(each["billing_configuration"] or {}).get("provider_customer_id"),
            )
            for each in state["customers"]
        },
        subscriptions=dict(_lago_terms(state["subscriptions"], plans)),
    )


def _lago_terms(subscriptions: list[Doc], plans: dict[str, Doc]) -> Iterator[tuple[str, Terms]]:
    """By external id, because Lago gives a subscription another id with each plan."""
    for each in subscriptions:
        if each["status"] != "active":
            continue
        pending = [
            other
            for other in subscriptions
            if other["external_id"] == each["external_id"] and other["status"] == "pending"
        ]
        yield (
            each["external_id"],
            Terms(
                plan=each["plan_code"],
                paid=_lago_price(each, plans),
                next_plan=pending[0]["plan_code"] if pending else None,
                next_paid=_lago_price(pending[0], plans) if pending else None,
            ),
        )


def _lago_price(doc: Doc, plans: dict[str, Doc]) -> PlannedPrice:
    plan = plans[doc["plan_code"]]
    return PlannedPrice(
        amount=int(doc["plan_amount_cents"]), currency=plan["amount_currency"], interval=plan["interval"]
    )
