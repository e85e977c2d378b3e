"""Stripe's products and prices (stripe.md 5): one price per lookup key, and a price's amount never changes.

The tiers of a price are checked and not shown: Stripe shows them only if they are expanded.
"""

from decimal import Decimal

from sandbox.http import JsonDocument
from sandbox.stripe_api import forms
from sandbox.stripe_api.errors import StripeApiError, invalid_param, missing_param, not_found
from sandbox.stripe_api.serializers import StripeTables, new_id

PRODUCT_FIELDS: forms.FormSchema = {
    "active": forms.boolean,
    "description": forms.text(),
    "id": forms.text(clearable=False),
    "images": forms.array(forms.text(), 8),
    "marketing_features": forms.array(forms.record({"name": forms.text(80)}), 15),
    "metadata": forms.metadata,
    "name": forms.text(clearable=False),
    "shippable": forms.boolean,
    "statement_descriptor": forms.text(22),
    "tax_code": forms.text(),
    "unit_label": forms.text(12),
    "url": forms.text(),
    **dict.fromkeys(("default_price_data", "package_dimensions"), forms.unsupported),
    **forms.EXPAND_FIELDS,
}
PRODUCT_UPDATE_FIELDS: forms.FormSchema = {
    **{name: check for name, check in PRODUCT_FIELDS.items() if name not in ("id", "default_price_data")},
    "default_price": forms.text(),
}
PRODUCT_LIST_FIELDS: forms.FormSchema = {
    **forms.PAGINATION_FIELDS,
    "active": forms.boolean,
    "created": forms.time_range,
    "ids": forms.array(forms.text()),
    "shippable": forms.unsupported,
    "url": forms.unsupported,
}
PRICE_RECURRING_FIELDS = forms.record(
    {
        "interval": forms.choice(("day", "week", "month", "year")),
        "interval_count": forms.integer(1, 1095),
        "usage_type": forms.choice(("licensed", "metered")),
        "meter": forms.text(clearable=False),
        "trial_period_days": forms.unsupported,
    },
    required=("interval",),
)
PRICE_TIER_FIELDS = forms.record(
    {
        "flat_amount": forms.integer(0),
        "flat_amount_decimal": forms.decimal_amount,
        "unit_amount": forms.integer(0),
        "unit_amount_decimal": forms.decimal_amount,
        "up_to": forms.text(clearable=False),
    },
    required=("up_to",),
)
PRICE_FIELDS: forms.FormSchema = {
    "active": forms.boolean,
    "billing_scheme": forms.choice(("per_unit", "tiered")),
    "currency": forms.text(3, clearable=False),
    "lookup_key": forms.text(200),
    "metadata": forms.metadata,
    "nickname": forms.text(),
    "product": forms.text(clearable=False),
    "product_data": forms.record(
        {
            "id": forms.text(clearable=False),
            "name": forms.text(clearable=False),
            "active": forms.boolean,
            "metadata": forms.metadata,
            "statement_descriptor": forms.text(22),
            "tax_code": forms.text(),
            "unit_label": forms.text(12),
        },
        required=("name",),
    ),
    "recurring": PRICE_RECURRING_FIELDS,
    "tax_behavior": forms.choice(("exclusive", "inclusive", "unspecified")),
    "transfer_lookup_key": forms.boolean,
    "unit_amount": forms.integer(0, 99_999_999),
    "unit_amount_decimal": forms.decimal_amount,
    "tiers": forms.array(PRICE_TIER_FIELDS),
    "tiers_mode": forms.choice(("graduated", "volume")),
    **dict.fromkeys(("currency_options", "custom_unit_amount", "transform_quantity"), forms.unsupported),
    **forms.EXPAND_FIELDS,
}
PRICE_UPDATE_FIELDS: forms.FormSchema = {
    name: PRICE_FIELDS[name]
    for name in (
        "active",
        "currency_options",
        "expand",
        "lookup_key",
        "metadata",
        "nickname",
        "tax_behavior",
        "transfer_lookup_key",
    )
}
PRICE_LIST_FIELDS: forms.FormSchema = {
    **forms.PAGINATION_FIELDS,
    "active": forms.boolean,
    "created": forms.time_range,
    "currency": forms.text(3, clearable=False),
    "lookup_keys": forms.array(forms.text(200, clearable=False), 10),
    "product": forms.text(clearable=False),
    "type": forms.choice(("one_time", "recurring")),
    "recurring": forms.unsupported,
}


