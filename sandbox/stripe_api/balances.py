"""Stripe's customer balances (stripe.md 9): below zero the customer has credit, above zero the customer owes.

Each change is a transaction that is never changed again. The next invoice that is finalized uses the balance.
"""

from sandbox.http import JsonDocument
from sandbox.stripe_api import forms
from sandbox.stripe_api.errors import not_found
from sandbox.stripe_api.serializers import StripeTables, new_id

TRANSACTION_FIELDS: forms.FormSchema = {
    "amount": forms.integer(),
    "currency": forms.text(3, clearable=False),
    "description": forms.text(350),
    "metadata": forms.metadata,
    **forms.EXPAND_FIELDS,
}
TRANSACTION_LIST_FIELDS: forms.FormSchema = {
    **forms.PAGINATION_FIELDS,
    "created": forms.time_range,
    "invoice": forms.text(clearable=False),
}


class StripeBalancesApi:
    def __init__(self, tables: StripeTables) -> None:
        self._tables = tables

    def change(  # noqa: PLR0913  # the fields of a transaction
        self,
        customer_id: str,
        amount: int,
        kind: str,
        currency: str,
        *,
        invoice: str | None = None,
        credit_note: str | None = None,
    ) -> JsonDocument:
        """Add ``amount`` to the balance; ``kind`` is the transaction's type. Returns the transaction."""
        customer = self._customer(customer_id)
        changed = {**customer, "balance": customer["balance"] + amount, "currency": customer["currency"] or currency}
        self._tables.customers.put(customer_id, changed)
        self._tables.emit("customer.updated", changed, {"balance": customer["balance"]})
        return self.record(changed, amount, kind, currency, invoice=invoice, credit_note=credit_note)

    def record(  # noqa: PLR0913  # the fields of a transaction
        self,
        customer: JsonDocument,
        amount: int,
        kind: str,
        currency: str,
        *,
        invoice: str | None = None,
        credit_note: str | None = None,
    ) -> JsonDocument:
        """The transaction of a change that the customer's row already has."""
        row: JsonDocument = {
            "id": new_id("cbtxn_", 24),
            "object": "customer_balance_transaction",
            "amount": amount,
            "checkout_session": None,
            "created": self._tables.now(),
            "credit_note": credit_note,
            "currency": currency,
            "customer": customer["id"],
            "customer_account": None,
            "description": None,
            "ending_balance": customer["balance"],
            "invoice": invoice,
            "livemode": False,
            "metadata": {},
            "type": kind,
        }
        self._tables.balance_transactions.put(row["id"], row)
        return row

    def create(self, customer_id: str, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, TRANSACTION_FIELDS, "amount", "currency")
        row = self.change(customer_id, sent["amount"], "adjustment", sent["currency"].lower())
        metadata = forms.merge_metadata({}, sent.get("metadata", {}))
        row = {**row, "description": sent.get("description"), "metadata": metadata}
        self._tables.balance_transactions.put(row["id"], row)
        return self._tables.expanded(row, sent)

    def list_transactions(self, customer_id: str, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, TRANSACTION_LIST_FIELDS)
        customer = self._customer(customer_id)
        rows = self._tables.balance_transactions.find_by("customer", customer["id"])
        rows = [row for row in rows if sent.get("invoice") in (None, row["invoice"])]
        page = self._tables.page(rows, sent, f"/v1/customers/{customer_id}/balance_transactions")
        return self._tables.expanded(page, sent)

    def balance_of(self, customer_id: str) -> int:
        return int(self._customer(customer_id)["balance"])

    def _customer(self, customer_id: str) -> JsonDocument:
        customer = self._tables.customers.get(customer_id)
        if customer is None or customer.get("deleted"):
            raise not_found("customer", customer_id)
        return customer
