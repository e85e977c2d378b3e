"""Stripe's preview of the next invoice (stripe.md 6): for a subscription as it is, or as a change would make it.

Prorations are by the second, as at Stripe: the unused time of the old price is credited, and the rest of the period is
charged at the new price. Both go to the next invoice. If the change starts a new period, that invoice is due at once.
Only existing subscriptions can be previewed; there are no taxes, discounts or balances.
"""

from sandbox.http import JsonDocument
from sandbox.stripe_api import forms
from sandbox.stripe_api.errors import StripeApiError, invalid_param
from sandbox.stripe_api.serializers import StripeTables, new_id
from sandbox.stripe_api.subscriptions import (
    CHANGED_ITEM_FIELDS,
    ENDED_STATUSES,
    MAX_SUBSCRIPTION_ITEMS,
    PRORATION_BEHAVIOR_FIELD,
    StripeSubscriptionsApi,
    period_at,
)

PREVIEW_DETAILS_FIELDS = forms.record(
    {
        "items": forms.array(CHANGED_ITEM_FIELDS, MAX_SUBSCRIPTION_ITEMS),
        "proration_behavior": PRORATION_BEHAVIOR_FIELD,
        "proration_date": forms.integer(0),
        **dict.fromkeys(
            (
                "billing_cycle_anchor",
                "billing_mode",
                "billing_schedules",
                "cancel_at",
                "cancel_at_period_end",
                "cancel_now",
                "default_tax_rates",
                "metadata",
                "resume_at",
                "start_date",
                "trial_end",
            ),
            forms.unsupported,
        ),
    }
)
PREVIEW_FIELDS: forms.FormSchema = {
    "customer": forms.text(clearable=False),
    "preview_mode": forms.choice(("next",)),
    "subscription": forms.text(clearable=False),
    "subscription_details": PREVIEW_DETAILS_FIELDS,
    **dict.fromkeys(
        (
            "automatic_tax",
            "currency",
            "customer_account",
            "customer_details",
            "discounts",
            "invoice_items",
            "issuer",
            "on_behalf_of",
            "schedule",
            "schedule_details",
        ),
        forms.unsupported,
    ),
    **forms.EXPAND_FIELDS,
}


