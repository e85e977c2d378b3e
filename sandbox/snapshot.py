"""Both billers at a glance: ``state`` with every id, to compare before and after; ``outline`` without ids and times, to
compare one world with another."""

import json

from sandbox.http import Doc
from sandbox.lago_api import customers, plans
from sandbox.lago_api.provider import Lago
from sandbox.state import World
from sandbox.stripe_api.provider import Stripe
from sandbox.stripe_api.subscriptions import ENDED


def state(world: World, stripe: Stripe, lago: Lago) -> Doc:
    """Documents as the billers show them, sorted by id; Stripe's deleted customers and Lago's living ones only."""
    billed, shown = stripe.tables, stripe.subscriptions.shown
    return {
        "stripe": {
            "customers": _sorted(list(billed.customers), "id"),
            "subscriptions": _sorted([shown(row) for row in billed.subscriptions], "id"),
            "products": _sorted(list(billed.products), "id"),
            "prices": _sorted(list(billed.prices), "id"),
        },
        "lago": {
            "customers": _sorted([customers.shown(row) for row in _living(lago)], "lago_id"),
            "subscriptions": _sorted([lago.subscriptions.shown(row) for row in lago.tables.subscriptions], "lago_id"),
            "plans": _sorted([plans.shown(row) for row in lago.tables.plans], "lago_id"),
        },
        "charges": world.ledger.entries(),
    }


def outline(stripe: Stripe, lago: Lago) -> Doc:
    """What a customer would notice: who is there, on which plan, linked to whom. Ended subscriptions are left out."""
    return {
        "stripe": {"customers": _in_order([_stripe_customer(stripe, row) for row in stripe.tables.customers])},
        "lago": {"customers": _in_order([_lago_customer(stripe, lago, row) for row in _living(lago)])},
    }


def _stripe_customer(stripe: Stripe, row: Doc) -> Doc:
    if row.get("deleted"):
        return {"deleted": True}
    found = stripe.tables.subscriptions.by("customer", row["id"])
    subscriptions = [_stripe_subscription(stripe, each) for each in found if each["status"] not in ENDED]
    return {**_named(row), "subscriptions": _in_order(subscriptions)}


def _named(row: Doc) -> Doc:
    return {name: row[name] for name in ("name", "email", "phone", "address", "metadata")}


def _stripe_subscription(stripe: Stripe, row: Doc) -> Doc:
    items = [{"price": _price(stripe, item["price"]), "quantity": item["quantity"]} for item in row["items"]]
    kept = ("status", "cancel_at_period_end", "collection_method", "metadata")
    return {**{name: row[name] for name in kept}, "items": _in_order(items)}


def _price(stripe: Stripe, price_id: str) -> str:
    price = stripe.tables.prices.get(price_id) or {}
    return str(price.get("lookup_key") or f"{price.get('unit_amount')} {price.get('currency')}")


def _lago_customer(stripe: Stripe, lago: Lago, row: Doc) -> Doc:
    linked = stripe.tables.customers.get(row["provider_customer_id"] or "")
    document = customers.shown(row)
    kept = ("external_id", "name", "email", "currency", "net_payment_term", "country", "city", "legal_name")
    rows = lago.tables.subscriptions.by("customer", row["lago_id"])
    subscriptions = [lago.subscriptions.shown(each) for each in rows if each["status"] in ("active", "pending")]
    told = ("external_id", "name", "plan_code", "status", "next_plan_code", "previous_plan_code")
    return {
        **{name: document[name] for name in kept},
        "metadata": {entry["key"]: entry["value"] for entry in document["metadata"]},
        "payment_provider_code": row["payment_provider_code"],
        "linked_to": _named(linked) if linked and not linked.get("deleted") else row["provider_customer_id"],
        "subscriptions": _in_order([{name: each[name] for name in told} for each in subscriptions]),
    }


def _living(lago: Lago) -> list[Doc]:
    return [row for row in lago.tables.customers if row["deleted_at"] is None]


def _sorted(rows: list[Doc], key: str) -> list[Doc]:
    return sorted(rows, key=lambda row: str(row[key]))


def _in_order(rows: list[Doc]) -> list[Doc]:
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))
