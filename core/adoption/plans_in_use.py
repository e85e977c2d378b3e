"""What two accounts sell: each price and plan, with how many subscriptions are on it and how many are charged there.

Reads page by page and writes nothing. In memory are the prices, and one id of each subscription and of each customer
that has a payer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from core.ports.errors import RejectedError
from core.ports.inventory import Inventory, InventoryPrice, InventorySubscription
from core.ports.observed import ObservedPage
from core.ports.spec import PROVIDERS, Provider
from core.reconcile.low_priority_reader import LowPriorityReader

MAX_PAGES: Final = 20_000  # of one list; with pages of a hundred, two million objects

InventoryReader = LowPriorityReader[Inventory]
OnObjects = Callable[[Provider, str, int], None]
"""Called with the provider, what is listed and how many were listed so far."""
RowT = TypeVar("RowT")


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceInUse:
    """``subscriptions``: how many have it as their only item. ``charged``: how many of them this provider charges.

    ``own_amounts``: Lago only: how many pay an amount of their own under its code.
    """

    provider: Provider
    price: InventoryPrice
    subscriptions: int = 0
    charged: int = 0
    own_amounts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlansInUse:
    """``several_items``: how many subscriptions have several prices, by provider."""

    prices: tuple[PriceInUse, ...]
    several_items: dict[Provider, int] = field(default_factory=dict)


def read_plans_in_use(reader: InventoryReader, on_objects: OnObjects, max_pages: int = MAX_PAGES) -> PlansInUse:
    """Raises ``ProviderError``."""
    accounts = [_Account(provider, reader, on_objects, max_pages) for provider in PROVIDERS]
    prices: list[PriceInUse] = []
    for account in accounts:
        prices += account.read()
    return PlansInUse(
        prices=tuple(prices),
        several_items={each.provider: each.several_items for each in accounts if each.several_items},
    )


class _Account:
    def __init__(self, provider: Provider, reader: InventoryReader, on_objects: OnObjects, max_pages: int) -> None:
        self.provider = provider
        self.several_items = 0
        self._reader = reader
        self._on_objects = on_objects
        self._max_pages = max_pages
        self._prices: dict[str, InventoryPrice] = {}
        self._subscriptions: Counter[str] = Counter()
        self._charged: Counter[str] = Counter()
        self._own_amounts: Counter[str] = Counter()

    def read(self) -> list[PriceInUse]:
        for price in self._rows("prices", lambda inventory, cursor: inventory.prices(cursor)):
            self._prices[price.id] = price
        customers_with_payer = self._customers_with_payer()
        counted: set[str] = set()  # a page may repeat a subscription
        for subscription in self._rows("subscriptions", lambda inventory, cursor: inventory.subscriptions(cursor)):
            if subscription.id not in counted:
                counted.add(subscription.id)
                self._count(subscription, customers_with_payer)
        return [
            PriceInUse(
                provider=self.provider,
                price=self._with_all_charges(price),
                subscriptions=self._subscriptions[price.id],
                charged=self._charged[price.id],
                own_amounts=self._own_amounts[price.id],
            )
            for price in self._prices.values()
        ]

    def _customers_with_payer(self) -> frozenset[str]:
        """Lago's. Stripe charges whoever has a subscription."""
        if self.provider == "stripe":
            return frozenset()
        customers = self._rows("customers", lambda inventory, cursor: inventory.customers(cursor))
        return frozenset(each.id for each in customers if each.payer_id or each.other_payer)

    def _count(self, subscription: InventorySubscription, customers_with_payer: frozenset[str]) -> None:
        if len(subscription.items) != 1:
            self.several_items += 1
            return
        (item,) = subscription.items
        if item.price_id not in self._prices:
            # Stripe lists no price that was made within the request of a subscription.
            self._prices[item.price_id] = InventoryPrice(
                id=item.price_id,
                code=item.code,
                name="",
                amount=item.amount,
                currency=item.currency,
                interval=item.interval,
                interval_count=item.interval_count,
                active=False,
                unusual=("it is in no list of prices", *item.unusual),
            )
        self._subscriptions[item.price_id] += 1
        self._charged[item.price_id] += self.provider == "stripe" or subscription.customer_id in customers_with_payer
        self._own_amounts[item.price_id] += item.amount != self._prices[item.price_id].amount

    def _with_all_charges(self, price: InventoryPrice) -> InventoryPrice:
        """Lago's list leaves fixed charges out. A plan that was deleted since it was listed is sold no longer."""
        if self.provider == "stripe" or not price.active:
            return price
        whole = self._reader(self.provider, lambda inventory: inventory.price(price.id))
        return whole or replace(price, active=False, unusual=("it was deleted",))

    def _rows(
        self, object_type: str, list_page: Callable[[Inventory, str | None], ObservedPage[RowT]]
    ) -> Iterator[RowT]:
        cursor: str | None = None
        listed = 0
        for _ in range(self._max_pages):
            self._on_objects(self.provider, object_type, listed)
            page = self._page(list_page, cursor)
            yield from page.rows
            listed += len(page.rows)
            cursor = page.next_cursor
            if cursor is None:
                return
        message = f"its list of {object_type} has more than {self._max_pages} pages, too many to read"
        raise RejectedError(self.provider, message)

    def _page(
        self, list_page: Callable[[Inventory, str | None], ObservedPage[RowT]], cursor: str | None
    ) -> ObservedPage[RowT]:
        return self._reader(self.provider, lambda inventory: list_page(inventory, cursor))
