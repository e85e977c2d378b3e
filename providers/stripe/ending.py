"""What a subscription that we ended leaves: unused time is credited on the invoices that billed it, once.

Stripe's own proration of a cancellation never reaches the customer (stripe.md 9). So we work it out from the invoices:
of each line whose period goes on after the end, the share of the seconds that are left. A paid invoice is credited to
the customer's balance, an open one is reduced. A draft is finalized first, unless somebody paused the collection. An
invoice of periods that have ended, one that is void, and one that was given up (uncollectible) stay as they are.
Nothing is refunded: a person does that.

Each step may be repeated. The end is the moment that Stripe stored, the share is computed from it again, and a credit
note that names the subscription is not written a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import stripe
from stripe.params import CreditNoteCreateParams, CreditNoteListParams, InvoiceListParams

from core.ports.errors import RejectedError
from core.ports.observed import ObservedCredit
from core.ports.planned import PlannedPrice, PlannedStep
from core.ports.provider import AttemptContext
from providers.stripe.balances import credit_of
from providers.stripe.client import STRIPE_PAGE_SIZE, StripeClient, with_idempotency_key, with_new_idempotency_key
from providers.stripe.errors import STRIPE
from providers.stripe.metadata import ENDED_SUBSCRIPTION_KEY
from providers.stripe.minor_units import STRIPE_UNITS
from providers.stripe.responses import (
    StripeCreditNote,
    StripeCustomer,
    StripeInvoice,
    StripeInvoiceLine,
    StripePage,
    StripePeriod,
    StripeSubscription,
)

# Marks a cancellation as ours, so that what somebody else ended, and perhaps refunded, is not credited.
OUR_END: Final = "ended by billing-sync"
CREDIT_NOT_COMPUTABLE: Final = "credit_not_computable"

_MAX_INVOICE_PAGES = 10
_CREDITED_STATUSES = frozenset({"draft", "open", "paid"})


@dataclass(frozen=True, slots=True)
class InvoiceCredit:
    """``amount`` in Stripe's minor units."""

    invoice: StripeInvoice
    amount: int


class StripeEnding:
    def __init__(self, client: StripeClient) -> None:
        self._client = client

    def credit_unused(self, ended: StripeSubscription, attempt: AttemptContext) -> ObservedCredit | None:
        """Credit what was billed for the time after the end. Raises ``RejectedError`` if that cannot be computed.

        Returns the credit on the customer's balance by the last credit note; None if there is no note.
        """
        if ended.ended_at is None or ended.cancellation_comment != OUR_END:
            return None
        invoices = self._invoices(ended.id, attempt)
        if ended.pause_collection is not None:
            # Somebody decided not to bill its drafts yet, and nothing collects them.
            invoices = [each for each in invoices if each.status != "draft"]
        on_balance: ObservedCredit | None = None
        for credit in unused_credits(invoices, ended.ended_at):
            note = self._find_note(credit.invoice, ended, attempt)
            if note is None:
                _refuse_other_amounts(credit.invoice, ended)
                note = self._credit(credit, ended, attempt)
            if note is not None and isinstance(note.customer, StripeCustomer):
                on_balance = credit_of(note.customer) or on_balance
        return on_balance

    def planned_credits(
        self, subscription: StripeSubscription, ended_at: int, attempt: AttemptContext
    ) -> list[PlannedStep]:
        """What would be credited if it ended then, for an attempt that only plans. Raises as ``credit_unused`` does."""
        invoices = self._invoices(subscription.id, attempt)
        if subscription.pause_collection is not None:
            invoices = [each for each in invoices if each.status != "draft"]
        to_credit = unused_credits(invoices, ended_at)
        for credit in to_credit:
            _refuse_other_amounts(credit.invoice, subscription)
        # The end invoices what was changed within the period, and that is credited, too.
        is_all_invoiced = abs(sum(each.amount for each in to_credit) - _unused_now(subscription, ended_at)) <= 1
        currency = subscription.items.data[0].price.currency.upper()
        return [
            PlannedStep(
                kind="credit_unused_time",
                object_id=each.invoice.id,
                price_after=PlannedPrice(
                    amount=STRIPE_UNITS.from_provider(min(each.amount, each.invoice.creditable), currency)
                    if is_all_invoiced
                    else None,
                    currency=currency,
                    interval=None,
                ),
            )
            for each in to_credit
            if each.invoice.creditable > 0
        ]

    def _credit(
        self, credit: InvoiceCredit, ended: StripeSubscription, attempt: AttemptContext
    ) -> StripeCreditNote | None:
        attempt.before_change(lambda: [PlannedStep(kind="credit_unused_time", object_id=credit.invoice.id)])
        invoice = self._finalized(credit.invoice, attempt)
        amount = min(credit.amount, invoice.creditable)
        if amount <= 0:
            return None
        body: CreditNoteCreateParams = {
            "invoice": invoice.id,
            "amount": amount,
            "memo": "Unused time after the end of the subscription",
            "metadata": {ENDED_SUBSCRIPTION_KEY: ended.id},
            "expand": ["customer"],
        }
        if amount > invoice.amount_remaining:
            body["credit_amount"] = amount - invoice.amount_remaining
        options = with_idempotency_key(f"credit_unused:{ended.id}:{invoice.id}")
        return self._client.send(
            attempt,
            "POST /v1/credit_notes",
            f"credit the unused time of subscription {ended.id} on invoice {invoice.id}",
            lambda: self._client.v1.credit_notes.create(body, options),
            StripeCreditNote,
        )

    def _finalized(self, invoice: StripeInvoice, attempt: AttemptContext) -> StripeInvoice:
        """A draft takes no credit note, and would be finalized in full within the hour."""
        if invoice.status != "draft":
            return invoice
        options = with_new_idempotency_key("finalize_invoice")
        return self._client.send(
            attempt,
            "POST /v1/invoices/{id}/finalize",
            f"finalize invoice {invoice.id}",
            lambda: self._client.v1.invoices.finalize_invoice(invoice.id, {}, options),
            StripeInvoice,
        )

    def _find_note(
        self, invoice: StripeInvoice, ended: StripeSubscription, attempt: AttemptContext
    ) -> StripeCreditNote | None:
        """The credit note that was written for this end before."""

        def fetch_page(last_id: str | None) -> stripe.StripeObject:
            params: CreditNoteListParams = {
                "invoice": invoice.id,
                "limit": STRIPE_PAGE_SIZE,
                "expand": ["data.customer"],
            }
            return self._client.v1.credit_notes.list(
                params if last_id is None else {**params, "starting_after": last_id}
            )

        if invoice.status == "draft":
            return None
        purpose = f"list the credit notes of invoice {invoice.id}"
        page_type = StripePage[StripeCreditNote]
        notes = self._client.list_all(
            attempt, "GET /v1/credit_notes", purpose, fetch_page, page_type, _MAX_INVOICE_PAGES
        )
        return next((note for note in notes if note.ended_subscription_id == ended.id), None)

    def _invoices(self, subscription_id: str, attempt: AttemptContext) -> list[StripeInvoice]:
        def fetch_page(last_id: str | None) -> stripe.StripeObject:
            params: InvoiceListParams = {"subscription": subscription_id, "limit": STRIPE_PAGE_SIZE}
            return self._client.v1.invoices.list(params if last_id is None else {**params, "starting_after": last_id})

        purpose = f"list the invoices of subscription {subscription_id}"
        return self._client.list_all(
            attempt, "GET /v1/invoices", purpose, fetch_page, StripePage[StripeInvoice], _MAX_INVOICE_PAGES
        )


