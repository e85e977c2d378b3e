"""Lago's customers (lago.md 3): one POST creates or updates, only sent fields are written, metadata is replaced."""

from collections.abc import Callable

from sandbox.http import JsonDocument
from sandbox.lago_api import stripe_link
from sandbox.lago_api.email_addresses import cleaned_email, is_valid_email
from sandbox.lago_api.errors import not_allowed, not_found, validation_error
from sandbox.lago_api.metadata import replace_metadata
from sandbox.lago_api.serializers import (
    COUNTRIES,
    CURRENCIES,
    LagoQuery,
    LagoTables,
    format_time,
    new_id,
    paginate,
    to_text,
)
from sandbox.lago_api.stripe_link import StripeConnection

MAX_CUSTOMER_NAME_LENGTH = 255
LAGO_SHIPPING_FIELDS = ("address_line1", "address_line2", "city", "zipcode", "state", "country")
LAGO_CUSTOMER_FIELDS = (
    "name",
    "firstname",
    "lastname",
    "customer_type",
    "address_line1",
    "address_line2",
    "state",
    "zipcode",
    "email",
    "city",
    "url",
    "phone",
    "logo_url",
    "legal_name",
    "legal_number",
    "tax_identification_number",
    "net_payment_term",
    "external_salesforce_id",
)
# The first is the default. Lago has one per organization without a licence, several with one (lago.md, B19).
BILLING_ENTITY_CODES = ("sandbox", "sandbox_eu")
# What Lago leaves out of a customer in other places than a response about it.
NOT_IN_LISTS = ("error_details", "applicable_invoice_custom_sections")
NOT_IN_WEBHOOKS = (*NOT_IN_LISTS, "taxes")
NOT_IN_OTHER_OBJECTS = (*NOT_IN_WEBHOOKS, "integration_customers")


