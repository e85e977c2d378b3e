"""Payments of Stripe's invoices, made by hand: they emit the events and set the customer's ``delinquent``.

The API does not return the invoices: the sandbox does not invoice.
"""

from sandbox.http import InvalidControlRequestError, JsonDocument
from sandbox.stripe_api.customers import StripeCustomersApi
from sandbox.stripe_api.serializers import StripeTables, new_id

EVENT_BY_PAYMENT_STATUS = {"failed": "invoice.payment_failed", "paid": "invoice.paid"}


class StripePaymentsApi:
    def __init__(self, tables: StripeTables, customers: StripeCustomersApi) -> None:
        self._tables = tables
        self._customers = customers

    def create(self, sent: JsonDocument) -> JsonDocument:
        """Create an invoice that was paid or whose payment failed: ``{"customer", "status" = "failed"}``."""
        row = {"id": new_id("in_", 24), "object": "invoice", "customer": str(sent.get("customer"))}
        return self._save_status(row, str(sent.get("status", "failed")))

    def patch(self, invoice_id: str, sent: JsonDocument) -> JsonDocument:
        """Set the result of another payment attempt: ``{"status": "paid"}``."""
        row = self._tables.invoices.get(invoice_id)
        if row is None:
            raise InvalidControlRequestError("id", f"There is no invoice {invoice_id!r}.")
        return self._save_status(row, str(sent["status"]))

    def _save_status(self, row: JsonDocument, status: str) -> JsonDocument:
        if status not in EVENT_BY_PAYMENT_STATUS:
            raise InvalidControlRequestError("status", f"status must be one of {', '.join(EVENT_BY_PAYMENT_STATUS)}.")
        customer = self._customers.find_existing(row["customer"])
        paid = status == "paid"
        # As at Stripe, the flag follows the last change of any invoice.
        self._tables.customers.put(customer["id"], {**customer, "delinquent": not paid})
        row = {**row, "attempted": True, "livemode": False, "status": "paid" if paid else "open"}
        self._tables.invoices.put(row["id"], row)
        self._tables.emit(EVENT_BY_PAYMENT_STATUS[status], row)
        return row
