"""Stripe's invoices (stripe.md 9): drafts, their finalization after an hour, and what becomes of an open one.

=============  ================================================================================
draft          finalize: open, or paid if nothing is due; only one that no subscription made can be deleted
open           pay, void, mark uncollectible
uncollectible  pay, void
paid, void     nothing more
=============  ================================================================================

Nobody pays an open invoice that is sent; a call or the control routes do. It stays open after its due date: neither the
subscription's ``past_due`` nor the customer's ``delinquent`` is simulated for that.
"""

from collections.abc import Callable

from sandbox.http import JsonDocument
from sandbox.stripe_api import forms
from sandbox.stripe_api.balances import StripeBalancesApi
from sandbox.stripe_api.errors import StripeApiError, not_found
from sandbox.stripe_api.invoice_documents import INVOICE_TRANSITIONS, balance_effect, invoice_document, total_of
from sandbox.stripe_api.serializers import NO_REQUEST, StripeTables, new_id

DRAFT_SECONDS = 3601  # about an hour; Stripe counts from the unrounded second of creation (stripe.md 9)
SECONDS_OF_A_DAY = 24 * 3600
INVOICE_STATUSES = ("draft", "open", "paid", "uncollectible", "void")
NOT_OPEN = "You can only pass in open invoices. This invoice isn't open."
NO_PAYMENT_METHOD = (
    "There is no `default_payment_method` set on this Customer or Invoice. Please set a `default_payment_method` on "
    "one of these objects or provide a payment method as a parameter."
)

INVOICE_LIST_FIELDS: forms.FormSchema = {
    **forms.PAGINATION_FIELDS,
    "collection_method": forms.choice(("charge_automatically", "send_invoice")),
    "created": forms.time_range,
    "customer": forms.text(clearable=False),
    "status": forms.choice(INVOICE_STATUSES),
    "subscription": forms.text(clearable=False),
    **dict.fromkeys(("customer_account", "due_date"), forms.unsupported),
}
INVOICE_UPDATE_FIELDS: forms.FormSchema = {
    "auto_advance": forms.boolean,
    "description": forms.text(1500),
    "metadata": forms.metadata,
    **forms.EXPAND_FIELDS,
}
INVOICE_FINALIZE_FIELDS: forms.FormSchema = {"auto_advance": forms.boolean, **forms.EXPAND_FIELDS}
INVOICE_PAY_FIELDS: forms.FormSchema = {
    "off_session": forms.boolean,
    "paid_out_of_band": forms.boolean,
    "payment_method": forms.text(clearable=False),
    **dict.fromkeys(("forgive", "mandate", "source"), forms.unsupported),
    **forms.EXPAND_FIELDS,
}