class LagoCustomersApi:
    """``end_subscriptions`` is called with a deleted customer's lago_id when Lago's job runs."""

    def __init__(self, tables: LagoTables, stripe: StripeConnection, end_subscriptions: Callable[[str], None]) -> None:
        self._tables = tables
        self._stripe = stripe
        self._end_subscriptions = end_subscriptions
        tables.customers.schedule(_due_at, self._clean_up)

    def upsert(self, sent: JsonDocument) -> JsonDocument:
        external_id = to_text(sent.get("external_id")) or ""
        old = self._tables.find_customer(external_id) if external_id else None
        errors = _validation_errors(sent, old)
        if not external_id.strip():
            errors["external_id"] = ["value_is_mandatory"]
        if errors:
            raise validation_error(errors)
        if sent.get("billing_entity_code") not in (None, *BILLING_ENTITY_CODES):
            raise not_found("billing_entity_not_found")
        if sent.get("tax_codes"):
            raise not_found("tax_not_found")
        self._check_currency(sent, old)
        row = dict(old) if old is not None else self.new_row(external_id)
        _apply(row, sent)
        now = self._tables.now()
        if "metadata" in sent:
            row["metadata"] = replace_metadata(row["metadata"] if old else [], sent["metadata"], now)
        row["updated_at"] = now
        self._tables.customers.put(row["lago_id"], row)
        row = self._link_to_stripe(row, sent, created=old is None)
        event_type = "customer.created" if old is None else "customer.updated"
        lago_id = row["lago_id"]
        self._tables.emit(
            event_type,
            "customer",
            lago_id,
            lambda: serialize_without(self._tables.customers.get(lago_id) or row, *NOT_IN_WEBHOOKS),
        )
        return {"customer": serialize(row)}

    def _link_to_stripe(self, row: JsonDocument, sent: JsonDocument, *, created: bool) -> JsonDocument:
        """The link is made after the row is saved, so an error here leaves the row in place (lago.md 3.5)."""
        was_linked = row["provider_customer_id"] is not None
        configuration = sent.get("billing_configuration")
        row = stripe_link.configure(
            self._tables, row, configuration if isinstance(configuration, dict) else {}, created=created
        )
        self._tables.customers.put(row["lago_id"], row)
        if row["sync_with_provider"] and row["payment_provider"] and row["provider_customer_id"] is None:
            linked = {**row, "provider_customer_id": self._stripe.create_customer(row)}
            self._tables.customers.put(row["lago_id"], linked)
            # Without ``sync`` a job creates the Stripe customer later, so the response does not contain its id yet.
            return linked if isinstance(configuration, dict) and configuration.get("sync") is True else row
        if was_linked and row["provider_customer_id"] and self._tables.state.settings.lago_writes_to_stripe:
            self._stripe.update_customer(row)
        return row

    def _check_currency(self, sent: JsonDocument, old: JsonDocument | None) -> None:
        if old is None or "currency" not in sent or sent["currency"] == old["currency"] or old["currency"] is None:
            return
        if self._tables.state.settings.lago_currency_locked and self._tables.subscriptions.find_by(
            "customer", old["lago_id"]
        ):
            raise validation_error({"currency": ["currencies_does_not_match"]})

    def new_row(self, external_id: str) -> JsonDocument:
        now = self._tables.now()
        return {
            "lago_id": new_id(),
            "external_id": external_id,
            "sequential_id": len(self._tables.customers) + 1,
            "billing_entity_code": BILLING_ENTITY_CODES[0],
            **dict.fromkeys(LAGO_CUSTOMER_FIELDS),
            "country": None,
            "currency": None,
            "finalize_zero_amount_invoice": "inherit",
            "document_locale": None,
            "shipping": dict.fromkeys(LAGO_SHIPPING_FIELDS),
            "metadata": [],
            "created_at": now,
            "updated_at": now,
            "deleted_at": None,
            "clean_up_at": None,
            **stripe_link.UNLINKED_FIELDS,
        }

    def retrieve(self, external_id: str) -> JsonDocument:
        return {"customer": serialize(self.find_existing(external_id))}

    def list_customers(self, query: LagoQuery) -> JsonDocument:
        rows = [row for row in self._tables.customers if row["deleted_at"] is None and _matches(row, query)]
        rows.sort(key=lambda row: (-float(row["created_at"]), str(row["lago_id"])))
        page, meta = paginate(rows, query)
        return {"customers": [serialize_without(row, *NOT_IN_LISTS) for row in page], "meta": meta}

    def delete(self, external_id: str) -> JsonDocument:
        row = dict(self.find_existing(external_id))
        now = self._tables.now()
        row["deleted_at"] = now
        row["clean_up_at"] = now + self._tables.state.settings.lago_job_delay_seconds
        self._tables.customers.put(row["lago_id"], row)
        self._tables.state.timers.run_due()
        return {"customer": serialize(row)}

    def current_usage(self, external_id: str, query: LagoQuery) -> JsonDocument:
        """Always empty: the sandbox does not simulate usage."""
        row = self._tables.find_customer(external_id)
        if row is None:
            raise not_found("resource_not_found")
        subscription_id = query.get("external_subscription_id")
        for subscription in self._tables.subscriptions.find_by("customer", row["lago_id"]):
            if subscription["external_id"] == subscription_id and subscription["status"] == "active":
                return {"customer_usage": _empty_usage(subscription, self._tables.plan_of(subscription))}
        raise not_allowed("no_active_subscription")

    def find_existing(self, external_id: str) -> JsonDocument:
        if (row := self._tables.find_customer(external_id)) is None:
            raise not_found("customer_not_found")
        return row

    def _clean_up(self, row: JsonDocument, _moment: float) -> None:
        self._tables.customers.put(row["lago_id"], {**row, "clean_up_at": None})
        self._end_subscriptions(row["lago_id"])


def serialize(row: JsonDocument) -> JsonDocument:
    metadata = [{**entry, "created_at": format_time(entry["created_at"])} for entry in row["metadata"]]
    return {
        "lago_id": row["lago_id"],
        "billing_entity_code": row.get("billing_entity_code", BILLING_ENTITY_CODES[0]),  # absent in an older file
        "external_id": row["external_id"],
        "account_type": "customer",
        "sequential_id": row["sequential_id"],
        "slug": f"SAN-0001-{row['sequential_id']:03}",
        **{name: row[name] for name in LAGO_CUSTOMER_FIELDS},
        "country": row["country"],
        "currency": row["currency"],
        "timezone": None,
        "applicable_timezone": "UTC",
        "created_at": format_time(row["created_at"]),
        "updated_at": format_time(row["updated_at"]),
        "finalize_zero_amount_invoice": row["finalize_zero_amount_invoice"],
        "billing_configuration": stripe_link.serialize(row),
        "shipping_address": row["shipping"],
        "skip_invoice_custom_sections": False,
        "metadata": metadata,
        "taxes": [],
        "integration_customers": [],
        "applicable_invoice_custom_sections": [],
        "error_details": [],
    }