class StripeCatalogApi:
    def __init__(self, tables: StripeTables) -> None:
        self._tables = tables

    def create_product(self, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, PRODUCT_FIELDS, "name")
        return self._tables.expanded(self._new_product(sent), sent)

    def _new_product(self, sent: JsonDocument) -> JsonDocument:
        product_id = str(sent.get("id") or new_id("prod_"))
        if self._tables.products.get(product_id) is not None:
            message = f"Product already exists with the ID: {product_id}"
            raise StripeApiError(400, message, code="resource_already_exists", param="id", stored=True)
        now = self._tables.now()
        row: JsonDocument = {
            "id": product_id,
            "object": "product",
            "active": True,
            "created": now,
            "default_price": None,
            "description": None,
            "images": [],
            "livemode": False,
            "marketing_features": [],
            "metadata": {},
            "name": None,
            "package_dimensions": None,
            "shippable": None,
            "statement_descriptor": None,
            "tax_code": None,
            "unit_label": None,
            "updated": now,
            "url": None,
        }
        _apply(row, sent)
        self._tables.products.put(product_id, row)
        self._tables.emit("product.created", row)
        return row

    def retrieve_product(self, product_id: str, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, forms.EXPAND_FIELDS)
        return self._tables.expanded(self._find_product(product_id), sent)

    def update_product(self, product_id: str, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, PRODUCT_UPDATE_FIELDS)
        row = {**self._find_product(product_id), "updated": self._tables.now()}
        if (price := sent.get("default_price")) is not None and self._tables.prices.get(price) is None:
            raise not_found("price", price, "default_price", in_path=False)
        _apply(row, sent)
        self._tables.products.put(product_id, row)
        self._tables.emit("product.updated", row)
        return self._tables.expanded(row, sent)

    def delete_product(self, product_id: str, form: JsonDocument) -> JsonDocument:
        forms.validate(form, {})
        row = self._find_product(product_id)
        if any(price["product"] == product_id for price in self._tables.prices):
            raise StripeApiError(400, "This product cannot be deleted because it has one or more user-created prices.")
        self._tables.products.delete(product_id)
        self._tables.emit("product.deleted", row)
        return {"id": product_id, "object": "product", "deleted": True}

    def list_products(self, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, PRODUCT_LIST_FIELDS)
        rows = [row for row in self._tables.products if _matches(row, sent, "active")]
        if "ids" in sent:
            rows = [row for row in rows if row["id"] in sent["ids"]]
        return self._tables.expanded(self._tables.page(rows, sent, "/v1/products"), sent)

    def create_price(self, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, PRICE_FIELDS, "currency")
        if ("product" in sent) == ("product_data" in sent):
            raise (
                missing_param("product")
                if "product" not in sent
                else invalid_param(None, "Pass product or product_data.")
            )
        amount = "tiers" if sent.get("billing_scheme") == "tiered" else "unit_amount"
        if amount not in sent and f"{amount}_decimal" not in sent:
            raise missing_param(amount)
        if "product" in sent and self._tables.products.get(sent["product"]) is None:
            raise not_found("product", sent["product"], "product", in_path=False)
        self._release_lookup_key(sent)
        product_id = sent["product"] if "product" in sent else self._new_product(sent["product_data"])["id"]
        row = _price_row(new_id("price_", 24), product_id, self._tables.now(), sent)
        self._tables.prices.put(row["id"], row)
        self._tables.emit("price.created", row)
        return self._tables.expanded(row, sent)

    def retrieve_price(self, price_id: str, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, forms.EXPAND_FIELDS)
        return self._tables.expanded(self._find_price(price_id), sent)

    def update_price(self, price_id: str, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, PRICE_UPDATE_FIELDS)
        row = dict(self._find_price(price_id))
        if sent.get("lookup_key") != row["lookup_key"]:
            self._release_lookup_key(sent)
        _apply(row, {name: value for name, value in sent.items() if name != "transfer_lookup_key"})
        self._tables.prices.put(price_id, row)
        self._tables.emit("price.updated", row)
        return self._tables.expanded(row, sent)

    def list_prices(self, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, PRICE_LIST_FIELDS)
        rows = [
            row
            for row in self._tables.prices
            if all(_matches(row, sent, name) for name in ("active", "currency", "product", "type"))
        ]
        if "lookup_keys" in sent:
            rows = [row for row in rows if row["lookup_key"] in sent["lookup_keys"]]
        return self._tables.expanded(self._tables.page(rows, sent, "/v1/prices"), sent)

    def _release_lookup_key(self, sent: JsonDocument) -> None:
        """A lookup key that is in use moves only with ``transfer_lookup_key``."""
        key = sent.get("lookup_key")
        if key is None:
            return
        for holder in self._tables.prices.find_by("lookup_key", key):
            if not sent.get("transfer_lookup_key"):
                message = f"A price (`{holder['id']}`) already uses that lookup key."
                raise StripeApiError(400, message, code="resource_already_exists", param="lookup_key", stored=True)
            self._tables.prices.put(holder["id"], {**holder, "lookup_key": None})

    def _find_product(self, product_id: str) -> JsonDocument:
        if (row := self._tables.products.get(product_id)) is None:
            raise not_found("product", product_id)
        return row

    def _find_price(self, price_id: str) -> JsonDocument:
        if (row := self._tables.prices.get(price_id)) is None:
            raise not_found("price", price_id, "price")
        return row