def unused_credits(invoices: Sequence[StripeInvoice], ended_at: int) -> list[InvoiceCredit]:
    """What to credit on each invoice. A proration that credited time before is taken into account.

    An invoice with a negative total never reached the customer, so what it would have given is credited on the others.
    """
    unused = {each.id: sum(unused_amount(line, ended_at) for line in each.lines.data) for each in invoices}
    lost = [each for each in invoices if each.total < 0 and each.status in {"draft", "uncollectible"}]
    carried = sum(unused[each.id] - each.total for each in lost if unused[each.id])
    credited = [each for each in invoices if each.total > 0 and each.status in _CREDITED_STATUSES and unused[each.id]]
    carried += sum(min(0, unused[each.id]) for each in credited)
    found: list[InvoiceCredit] = []
    for invoice in credited:
        due = max(0, unused[invoice.id]) + carried
        amount = min(max(0, due), invoice.total)
        carried = due - amount
        if amount:
            found.append(InvoiceCredit(invoice, amount))
    return found


def unused_amount(line: StripeInvoiceLine, ended_at: int) -> int:
    """The part of the line's amount for the seconds after the end, rounded as Stripe rounds a credit (stripe.md 9)."""
    length = line.period.end - line.period.start
    left = line.period.end - max(line.period.start, ended_at)
    return -(-line.amount * left // length) if left > 0 and length > 0 else 0


def _unused_now(subscription: StripeSubscription, ended_at: int) -> int:
    """What is left of the period at the prices of now."""
    return sum(
        unused_amount(
            StripeInvoiceLine(
                id="",
                amount=(item.price.unit_amount or 0) * item.quantity,
                period=StripePeriod(start=item.current_period_start, end=item.current_period_end),
            ),
            ended_at,
        )
        for item in subscription.items.data
    )


def _refuse_other_amounts(invoice: StripeInvoice, ended: StripeSubscription) -> None:
    """A discount or a tax is not on the lines, so their share would be the wrong amount."""
    if invoice.lines.has_more or sum(line.amount for line in invoice.lines.data) != invoice.total:
        message = (
            f"subscription {ended.id} has ended, but what is left of invoice {invoice.id} cannot be computed, because "
            "it has discounts, taxes or many lines: create a credit note for the unused time in Stripe with metadata "
            f"{ENDED_SUBSCRIPTION_KEY}={ended.id}, then run `billing-sync retry ORG`"
        )
        raise RejectedError(STRIPE, message, CREDIT_NOT_COMPUTABLE)