def serialize_without(row: JsonDocument, *omitted: str) -> JsonDocument:
    return {name: value for name, value in serialize(row).items() if name not in omitted}


def _due_at(row: JsonDocument) -> float | None:
    return None if row["clean_up_at"] is None else float(row["clean_up_at"])


def _apply(row: JsonDocument, sent: JsonDocument) -> None:
    for name in LAGO_CUSTOMER_FIELDS:
        if name in sent:
            value = sent[name]
            row[name] = cleaned_email(value) if name == "email" and isinstance(value, str) else value
    if "country" in sent:
        row["country"] = sent["country"].upper() if sent["country"] else None
    for name in ("currency", "finalize_zero_amount_invoice"):
        if name in sent:
            row[name] = sent[name]
    if "billing_entity_code" in sent:  # a customer that exists moves
        row["billing_entity_code"] = sent["billing_entity_code"] or BILLING_ENTITY_CODES[0]
    if isinstance(shipping := sent.get("shipping_address"), dict):
        row["shipping"] = {
            **row["shipping"],
            **{name: shipping[name] for name in LAGO_SHIPPING_FIELDS if name in shipping},
        }
    configuration = sent.get("billing_configuration")
    if isinstance(configuration, dict) and "document_locale" in configuration:
        row["document_locale"] = configuration["document_locale"]


def _validation_errors(sent: JsonDocument, old: JsonDocument | None) -> dict[str, list[str]]:
    errors: dict[str, list[str]] = {}
    for name in ("name", "firstname", "lastname"):
        if isinstance(sent.get(name), str) and len(sent[name]) > MAX_CUSTOMER_NAME_LENGTH:
            errors[name] = ["value_is_too_long"]
    address = cleaned_email(sent["email"]) if isinstance(sent.get("email"), str) else ""
    changed = address and (old is None or address != old["email"])
    if changed and not all(is_valid_email(each.strip()) for each in address.split(",")):
        errors["email"] = ["invalid_email_format"]
    if sent.get("currency") is not None and sent["currency"] not in CURRENCIES:
        errors["currency"] = ["value_is_invalid"]
    if sent.get("country") and str(sent["country"]).upper() not in COUNTRIES:
        errors["country"] = ["not_a_valid_country_code"]
    term = sent.get("net_payment_term")
    if term is not None and (not isinstance(term, int) or term < 0):
        errors["net_payment_term"] = ["value_is_out_of_range"]
    if sent.get("customer_type") not in (None, "company", "individual"):
        errors["customer_type"] = ["value_is_invalid"]
    if sent.get("finalize_zero_amount_invoice", "inherit") not in ("inherit", "skip", "finalize"):
        errors["finalize_zero_amount_invoice"] = ["invalid_value"]
    return errors


def _matches(row: JsonDocument, query: LagoQuery) -> bool:
    external_id, term = query.get("external_id"), query.get("search_term")
    if external_id is not None and row["external_id"] != external_id:
        return False
    if not term:
        return True
    searched = ("name", "firstname", "lastname", "legal_name", "external_id", "email")
    return any(term.lower() in str(row[name] or "").lower() for name in searched)


def _empty_usage(subscription: JsonDocument, plan: JsonDocument) -> JsonDocument:
    end = format_time(subscription["period_end"] - 1)
    return {
        "from_datetime": format_time(subscription["period_start"]),
        "to_datetime": end,
        "issuing_date": str(end)[:10],
        "currency": plan["amount_currency"],
        "amount_cents": 0,
        "total_amount_cents": 0,
        "taxes_amount_cents": 0,
        "lago_invoice_id": None,
        "charges_usage": [],
    }