class StripePreviewsApi:
    def __init__(self, tables: StripeTables, subscriptions: StripeSubscriptionsApi) -> None:
        self._tables = tables
        self._subscriptions = subscriptions
        self._prorations = subscriptions.prorations

    def create(self, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, PREVIEW_FIELDS, "subscription")
        details = sent.get("subscription_details") or {}
        before = self._subscriptions.find_existing(sent["subscription"])
        if "customer" in sent and sent["customer"] != before["customer"]:
            raise invalid_param("customer", "The subscription does not belong to this customer.")
        if before["status"] in ENDED_STATUSES:
            raise _no_upcoming_invoice(before)
        moment = self._proration_time(details.get("proration_date"), before)
        after = self._subscriptions.with_changed_items(before, details.get("items") or [])
        restarts_period = self._subscriptions.restarts_period(before, after)
        behavior = details.get("proration_behavior", "create_prorations")
        prorated = (
            []
            if behavior == "none"
            else self._prorations.lines_between(before, after, moment, restarts_period=restarts_period)
        )
        if behavior == "always_invoice" and prorated:
            lines, due = prorated, moment
        else:
            renewed, due = self._renewal(after, restarts_period=restarts_period)
            lines = [*self._prorations.pending(before["id"]), *prorated, *renewed]
        if not lines:
            raise _no_upcoming_invoice(before)
        return self._tables.expanded(self._invoice(after, lines, due), sent)

    def _proration_time(self, proration_date: int | None, row: JsonDocument) -> int:
        moment = self._tables.now() if proration_date is None else proration_date
        starts = min(item["current_period_start"] for item in row["items"])
        ends = max(item["current_period_end"] for item in row["items"])
        if not starts <= moment <= ends:
            message = "Cannot specify `proration_date` outside of the subscription's current period."
            raise invalid_param("subscription_details[proration_date]", message)
        return moment

    def _renewal(self, after: JsonDocument, *, restarts_period: bool) -> tuple[list[JsonDocument], int]:
        """The full price of the period that starts with the invoice, and when it starts."""
        due = self._tables.now() if restarts_period else min(item["current_period_end"] for item in after["items"])
        if after["cancel_at"] is not None and after["cancel_at"] <= due:
            return [], due
        items = [item for item in after["items"] if restarts_period or item["current_period_end"] == due]
        return [self._prorations.whole_period(item, *self._period(after, item, due)) for item in items], due

    def _period(self, row: JsonDocument, item: JsonDocument, due: int) -> tuple[int, int]:
        price = self._tables.prices.get(item["price"])
        assert price is not None, item["price"]  # noqa: S101  # prices cannot be deleted
        period = period_at(row["billing_cycle_anchor"], due, price)
        return period["current_period_start"], period["current_period_end"]

    def _invoice(self, row: JsonDocument, lines: list[JsonDocument], due: int) -> JsonDocument:
        invoice_id = new_id("upcoming_in_", 24)
        total = sum(line["amount"] for line in lines)
        line_documents = [_line(line, invoice_id, row) for line in lines]
        return {
            "id": invoice_id,
            "object": "invoice",
            **_amounts(total),
            "attempt_count": 0,
            "attempted": False,
            "auto_advance": False,
            "automatic_tax": {
                "disabled_reason": None,
                "enabled": False,
                "liability": None,
                "provider": None,
                "status": None,
            },
            "billing_reason": "upcoming",
            "collection_method": row["collection_method"],
            "created": due,
            "currency": row["currency"],
            "customer": row["customer"],
            "default_tax_rates": [],
            "discounts": [],
            "issuer": {"type": "self"},
            "lines": {
                "object": "list",
                "data": line_documents,
                "has_more": False,
                "total_count": len(line_documents),
                "url": f"/v1/invoices/upcoming/lines?subscription={row['id']}",
            },
            "livemode": False,
            "next_payment_attempt": None if row["collection_method"] == "send_invoice" else due + 3600,
            "parent": {
                "quote_details": None,
                "subscription_details": {"metadata": row["metadata"], "subscription": row["id"]},
                "type": "subscription_details",
            },
            "payment_settings": {
                "default_mandate": None,
                "payment_method_options": None,
                "payment_method_types": None,
            },
            "period_end": due,
            "period_start": min(item["current_period_start"] for item in row["items"]),
            "status": "draft",
            "status_transitions": dict.fromkeys(("finalized_at", "marked_uncollectible_at", "paid_at", "voided_at")),
        }


def _amounts(total: int) -> JsonDocument:
    """A negative total is credited to the following invoice; nothing is paid out."""
    due = max(0, total)
    return {
        "amount_due": due,
        "amount_overpaid": 0,
        "amount_paid": 0,
        "amount_paid_off_stripe": 0,
        "amount_remaining": due,
        "amount_shipping": 0,
        "ending_balance": min(0, total),
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "starting_balance": 0,
        "subtotal": total,
        "total": total,
    }


def _line(line: JsonDocument, invoice_id: str, row: JsonDocument) -> JsonDocument:
    return {
        "id": new_id("il_tmp_", 24),
        "object": "line_item",
        "amount": line["amount"],
        "currency": row["currency"],
        "description": None,
        "discount_amounts": [],
        "discountable": not line["proration"],
        "discounts": [],
        "invoice": invoice_id,
        "livemode": False,
        "metadata": {},
        "parent": {
            "invoice_item_details": None,
            "subscription_item_details": {
                "invoice_item": None,
                "proration": line["proration"],
                "proration_details": {"credited_items": None},
                "subscription": row["id"],
                "subscription_item": line["item"],
            },
            "type": "subscription_item_details",
        },
        "period": {"start": line["start"], "end": line["end"]},
        "pretax_credit_amounts": [],
        "pricing": {
            "price_details": {"price": line["price"], "product": line["product"]},
            "type": "price_details",
            "unit_amount_decimal": str(line["unit_amount"]),
        },
        "quantity": line["quantity"],
        "subscription": row["id"],
        "subtotal": line["amount"],
        "taxes": [],
    }


def _no_upcoming_invoice(row: JsonDocument) -> StripeApiError:
    return StripeApiError(404, f"No upcoming invoices for customer: {row['customer']}", code="invoice_upcoming_none")
