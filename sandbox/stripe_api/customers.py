"""Stripe's customers (stripe.md 4): POST merges, a deleted customer is still returned with 200, no field is unique."""

from sandbox.http import JsonDocument
from sandbox.stripe_api import forms
from sandbox.stripe_api.balances import StripeBalancesApi
from sandbox.stripe_api.discounts import StripeDiscountsApi
from sandbox.stripe_api.errors import StripeApiError, not_found
from sandbox.stripe_api.search import matches, parse_query
from sandbox.stripe_api.serializers import StripeTables, new_id
from sandbox.stripe_api.subscriptions import StripeSubscriptionsApi

STRIPE_SHIPPING_FIELDS = forms.record(
    {"address": forms.ADDRESS_FIELDS, "name": forms.text(), "phone": forms.text()}, required=("address", "name")
)
INVOICE_SETTINGS_FIELDS = forms.record(
    {
        "default_payment_method": forms.text(),
        "footer": forms.text(),
        "custom_fields": forms.array(forms.record({"name": forms.text(40), "value": forms.text(140)}), 4),
        "rendering_options": forms.unsupported,
    }
)
STRIPE_CUSTOMER_FIELDS: forms.FormSchema = {
    "address": forms.ADDRESS_FIELDS,
    "balance": forms.integer(),
    "business_name": forms.text(150),
    "description": forms.text(5000),
    "email": forms.email,
    "individual_name": forms.text(150),
    "invoice_prefix": forms.text(12),
    "invoice_settings": INVOICE_SETTINGS_FIELDS,
    "metadata": forms.metadata,
    "name": forms.text(256),
    "next_invoice_sequence": forms.integer(1),
    "phone": forms.text(20),
    "preferred_locales": forms.array(forms.text(20)),
    "shipping": STRIPE_SHIPPING_FIELDS,
    "tax_exempt": forms.choice(("none", "exempt", "reverse"), clearable=True),
    **dict.fromkeys(
        ("cash_balance", "payment_method", "source", "tax", "tax_id_data", "test_clock"), forms.unsupported
    ),
    **forms.EXPAND_FIELDS,
}
CUSTOMER_UPDATE_FIELDS: forms.FormSchema = {
    name: check
    for name, check in STRIPE_CUSTOMER_FIELDS.items()
    if name not in ("payment_method", "tax_id_data", "test_clock")
}
CUSTOMER_LIST_FIELDS: forms.FormSchema = {
    **forms.PAGINATION_FIELDS,
    "created": forms.time_range,
    "email": forms.text(512, clearable=False),
    "test_clock": forms.unsupported,
}
CUSTOMER_SEARCH_FIELDS: forms.FormSchema = {
    "query": forms.text(clearable=False),
    "limit": forms.integer(1, 100),
    "page": forms.text(clearable=False),
    **forms.EXPAND_FIELDS,
}


def new_row(customer_id: str, created: int) -> JsonDocument:
    return {
        "id": customer_id,
        "object": "customer",
        "address": None,
        "balance": 0,
        "created": created,
        "currency": None,
        "customer_account": None,
        "default_source": None,
        "delinquent": False,
        "description": None,
        "discount": None,
        "email": None,
        "invoice_prefix": new_id("", 8).upper(),
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": None,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": False,
        "metadata": {},
        "name": None,
        "next_invoice_sequence": 1,
        "phone": None,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
    }