class StripeInvoicesApi:
    def __init__(self, tables: StripeTables, balances: StripeBalancesApi) -> None:
        self._tables = tables
        self._balances = balances
        # Called with the subscription's id when an invoice of it was paid.
        self.on_paid: Callable[[str], None] = lambda _subscription_id: None
        tables.invoices.schedule(_finalizes_at, self._on_due)
        tables.documents[tables.invoices.name] = invoice_document

    def create(self, row: JsonDocument) -> JsonDocument:
        """Store a draft that ``new_draft`` made."""
        customer = self._tables.customers.get(row["customer"]) or {}
        row = {**row, "customer_email": customer.get("email"), "customer_name": customer.get("name")}
        row["order"] = len(self._tables.invoices)  # the order of creation, also within one second
        return self._save(row, "invoice.created")

    def finalize(self, row: JsonDocument) -> JsonDocument:
        """Open a draft: it gets its number and meets the customer's balance. If nothing is due, it is paid at once."""
        now = self._tables.now()
        balance = self._balances.balance_of(row["customer"])
        due, effect = balance_effect(row["total"], balance)
        if effect:
            self._balances.change(row["customer"], effect, "applied_to_invoice", row["currency"], invoice=row["id"])
        row = {
            **row,
            "amount_due": due,
            "amount_remaining": due,
            "automatically_finalizes_at": None,
            "effective_at": now,
            "ending_balance": balance + effect,
            "number": self._next_number(row["customer"]),
            "starting_balance": balance,
            "status": "open",
            "status_transitions": {**row["status_transitions"], "finalized_at": now},
        }
        row = self._save(row, "invoice.finalized")
        if due == 0:
            return self.mark_paid(row)
        if row["collection_method"] == "send_invoice":
            self._tables.emit("invoice.sent", invoice_document(row))
        return row

    def mark_paid(self, row: JsonDocument, *, attempted: bool = True, charged: bool = False) -> JsonDocument:
        row = {
            **self._ended(row, "paid", "paid_at"),
            "amount_paid": row["amount_paid"] + row["amount_remaining"],
            "amount_remaining": 0,
            "attempt_count": row["attempt_count"] + int(charged),
            "attempted": row["attempted"] or attempted,
        }
        self._tables.invoices.put(row["id"], row)
        if charged:
            self._tables.emit("invoice.payment_succeeded", invoice_document(row))
        self._set_delinquent(row["customer"], delinquent=False)
        self._tables.emit("invoice.paid", invoice_document(row))
        if row["subscription"] is not None:
            self.on_paid(row["subscription"])
        return row

    def mark_failed(self, row: JsonDocument) -> JsonDocument:
        """A payment attempt that failed; the invoice stays open."""
        row = {**row, "attempt_count": row["attempt_count"] + 1, "attempted": True}
        self._tables.invoices.put(row["id"], row)
        self._set_delinquent(row["customer"], delinquent=True)
        self._tables.emit("invoice.payment_failed", invoice_document(row))
        return row

    def mark_row_uncollectible(self, row: JsonDocument) -> JsonDocument:
        self._set_delinquent(row["customer"], delinquent=False)
        row = self._ended(row, "uncollectible", "marked_uncollectible_at")
        return self._save({**row, "automatically_finalizes_at": None}, "invoice.marked_uncollectible")

    def void_row(self, row: JsonDocument) -> JsonDocument:
        """The amounts stay as they are; what the balance gave is given back."""
        given = (row["ending_balance"] or 0) - row["starting_balance"]
        if given:
            self._balances.change(row["customer"], -given, "unapplied_from_invoice", row["currency"], invoice=row["id"])
        return self._save(self._ended(row, "void", "voided_at"), "invoice.voided")

    def collect(self, row: JsonDocument, payment_method: str | None) -> JsonDocument:
        """Charge an open invoice. Without a payment method it stays open."""
        return row if payment_method is None else self.mark_paid(row, charged=True)

    def charge_if_automatic(self, row: JsonDocument) -> JsonDocument:
        if row["status"] != "open" or row["collection_method"] != "charge_automatically":
            return row
        return self.collect(row, self._payment_method(row))

    def credit(self, row: JsonDocument, before_payment: int, after_payment: int) -> JsonDocument:
        """A credit note was issued: its first part lowers what is still due. If nothing is, the invoice is paid."""
        row = {
            **row,
            "amount_due": row["amount_due"] - before_payment,
            "amount_remaining": row["amount_remaining"] - before_payment,
            "post_payment_credit_notes_amount": row["post_payment_credit_notes_amount"] + after_payment,
            "pre_payment_credit_notes_amount": row["pre_payment_credit_notes_amount"] + before_payment,
        }
        row = self._save(row, "invoice.updated")
        is_covered = before_payment > 0 and row["amount_remaining"] == 0 and row["status"] in ("open", "uncollectible")
        return self.mark_paid(row, attempted=False) if is_covered else row

    def end_collection(self, customer_id: str) -> None:
        """A subscription was canceled: Stripe then collects none of the customer's open invoices by itself."""
        for row in self._tables.invoices.find_by("customer", customer_id):
            if row["status"] == "open" and row["auto_advance"]:
                self._tables.invoices.put(row["id"], {**row, "auto_advance": False})

    def retrieve(self, invoice_id: str, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, forms.EXPAND_FIELDS)
        return self._document(self.find_existing(invoice_id), sent)

    def list_invoices(self, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, INVOICE_LIST_FIELDS)
        table = self._tables.invoices
        if "subscription" in sent:
            rows = table.find_by("subscription", sent["subscription"])
        elif "customer" in sent:
            rows = table.find_by("customer", sent["customer"])
        else:
            rows = list(table)
        names = ("collection_method", "customer", "status")
        rows = [row for row in rows if all(sent.get(name) in (None, row[name]) for name in names)]
        page = self._tables.page(sorted(rows, key=lambda row: row["order"]), sent, "/v1/invoices")
        page["data"] = [invoice_document(row) for row in page["data"]]
        return self._tables.expanded(page, sent)

    def list_lines(self, invoice_id: str, form: JsonDocument) -> JsonDocument:
        forms.validate(form, forms.PAGINATION_FIELDS)
        lines: JsonDocument = invoice_document(self.find_existing(invoice_id))["lines"]
        return {name: value for name, value in lines.items() if name != "total_count"}

    def update(self, invoice_id: str, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, INVOICE_UPDATE_FIELDS)
        row = dict(self.find_existing(invoice_id))
        if "auto_advance" in sent:
            if row["status"] not in ("draft", "open"):
                raise StripeApiError(400, f"You cannot change auto_advance of a {row['status']} invoice.", stored=True)
            row["auto_advance"] = sent["auto_advance"]
            advances = row["status"] == "draft" and row["auto_advance"]
            row["automatically_finalizes_at"] = row["created"] + DRAFT_SECONDS if advances else None
        if "description" in sent:
            row["description"] = sent["description"]
        if "metadata" in sent:
            row["metadata"] = forms.merge_metadata(row["metadata"], sent["metadata"])
        return self._document(self._save(row, "invoice.updated"), sent)

    def delete(self, invoice_id: str, form: JsonDocument) -> JsonDocument:
        forms.validate(form, {})
        row = self.find_existing(invoice_id)
        if row["status"] != "draft":
            raise StripeApiError(400, "You can only delete draft invoices.", stored=True)
        if row["subscription"] is not None:
            raise StripeApiError(400, "You can't delete invoices created by subscriptions.", stored=True)
        self._tables.invoices.delete(invoice_id)
        self._tables.emit("invoice.deleted", invoice_document(row))
        return {"id": invoice_id, "object": "invoice", "deleted": True}

    def finalize_draft(self, invoice_id: str, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, INVOICE_FINALIZE_FIELDS)
        row = self.find_existing(invoice_id)
        if row["status"] != "draft":
            message = "This invoice is already finalized, you can't re-finalize a non-draft invoice."
            raise StripeApiError(400, message, stored=True)
        row = {**row, "auto_advance": sent.get("auto_advance", row["auto_advance"])}
        return self._document(self.finalize(row), sent)

    def pay(self, invoice_id: str, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, INVOICE_PAY_FIELDS)
        row = self.find_existing(invoice_id)
        if row["status"] == "paid":
            raise StripeApiError(400, "Invoice is already paid", stored=True)
        if row["status"] == "void":
            raise StripeApiError(400, NOT_OPEN, stored=True)
        if row["status"] == "draft":
            row = self.finalize(row)
        if row["status"] != "paid":
            row = self._pay(row, sent)
        return self._document(row, sent)

    def void(self, invoice_id: str, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, forms.EXPAND_FIELDS)
        row = self.find_existing(invoice_id)
        if row["status"] == "paid":
            raise StripeApiError(400, "Invoices with `paid` payments cannot be voided.", stored=True)
        if row["status"] not in ("open", "uncollectible"):
            raise StripeApiError(400, NOT_OPEN, stored=True)
        return self._document(self.void_row(row), sent)

    def mark_uncollectible(self, invoice_id: str, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, forms.EXPAND_FIELDS)
        row = self.find_existing(invoice_id)
        if row["status"] == "uncollectible":
            raise StripeApiError(400, "This invoice has already been marked uncollectible.", stored=True)
        if row["status"] != "open":
            raise StripeApiError(400, NOT_OPEN, stored=True)
        return self._document(self.mark_row_uncollectible(row), sent)

    def find_existing(self, invoice_id: str) -> JsonDocument:
        if (row := self._tables.invoices.get(invoice_id)) is None:
            raise not_found("invoice", invoice_id)
        return row

    def _pay(self, row: JsonDocument, sent: JsonDocument) -> JsonDocument:
        if sent.get("paid_out_of_band"):
            return self.mark_paid(row, attempted=False)
        method = sent.get("payment_method") or self._payment_method(row)
        if method is None:
            raise StripeApiError(400, NO_PAYMENT_METHOD, stored=True)
        return self.collect(row, method)

    def _payment_method(self, row: JsonDocument) -> str | None:
        subscription = self._tables.subscriptions.get(row["subscription"] or "") or {}
        customer = self._tables.customers.get(row["customer"]) or {}
        settings = customer.get("invoice_settings") or {}
        method = subscription.get("default_payment_method") or settings.get("default_payment_method")
        return None if method is None else str(method)

    def _set_delinquent(self, customer_id: str, *, delinquent: bool) -> None:
        """The flag follows the last change of any invoice."""
        customer = self._tables.customers.get(customer_id)
        if customer is not None and not customer.get("deleted") and customer["delinquent"] != delinquent:
            self._tables.customers.put(customer_id, {**customer, "delinquent": delinquent})

    def _next_number(self, customer_id: str) -> str:
        customer = self._tables.customers.get(customer_id) or {}
        sequence = int(customer["next_invoice_sequence"])
        self._tables.customers.put(customer_id, {**customer, "next_invoice_sequence": sequence + 1})
        return f"{customer['invoice_prefix']}-{sequence:04}"

    def _ended(self, row: JsonDocument, status: str, transition: str) -> JsonDocument:
        """Stripe never collects an invoice of this status by itself."""
        transitions = {**row["status_transitions"], transition: self._tables.now()}
        return {**row, "auto_advance": False, "status": status, "status_transitions": transitions}

    def _save(self, row: JsonDocument, event: str) -> JsonDocument:
        self._tables.invoices.put(row["id"], row)
        self._tables.emit(event, invoice_document(row))
        return row

    def _document(self, row: JsonDocument, sent: JsonDocument) -> JsonDocument:
        return self._tables.expanded(invoice_document(row), sent)

    def _on_due(self, row: JsonDocument, _moment: float) -> None:
        self._tables.cause = NO_REQUEST
        customer = self._tables.customers.get(row["customer"])
        if customer is None or customer.get("deleted"):
            # Nobody is left to pay: a draft of a deleted customer is never sent.
            self._tables.invoices.put(row["id"], {**row, "auto_advance": False, "automatically_finalizes_at": None})
            return
        self.charge_if_automatic(self.finalize(row))


