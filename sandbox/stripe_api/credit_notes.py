"""Stripe's credit notes (stripe.md 9): they lower a finalized invoice, first what is still due of it.

What goes beyond that was paid, and is credited to the customer's balance or outside of Stripe. Refunds are not
implemented, since the sandbox has no charges.
"""

from sandbox.http import JsonDocument
from sandbox.stripe_api import forms
from sandbox.stripe_api.balances import StripeBalancesApi
from sandbox.stripe_api.errors import StripeApiError, invalid_param, missing_param, not_found
from sandbox.stripe_api.invoices import StripeInvoicesApi
from sandbox.stripe_api.serializers import StripeTables, new_id

CREDITABLE_STATUSES = ("open", "paid", "uncollectible")
CREDIT_NOTE_REASONS = ("duplicate", "fraudulent", "order_change", "product_unsatisfactory")
CREDIT_NOTE_LINE_FIELDS = forms.record(
    {
        "amount": forms.integer(0),
        "description": forms.text(),
        "invoice_line_item": forms.text(clearable=False),
        "quantity": forms.integer(0),
        "type": forms.choice(("custom_line_item", "invoice_line_item")),
        "unit_amount": forms.integer(0),
        **dict.fromkeys(("metadata", "tax_amounts", "tax_rates", "unit_amount_decimal"), forms.unsupported),
    },
    required=("type",),
)
CREDIT_NOTE_FIELDS: forms.FormSchema = {
    "amount": forms.integer(0),
    "credit_amount": forms.integer(0),
    "effective_at": forms.integer(0),
    "email_type": forms.choice(("credit_note", "none")),
    "invoice": forms.text(clearable=False),
    "lines": forms.array(CREDIT_NOTE_LINE_FIELDS),
    "memo": forms.text(),
    "metadata": forms.metadata,
    "out_of_band_amount": forms.integer(0),
    "reason": forms.choice(CREDIT_NOTE_REASONS),
    **dict.fromkeys(("refund_amount", "refunds", "shipping_cost"), forms.unsupported),
    **forms.EXPAND_FIELDS,
}
CREDIT_NOTE_LIST_FIELDS: forms.FormSchema = {
    **forms.PAGINATION_FIELDS,
    "created": forms.time_range,
    "customer": forms.text(clearable=False),
    "customer_account": forms.unsupported,
    "invoice": forms.text(clearable=False),
}


class StripeCreditNotesApi:
    def __init__(self, tables: StripeTables, invoices: StripeInvoicesApi, balances: StripeBalancesApi) -> None:
        self._tables = tables
        self._invoices = invoices
        self._balances = balances

    def create(self, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, CREDIT_NOTE_FIELDS, "invoice")
        invoice = self._invoice(sent)
        row = self._new_row(invoice, sent)
        if credited := sent.get("credit_amount"):
            currency = invoice["currency"]
            transaction = self._balances.change(
                invoice["customer"], -credited, "credit_note", currency, invoice=invoice["id"], credit_note=row["id"]
            )
            row["customer_balance_transaction"] = transaction["id"]
        self._tables.credit_notes.put(row["id"], row)
        self._tables.emit("credit_note.created", row)
        self._invoices.credit(invoice, row["pre_payment_amount"], row["post_payment_amount"])
        return self._tables.expanded(row, sent)

    def preview(self, form: JsonDocument) -> JsonDocument:
        """The credit note that ``create`` would issue; nothing is stored."""
        sent = forms.validate(form, CREDIT_NOTE_FIELDS, "invoice")
        return self._tables.expanded(self._new_row(self._invoice(sent), sent), sent)

    def retrieve(self, credit_note_id: str, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, forms.EXPAND_FIELDS)
        return self._tables.expanded(self._find_existing(credit_note_id), sent)

    def list_credit_notes(self, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, CREDIT_NOTE_LIST_FIELDS)
        table = self._tables.credit_notes
        rows = table.find_by("invoice", sent["invoice"]) if "invoice" in sent else list(table)
        rows = [row for row in rows if sent.get("customer") in (None, row["customer"])]
        return self._tables.expanded(self._tables.page(rows, sent, "/v1/credit_notes"), sent)

    def void(self, credit_note_id: str, form: JsonDocument) -> JsonDocument:
        """Only one that lowered an open invoice can be voided; the invoice then has its amount again."""
        sent = forms.validate(form, forms.EXPAND_FIELDS)
        row = self._find_existing(credit_note_id)
        invoice = self._invoices.find_existing(row["invoice"])
        if row["status"] == "void" or row["type"] != "pre_payment" or invoice["status"] != "open":
            raise StripeApiError(400, "You can only void issued credit notes of open invoices.", stored=True)
        row = {**row, "status": "void", "voided_at": self._tables.now()}
        self._tables.credit_notes.put(row["id"], row)
        self._tables.emit("credit_note.voided", row)
        self._invoices.credit(invoice, -row["pre_payment_amount"], 0)
        return self._tables.expanded(row, sent)

    def _find_existing(self, credit_note_id: str) -> JsonDocument:
        if (row := self._tables.credit_notes.get(credit_note_id)) is None:
            raise not_found("credit_note", credit_note_id)
        return row

    def _invoice(self, sent: JsonDocument) -> JsonDocument:
        invoice = self._tables.invoices.get(sent["invoice"])
        if invoice is None:
            raise not_found("invoice", sent["invoice"], "invoice", in_path=False)
        if invoice["status"] not in CREDITABLE_STATUSES:
            message = f"You cannot create a credit note for an invoice with the status {invoice['status']}."
            raise StripeApiError(400, message, param="invoice", stored=True)
        return invoice

    def _new_row(self, invoice: JsonDocument, sent: JsonDocument) -> JsonDocument:
        lines = _lines(invoice, sent)
        amount = sum(line["amount"] for line in lines)
        issued = self._tables.credit_notes.find_by("invoice", invoice["id"])
        creditable = invoice["total"] - sum(row["amount"] for row in issued if row["status"] == "issued")
        if not 0 < amount <= creditable:
            message = (
                f"The credit note's amount must be positive and at most {creditable}, what is left of the invoice."
            )
            raise StripeApiError(400, message, param="amount", stored=True)
        before_payment = min(amount, invoice["amount_remaining"])
        _check_channels(sent, amount - before_payment)
        return _row(invoice, sent, lines, before_payment, number=len(issued) + 1, now=self._tables.now())


