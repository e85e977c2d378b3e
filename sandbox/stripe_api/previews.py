"""Stripe's preview of the next invoice (stripe.md 6): for a subscription as it is, or as a change would make it.

Prorations are by the second, as at Stripe: the unused time of the old price is credited, and the rest of the period is
charged at the new price. Both go to the next invoice. If the change starts a new period, that invoice is due at once.
Only existing subscriptions can be previewed; there are no taxes and no discounts.
"""

from sandbox.http import JsonDocument
from sandbox.stripe_api import forms
from sandbox.stripe_api.errors import StripeApiError, invalid_param
from sandbox.stripe_api.invoice_documents import balance_effect, invoice_document
from sandbox.stripe_api.invoices import new_draft
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
        self._prorations = subscriptions.invoices.prorations
        self._items = subscriptions.invoices.items

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
        if behavior == "always_invoice" and prorated and not restarts_period:
            lines, due = [*self._items.pending_lines(before["id"]), *prorated], moment
        else:
            renewed, due = self._renewal(after, restarts_period=restarts_period)
            lines = [*self._items.pending_lines(before["id"]), *prorated, *renewed]
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
        price = self._tables.price(item["price"])
        period = period_at(row["billing_cycle_anchor"], due, price)
        return period["current_period_start"], period["current_period_end"]

    def _invoice(self, row: JsonDocument, lines: list[JsonDocument], due: int) -> JsonDocument:
        draft = new_draft(
            customer=row["customer"],
            currency=row["currency"],
            reason="upcoming",
            now=due,
            lines=lines,
            subscription=row,
            period=(min(item["current_period_start"] for item in row["items"]), due),
            invoice_id=new_id("upcoming_in_", 24),
            advances=False,
        )
        customer = self._tables.customers.get(row["customer"]) or {}
        balance = int(customer["balance"])
        amount, effect = balance_effect(draft["total"], balance)
        amounts = {"amount_due": amount, "amount_remaining": amount, "starting_balance": balance}
        url = f"/v1/invoices/upcoming/lines?subscription={row['id']}"
        return invoice_document({**draft, **amounts, "ending_balance": balance + effect}, url)


def _no_upcoming_invoice(row: JsonDocument) -> StripeApiError:
    return StripeApiError(404, f"No upcoming invoices for customer: {row['customer']}", code="invoice_upcoming_none")
