"""Quotes of plan changes from Stripe's own invoice preview.

The previewed update is the one that ``plan_changes`` decides on, so it is the one that would be sent. An upgrade while
a lower plan is scheduled takes two updates. No preview shows both, so the quote then has no amount.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

from stripe.params import InvoiceCreatePreviewParams

from core.ports.provider import RequestPermits
from core.ports.quotes import PlanChangeQuery, Quote
from core.ports.spec import SubscriptionSpec
from providers.stripe.client import StripeClient, with_new_idempotency_key
from providers.stripe.minor_units import STRIPE_UNITS
from providers.stripe.plan_changes import StripeUpdate, SubscriptionState, next_update, parse_state
from providers.stripe.prices import StripePrices, interval_of
from providers.stripe.responses import StripeModel, StripePage, StripePrice, StripeSubscription, StripeSubscriptionItem
from providers.transport.permits import READ_ONLY

_NO_STRIPE_SUBSCRIPTION = "Stripe has no subscription for this organization yet; the first invoice is created with it"
_SUBSCRIPTION_ENDED = "the subscription has ended in Stripe"
_NEEDS_TWO_UPDATES = "the scheduled plan is canceled first, and Stripe previews one update only"
_TOO_MANY_LINES = "the invoice has more lines than Stripe returns in one page"
_NEW_PERIOD_BEGINS = "a new period begins with the change; the invoice after it does not exist yet"


class _LineItemDetails(StripeModel):
    proration: bool = False


class _LineParent(StripeModel):
    subscription_item_details: _LineItemDetails | None = None


class _InvoiceLine(StripeModel):
    amount: int
    parent: _LineParent | None = None

    @property
    def is_prorated(self) -> bool:
        details = self.parent.subscription_item_details if self.parent else None
        return details is not None and details.proration


class _InvoicePreview(StripeModel):
    currency: str
    amount_due: int
    lines: StripePage[_InvoiceLine]


class StripeInvoicePreviewer:
    """An ``InvoicePreviewer``."""

    def __init__(self, client: StripeClient, prices: StripePrices, permits: RequestPermits = READ_ONLY) -> None:
        self._client = client
        self._prices = prices
        self._permits = permits

    def with_permits(self, permits: RequestPermits) -> StripeInvoicePreviewer:
        return StripeInvoicePreviewer(self._client, self._prices, permits)

    def quote(self, query: PlanChangeQuery) -> Quote:
        subscription_id, spec = query.subscription_id, query.spec
        if subscription_id is None:
            return Quote(currency=query.currency, reason=_NO_STRIPE_SUBSCRIPTION)
        found = self._client.send(
            self._permits,
            "GET /v1/subscriptions/{id}",
            f"read subscription {subscription_id}",
            lambda: self._client.v1.subscriptions.retrieve(subscription_id),
            StripeSubscription,
        )
        if found.has_ended:
            return Quote(currency=query.currency, reason=_SUBSCRIPTION_ENDED)
        state = parse_state(found, query.sold_price)
        spec = spec.as_sold(state.paid_plan, state.scheduled_plan)
        update = next_update(state, spec, self._active_price)
        if update is not None and not _reaches_spec(update, spec):
            return Quote(currency=query.currency, reason=_NEEDS_TWO_UPDATES)
        preview = self._preview_invoice(subscription_id, state.item, update)
        return _to_quote(
            preview, state, starts_new_period=update is not None and self._starts_new_period(state.item, update, spec)
        )

    def _active_price(self, plan: str) -> StripePrice:
        return self._prices.active_price(plan, self._permits)

    def _preview_invoice(
        self, subscription_id: str, item: StripeSubscriptionItem, update: StripeUpdate | None
    ) -> _InvoicePreview:
        params: InvoiceCreatePreviewParams = {"subscription": subscription_id}
        if update is not None and update.price is not None:
            # The same fields as in the update itself: the item's id, its quantity and the proration.
            params["subscription_details"] = {
                "items": [{"id": item.id, "price": update.price, "quantity": update.quantity}],
                "proration_behavior": update.proration,
            }
        return self._client.send(
            self._permits,
            "POST /v1/invoices/create_preview",
            f"preview the invoice of subscription {subscription_id}",
            partial(self._client.v1.invoices.create_preview, params, with_new_idempotency_key("preview_invoice")),
            _InvoicePreview,
        )

    def _starts_new_period(self, item: StripeSubscriptionItem, update: StripeUpdate, spec: SubscriptionSpec) -> bool:
        """Whether Stripe bills a new period at once: another interval, or free to paid (its text of the update)."""
        if update.price is None or update.price == item.price.id:
            return False
        price = self._active_price(spec.next_plan_code or spec.plan_code)
        from_free = item.price.unit_amount == 0 and price.unit_amount != 0
        return from_free or interval_of(price) != interval_of(item.price)


def _reaches_spec(update: StripeUpdate, spec: SubscriptionSpec) -> bool:
    """Whether nothing is left to do after this one update."""
    next_plan_code = spec.next_plan_code if spec.next_plan_code != spec.plan_code else None
    return update.marks["plan"] == spec.plan_code and (update.marks["next_plan"] or None) == next_plan_code


def _to_quote(preview: _InvoicePreview, state: SubscriptionState, *, starts_new_period: bool) -> Quote:
    currency = preview.currency.upper()
    amount_due = STRIPE_UNITS.from_provider(preview.amount_due, currency)
    lines = sum(line.amount for line in preview.lines.data if line.is_prorated)
    prorated = None if preview.lines.has_more else STRIPE_UNITS.from_provider(lines, currency)
    too_long = _TOO_MANY_LINES if prorated is None else None
    if starts_new_period:
        return Quote(currency=currency, now=amount_due, prorated=prorated, reason=too_long or _NEW_PERIOD_BEGINS)
    period_ends_at = datetime.fromtimestamp(state.item.current_period_end, UTC)
    return Quote(currency=currency, now=0, prorated=prorated, next=amount_due, next_at=period_ends_at, reason=too_long)