def _lines(invoice: JsonDocument, sent: JsonDocument) -> list[JsonDocument]:
    if ("amount" in sent) == ("lines" in sent):
        message = "You must specify one of these parameters: amount, lines."
        raise missing_param("amount") if "amount" not in sent else invalid_param("amount", message)
    if "amount" in sent:
        whole = {"type": "custom_line_item", "quantity": 1, "unit_amount": sent["amount"]}
        return [_line(invoice, whole, "amount")]
    return [_line(invoice, line, f"lines[{number}]") for number, line in enumerate(sent["lines"])]


def _line(invoice: JsonDocument, sent: JsonDocument, param: str) -> JsonDocument:
    """A part of a line of the invoice, or an amount of its own."""
    credited = None
    if sent["type"] == "invoice_line_item":
        credited = next((line for line in invoice["lines"] if line["id"] == sent.get("invoice_line_item")), None)
        if credited is None:
            raise not_found("invoice_line_item", str(sent.get("invoice_line_item")), f"{param}[invoice_line_item]")
    unit_amount = sent.get("unit_amount", credited["unit_amount"] if credited else None)
    quantity = sent.get("quantity", 1)
    if "amount" not in sent and unit_amount is None:
        raise missing_param(f"{param}[unit_amount]")
    amount = sent["amount"] if "amount" in sent else unit_amount * quantity
    if credited is not None and amount > credited["amount"]:
        raise invalid_param(f"{param}[amount]", "You cannot credit more than the amount of the invoice's line.")
    document = {
        "id": new_id("cnli_", 24),
        "object": "credit_note_line_item",
        "amount": amount,
        "description": sent.get("description"),
        "discount_amount": 0,
        "discount_amounts": [],
        "livemode": False,
        "metadata": {},
        "pretax_credit_amounts": [],
        "quantity": None if "amount" in sent else quantity,
        "tax_rates": [],
        "taxes": [],
        "type": sent["type"],
        "unit_amount": None if "amount" in sent else unit_amount,
        "unit_amount_decimal": None if "amount" in sent else str(unit_amount),
    }
    return document | ({"invoice_line_item": credited["id"]} if credited else {})


def _check_channels(sent: JsonDocument, after_payment: int) -> None:
    """What was paid must be credited somewhere, and no more than that."""
    given = sent.get("credit_amount", 0) + sent.get("out_of_band_amount", 0)
    if given != after_payment:
        message = (
            f"The sum of credit amount, refund amount and out of band amount ({given}) must equal the credit note's "
            f"post-payment amount ({after_payment})."
        )
        raise StripeApiError(400, message, stored=True)


def _row(  # noqa: PLR0913  # the parts of a credit note
    invoice: JsonDocument, sent: JsonDocument, lines: list[JsonDocument], before_payment: int, *, number: int, now: int
) -> JsonDocument:
    credit_note_id = new_id("cn_", 24)
    amount = sum(line["amount"] for line in lines)
    after_payment = amount - before_payment
    parts = {(True, False): "pre_payment", (False, True): "post_payment", (True, True): "mixed"}
    return {
        "id": credit_note_id,
        "object": "credit_note",
        "amount": amount,
        "amount_shipping": 0,
        "created": now,
        "currency": invoice["currency"],
        "customer": invoice["customer"],
        "customer_account": None,
        "customer_balance_transaction": None,
        "discount_amount": 0,
        "discount_amounts": [],
        "effective_at": sent.get("effective_at", now),
        "invoice": invoice["id"],
        "lines": {
            "object": "list",
            "data": lines,
            "has_more": False,
            "url": f"/v1/credit_notes/{credit_note_id}/lines",
        },
        "livemode": False,
        "memo": sent.get("memo"),
        "metadata": forms.merge_metadata({}, sent.get("metadata", {})),
        "number": f"{invoice['number']}-CN-{number:02}",
        "out_of_band_amount": sent.get("out_of_band_amount"),
        "pdf": f"https://pay.stripe.com/credit_notes/acct_sandbox/{credit_note_id}/pdf",
        "post_payment_amount": after_payment,
        "pre_payment_amount": before_payment,
        "pretax_credit_amounts": [],
        "reason": sent.get("reason"),
        "refunds": [],
        "shipping_cost": None,
        "status": "issued",
        "subtotal": amount,
        "subtotal_excluding_tax": amount,
        "total": amount,
        "total_excluding_tax": amount,
        "total_taxes": [],
        "type": parts[before_payment > 0, after_payment > 0],
        "voided_at": None,
    }
