"""What Stripe tells of a plan change before it is made: its own preview of the invoice, for the change we would make.

The step is the one that ``stripe_changes`` would take, so what is previewed is what is sent. Where it takes two steps,
going up while a lower plan waits, no preview shows both, and nothing is made up.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

from stripe.params import InvoiceCreatePreviewParams

from core.ports.provider import Pace
from core.ports.quotes import PlanQuestion, Quote
from core.ports.spec import SubscriptionSpec
from providers.stripe.client import Door, NoLease, once
from providers.stripe.plan_changes import Change, State, next_change, state_of
from providers.stripe.prices import Prices, interval_of
from providers.stripe.responses import Answer, ItemAnswer, Page, PriceAnswer, SubscriptionAnswer

_NOT_THERE = "Stripe holds no subscription of it yet: its first invoice is made with the subscription"
_ENDED = "the subscription has ended in Stripe"
_TWO_STEPS = "the waiting plan is taken back first, and Stripe shows the invoice of one step only"
_LONG = "the invoice has more lines than Stripe shows at once"
_AT_ONCE = "a new period begins with the change; the invoice after it is not made yet"


class _ItemParent(Answer):
    proration: bool = False


class _Parent(Answer):
    subscription_item_details: _ItemParent | None = None


class _Line(Answer):
    amount: int
    parent: _Parent | None = None

    @property
    def is_prorated(self) -> bool:
        details = self.parent.subscription_item_details if self.parent else None
        return details is not None and details.proration


class _Preview(Answer):
    currency: str
    amount_due: int
    lines: Page[_Line]


class StripeTeller:
    """A ``Teller``."""

    def __init__(self, door: Door, prices: Prices, pace: Pace | None = None) -> None:
        self._door = door
        self._prices = prices
        self._pace = pace or NoLease()

    def paced(self, pace: Pace) -> StripeTeller:
        return StripeTeller(self._door, self._prices, pace)

    def quote(self, question: PlanQuestion) -> Quote:
        subscription_id, spec = question.subscription_id, question.spec
        if subscription_id is None:
            return Quote(currency=question.currency, why=_NOT_THERE)
        found = self._door.send(
            self._pace,
            "GET /v1/subscriptions/{id}",
            f"read subscription {subscription_id}",
            lambda: self._door.v1.subscriptions.retrieve(subscription_id),
            SubscriptionAnswer,
        )
        if found.has_ended:
            return Quote(currency=question.currency, why=_ENDED)
        state = state_of(found)
        change = next_change(state, spec, self._priced)
        if change is not None and not _arrives(change, spec):
            return Quote(currency=question.currency, why=_TWO_STEPS)
        preview = self._preview(subscription_id, state.item, change)
        return _quote(preview, state, at_once=change is not None and self._begins_anew(state.item, change, spec))

    def _priced(self, plan: str) -> PriceAnswer:
        return self._prices.priced(plan, self._pace)

    def _preview(self, subscription_id: str, item: ItemAnswer, change: Change | None) -> _Preview:
        params: InvoiceCreatePreviewParams = {"subscription": subscription_id}
        if change is not None and change.price is not None:
            # As the change itself is sent: with the item's id, its quantity and the proration named.
            params["subscription_details"] = {
                "items": [{"id": item.id, "price": change.price, "quantity": change.quantity}],
                "proration_behavior": change.proration,
            }
        return self._door.send(
            self._pace,
            "POST /v1/invoices/create_preview",
            f"preview the invoice of subscription {subscription_id}",
            partial(self._door.v1.invoices.create_preview, params, once("preview_invoice")),
            _Preview,
        )

    def _begins_anew(self, item: ItemAnswer, change: Change, spec: SubscriptionSpec) -> bool:
        """Another interval, or from free to paid: Stripe bills a new period at once (its text of the update)."""
        if change.price is None or change.price == item.price.id:
            return False
        price = self._priced(spec.next_plan_code or spec.plan_code)
        from_free = item.price.unit_amount == 0 and price.unit_amount != 0
        return from_free or interval_of(price) != interval_of(item.price)


def _arrives(change: Change, spec: SubscriptionSpec) -> bool:
    """After this one change nothing is left to do."""
    after = spec.next_plan_code if spec.next_plan_code != spec.plan_code else None
    return change.metadata["plan"] == spec.plan_code and (change.metadata["next_plan"] or None) == after


def _quote(preview: _Preview, state: State, *, at_once: bool) -> Quote:
    prorated = None if preview.lines.has_more else sum(line.amount for line in preview.lines.data if line.is_prorated)
    currency = preview.currency.upper()
    long = _LONG if prorated is None else None
    if at_once:
        return Quote(currency=currency, now=preview.amount_due, prorated=prorated, why=long or _AT_ONCE)
    ends = datetime.fromtimestamp(state.item.current_period_end, UTC)
    return Quote(currency=currency, now=0, prorated=prorated, next=preview.amount_due, next_at=ends, why=long)
