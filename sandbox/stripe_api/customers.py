"""Stripe's customers (stripe.md 4): POST merges, a deleted one still answers 200, no uniqueness on anything."""

from sandbox.http import Doc
from sandbox.stripe_api import forms
from sandbox.stripe_api.errors import no_such
from sandbox.stripe_api.search import matches, parse_query
from sandbox.stripe_api.serializers import Tables, new_id
from sandbox.stripe_api.subscriptions import Subscriptions

SHIPPING = forms.record(
    {"address": forms.ADDRESS, "name": forms.text(), "phone": forms.text()}, required=("address", "name")
)
INVOICE_SETTINGS = forms.record(
    {
        "default_payment_method": forms.text(),
        "footer": forms.text(),
        "custom_fields": forms.array(forms.record({"name": forms.text(40), "value": forms.text(140)}), 4),
        "rendering_options": forms.refused,
    }
)
FIELDS: forms.Schema = {
    "address": forms.ADDRESS,
    "balance": forms.integer(),
    "business_name": forms.text(150),
    "description": forms.text(5000),
    "email": forms.email,
    "individual_name": forms.text(150),
    "invoice_prefix": forms.text(12),
    "invoice_settings": INVOICE_SETTINGS,
    "metadata": forms.metadata,
    "name": forms.text(256),
    "next_invoice_sequence": forms.integer(1),
    "phone": forms.text(20),
    "preferred_locales": forms.array(forms.text(20)),
    "shipping": SHIPPING,
    "tax_exempt": forms.choice(("none", "exempt", "reverse"), clears=True),
    **dict.fromkeys(("cash_balance", "payment_method", "source", "tax", "tax_id_data", "test_clock"), forms.refused),
    **forms.EXPAND,
}
UPDATE_FIELDS: forms.Schema = {
    name: check for name, check in FIELDS.items() if name not in ("payment_method", "tax_id_data", "test_clock")
}
LIST_FIELDS: forms.Schema = {
    **forms.PAGE,
    "created": forms.window,
    "email": forms.text(512, clears=False),
    "test_clock": forms.refused,
}
SEARCH_FIELDS: forms.Schema = {
    "query": forms.text(clears=False),
    "limit": forms.integer(1, 100),
    "page": forms.text(clears=False),
    **forms.EXPAND,
}


def blank(customer_id: str, created: int) -> Doc:
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


class Customers:
    def __init__(self, tables: Tables, subscriptions: Subscriptions) -> None:
        self._tables = tables
        self._subscriptions = subscriptions

    def create(self, form: Doc, customer_id: str | None = None, created: int | None = None) -> Doc:
        """An id and a date of one's own are for the control API; Stripe lets nobody choose them."""
        sent = forms.read(form, FIELDS)
        customer_id = customer_id or new_id("cus_")
        row = blank(customer_id, self._tables.now() if created is None else created)
        _apply(row, sent)
        self._tables.before[customer_id] = (self._tables.world.clock.now(), None)
        self._tables.customers.put(customer_id, row)
        self._tables.event("customer.created", row)
        return self._tables.expanded(row, sent)

    def retrieve(self, customer_id: str, form: Doc) -> Doc:
        sent = forms.read(form, forms.EXPAND)
        row = self._tables.customers.get(customer_id)
        if row is None:
            raise no_such("customer", customer_id)
        return row if row.get("deleted") else self._shown(row, sent)

    def update(self, customer_id: str, form: Doc) -> Doc:
        sent = forms.read(form, UPDATE_FIELDS)
        row = self.living(customer_id)
        old = {**row, "metadata": dict(row["metadata"]), "invoice_settings": dict(row["invoice_settings"])}
        changed = {**old, "metadata": dict(row["metadata"]), "invoice_settings": dict(row["invoice_settings"])}
        _apply(changed, sent)
        self._tables.before[customer_id] = (self._tables.world.clock.now(), old)
        self._tables.customers.put(customer_id, changed)
        previous = {name: old[name] for name in old if old[name] != changed[name]}
        if previous:
            self._tables.event("customer.updated", changed, previous)
        return self._shown(changed, sent)

    def delete(self, customer_id: str, form: Doc) -> Doc:
        forms.read(form, {})
        row = self.living(customer_id)
        self._subscriptions.end_all(customer_id)
        stone: Doc = {"id": customer_id, "object": "customer", "deleted": True}
        self._tables.customers.put(customer_id, stone)
        self._tables.event("customer.deleted", row)
        return stone

    def listing(self, form: Doc) -> Doc:
        sent = forms.read(form, LIST_FIELDS)
        customers = self._tables.customers
        rows = customers.by("email", sent["email"]) if "email" in sent else list(customers)
        page = self._tables.page((row for row in rows if not row.get("deleted")), sent, "/v1/customers")
        return self._tables.expanded(page, sent)

    def search(self, form: Doc) -> Doc:
        """Behind by ``search_lag_seconds``: a young customer is not there yet, a changed one shows as it was."""
        sent = forms.read(form, SEARCH_FIELDS, "query")
        clauses = parse_query(sent["query"])
        edge = self._tables.world.clock.now() - self._tables.world.settings.search_lag_seconds
        found: list[Doc] = []
        for key, row in self._tables.customers.items():
            changed_at, before = self._tables.before.get(key, (0.0, None))
            seen = before if changed_at > edge else row
            if seen is not None and not row.get("deleted") and matches(seen, clauses):
                found.append(seen)
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

    def _shown(self, row: Doc, sent: Doc) -> Doc:
        """``subscriptions`` is a field only for who asks for it: the newest ten that have not ended."""
        wanted = sent.get("expand") or []
        if "subscriptions" not in wanted:
            return self._tables.expanded(row, sent)
        row = {**row, "subscriptions": self._subscriptions.of(row["id"])}
        return self._tables.expanded(row, {"expand": [path for path in wanted if path != "subscriptions"]})

    def living(self, customer_id: str) -> Doc:
        row = self._tables.customers.get(customer_id)
        if row is None or row.get("deleted"):
            raise no_such("customer", customer_id)
        return row


def _apply(row: Doc, sent: Doc) -> None:
    for name, value in sent.items():
        if name == "metadata":
            row["metadata"] = forms.merged_metadata(row["metadata"], value)
        elif name == "invoice_settings":
            row["invoice_settings"] |= value or {}
        elif name == "tax_exempt":
            row["tax_exempt"] = value or "none"
        elif name == "address" and value is not None:
            row["address"] = dict.fromkeys(("city", "country", "line1", "line2", "postal_code", "state")) | value
        elif name != "expand":
            row[name] = value
