"""The invoices that Stripe makes for a subscription (stripe.md 9): at its start, changes, renewals and its end.

One that is charged automatically is finalized and charged at once, except at a renewal; one that is sent stays a draft
for an hour. A renewal is a draft for an hour either way.
"""

from sandbox.http import JsonDocument
from sandbox.stripe_api.invoice_items import StripeInvoiceItemsApi
from sandbox.stripe_api.invoices import StripeInvoicesApi, new_draft
from sandbox.stripe_api.prorations import StripeProrations, mark_billed
from sandbox.stripe_api.serializers import StripeTables


class StripeSubscriptionInvoices:
    """Each method changes the subscription's ``row`` (``latest_invoice``, what its items were billed), unsaved."""

    def __init__(self, tables: StripeTables, invoices: StripeInvoicesApi) -> None:
        self._tables = tables
        self._invoices = invoices
        self.items = StripeInvoiceItemsApi(tables)
        self.prorations = StripeProrations(tables)

    def at_start(self, row: JsonDocument) -> None:
        if row["status"] != "trialing":
            mark_billed(row)
        self._bill(row, self._periods(row), "subscription_create")

    def at_change(self, old: JsonDocument, row: JsonDocument, behavior: str, moment: int, *, restarts: bool) -> None:
        """``behavior`` is that of the update. With ``restarts`` a new period begins, and is billed, now."""
        if row["status"] == "trialing":
            return
        prorated = (
            [] if behavior == "none" else self.prorations.lines_between(old, row, moment, restarts_period=restarts)
        )
        if restarts:
            mark_billed(row)
        elif behavior != "none":
            mark_billed(row, unchanged_since=old)
        if restarts:
            self._bill(row, [*self._pending(row), *prorated, *self._periods(row)], "subscription_update")
        elif behavior == "always_invoice" and prorated:
            start = min(item["current_period_start"] for item in old["items"])
            lines = [*self._pending(row), *prorated]
            self._bill(row, lines, "subscription_update", period=(start, moment))
        else:
            self.items.add(row, prorated)

    def at_renewal(self, row: JsonDocument, renewed: list[JsonDocument], period: tuple[int, int]) -> None:
        """``renewed`` are the items whose period ended, with their new one; ``period`` is the one that ended."""
        mark_billed({**row, "items": renewed})
        lines = [*self._pending(row), *self._periods({**row, "items": renewed})]
        pause = (row["pause_collection"] or {}).get("behavior")
        draft = self._draft(row, lines, "subscription_cycle", period=period, advances=pause is None)
        if pause == "void":
            self._invoices.void_row(self._invoices.finalize(draft))
        elif pause == "mark_uncollectible":
            self._invoices.mark_row_uncollectible(self._invoices.finalize(draft))

    def at_end(self, row: JsonDocument, *, prorate: bool, invoice_now: bool) -> None:
        """The subscription was canceled now. A final invoice that only credits never reaches the customer's balance."""
        now = self._tables.now()
        if not prorate and not invoice_now:
            self.items.remove_pending(row["id"])
        if prorate:
            self.items.add(row, self.prorations.unused_time(row, now))
        pending = self._pending(row) if invoice_now else []
        if pending:
            start = min(item["current_period_start"] for item in row["items"])
            draft = self._draft(row, pending, "subscription_cycle", period=(start, now))
            if draft["total"] < 0:
                self._invoices.mark_row_uncollectible(draft)
            elif row["collection_method"] == "charge_automatically":
                self._invoices.charge_if_automatic(self._invoices.finalize(draft))
        self._invoices.end_collection(row["customer"])

    def at_expiry(self, row: JsonDocument) -> None:
        """The first payment did not come in time: the open invoice is voided."""
        invoice = self._tables.invoices.get(row["latest_invoice"] or "")
        if invoice is not None and invoice["status"] == "open":
            self._invoices.void_row(invoice)

    def _bill(
        self, row: JsonDocument, lines: list[JsonDocument], reason: str, *, period: tuple[int, int] | None = None
    ) -> None:
        draft = self._draft(row, lines, reason, period=period)
        if row["collection_method"] == "charge_automatically" or draft["total"] == 0:
            opened = self._invoices.finalize(draft)
            if row["status"] != "incomplete":
                self._invoices.charge_if_automatic(opened)

    def _draft(
        self,
        row: JsonDocument,
        lines: list[JsonDocument],
        reason: str,
        *,
        period: tuple[int, int] | None = None,
        advances: bool = True,
    ) -> JsonDocument:
        draft = new_draft(
            customer=row["customer"],
            currency=row["currency"],
            reason=reason,
            now=self._tables.now(),
            lines=lines,
            subscription=row,
            period=period,
            advances=advances,
        )
        self.items.attach(lines, draft["id"])
        row["latest_invoice"] = draft["id"]
        return self._invoices.create(draft)

    def _pending(self, row: JsonDocument) -> list[JsonDocument]:
        return self.items.pending_lines(row["id"])

    def _periods(self, row: JsonDocument) -> list[JsonDocument]:
        """A trial is a line of 0."""
        lines = [
            self.prorations.whole_period(item, item["current_period_start"], item["current_period_end"])
            for item in row["items"]
        ]
        free: JsonDocument = {"amount": 0, "unit_amount": 0} if row["status"] == "trialing" else {}
        return [{**line, **free} for line in lines]
