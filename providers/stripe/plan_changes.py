"""The next update of a Stripe subscription, decided from the state just read. No update depends on a remembered one.

A plan for the period end is scheduled without a Stripe schedule. The item gets the next price now, without proration,
so this period stays paid at the old price and the next invoice uses the new one. Our marks say until when the
organization has the old plan: ``plan``, ``next_plan``, ``next_plan_at`` (Unix seconds, the period end when it was
scheduled), and ``plan_price``, the id of the price that is paid. The lookup key may name another price by then, and
whoever takes a downgrade back returns to the price that was sold. Our row has that price, too: whoever has it is on the
plan that was sold, even if its price lost the lookup key or got another one.

Two rules of Stripe decide the rest (its OpenAPI text of POST /v1/subscriptions/{id}). A subscription that moves from a
free price to a paid one is invoiced at once and starts a new period. So does one whose interval changes, with or
without proration. A free next plan is therefore not the free price but the paid price at quantity 0, so that canceling
it moves no money. A next plan that would charge now is rejected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from core.ports.arrangement import Arrangement
from core.ports.errors import RejectedError
from core.ports.spec import SoldPrice, SubscriptionSpec
from providers.stripe.errors import STRIPE
from providers.stripe.prices import interval_of
from providers.stripe.responses import StripePrice, StripeSubscription, StripeSubscriptionItem

Proration = Literal["create_prorations", "none"]
FindPrice = Callable[[str], StripePrice]


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionState:
    """``paid_plan`` is the plan paid for in this period, ``billed_plan`` the one that the next invoice charges."""

    paid_plan: str
    billed_plan: str
    scheduled_plan: str | None
    scheduled_at: int
    took_effect: bool
    item: StripeSubscriptionItem
    marks: dict[str, str]
    sold: SoldPrice | None = None

    @property
    def paid_price_id(self) -> str | None:
        """The price that this period was sold at: on the item, unless that has the price of the next plan already."""
        has_free_next_plan = self.item.quantity == 0
        if self.scheduled_plan is None or has_free_next_plan != self.took_effect:
            return self.item.price.id
        if self.took_effect:  # a free plan, which the next update puts on the item
            return None
        is_sold = self.sold is not None and self.sold.plan_code == self.paid_plan
        return self.marks.get("plan_price") or (self.sold.price_id if self.sold is not None and is_sold else None)

    def is_desired(self, spec: SubscriptionSpec) -> bool:
        """Whether all that the spec asks for is there, beside notes of ours that may be cleared."""
        scheduled_plan = None if self.took_effect else self.scheduled_plan
        is_scheduled = spec.next_plan_code in {None, spec.plan_code, scheduled_plan}
        return self.paid_plan == spec.plan_code and is_scheduled

    @property
    def seats(self) -> int:
        """The item's quantity, or its value before a free next plan set it to 0. It is 1 unless a user changed it."""
        return self.item.quantity or _parse_int(self.marks.get("seats")) or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeUpdate:
    """``price`` is an id; None leaves the item unchanged. An empty mark removes it."""

    price: str | None
    quantity: int
    proration: Proration
    marks: dict[str, str]

    def changes_terms(self, state: SubscriptionState) -> bool:
        """Whether it changes what is billed, and not only our notes."""
        return self.price is not None and (self.price, self.quantity) != (state.item.price.id, state.item.quantity)


