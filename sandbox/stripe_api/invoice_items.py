"""Stripe's invoice items: the prorations that wait for the next invoice of their subscription.

Items that somebody makes by hand are not implemented.
"""

from collections.abc import Iterable

from sandbox.http import JsonDocument
from sandbox.stripe_api import forms
from sandbox.stripe_api.errors import StripeApiError, not_found
from sandbox.stripe_api.serializers import StripeTables, new_id

INVOICE_ITEM_LIST_FIELDS: forms.FormSchema = {
    **forms.PAGINATION_FIELDS,
    "created": forms.time_range,
    "customer": forms.text(clearable=False),
    "invoice": forms.text(clearable=False),
    "pending": forms.boolean,
    "customer_account": forms.unsupported,
}


class StripeInvoiceItemsApi:
    def __init__(self, tables: StripeTables) -> None:
        self._tables = tables

    def add(self, row: JsonDocument, lines: Iterable[JsonDocument]) -> None:
        """Store prorations of the subscription until an invoice contains them."""
        for line in lines:
            item = _new_item(row, line, self._tables.now())
            self._tables.invoice_items.put(item["id"], item)
            self._tables.emit("invoiceitem.created", _document(item))

    def pending_lines(self, subscription_id: str) -> list[JsonDocument]:
        """The lines that the next invoice of the subscription will have, each with the id of its item."""
        return [{**item["line"], "invoice_item": item["id"]} for item in self._pending(subscription_id)]

    def attach(self, lines: Iterable[JsonDocument], invoice_id: str) -> None:
        for line in lines:
            item = self._tables.invoice_items.get(line["invoice_item"] or "")
            if item is not None:
                self._tables.invoice_items.put(item["id"], {**item, "invoice": invoice_id})

    def remove_pending(self, subscription_id: str) -> None:
        for item in self._pending(subscription_id):
            self._remove(item)

    def retrieve(self, item_id: str, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, forms.EXPAND_FIELDS)
        return self._tables.expanded(_document(self._find(item_id)), sent)

    def delete(self, item_id: str, form: JsonDocument) -> JsonDocument:
        forms.validate(form, {})
        item = self._find(item_id)
        if item["invoice"] is not None:
            raise StripeApiError(400, "You can only delete invoice items that are not attached to an invoice.")
        self._remove(item)
        return {"id": item_id, "object": "invoiceitem", "deleted": True}

    def list_items(self, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, INVOICE_ITEM_LIST_FIELDS)
        rows = [_document(item) for item in self._tables.invoice_items if _matches(item, sent)]
        page = self._tables.page([{**row, "created": row["date"]} for row in rows], sent, "/v1/invoiceitems")
        for row in page["data"]:
            del row["created"]
        return self._tables.expanded(page, sent)

    def _pending(self, subscription_id: str) -> list[JsonDocument]:
        return self._tables.invoice_items.find_by("pending_of", subscription_id)

    def _find(self, item_id: str) -> JsonDocument:
        if (item := self._tables.invoice_items.get(item_id)) is None:
            raise not_found("invoiceitem", item_id)
        return item

    def _remove(self, item: JsonDocument) -> None:
        self._tables.invoice_items.delete(item["id"])
        self._tables.emit("invoiceitem.deleted", _document(item))


def _new_item(row: JsonDocument, line: JsonDocument, now: int) -> JsonDocument:
    return {
        "id": new_id("ii_", 24),
        "customer": row["customer"],
        "subscription": row["id"],
        "currency": row["currency"],
        "date": now,
        "invoice": None,
        "line": line,
    }


def _document(item: JsonDocument) -> JsonDocument:
    line = item["line"]
    return {
        "id": item["id"],
        "object": "invoiceitem",
        "amount": line["amount"],
        "currency": item["currency"],
        "customer": item["customer"],
        "customer_account": None,
        "date": item["date"],
        "description": None,
        "discountable": False,
        "discounts": [],
        "invoice": item["invoice"],
        "livemode": False,
        "metadata": {},
        "net_amount": line["amount"],
        "parent": {
            "subscription_details": {"subscription": item["subscription"], "subscription_item": line["item"]},
            "type": "subscription_details",
        },
        "period": {"start": line["start"], "end": line["end"]},
        "pricing": {
            "price_details": {"price": line["price"], "product": line["product"]},
            "type": "price_details",
            "unit_amount_decimal": str(line["unit_amount"]),
        },
        "proration": line["proration"],
        "quantity": line["quantity"],
        "quantity_decimal": str(line["quantity"]),
        "tax_rates": [],
        "test_clock": None,
    }


def _matches(item: JsonDocument, sent: JsonDocument) -> bool:
    return (
        sent.get("customer") in (None, item["customer"])
        and sent.get("invoice") in (None, item["invoice"])
        and ("pending" not in sent or sent["pending"] == (item["invoice"] is None))
    )