def _price_row(price_id: str, product_id: str, created: int, sent: JsonDocument) -> JsonDocument:
    recurring = sent.get("recurring")
    is_tiered = sent.get("billing_scheme") == "tiered"
    amount = sent.get("unit_amount_decimal", Decimal(sent.get("unit_amount", 0)))
    return {
        "id": price_id,
        "object": "price",
        "active": sent.get("active", True),
        "billing_scheme": "tiered" if is_tiered else "per_unit",
        "created": created,
        "currency": sent["currency"].lower(),
        "custom_unit_amount": None,
        "livemode": False,
        "lookup_key": sent.get("lookup_key"),
        "metadata": forms.merge_metadata({}, sent.get("metadata", {})),
        "nickname": sent.get("nickname"),
        "product": product_id,
        "recurring": recurring
        and {
            "interval": recurring["interval"],
            "interval_count": recurring.get("interval_count", 1),
            "meter": recurring.get("meter"),
            "usage_type": recurring.get("usage_type", "licensed"),
        },
        "tax_behavior": sent.get("tax_behavior", "unspecified"),
        "tiers_mode": sent.get("tiers_mode") if is_tiered else None,
        "transform_quantity": None,
        "type": "recurring" if recurring else "one_time",
        "unit_amount": int(amount) if amount == int(amount) and not is_tiered else None,
        "unit_amount_decimal": None if is_tiered else f"{amount.normalize():f}",
    }


def _matches(row: JsonDocument, sent: JsonDocument, name: str) -> bool:
    return name not in sent or bool(row[name] == sent[name])


def _apply(row: JsonDocument, sent: JsonDocument) -> None:
    for name, value in sent.items():
        if name == "metadata":
            row["metadata"] = forms.merge_metadata(row["metadata"], value)
        elif name not in ("expand", "id"):
            row[name] = value