def parse_state(subscription: StripeSubscription, sold: SoldPrice | None = None) -> SubscriptionState:
    """``sold``: the price that our row says was sold."""
    marks = subscription.marks
    scheduled_plan = marks.get("next_plan") or None
    scheduled_at = _parse_int(marks.get("next_plan_at"))
    item = _find_plan_item(subscription, sold)
    paid_plan = marks.get("plan", "")
    if scheduled_plan is None or scheduled_at is None or not paid_plan:
        # A price that lost its lookup key to a newer one keeps its plan, so these customers stay where they are.
        is_sold = sold is not None and sold.price_id == item.price.id
        billed_plan = sold.plan_code if sold is not None and is_sold else item.price.lookup_key or paid_plan
        return SubscriptionState(
            paid_plan=billed_plan,
            billed_plan=billed_plan,
            scheduled_plan=None,
            scheduled_at=0,
            took_effect=False,
            item=item,
            marks=marks,
            sold=sold,
        )
    took_effect = item.current_period_start >= scheduled_at
    return SubscriptionState(
        paid_plan=scheduled_plan if took_effect else paid_plan,
        billed_plan=scheduled_plan if item.quantity == 0 else item.price.lookup_key or scheduled_plan,
        scheduled_plan=scheduled_plan,
        scheduled_at=scheduled_at,
        took_effect=took_effect,
        item=item,
        marks=marks,
        sold=sold,
    )


def arrangement_of(subscription: StripeSubscription) -> Arrangement | None:
    """``cancel_at_period_end`` and ``pause_collection`` leave the status as it is (stripe.md 6)."""
    ends_at = subscription.cancel_at
    if ends_at is None and subscription.cancel_at_period_end:
        ends_at = max((item.current_period_end for item in subscription.items.data), default=None)
    is_paused = subscription.pause_collection is not None or subscription.status == "paused"
    has_schedule = subscription.schedule is not None
    if ends_at is None and not is_paused and not has_schedule:
        return None
    return Arrangement(
        ends_at=datetime.fromtimestamp(ends_at, UTC) if ends_at is not None else None,
        is_paused=is_paused,
        has_schedule=has_schedule,
    )


def next_update(state: SubscriptionState, spec: SubscriptionSpec, find_price: FindPrice) -> StripeUpdate | None:
    """The one update that brings the subscription closer to the spec; None if it matches.

    Each update leaves a state that shows correctly what is paid for, so a crash after any of them loses nothing.
    """
    next_plan_code = spec.next_plan_code if spec.next_plan_code != spec.plan_code else None
    if state.took_effect:
        # The marks stay until our row records the new plan. Without them the old plan would look like the desired.
        is_unrecorded = next_plan_code is not None and spec.plan_code != state.paid_plan
        return (
            None
            if is_unrecorded
            else _set_plan(state, state.paid_plan, _began_price_id(state, find_price), "none", spec)
        )
    if state.scheduled_plan is None:
        if state.billed_plan != spec.plan_code:
            return _set_plan(
                state, spec.plan_code, _price_id_to_sell(state, spec, find_price), "create_prorations", spec
            )
        if next_plan_code is not None:
            return _schedule_plan(state, next_plan_code, state.item.current_period_end, find_price, spec)
        desired_marks = _plan_marks(spec, spec.plan_code)
        if not spec.writes_marks and not state.marks.get("next_plan"):
            return None
        return None if _has_marks(state.marks, desired_marks) else _update_marks(state, desired_marks)
    return _next_update_while_scheduled(state, spec, next_plan_code, find_price)


def _next_update_while_scheduled(
    state: SubscriptionState, spec: SubscriptionSpec, next_plan_code: str | None, find_price: FindPrice
) -> StripeUpdate | None:
    if spec.plan_code != state.paid_plan or next_plan_code is None:
        # First return to the paid plan: an upgrade from the cheaper price would charge for the paid part again.
        return _set_plan(state, state.paid_plan, _paid_price_id(state, find_price), "none", spec)
    if state.scheduled_plan != next_plan_code or state.billed_plan != next_plan_code:
        return _schedule_plan(state, next_plan_code, state.scheduled_at, find_price, spec)
    return None


def _set_plan(
    state: SubscriptionState, plan: str, price_id: str, proration: Proration, spec: SubscriptionSpec
) -> StripeUpdate:
    return StripeUpdate(
        price=price_id,
        quantity=state.seats,
        proration=proration,
        marks=_plan_marks(spec, plan),
    )