def new_draft(  # noqa: PLR0913  # the fields in which drafts differ
    *,
    customer: str,
    currency: str,
    reason: str,
    now: int,
    lines: list[JsonDocument],
    subscription: JsonDocument | None = None,
    period: tuple[int, int] | None = None,
    invoice_id: str = "",
    advances: bool = True,
) -> JsonDocument:
    """The row of a draft, not stored. ``advances``: Stripe finalizes it by itself after an hour."""
    sends = subscription is not None and subscription["collection_method"] == "send_invoice"
    days = subscription["days_until_due"] if subscription is not None and sends else None
    total = total_of(lines)
    return {
        "id": invoice_id or new_id("in_", 24),
        "amount_due": max(0, total),
        "amount_paid": 0,
        "amount_remaining": max(0, total),
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": advances,
        "automatically_finalizes_at": now + DRAFT_SECONDS if advances else None,
        "billing_reason": reason,
        "collection_method": "send_invoice" if sends else "charge_automatically",
        "created": now,
        "currency": currency,
        "customer": customer,
        "customer_email": None,
        "customer_name": None,
        "description": None,
        "due_date": None if days is None else now + days * SECONDS_OF_A_DAY,
        "effective_at": None,
        "ending_balance": None,
        "lines": [{**line, "id": new_id("il_", 24)} for line in lines],
        "metadata": {},
        "number": None,
        "period_end": now if period is None else period[1],
        "period_start": now if period is None else period[0],
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "starting_balance": 0,
        "status": "draft",
        "status_transitions": dict.fromkeys(INVOICE_TRANSITIONS),
        "subscription": None if subscription is None else subscription["id"],
        "subscription_metadata": {} if subscription is None else dict(subscription["metadata"]),
        "total": total,
    }


def _finalizes_at(row: JsonDocument) -> float | None:
    due_at = row["automatically_finalizes_at"]
    return None if row["status"] != "draft" or due_at is None else float(due_at)
