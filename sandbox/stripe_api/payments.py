"""Payments of Stripe's invoices, made by hand: an attempt that failed, a payment, or that it was given up.

They emit the events and set the customer's ``delinquent``. An invoice of a subscription can be paid the same way.
"""

from sandbox.http import InvalidControlRequestError, JsonDocument
from sandbox.stripe_api.customers import StripeCustomersApi
from sandbox.stripe_api.invoice_documents import invoice_document
from sandbox.stripe_api.invoices import StripeInvoicesApi, new_draft
from sandbox.stripe_api.serializers import StripeTables

PAYMENT_RESULTS = ("failed", "paid", "uncollectible")
DEFAULT_AMOUNT = 1000


class StripePaymentsApi:
    def __init__(self, tables: StripeTables, customers: StripeCustomersApi, invoices: StripeInvoicesApi) -> None:
        self._tables = tables
        self._customers = customers
        self._invoices = invoices

    def create(self, sent: JsonDocument) -> JsonDocument:
        """Create an invoice that was paid or whose payment failed: ``{"customer", "status" = "failed", "amount"}``."""
        customer = self._customers.find_existing(str(sent.get("customer")))
        now = self._tables.now()
        draft = new_draft(
            customer=customer["id"],
            currency=customer["currency"] or "usd",
            reason="manual",
            now=now,
            lines=[_line(int(sent.get("amount", DEFAULT_AMOUNT)), now)],
        )
        status = str(sent.get("status", "failed"))
        _check(status)
        return self._set_status(self._invoices.finalize(self._invoices.create(draft)), status)

    def patch(self, invoice_id: str, sent: JsonDocument) -> JsonDocument:
        """Set the result of another payment attempt: ``{"status": "paid"}``; ``uncollectible``: nobody expects it."""
        row = self._tables.invoices.get(invoice_id)
        if row is None:
            raise InvalidControlRequestError("id", f"There is no invoice {invoice_id!r}.")
        status = str(sent["status"])
        _check(status)
        return self._set_status(self._invoices.finalize(row) if row["status"] == "draft" else row, status)

    def _set_status(self, row: JsonDocument, status: str) -> JsonDocument:
        if status == "paid" and row["status"] in {"open", "uncollectible"}:
            row = self._invoices.mark_paid(row, charged=True)
        elif row["status"] == "open":
            row = (
                self._invoices.mark_row_uncollectible(row)
                if status == "uncollectible"
                else self._invoices.mark_failed(row)
            )
        return invoice_document(row)


def _check(status: str) -> None:
    if status not in PAYMENT_RESULTS:
        raise InvalidControlRequestError("status", f"status must be one of {', '.join(PAYMENT_RESULTS)}.")


def _line(amount: int, now: int) -> JsonDocument:
    return {
        **dict.fromkeys(("item", "price", "product", "invoice_item")),
        "amount": amount,
        "unit_amount": amount,
        "quantity": 1,
        "start": now,
        "end": now,
        "proration": False,
    }
