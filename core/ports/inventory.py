"""What a provider's account has, also what we did not make: customers, subscriptions and prices, page by page.

An ``Inventory`` reads and never writes. It shows more of each object than ``StateReader``, which is for comparisons of
what is ours. Amounts are in ISO minor units of their currency (``core.ports.minor_units``).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from core.ports.arrangement import Arrangement
from core.ports.observed import ObservedPage
from core.ports.provider import RequestPermits

Interval = Literal["day", "week", "month", "year"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryPrice:
    """A Stripe price, or a Lago plan. ``amount`` None: it has no flat amount (usage, tiers).

    ``id``: Stripe's price id; Lago's plan code. ``code``: Stripe's lookup key, None without one; Lago's plan code.
    ``name``: Lago's plan name, or the name of Stripe's product. ``active``: new subscriptions may use it. ``unusual``:
    what the catalog cannot say, a sentence each, such as "it begins with 14 days that are free". ``remarks``: what it
    has beside the catalog's terms and may have, such as "it bills usage, too: storage"; as in ``PriceSpec``.
    """

    id: str
    code: str | None
    name: str
    amount: int | None
    currency: str
    interval: Interval | None
    interval_count: int = 1
    active: bool = True
    unusual: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    trial_days: float | None = None
    """Lago only: how long a new subscription is free. Stripe shows the end of a trial in the subscription."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryCustomer:
    """``external_id``: Lago's. ``org_id``, ``database_id``: our complete marks in Stripe's metadata; else None.

    ``named_org_ids``: values of metadata keys that may name an organization, such as a merchant's own ``org_id``. They
    prove nothing. ``payer_id``: the Stripe customer that Lago charges. ``other_payer``: by what else Lago charges it.
    ``has_payment_method``: None if it is not shown.
    ``discounts``: on whatever the customer buys, in words; Lago's lists leave them out (``Inventory.discounts``).
    ``is_addressable`` False: the provider's API cannot reach it under its id.
    """

    id: str
    external_id: str | None = None
    org_id: str | None = None
    database_id: str | None = None
    name: str | None = None
    email: str | None = None
    currency: str | None = None
    payer_id: str | None = None
    other_payer: str | None = None
    has_payment_method: bool | None = None
    named_org_ids: tuple[str, ...] = ()
    discounts: tuple[str, ...] = ()
    is_addressable: bool = True
    deleted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryItem:
    """One price on a subscription. ``amount``: what one unit costs there, which may be a price of its own in Lago.

    ``amount`` None: it has no flat amount. ``unusual``: as of ``InventoryPrice``. ``sold_price_id``: as in
    ``SoldPrice``, so for Lago the amount in its own cents; None: it is not known.
    """

    price_id: str
    code: str | None
    amount: int | None
    currency: str
    interval: Interval | None
    interval_count: int = 1
    quantity: int = 1
    sold_price_id: str | None = None
    bills_usage: bool = False
    unusual: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InventorySubscription:
    """A subscription that has not ended. ``external_id``: Lago's. ``org_id``, ``database_id``: our complete marks.

    ``customer_id``: the ``id`` of its customer. ``next_code``: the plan that is scheduled. ``trial_ends_at``: while a
    trial runs. ``next_at``: the end of the current period. ``discounts``: coupons in words, such as "20 % off for 3
    months". ``is_paid_manually``: Lago charges nobody for it, or Stripe mails its invoices. ``has_payment_method``: one
    of its own. ``is_addressable``: as of ``InventoryCustomer``.
    """

    id: str
    customer_id: str
    external_id: str | None = None
    org_id: str | None = None
    database_id: str | None = None
    status: str = "active"
    items: tuple[InventoryItem, ...] = ()
    next_code: str | None = None
    arrangement: Arrangement | None = None
    trial_ends_at: datetime | None = None
    next_at: datetime | None = None
    discounts: tuple[str, ...] = ()
    is_paid_manually: bool = False
    has_payment_method: bool = False
    is_addressable: bool = True
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryDiscount:
    """A discount on whatever a customer buys. ``customer_id``: the ``id`` of the customer."""

    id: str
    customer_id: str
    text: str


class Inventory(Protocol):
    """One provider's account. Raises ``errors.ProviderError`` kinds. Pages may repeat or miss an object that moves."""

    def with_permits(self, permits: RequestPermits) -> Inventory:
        """A copy that calls ``permits.before_request`` before each of its requests."""

    def customers(self, cursor: str | None) -> ObservedPage[InventoryCustomer]: ...

    def subscriptions(self, cursor: str | None) -> ObservedPage[InventorySubscription]: ...

    def discounts(self, cursor: str | None) -> ObservedPage[InventoryDiscount]:
        """Those that the list of customers does not show. Stripe shows all of them there, so it makes no call."""

    def prices(self, cursor: str | None) -> ObservedPage[InventoryPrice]:
        """Recurring ones, also those that are sold no longer."""

    def price(self, price_id: str) -> InventoryPrice | None:
        """One of them with all that it charges for: Lago's list leaves fixed charges out. None: there is none."""

    def customer(self, customer_id: str) -> InventoryCustomer | None:
        """With its discounts. Stripe: by ``cus_…``; Lago: by external id. None: the provider says there is none."""

    def subscriptions_of(self, customer_id: str) -> list[InventorySubscription]:
        """All of one customer that have not ended. Stripe: by ``cus_…``; Lago: by external id."""
