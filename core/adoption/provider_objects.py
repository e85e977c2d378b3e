"""What one provider has for a row, read just before it is applied, and what changed since the table was written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from core.adoption.row import AdoptionSide
from core.ports.inventory import InventoryCustomer, InventoryItem, InventorySubscription
from core.ports.minor_units import amount_text
from core.ports.spec import PROVIDER_NAMES, Provider


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderObjects:
    """A customer and its only subscription; ``subscription`` None: it has none."""

    customer: InventoryCustomer
    subscription: InventorySubscription | None = None

    @property
    def item(self) -> InventoryItem | None:
        """What is paid for. None: there is no subscription, or it does not have exactly one price."""
        items = () if self.subscription is None else self.subscription.items
        return items[0] if len(items) == 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SideChange:
    """``field`` in words. ``before``: as the table has it."""

    provider: Provider
    field: str
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.field} at {PROVIDER_NAMES[self.provider]} was {self.before} and is {self.now}"


def changes(provider: Provider, before: AdoptionSide, now: AdoptionSide) -> list[SideChange]:
    """What an operator decided about, so not the next date, which moves on with each period, nor the payment method."""
    shown = ((name, show(before), show(now)) for name, show in _COMPARED.items())
    return [SideChange(provider=provider, field=name, before=old, now=new) for name, old, new in shown if old != new]


def _text(value: object) -> str:
    return "none" if value is None else str(value)


def _amount(side: AdoptionSide) -> str:
    return "none" if side.amount is None else amount_text(side.amount, side.currency or "")


_COMPARED: Final[Mapping[str, Callable[[AdoptionSide], str]]] = {
    "customer": lambda side: side.customer_id,
    "external customer id": lambda side: _text(side.external_customer_id),
    "subscription": lambda side: _text(side.subscription_id),
    "external subscription id": lambda side: _text(side.external_subscription_id),
    "name": lambda side: _text(side.name),
    "email": lambda side: _text(side.email),
    "price": lambda side: _text(side.price),
    "amount": _amount,
    "currency": lambda side: _text(side.currency),
    "interval": lambda side: _text(side.interval),
    "quantity": lambda side: _text(side.quantity),
    "coupon": lambda side: _text(side.coupon),
    "end of the trial": lambda side: _text(side.trial_ends_at),
    "what is planned": lambda side: _text(side.planned),
    "payer": lambda side: _text(side.payer_id),
}


def side_of(found: ProviderObjects) -> AdoptionSide:
    """As the table has it."""
    customer, subscription, item = found.customer, found.subscription, found.item
    discounts = (*customer.discounts, *(subscription.discounts if subscription is not None else ()))
    return AdoptionSide(
        customer_id=customer.id,
        external_customer_id=customer.external_id,
        subscription_id=subscription.id if subscription is not None else None,
        external_subscription_id=subscription.external_id if subscription is not None else None,
        name=customer.name,
        email=customer.email,
        price=item.price_id if item is not None else None,
        amount=item.amount * item.quantity if item is not None and item.amount is not None else None,
        currency=item.currency if item is not None else None,
        interval=_interval(item) if item is not None else None,
        quantity=item.quantity if item is not None else None,
        coupon=", ".join(discounts) or None,
        trial_ends_at=subscription.trial_ends_at if subscription is not None else None,
        planned=_planned(subscription),
        next_at=subscription.next_at if subscription is not None else None,
        has_payment_method=customer.has_payment_method,
        payer_id=customer.payer_id,
    )


def _interval(item: InventoryItem) -> str | None:
    return item.interval if item.interval_count == 1 else f"{item.interval_count} {item.interval}s"


def _planned(subscription: InventorySubscription | None) -> str | None:
    if subscription is None:
        return None
    arranged = subscription.arrangement.phrase if subscription.arrangement is not None else None
    then = f"then {subscription.next_code}" if subscription.next_code is not None else None
    paid = "invoices are paid by hand" if subscription.is_paid_manually else None
    return ", ".join(filter(None, (arranged, then, paid))) or None
