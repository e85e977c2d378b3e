"""Both accounts are read page by page: each subscription counts once, and nobody whom Lago cannot charge is charged."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from core.adoption import plans_in_use
from core.adoption.plans_in_use import InventoryReader, PlansInUse, PriceInUse
from core.ports.errors import RejectedError, UnavailableError
from core.ports.inventory import (
    InventoryCustomer,
    InventoryDiscount,
    InventoryItem,
    InventoryPrice,
    InventorySubscription,
)
from core.ports.observed import ObservedPage
from core.ports.provider import RequestPermits
from core.ports.spec import Provider

PRO = InventoryPrice(id="pro", code="pro", name="Pro", amount=4900, currency="USD", interval="month")
ITEM = InventoryItem(price_id="pro", code="pro", amount=4900, currency="USD", interval="month")


@dataclass
class ListedAccount:
    """An account whose lists are given. ``failures``: how many reads fail before one is answered."""

    listed_prices: list[list[InventoryPrice]] = field(default_factory=list)
    listed_customers: list[InventoryCustomer] = field(default_factory=list)
    listed_subscriptions: list[list[InventorySubscription]] = field(default_factory=list)
    whole_prices: dict[str, InventoryPrice] = field(default_factory=dict)
    is_endless: bool = False
    failures: int = 0

    def with_permits(self, permits: RequestPermits) -> ListedAccount:  # noqa: ARG002 - it sends no request
        return self

    def prices(self, cursor: str | None) -> ObservedPage[InventoryPrice]:
        if self.failures:
            self.failures -= 1
            raise UnavailableError("stripe", "nobody answers")
        if self.is_endless:
            return ObservedPage(rows=(), next_cursor="1")
        return _page(self.listed_prices, cursor)

    def customers(self, cursor: str | None) -> ObservedPage[InventoryCustomer]:
        return _page([self.listed_customers], cursor)

    def subscriptions(self, cursor: str | None) -> ObservedPage[InventorySubscription]:
        return _page(self.listed_subscriptions, cursor)

    def price(self, price_id: str) -> InventoryPrice | None:
        return self.whole_prices.get(price_id)

    def discounts(self, cursor: str | None) -> ObservedPage[InventoryDiscount]:
        raise NotImplementedError

    def customer(self, customer_id: str) -> InventoryCustomer | None:
        raise NotImplementedError

    def subscriptions_of(self, customer_id: str) -> list[InventorySubscription]:
        raise NotImplementedError


def _page(pages: list[list[plans_in_use.RowT]], cursor: str | None) -> ObservedPage[plans_in_use.RowT]:
    number = int(cursor or 0)
    rows = tuple(pages[number]) if number < len(pages) else ()
    return ObservedPage(rows=rows, next_cursor=str(number + 1) if number + 1 < len(pages) else None)


def subscription(number: int, *items: InventoryItem, customer: str = "cus_1") -> InventorySubscription:
    return InventorySubscription(id=f"sub_{number}", customer_id=customer, items=items or (ITEM,))


def read(stripe: ListedAccount | None = None, lago: ListedAccount | None = None, max_pages: int = 100) -> PlansInUse:
    accounts: dict[Provider, ListedAccount] = {"stripe": stripe or ListedAccount(), "lago": lago or ListedAccount()}
    reader = InventoryReader(readers=accounts, purpose="test", sleep=lambda _seconds: None)
    return plans_in_use.read_plans_in_use(reader, lambda _provider, _object_type, _listed: None, max_pages)


def only(found: PlansInUse) -> PriceInUse:
    (price,) = found.prices
    return price


def test_all_pages_count_and_a_subscription_that_a_page_repeats_counts_once() -> None:
    pages = [[subscription(1), subscription(2)], [subscription(2), subscription(3)]]
    found = only(read(ListedAccount(listed_prices=[[], [PRO]], listed_subscriptions=pages)))
    assert (found.price, found.subscriptions, found.charged) == (PRO, 3, 3)


def test_lago_charges_only_customers_with_a_payer() -> None:
    account = ListedAccount(
        listed_prices=[[PRO]],
        listed_customers=[
            InventoryCustomer(id="1", payer_id="cus_1"),
            InventoryCustomer(id="2", other_payer="gocardless"),
            InventoryCustomer(id="3"),
        ],
        listed_subscriptions=[[subscription(each, customer=str(each)) for each in (1, 2, 3)]],
        whole_prices={"pro": PRO},
    )
    found = only(read(lago=account))
    assert (found.subscriptions, found.charged) == (3, 2)


def test_a_plan_of_lago_is_read_with_all_that_it_charges_for_and_one_that_is_gone_is_not_sold() -> None:
    whole = replace(PRO, unusual=("it has a fixed charge beside its amount: setup",))
    account = ListedAccount(
        listed_prices=[[PRO]], listed_subscriptions=[[subscription(1)]], whole_prices={"pro": whole}
    )
    assert only(read(lago=account)).price == whole
    account.whole_prices.clear()
    assert not only(read(lago=account)).price.active


def test_an_amount_of_their_own_is_counted() -> None:
    items = [ITEM, replace(ITEM, amount=3900)]
    account = ListedAccount(
        listed_prices=[[PRO]],
        listed_subscriptions=[[subscription(number, item) for number, item in enumerate(items)]],
        whole_prices={"pro": PRO},
    )
    assert only(read(lago=account)).own_amounts == 1


def test_several_items_are_no_plan() -> None:
    account = ListedAccount(listed_prices=[[PRO]], listed_subscriptions=[[subscription(1, ITEM, ITEM)]])
    found = read(account)
    assert (only(found).subscriptions, found.several_items) == (0, {"stripe": 1})


def test_a_price_that_is_in_no_list_is_counted_and_is_not_sold() -> None:
    found = only(read(ListedAccount(listed_subscriptions=[[subscription(1)]])))
    assert (found.price.id, found.subscriptions, found.price.active) == ("pro", 1, False)
    assert found.price.unusual == ("it is in no list of prices",)


def test_a_page_that_fails_is_read_again() -> None:
    assert only(read(ListedAccount(listed_prices=[[PRO]], failures=3))).price == PRO
    with pytest.raises(UnavailableError):
        read(ListedAccount(failures=1000))


def test_a_list_without_an_end_is_given_up() -> None:
    with pytest.raises(RejectedError, match="its list of prices has more than 5 pages"):
        read(ListedAccount(is_endless=True), max_pages=5)
