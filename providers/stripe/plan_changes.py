"""What to change next on a Stripe subscription, decided from what was just read: no step depends on a remembered one.

A plan for the period's end is kept without a schedule: the item takes the next price now, unprorated, so this period
stays paid at the old price and the next invoice takes the new one. Our metadata says until when the old plan is
theirs: ``plan``, ``next_plan``, ``next_plan_at`` (Unix seconds, the period's end when it was scheduled).

Two traps of Stripe's shape this (its OpenAPI text of POST /v1/subscriptions/{id}): a subscription that moves from a
free price to a paid one is invoiced at once and starts a new period, and so is one whose interval changes, prorated
or not. So a free next plan is not the free price but the paid one at quantity 0: taking it back moves no money.
And a next plan that would charge now is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from core.ports.errors import RejectedError
from core.ports.spec import SubscriptionSpec
from providers.stripe.errors import PROVIDER
from providers.stripe.prices import interval_of
from providers.stripe.responses import ItemAnswer, PriceAnswer, SubscriptionAnswer

Proration = Literal["create_prorations", "none"]
Priced = Callable[[str], PriceAnswer]


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """``entitled`` is the plan paid for in this period, ``sold`` what the next invoice will take."""

    entitled: str
    sold: str
    scheduled: str | None
    at: int
    took_effect: bool
    item: ItemAnswer
    metadata: dict[str, str]

    @property
    def seats(self) -> int:
        """The item's quantity, or what it was before a free next plan made it 0; 1 unless a person changed it."""
        return self.item.quantity or _number(self.metadata.get("seats")) or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """``price`` is an id; None leaves the item alone. Metadata values that are empty unset their key."""

    price: str | None
    quantity: int
    proration: Proration
    metadata: dict[str, str]


def state_of(subscription: SubscriptionAnswer) -> State:
    metadata = subscription.metadata
    scheduled = metadata.get("next_plan") or None
    at = _number(metadata.get("next_plan_at"))
    item = _our_item(subscription)
    plan = metadata.get("plan", "")
    if scheduled is None or at is None or not plan:
        # A price whose key moved to a newer price keeps what it was sold as: such customers stay where they are.
        sold = item.price.lookup_key or plan
        return State(entitled=sold, sold=sold, scheduled=None, at=0, took_effect=False, item=item, metadata=metadata)
    took_effect = item.current_period_start >= at
    return State(
        entitled=scheduled if took_effect else plan,
        sold=scheduled if item.quantity == 0 else item.price.lookup_key or scheduled,
        scheduled=scheduled,
        at=at,
        took_effect=took_effect,
        item=item,
        metadata=metadata,
    )


def next_change(state: State, spec: SubscriptionSpec, priced: Priced) -> Change | None:
    """The one change that brings the subscription nearer to the spec; None when it is there.

    Each change leaves a state that says truthfully what is paid for, so a crash after any of them loses nothing.
    """
    after = spec.next_plan_code if spec.next_plan_code != spec.plan_code else None
    if state.took_effect:
        # Until the caller has taken note, the record of it stays: without it the old plan would look wished for.
        unnoticed = after is not None and spec.plan_code != state.entitled
        return None if unnoticed else _set(state, state.entitled, priced, "none", spec)
    if state.scheduled is None:
        if state.sold != spec.plan_code:
            return _set(state, spec.plan_code, priced, "create_prorations", spec)
        if after is not None:
            return _schedule(state, after, state.item.current_period_end, priced, spec)
        wished = _metadata(spec, spec.plan_code)
        return None if _shows(state.metadata, wished) else _only(state, wished)
    return _next_while_pending(state, spec, after, priced)


def _next_while_pending(state: State, spec: SubscriptionSpec, after: str | None, priced: Priced) -> Change | None:
    if spec.plan_code != state.entitled or after is None:
        # Back to what is paid first: going up from the cheaper price would charge the paid part once more.
        return _set(state, state.entitled, priced, "none", spec)
    if state.scheduled != after or state.sold != after:
        return _schedule(state, after, state.at, priced, spec)
    return None


def _set(state: State, plan: str, priced: Priced, proration: Proration, spec: SubscriptionSpec) -> Change:
    return Change(
        price=priced(plan).id,
        quantity=state.seats,
        proration=proration,
        metadata=_metadata(spec, plan),
    )


def _schedule(state: State, plan: str, at: int, priced: Priced, spec: SubscriptionSpec) -> Change:
    price, paid = priced(plan), _paid_price(state, priced)
    if _is_free(paid) and not _is_free(price):
        message = f"plan {plan} cannot wait for the period's end: Stripe charges a free subscription that becomes paid at once; change it at once"  # noqa: E501
        raise RejectedError(PROVIDER, message)
    if interval_of(price) != interval_of(paid):
        message = f"plan {plan} cannot wait for the period's end: its interval differs from {state.entitled}'s, which Stripe charges at once; change it at once"  # noqa: E501
        raise RejectedError(PROVIDER, message)
    waits_as_nothing = _is_free(price) and not _is_free(paid)
    return Change(
        price=paid.id if waits_as_nothing else price.id,
        quantity=0 if waits_as_nothing else state.seats,
        proration="none",
        metadata=_metadata(spec, state.entitled)
        | {"next_plan": plan, "next_plan_at": str(at)}
        | ({"seats": str(state.seats)} if waits_as_nothing else {}),
    )


def _paid_price(state: State, priced: Priced) -> PriceAnswer:
    return state.item.price if state.scheduled is None or state.item.quantity == 0 else priced(state.entitled)


def _only(state: State, metadata: dict[str, str]) -> Change:
    return Change(price=None, quantity=state.item.quantity, proration="none", metadata=metadata)


def _metadata(spec: SubscriptionSpec, plan: str) -> dict[str, str]:
    return {"org_id": spec.org_id, "plan": plan, "next_plan": "", "next_plan_at": "", "seats": ""}


def _shows(metadata: dict[str, str], wished: dict[str, str]) -> bool:
    return all(metadata.get(key, "") == value for key, value in wished.items())


def _is_free(price: PriceAnswer) -> bool:
    return price.unit_amount == 0


def _our_item(subscription: SubscriptionAnswer) -> ItemAnswer:
    items = subscription.items.data
    if len(items) > 1:
        ours = {subscription.metadata.get("plan"), subscription.metadata.get("next_plan")} - {None, ""}
        items = [item for item in items if item.price.lookup_key in ours]
    if len(items) != 1:
        message = (
            f"subscription {subscription.id} has {len(subscription.items.data)} items, and which one is the plan "
            "cannot be told; leave one item with a price that plans push made"
        )
        raise RejectedError(PROVIDER, message)
    return items[0]


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None
