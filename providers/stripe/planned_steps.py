"""What a change at Stripe would be, for an attempt that only plans: read and computed, never sent.

The updates of a subscription are those of ``next_update``, applied to a copy of what was read. An update that depends
on the answer to an earlier one is therefore planned, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from core.common.json_types import Json
from core.ports.planned import PlannedPrice, PlannedStep
from core.ports.spec import CustomerSpec, SoldPrice, SubscriptionSpec
from providers.stripe.metadata import to_metadata
from providers.stripe.minor_units import STRIPE_UNITS
from providers.stripe.plan_changes import StripeUpdate, SubscriptionState, parse_state
from providers.stripe.prices import interval_of
from providers.stripe.responses import (
    StripeCustomer,
    StripePage,
    StripePrice,
    StripeSubscription,
    StripeSubscriptionItem,
)

FindById = Callable[[str], StripePrice]
_UNKNOWN_END: Final = 1
"""Unix seconds: the end of a period that has not begun yet."""


def customer_update(found: StripeCustomer, spec: CustomerSpec) -> list[PlannedStep]:
    """Empty if the customer is as the spec says."""
    fields = [
        name
        for name, is_changed in (
            ("name", spec.name not in {None, found.name}),
            ("email", spec.email not in {None, found.email}),
            ("metadata", spec.writes_marks and found.org_id != spec.org_id),
        )
        if is_changed
    ]
    return [PlannedStep(kind="update_customer", object_id=found.id, fields=tuple(fields))] if fields else []


def repeated_create(sent: Mapping[str, Json], body: Mapping[str, Json]) -> list[PlannedStep]:
    """A create that was sent before is repeated as it was, and then what has changed since is updated."""
    steps = [PlannedStep(kind="create_customer", is_repeat=True)]
    if fields := tuple(name for name in body if body[name] != sent.get(name)):
        steps.append(PlannedStep(kind="update_customer", fields=fields))
    return steps


def planned_price(price: StripePrice, quantity: int) -> PlannedPrice:
    currency = price.currency.upper()
    amount = None if price.unit_amount is None else STRIPE_UNITS.from_provider(price.unit_amount, currency) * quantity
    return PlannedPrice(amount=amount, currency=currency, interval=interval_of(price))


def updated(found: StripeSubscription, update: StripeUpdate, item_id: str, price: StripePrice) -> StripeSubscription:
    """The subscription after an update, as far as the next one depends on it."""
    metadata = {**found.metadata, **to_metadata(update.marks)}
    items = found.items.data
    if update.price is not None:
        change = {"price": price, "quantity": update.quantity}
        items = [item.model_copy(update=change) if item.id == item_id else item for item in items]
    return found.model_copy(update={"metadata": metadata, "items": StripePage(data=items)})


def created(spec: SubscriptionSpec, price: StripePrice, database_id: str) -> StripeSubscription:
    """A subscription as Stripe would create it, for the steps after it. Its period is not known."""
    marks = {"org_id": spec.org_id, "plan": spec.plan_code, "database_id": database_id}
    item = StripeSubscriptionItem(id="", price=price, current_period_start=0, current_period_end=_UNKNOWN_END)
    return StripeSubscription(
        id="",
        status="active",
        customer=spec.customer_id,
        created=0,
        metadata=to_metadata(marks),
        items=StripePage(data=[item]),
    )


def subscription_end(found: StripeSubscription, find_by_id: FindById) -> PlannedStep:
    if len(found.items.data) != 1:
        return PlannedStep(kind="end_subscription", object_id=found.id)
    state = parse_state(found)
    return PlannedStep(
        kind="end_subscription",
        object_id=found.id,
        before=state.paid_plan,
        price_before=paid_price(state, find_by_id),
    )


def subscription_steps(
    found: StripeSubscription, planned: StripeSubscription, sold: SoldPrice | None, find_by_id: FindById
) -> list[PlannedStep]:
    """What the updates from ``found`` to ``planned`` change, without the states between them."""
    before, after = parse_state(found, sold), parse_state(planned, sold)
    steps: list[PlannedStep] = []
    paid_before, paid_after = paid_price(before, find_by_id), paid_price(after, find_by_id)
    was_scheduled = before.scheduled_plan is not None and not before.took_effect
    if was_scheduled and after.scheduled_plan is None:
        steps.append(
            PlannedStep(
                kind="cancel_scheduled_plan",
                object_id=found.id,
                before=before.scheduled_plan,
                after=before.paid_plan,
                price_before=_billed_price(before),
                price_after=paid_before,
            )
        )
    if before.paid_plan != after.paid_plan or (paid_before is not None and paid_before != paid_after):
        steps.append(
            PlannedStep(
                kind="change_plan",
                object_id=found.id,
                before=before.paid_plan,
                after=after.paid_plan,
                price_before=paid_before,
                price_after=paid_after,
            )
        )
    is_scheduled = after.scheduled_plan is not None and not after.took_effect
    if is_scheduled and (not was_scheduled or _billed(before) != _billed(after)):
        steps.append(
            PlannedStep(
                kind="schedule_plan",
                object_id=found.id,
                before=after.paid_plan,
                after=after.scheduled_plan,
                price_before=paid_after,
                price_after=_billed_price(after),
                at_period_end=True,
                effective_at=_effective_at(before, after),
            )
        )
    return steps or [PlannedStep(kind="write_marks", object_id=found.id)]


def paid_price(state: SubscriptionState, find_by_id: FindById) -> PlannedPrice | None:
    """What this period costs; None if the price is not known."""
    price_id = state.paid_price_id
    if price_id is None:
        # A free plan that took effect is still billed as the quantity 0 of the plan before.
        return _billed_price(state) if state.took_effect and state.item.quantity == 0 else None
    price = state.item.price if price_id == state.item.price.id else find_by_id(price_id)
    return planned_price(price, state.seats)


def _billed_price(state: SubscriptionState) -> PlannedPrice:
    """What the next period costs."""
    return planned_price(state.item.price, state.item.quantity)


def _billed(state: SubscriptionState) -> tuple[str | None, str, int]:
    return state.scheduled_plan, state.item.price.id, state.item.quantity


def _effective_at(before: SubscriptionState, after: SubscriptionState) -> datetime | None:
    """None if the period ends at another time than was read: a new interval begins a new period."""
    is_same_period = interval_of(before.item.price) == interval_of(after.item.price)
    is_known = is_same_period and after.scheduled_at > _UNKNOWN_END
    return datetime.fromtimestamp(after.scheduled_at, UTC) if is_known else None
