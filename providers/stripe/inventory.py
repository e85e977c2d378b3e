"""What a Stripe account has, also what we did not make (``core.ports.inventory``). Reads only.

A list of subscriptions leaves out those that were canceled, and a list of customers those that were deleted. Coupons
are part of the responses, so a restricted key must be allowed to read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import stripe
from pydantic import Field, field_validator
from stripe.params import CustomerListParams, SubscriptionListParams

from core.ports.errors import RejectedError
from core.ports.inventory import (
    InventoryCustomer,
    InventoryDiscount,
    InventoryItem,
    InventoryPrice,
    InventorySubscription,
)
from core.ports.observed import ObservedPage
from core.ports.provider import RequestPermits
from providers.stripe.client import STRIPE_PAGE_SIZE, StripeClient, next_cursor
from providers.stripe.errors import RESOURCE_MISSING
from providers.stripe.metadata import DATABASE_ID_KEY, ORG_ID_KEY
from providers.stripe.minor_units import STRIPE_UNITS
from providers.stripe.plan_changes import arrangement_of
from providers.stripe.price_inventory import inventory_price, list_prices, read_price
from providers.stripe.responses import (
    StripeCustomer,
    StripeModel,
    StripePage,
    StripeSubscription,
    StripeSubscriptionItem,
)
from providers.transport.permits import READ_ONLY
from providers.transport.safe_ids import printable

_MAX_SUBSCRIPTION_PAGES: Final = 5  # of one customer, which may have 500 subscriptions (stripe.md 6)
_MAX_NAMED_ORGANIZATIONS: Final = 5
_MAX_ID_LENGTH: Final = 255


class StripeCoupon(StripeModel):
    id: str
    percent_off: float | None = None
    amount_off: int | None = None
    currency: str | None = None
    duration: str = "forever"


class StripeDiscountSource(StripeModel):
    coupon: StripeCoupon | str | None = None


class StripeDiscount(StripeModel):
    end: int | None = None
    source: StripeDiscountSource | None = None

    @property
    def text(self) -> str:
        coupon = self.source.coupon if self.source is not None else None
        if not isinstance(coupon, StripeCoupon):
            return f"coupon {coupon}" if coupon else "a discount"
        if coupon.percent_off is not None:
            off = f"{coupon.percent_off:g} % off"
        elif coupon.amount_off is not None and coupon.currency is not None:
            off = f"{STRIPE_UNITS.text(coupon.amount_off, coupon.currency.upper())} off"
        else:
            off = f"coupon {coupon.id}"
        if self.end is not None:
            return f"{off} until {datetime.fromtimestamp(self.end, UTC):%Y-%m-%d}"
        return f"{off} once" if coupon.duration == "once" else off


class _DiscountedCustomer(StripeCustomer):
    discount: StripeDiscount | None = None


class _InventoriedItem(StripeSubscriptionItem):
    discounts: list[object] = Field(default_factory=list)


class _InventoriedSubscription(StripeSubscription):
    """``customer`` is empty for a v2 account. ``discounts`` are ids unless they were requested."""

    customer: str = ""
    trial_end: int | None = None
    default_source: object = None

    @field_validator("customer", mode="before")
    @classmethod
    def _without_customer(cls, sent: object) -> object:
        return "" if sent is None else sent


class StripeInventory:
    def __init__(self, client: StripeClient, permits: RequestPermits = READ_ONLY) -> None:
        self._client = client
        self._permits = permits

    def with_permits(self, permits: RequestPermits) -> StripeInventory:
        return StripeInventory(self._client, permits)

    def customers(self, cursor: str | None) -> ObservedPage[InventoryCustomer]:
        def fetch_page(last_id: str | None) -> stripe.StripeObject:
            params: CustomerListParams = {"limit": STRIPE_PAGE_SIZE, "expand": ["data.discount.source.coupon"]}
            return self._client.v1.customers.list(params if last_id is None else {**params, "starting_after": last_id})

        found = self._client.page_after(
            self._permits,
            "GET /v1/customers",
            "list the customers",
            fetch_page,
            cursor,
            StripePage[_DiscountedCustomer],
        )
        return ObservedPage(rows=tuple(map(_customer, found.data)), next_cursor=next_cursor(found))

    def subscriptions(self, cursor: str | None) -> ObservedPage[InventorySubscription]:
        def fetch_page(last_id: str | None) -> stripe.StripeObject:
            params: SubscriptionListParams = {"limit": STRIPE_PAGE_SIZE, "expand": ["data.discounts.source.coupon"]}
            return self._client.v1.subscriptions.list(
                params if last_id is None else {**params, "starting_after": last_id}
            )

        found = self._client.page_after(
            self._permits,
            "GET /v1/subscriptions",
            "list the subscriptions",
            fetch_page,
            cursor,
            StripePage[_InventoriedSubscription],
        )
        return ObservedPage(rows=_live(found.data), next_cursor=next_cursor(found))

    def discounts(self, cursor: str | None) -> ObservedPage[InventoryDiscount]:  # noqa: ARG002 - customers show theirs
        return ObservedPage(rows=(), next_cursor=None)

    def prices(self, cursor: str | None) -> ObservedPage[InventoryPrice]:
        return list_prices(self._client, self._permits, cursor)

    def price(self, price_id: str) -> InventoryPrice | None:
        return read_price(self._client, self._permits, price_id)

    def customer(self, customer_id: str) -> InventoryCustomer | None:
        try:
            found = self._client.send(
                self._permits,
                "GET /v1/customers/{id}",
                f"read customer {printable(customer_id)}",
                lambda: self._client.v1.customers.retrieve(customer_id, {"expand": ["discount.source.coupon"]}),
                _DiscountedCustomer,
            )
        except RejectedError as error:
            if error.code != RESOURCE_MISSING:
                raise
            return None
        return _customer(found)

    def subscriptions_of(self, customer_id: str) -> list[InventorySubscription]:
        def fetch_page(last_id: str | None) -> stripe.StripeObject:
            params: SubscriptionListParams = {
                "customer": customer_id,
                "limit": STRIPE_PAGE_SIZE,
                "expand": ["data.discounts.source.coupon"],
            }
            return self._client.v1.subscriptions.list(
                params if last_id is None else {**params, "starting_after": last_id}
            )

        found = self._client.list_all(
            self._permits,
            "GET /v1/subscriptions",
            f"list the subscriptions of customer {printable(customer_id)}",
            fetch_page,
            StripePage[_InventoriedSubscription],
            _MAX_SUBSCRIPTION_PAGES,
        )
        return list(_live(found))


def _customer(found: _DiscountedCustomer) -> InventoryCustomer:
    has_marks = found.org_id is not None and found.database_id is not None
    return InventoryCustomer(
        id=found.id,
        org_id=found.org_id if has_marks else None,
        database_id=found.database_id if has_marks else None,
        name=found.name or None,
        email=found.email or None,
        currency=found.currency.upper() if found.currency else None,
        has_payment_method=found.has_payment_method,
        named_org_ids=_named_org_ids(found.metadata or {}, has_marks=has_marks),
        discounts=(found.discount.text,) if found.discount is not None else (),
        deleted=found.deleted,
    )


def _named_org_ids(metadata: Mapping[str, str], *, has_marks: bool) -> tuple[str, ...]:
    """Values under keys such as ``org_id`` or ``organizationId``, and of ``billing_sync_org_id`` if it stands alone."""
    values = [
        value
        for key, value in metadata.items()
        if key.casefold().startswith("org") or (key == ORG_ID_KEY and not has_marks)
        if 0 < len(value) <= _MAX_ID_LENGTH
    ]
    return tuple(dict.fromkeys(values))[:_MAX_NAMED_ORGANIZATIONS]


def _live(rows: list[_InventoriedSubscription]) -> tuple[InventorySubscription, ...]:
    return tuple(_subscription(each) for each in rows if not each.has_ended)


def _subscription(found: _InventoriedSubscription) -> InventorySubscription:
    has_marks = bool(found.metadata.get(ORG_ID_KEY) and found.metadata.get(DATABASE_ID_KEY))
    marks = found.marks if has_marks else {}
    item_discounts = tuple("a discount on an item" for item in found.items.data if item.discounts)
    trial_end = found.trial_end if found.status == "trialing" else None
    return InventorySubscription(
        id=found.id,
        customer_id=found.customer,
        org_id=marks.get("org_id"),
        database_id=marks.get("database_id"),
        status=found.status,
        items=tuple(_item(each) for each in found.items.data),
        next_code=marks.get("next_plan") or None,
        arrangement=arrangement_of(found),
        trial_ends_at=_moment(trial_end),
        next_at=_moment(max((item.current_period_end for item in found.items.data), default=None)),
        discounts=tuple(_discount_text(each) for each in found.discounts) + item_discounts,
        is_paid_manually=found.collection_method == "send_invoice",
        has_payment_method=bool(found.default_payment_method or found.default_source),
        created_at=_moment(found.created),
    )


def _item(item: StripeSubscriptionItem) -> InventoryItem:
    price = inventory_price(item.price)
    return InventoryItem(
        price_id=price.id,
        code=price.code,
        amount=price.amount,
        currency=price.currency,
        interval=price.interval,
        interval_count=price.interval_count,
        quantity=item.quantity,
        sold_price_id=price.id,
        bills_usage=item.price.recurring is not None and item.price.recurring.usage_type == "metered",
        unusual=price.unusual,
    )


def _discount_text(discount: object) -> str:
    return StripeDiscount.model_validate(discount).text if isinstance(discount, Mapping) else "a discount"


def _moment(seconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds is not None else None
