"""Snapshots of both providers: ``full`` has every id, to compare one sandbox before and after; ``summary`` has neither
ids nor times, to compare two sandboxes."""

import json

from sandbox.http import JsonDocument
from sandbox.lago_api import customers, plans
from sandbox.lago_api.provider import LagoApi
from sandbox.state import SandboxState
from sandbox.stripe_api.invoice_documents import invoice_document
from sandbox.stripe_api.provider import StripeApi
from sandbox.stripe_api.subscriptions import ENDED_STATUSES


def full(sandbox_state: SandboxState, stripe: StripeApi, lago: LagoApi) -> JsonDocument:
    """The providers' documents, sorted by id. Deleted customers are included for Stripe, but not for Lago.

    ``invoices`` and ``credit_notes`` are Stripe's.
    """
    stripe_tables, serialize_subscription = stripe.tables, stripe.subscriptions.serialize
    return {
        "stripe": {
            "customers": _sorted(list(stripe_tables.customers), "id"),
            "subscriptions": _sorted([serialize_subscription(row) for row in stripe_tables.subscriptions], "id"),
            "products": _sorted(list(stripe_tables.products), "id"),
            "prices": _sorted(list(stripe_tables.prices), "id"),
        },
        "lago": {
            "customers": _sorted([customers.serialize(row) for row in _existing_customers(lago)], "lago_id"),
            "subscriptions": _sorted(
                [lago.subscriptions.serialize(row) for row in lago.tables.subscriptions], "lago_id"
            ),
            "plans": _sorted([plans.serialize(row) for row in lago.tables.plans], "lago_id"),
        },
        "charges": sandbox_state.ledger.entries(),
        "invoices": _sorted([invoice_document(row) for row in stripe_tables.invoices], "id"),
        "credit_notes": _sorted(list(stripe_tables.credit_notes), "id"),
    }


def summary(stripe: StripeApi, lago: LagoApi) -> JsonDocument:
    """What a customer would notice: the customers, their plans and their links. Ended subscriptions are left out."""
    return {
        "stripe": {"customers": _sorted_by_content([_stripe_customer(stripe, row) for row in stripe.tables.customers])},
        "lago": {
            "customers": _sorted_by_content([_lago_customer(stripe, lago, row) for row in _existing_customers(lago)])
        },
    }


def _stripe_customer(stripe: StripeApi, row: JsonDocument) -> JsonDocument:
    if row.get("deleted"):
        return {"deleted": True}
    rows = stripe.tables.subscriptions.find_by("customer", row["id"])
    subscriptions = [_stripe_subscription(stripe, each) for each in rows if each["status"] not in ENDED_STATUSES]
    return {**_contact_fields(row), "subscriptions": _sorted_by_content(subscriptions)}


def _contact_fields(row: JsonDocument) -> JsonDocument:
    return {name: row[name] for name in ("name", "email", "phone", "address", "metadata")}


def _stripe_subscription(stripe: StripeApi, row: JsonDocument) -> JsonDocument:
    items = [{"price": _price_label(stripe, item["price"]), "quantity": item["quantity"]} for item in row["items"]]
    names = ("status", "cancel_at_period_end", "collection_method", "metadata")
    return {**{name: row[name] for name in names}, "items": _sorted_by_content(items)}


def _price_label(stripe: StripeApi, price_id: str) -> str:
    price = stripe.tables.prices.get(price_id) or {}
    return str(price.get("lookup_key") or f"{price.get('unit_amount')} {price.get('currency')}")


def _lago_customer(stripe: StripeApi, lago: LagoApi, row: JsonDocument) -> JsonDocument:
    stripe_customer = stripe.tables.customers.get(row["provider_customer_id"] or "")
    document = customers.serialize(row)
    names = ("external_id", "name", "email", "currency", "net_payment_term", "country", "city", "legal_name")
    rows = lago.tables.subscriptions.find_by("customer", row["lago_id"])
    subscriptions = [lago.subscriptions.serialize(each) for each in rows if each["status"] in ("active", "pending")]
    subscription_names = ("external_id", "name", "plan_code", "status", "next_plan_code", "previous_plan_code")
    return {
        **{name: document[name] for name in names},
        "metadata": {entry["key"]: entry["value"] for entry in document["metadata"]},
        "payment_provider_code": row["payment_provider_code"],
        "linked_to": _contact_fields(stripe_customer)
        if stripe_customer and not stripe_customer.get("deleted")
        else row["provider_customer_id"],
        "subscriptions": _sorted_by_content(
            [{name: each[name] for name in subscription_names} for each in subscriptions]
        ),
    }


def _existing_customers(lago: LagoApi) -> list[JsonDocument]:
    return [row for row in lago.tables.customers if row["deleted_at"] is None]


def _sorted(rows: list[JsonDocument], key: str) -> list[JsonDocument]:
    return sorted(rows, key=lambda row: str(row[key]))


def _sorted_by_content(rows: list[JsonDocument]) -> list[JsonDocument]:
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))