class StripeCustomersApi:
    def __init__(
        self, tables: StripeTables, subscriptions: StripeSubscriptionsApi, balances: StripeBalancesApi
    ) -> None:
        self._tables = tables
        self._subscriptions = subscriptions
        self._balances = balances
        self._discounts = StripeDiscountsApi(tables)

    def create(self, form: JsonDocument, customer_id: str | None = None, created: int | None = None) -> JsonDocument:
        """``customer_id`` and ``created`` are for the control routes; at Stripe nobody can choose them."""
        sent = forms.validate(form, STRIPE_CUSTOMER_FIELDS)
        customer_id = customer_id or new_id("cus_")
        row = new_row(customer_id, self._tables.now() if created is None else created)
        _apply(row, sent)
        self._tables.before_last_change[customer_id] = (self._tables.state.clock.now(), None)
        self._tables.customers.put(customer_id, row)
        self._record_balance(row, 0, "initial")
        self._tables.emit("customer.created", row)
        return self._tables.expanded(row, sent)

    def retrieve(self, customer_id: str, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, forms.EXPAND_FIELDS)
        row = self._tables.customers.get(customer_id)
        if row is None:
            raise not_found("customer", customer_id)
        return row if row.get("deleted") else self._serialize(row, sent)

    def update(self, customer_id: str, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, CUSTOMER_UPDATE_FIELDS)
        row = self.find_existing(customer_id)
        old = {**row, "metadata": dict(row["metadata"]), "invoice_settings": dict(row["invoice_settings"])}
        changed = {**old, "metadata": dict(row["metadata"]), "invoice_settings": dict(row["invoice_settings"])}
        _apply(changed, sent)
        self._tables.before_last_change[customer_id] = (self._tables.state.clock.now(), old)
        self._tables.customers.put(customer_id, changed)
        self._record_balance(changed, old["balance"], "adjustment")
        previous = {name: old[name] for name in old if old[name] != changed[name]}
        if previous:
            self._tables.emit("customer.updated", changed, previous)
        return self._serialize(changed, sent)

    def give_discount(self, customer_id: str, coupon_id: str) -> JsonDocument:
        """By hand; no parameter of an update does this (since 2025-03-31)."""
        row = {**self.find_existing(customer_id), "discount": self._discounts.of_customer(customer_id, coupon_id)}
        self._tables.customers.put(customer_id, row)
        self._tables.emit("customer.updated", row, {"discount": None})
        return row

    def delete(self, customer_id: str, form: JsonDocument) -> JsonDocument:
        forms.validate(form, {})
        row = self.find_existing(customer_id)
        self._subscriptions.end_all(customer_id)
        tombstone: JsonDocument = {"id": customer_id, "object": "customer", "deleted": True}
        self._tables.customers.put(customer_id, tombstone)
        self._tables.emit("customer.deleted", row)
        return tombstone

    def list_customers(self, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, CUSTOMER_LIST_FIELDS)
        customers = self._tables.customers
        rows = customers.find_by("email", sent["email"]) if "email" in sent else list(customers)
        page = self._tables.page((row for row in rows if not row.get("deleted")), sent, "/v1/customers")
        return self._tables.expanded(page, sent)

    def search(self, form: JsonDocument) -> JsonDocument:
        """Out of date by ``search_lag_seconds``: a new customer is missing, and a changed one is found as it was."""
        sent = forms.validate(form, CUSTOMER_SEARCH_FIELDS, "query")
        if self._tables.state.settings.stripe_search_refused:
            raise StripeApiError(400, "The search feature is unavailable for this merchant.")
        clauses = parse_query(sent["query"])
        visible_until = self._tables.state.clock.now() - self._tables.state.settings.search_lag_seconds
        found: list[JsonDocument] = []
        for key, row in self._tables.customers.items():
            changed_at, before = self._tables.before_last_change.get(key, (0.0, None))
            visible = before if changed_at > visible_until else row
            if visible is not None and not row.get("deleted") and matches(visible, clauses):
                found.append(visible)
        start = int(sent["page"]) if sent.get("page", "").isdigit() else 0
        limit = sent.get("limit", 10)
        data = found[::-1][start : start + limit]
        more = start + limit < len(found)
        return {
            "object": "search_result",
            "url": "/v1/customers/search",
            "has_more": more,
            "next_page": str(start + limit) if more else None,
            "data": data,
        }

    def _serialize(self, row: JsonDocument, sent: JsonDocument) -> JsonDocument:
        """``subscriptions`` (the newest ten that have not ended) is only included if it is expanded."""
        expand = sent.get("expand") or []
        if "subscriptions" not in expand:
            return self._tables.expanded(row, sent)
        row = {**row, "subscriptions": self._subscriptions.of_customer(row["id"])}
        return self._tables.expanded(row, {"expand": [path for path in expand if path != "subscriptions"]})

    def _record_balance(self, row: JsonDocument, before: int, kind: str) -> None:
        if row["balance"] != before:
            self._balances.record(row, row["balance"] - before, kind, row["currency"] or "usd")

    def find_existing(self, customer_id: str) -> JsonDocument:
        row = self._tables.customers.get(customer_id)
        if row is None or row.get("deleted"):
            raise not_found("customer", customer_id)
        return row


def _apply(row: JsonDocument, sent: JsonDocument) -> None:
    for name, value in sent.items():
        if name == "metadata":
            row["metadata"] = forms.merge_metadata(row["metadata"], value)
        elif name == "invoice_settings":
            row["invoice_settings"] |= value or {}
        elif name == "tax_exempt":
            row["tax_exempt"] = value or "none"
        elif name == "address" and value is not None:
            row["address"] = dict.fromkeys(("city", "country", "line1", "line2", "postal_code", "state")) | value
        elif name != "expand":
            row[name] = value
