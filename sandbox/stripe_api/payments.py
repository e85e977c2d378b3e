"""What becomes of Stripe's invoices, by hand: the events, and the customer's ``delinquent`` that follows them.

The invoices themselves are not served: the sandbox sends no bills.
"""

from sandbox.http import Doc, WrongRequestError
from sandbox.stripe_api.customers import Customers
from sandbox.stripe_api.serializers import Tables, new_id

EVENTS = {"failed": "invoice.payment_failed", "paid": "invoice.paid"}


class Payments:
    def __init__(self, tables: Tables, customers: Customers) -> None:
        self._tables = tables
        self._customers = customers

    def make(self, wanted: Doc) -> Doc:
        """One whose payment failed, or was paid: ``{"customer", "status" = "failed"}``."""
        row = {"id": new_id("in_", 24), "object": "invoice", "customer": str(wanted.get("customer"))}
        return self._settle(row, str(wanted.get("status", "failed")))

    def patch(self, invoice_id: str, wanted: Doc) -> Doc:
        """What became of another try: ``{"status": "paid"}``."""
        row = self._tables.invoices.get(invoice_id)
        if row is None:
            raise WrongRequestError("id", f"There is no invoice {invoice_id!r}.")
        return self._settle(row, str(wanted["status"]))

    def _settle(self, row: Doc, outcome: str) -> Doc:
        if outcome not in EVENTS:
            raise WrongRequestError("status", f"status is one of {', '.join(EVENTS)}.")
        customer = self._customers.living(row["customer"])
        paid = outcome == "paid"
        # As Stripe has it: the flag tracks the last change of any invoice.
        self._tables.customers.put(customer["id"], {**customer, "delinquent": not paid})
        row = {**row, "attempted": True, "livemode": False, "status": "paid" if paid else "open"}
        self._tables.invoices.put(row["id"], row)
        self._tables.event(EVENTS[outcome], row)
        return row
