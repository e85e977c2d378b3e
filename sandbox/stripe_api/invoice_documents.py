"""How Stripe shows an invoice and its lines (stripe.md 9): the same for a stored invoice and for a preview."""

from collections.abc import Iterable

from sandbox.http import JsonDocument

INVOICE_TRANSITIONS = ("finalized_at", "marked_uncollectible_at", "paid_at", "voided_at")

# Fields that the sandbox never sets.
EMPTY_INVOICE_FIELDS = (
    "account_country",
    "account_name",
    "account_tax_ids",
    "application",
    "custom_fields",
    "customer_account",
    "customer_address",
    "customer_phone",
    "customer_shipping",
    "default_payment_method",
    "default_source",
    "footer",
    "from_invoice",
    "last_finalization_error",
    "latest_revision",
    "next_payment_attempt",
    "on_behalf_of",
    "receipt_number",
    "rendering",
    "shipping_cost",
    "shipping_details",
    "statement_descriptor",
    "test_clock",
    "webhooks_delivered_at",
)
# Fields that a row has under the same name.
INVOICE_ROW_FIELDS = (
    "id",
    "amount_due",
    "amount_paid",
    "amount_remaining",
    "attempt_count",
    "attempted",
    "auto_advance",
    "automatically_finalizes_at",
    "billing_reason",
    "collection_method",
    "created",
    "currency",
    "customer",
    "customer_email",
    "customer_name",
    "description",
    "due_date",
    "effective_at",
    "ending_balance",
    "metadata",
    "number",
    "period_end",
    "period_start",
    "post_payment_credit_notes_amount",
    "pre_payment_credit_notes_amount",
    "starting_balance",
    "status",
    "status_transitions",
    "total",
)


def balance_effect(total: int, balance: int) -> tuple[int, int]:
    """``(amount due, change of the balance)`` when an invoice meets a customer's balance.

    Credit (below zero) pays for the invoice as far as it goes, a debt (above zero) is charged with it, and a negative
    total becomes credit. Nothing is paid out.
    """
    if total < 0:
        return 0, total
    credit_used = min(max(0, -balance), total)
    debt = max(0, balance)
    return total + debt - credit_used, credit_used - debt


def invoice_document(row: JsonDocument, lines_url: str = "") -> JsonDocument:
    lines = [line_document(line, row) for line in row["lines"]]
    hosted = f"https://invoice.stripe.com/i/acct_sandbox/{row['id']}" if row["number"] else None
    return {
        "object": "invoice",
        **{name: row[name] for name in INVOICE_ROW_FIELDS},
        **dict.fromkeys(EMPTY_INVOICE_FIELDS),
        "amount_overpaid": 0,
        "amount_paid_off_stripe": 0,
        "amount_shipping": 0,
        "automatic_tax": {
            "disabled_reason": None,
            "enabled": False,
            "liability": None,
            "provider": None,
            "status": None,
        },
        "customer_tax_exempt": "none",
        "customer_tax_ids": [],
        "default_tax_rates": [],
        "discounts": [],
        "hosted_invoice_url": hosted,
        "invoice_pdf": f"{hosted}/pdf" if hosted else None,
        "issuer": {"type": "self"},
        "lines": {
            "object": "list",
            "data": lines,
            "has_more": False,
            "total_count": len(lines),
            "url": lines_url or f"/v1/invoices/{row['id']}/lines",
        },
        "livemode": False,
        "parent": _parent(row),
        "payment_settings": {
            "default_mandate": None,
            "payment_method_options": None,
            "payment_method_types": None,
        },
        "subtotal": row["total"],
        "subtotal_excluding_tax": row["total"],
        "total_discount_amounts": [],
        "total_excluding_tax": row["total"],
        "total_pretax_credit_amounts": [],
        "total_taxes": [],
    }


def total_of(lines: Iterable[JsonDocument]) -> int:
    return sum(int(line["amount"]) for line in lines)


def line_document(line: JsonDocument, invoice: JsonDocument) -> JsonDocument:
    return {
        "id": line["id"],
        "object": "line_item",
        "amount": line["amount"],
        "currency": invoice["currency"],
        "description": None,
        "discount_amounts": [],
        "discountable": not line["proration"],
        "discounts": [],
        "invoice": invoice["id"],
        "livemode": False,
        "metadata": {},
        "parent": _line_parent(line, invoice),
        "period": {"start": line["start"], "end": line["end"]},
        "pretax_credit_amounts": [],
        "pricing": line["price"]
        and {
            "price_details": {"price": line["price"], "product": line["product"]},
            "type": "price_details",
            "unit_amount_decimal": str(line["unit_amount"]),
        },
        "quantity": line["quantity"],
        "quantity_decimal": str(line["quantity"]),
        "subscription": invoice["subscription"],
        "subtotal": line["amount"],
        "taxes": [],
    }


def _parent(row: JsonDocument) -> JsonDocument | None:
    if row["subscription"] is None:
        return None
    return {
        "quote_details": None,
        "subscription_details": {"metadata": row["subscription_metadata"], "subscription": row["subscription"]},
        "type": "subscription_details",
    }


def _line_parent(line: JsonDocument, invoice: JsonDocument) -> JsonDocument | None:
    """A proration is shown under its subscription item, also where an invoice item is behind it (stripe.md 9)."""
    if line["item"] is None:
        return None
    return {
        "invoice_item_details": None,
        "subscription_item_details": {
            "invoice_item": line["invoice_item"],
            "proration": line["proration"],
            "proration_details": {"credited_items": None},
            "subscription": invoice["subscription"],
            "subscription_item": line["item"],
        },
        "type": "subscription_item_details",
    }