def _schedule_plan(
    state: SubscriptionState, plan: str, scheduled_at: int, find_price: FindPrice, spec: SubscriptionSpec
) -> StripeUpdate:
    # While a plan is scheduled, the item has its price, or one that somebody put there. What is paid was not free, and
    # has the same interval.
    price, has_paid_price = find_price(plan), state.scheduled_plan is None or state.item.quantity == 0
    is_free = has_paid_price and state.item.price.is_free
    if is_free and not price.is_free:
        raise _not_schedulable(plan, spec, "Stripe charges at once when a free subscription becomes paid")
    if interval_of(price) != interval_of(state.item.price):
        reason = f"its interval differs from that of {state.paid_plan}, so Stripe would charge at once"
        raise _not_schedulable(plan, spec, reason)
    bills_zero_quantity = price.is_free and not is_free
    paid_price_id = _paid_price_id(state, find_price)
    return StripeUpdate(
        price=paid_price_id if bills_zero_quantity else price.id,
        quantity=0 if bills_zero_quantity else state.seats,
        proration="none",
        marks=_plan_marks(spec, state.paid_plan)
        | {"next_plan": plan, "next_plan_at": str(scheduled_at), "plan_price": paid_price_id}
        | ({"seats": str(state.seats)} if bills_zero_quantity else {}),
    )


def _not_schedulable(plan: str, spec: SubscriptionSpec, reason: str) -> RejectedError:
    message = (
        f"plan {plan} cannot be scheduled for the period end: {reason}; cancel the downgrade by choosing the current "
        f"plan again (`PATCH /api/organizations/{spec.org_id}/plan`); until then the Stripe link stays parked"
    )
    return RejectedError(STRIPE, message)


def _paid_price_id(state: SubscriptionState, find_price: FindPrice) -> str:
    return state.paid_price_id or find_price(state.paid_plan).id


def _price_id_to_sell(state: SubscriptionState, spec: SubscriptionSpec, find_price: FindPrice) -> str:
    """The price that this plan was sold at, if our row never recorded another plan since.

    A downgrade may have begun unnoticed, and be taken back now; or somebody changed the plan in Stripe.
    """
    is_sold = state.sold is not None and state.sold.plan_code == spec.plan_code
    return state.sold.price_id if state.sold is not None and is_sold else find_price(spec.plan_code).id


def _began_price_id(state: SubscriptionState, find_price: FindPrice) -> str:
    """The price of the scheduled plan that took effect: on the item, unless a free plan was billed as quantity 0."""
    return state.item.price.id if state.item.quantity else find_price(state.paid_plan).id


def _update_marks(state: SubscriptionState, marks: dict[str, str]) -> StripeUpdate:
    return StripeUpdate(price=None, quantity=state.item.quantity, proration="none", marks=marks)


def _plan_marks(spec: SubscriptionSpec, plan: str) -> dict[str, str]:
    return {"org_id": spec.org_id, "plan": plan, "next_plan": "", "next_plan_at": "", "plan_price": "", "seats": ""}


def _has_marks(marks: dict[str, str], desired: dict[str, str]) -> bool:
    return all(marks.get(key, "") == value for key, value in desired.items())


def _find_plan_item(subscription: StripeSubscription, sold: SoldPrice | None) -> StripeSubscriptionItem:
    items = subscription.items.data
    if len(items) > 1:
        our_plans = {subscription.marks.get("plan"), subscription.marks.get("next_plan")} - {None, ""}
        sold_id = sold.price_id if sold is not None else None
        items = [item for item in items if item.price.lookup_key in our_plans or item.price.id == sold_id]
    if len(items) != 1:
        message = (
            f"subscription {subscription.id} has {len(subscription.items.data)} items, and it is unclear which one "
            "is the plan; leave one item with a price that `billing-sync plans push` created"
        )
        raise RejectedError(STRIPE, message)
    return items[0]


def _parse_int(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None
