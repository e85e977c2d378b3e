"""The link of a Lago customer to a Stripe customer (lago.md 3.5), including its unexpected behavior.

A payment provider that is named at creation without an id and without the sync flag is ignored. An unknown connection
is rejected after the row was saved. Each later upsert writes the linked Stripe customer: what Lago holds, no blanks.
"""

from typing import Protocol

from sandbox.http import JsonDocument
from sandbox.lago_api.errors import validation_error
from sandbox.lago_api.serializers import LagoTables

PAYMENT_METHODS = frozenset(
    {"card", "sepa_debit", "us_bank_account", "bacs_debit", "link", "boleto", "crypto", "customer_balance"}
)
UNLINKED_FIELDS: JsonDocument = {
    "payment_provider": None,
    "payment_provider_code": None,
    "provider_customer_id": None,
    "provider_payment_methods": None,
    "sync_with_provider": None,
}


class StripeConnection(Protocol):
    """What Lago does at Stripe with its own API key."""

    def create_customer(self, customer: JsonDocument) -> str:
        """Create a Stripe customer for this Lago customer; return its id."""
        ...

    def update_customer(self, customer: JsonDocument) -> None:
        """Write what Lago holds to the linked Stripe customer. Raises 422 third_party_error if it does not exist."""
        ...


def configure(tables: LagoTables, row: JsonDocument, changes: JsonDocument, *, created: bool) -> JsonDocument:
    if "payment_provider" in changes and changes["payment_provider"] is None:
        return {**row, **UNLINKED_FIELDS}
    provider = changes.get("payment_provider", row["payment_provider"])
    if provider is None:
        return row
    if created and not changes.get("provider_customer_id") and not changes.get("sync_with_provider"):
        return row
    code = changes.get("payment_provider_code", row["payment_provider_code"])
    connections = tables.state.settings.lago_providers
    if code is None and len(connections) > 1:
        raise validation_error({"base": ["payment_provider_code_missing"]})
    code = code or next(iter(connections), None)
    if provider != "stripe" or code not in connections:
        raise validation_error({"base": ["payment_provider_not_found"]})
    linked = {**row, "payment_provider": provider, "payment_provider_code": code}
    linked["provider_payment_methods"] = row["provider_payment_methods"] or ["card"]
    methods = changes.get("provider_payment_methods")
    if isinstance(methods, list) and not PAYMENT_METHODS.issuperset(map(str, methods)):
        raise validation_error({"provider_payment_methods": ["value_is_invalid"]})
    for name in ("provider_customer_id", "sync_with_provider", "provider_payment_methods"):
        if changes.get(name) is not None:
            linked[name] = changes[name]
    return linked


def serialize(row: JsonDocument) -> JsonDocument:
    configuration: JsonDocument = {
        "invoice_grace_period": None,
        "payment_provider": row["payment_provider"],
        "payment_provider_code": row["payment_provider_code"],
        "document_locale": row["document_locale"],
        "subscription_invoice_issuing_date_anchor": None,
        "subscription_invoice_issuing_date_adjustment": None,
    }
    if row["payment_provider"] is not None:
        configuration["provider_customer_id"] = row["provider_customer_id"]
        configuration["provider_payment_methods"] = row["provider_payment_methods"]
        if row["sync_with_provider"] is not None:
            configuration["sync_with_provider"] = row["sync_with_provider"] or None
    return configuration
