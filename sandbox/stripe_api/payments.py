"""What becomes of Stripe's invoices, by hand: the events, and the customer's ``delinquent`` that follows them.

The invoices themselves are not served: the sandbox sends no bills.
"""

from sandbox.http import InvalidControlRequestError, JsonDocument
from sandbox.stripe_api.customers import StripeCustomersApi
from sandbox.stripe_api.serializers import StripeTables, new_id

EVENT_BY_PAYMENT_STATUS = {"failed": "invoice.payment_failed", "paid": "invoice.paid"}


class StripePaymentsApi:
    def __init__(self, tables: StripeTables, customers: StripeCustomersApi) -> None:
        self._tables = tables
        self._customers = customers

    def create(self, wanted: JsonDocument) -> JsonDocument:
        """One whose payment failed, or was paid: ``{"customer", "status" = "failed"}``."""
        row = {"id": new_id("in_", 24), "object": "invoice", "customer": str(wanted.get("customer"))}
        return self._settle(row, str(wanted.get("status", "failed")))

    def patch(self, invoice_id: str, wanted: JsonDocument) -> JsonDocument:
        """What became of another try: ``{"status": "paid"}``."""
        row = self._tables.invoices.get(invoice_id)
        if row is None:
            raise InvalidControlRequestError("id", f"There is no invoice {invoice_id!r}.")
        return self._settle(row, str(wanted["status"]))

    def _settle(self, row: JsonDocument, status: str) -> JsonDocument:
        if status not in EVENT_BY_PAYMENT_STATUS:
            raise InvalidControlRequestError("status", f"status is one of {', '.join(EVENT_BY_PAYMENT_STATUS)}.")
        customer = self._customers.find_existing(row["customer"])
        paid = status == "paid"
        # As Stripe has it: the flag tracks the last change of any invoice.
        self._tables.customers.put(customer["id"], {**customer, "delinquent": not paid})
        row = {**row, "attempted": True, "livemode": False, "status": "paid" if paid else "open"}
        self._tables.invoices.put(row["id"], row)
        self._tables.emit(EVENT_BY_PAYMENT_STATUS[status], row)
        return row
