"""What a Lago organization has, also what we did not make (``core.ports.inventory``). Reads only.

A subscription names its plan's code and its amount, but not its interval, so each plan is read once.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from lago_python_client.models.applied_coupon import AppliedCouponResponse
from lago_python_client.models.customer import CustomerResponse

from core.ports.errors import RejectedError
from core.ports.external_ids import unaddressable_reason
from core.ports.inventory import (
    InventoryCustomer,
    InventoryDiscount,
    InventoryItem,
    InventoryPrice,
    InventorySubscription,
)
from core.ports.observed import ObservedPage
from core.ports.provider import RequestPermits
from providers.lago.client import LagoClient, LagoRequest, parse_period_end, parse_time
from providers.lago.minor_units import LAGO_UNITS
from providers.lago.plan_inventory import list_plans, read_plan
from providers.lago.state_reader import LAGO_PAGE_SIZE, parse_optional_time, without_successors
from providers.lago.subscriptions import LIVE_STATUSES, LagoSubscription, arrangement_of, is_paid_manually
from providers.transport.permits import READ_ONLY

PAYMENT_PROVIDER_STRIPE: Final = "stripe"
MAX_PLANS_REMEMBERED: Final = 10_000


class LagoInventory:
    """``plans``: what was read of the plans; copies share it. Build a new one for each run, since plans change."""

    def __init__(
        self,
        client: LagoClient,
        permits: RequestPermits = READ_ONLY,
        plans: dict[str, InventoryPrice | None] | None = None,
    ) -> None:
        self._client = client
        self._permits = permits
        self._plans = plans if plans is not None else {}

    def with_permits(self, permits: RequestPermits) -> LagoInventory:
        return LagoInventory(self._client, permits, self._plans)

    def customers(self, cursor: str | None) -> ObservedPage[InventoryCustomer]:
        page = _page_number(cursor)
        request = LagoRequest(
            context="the list of customers",
            method="GET",
            path=("customers",),
            root="customers",
            response_type=CustomerResponse,
            params={"page": str(page), "per_page": str(LAGO_PAGE_SIZE)},
        )
        rows, more = self._client.list_page(request, self._permits)
        return ObservedPage(rows=tuple(_customer(row, ()) for row in rows), next_cursor=str(page + 1) if more else None)

    def subscriptions(self, cursor: str | None) -> ObservedPage[InventorySubscription]:
        page = _page_number(cursor)
        request = self._subscriptions_request("the list of subscriptions", page=str(page))
        rows, more = self._client.list_page(request, self._permits)
        return ObservedPage(rows=tuple(self._inventoried(rows)), next_cursor=str(page + 1) if more else None)

    def discounts(self, cursor: str | None) -> ObservedPage[InventoryDiscount]:
        page = _page_number(cursor)
        rows, more = self._client.list_page(
            self._coupons_request("the list of applied coupons", page=str(page)), self._permits
        )
        return ObservedPage(
            rows=tuple(
                InventoryDiscount(id=row.lago_id, customer_id=row.lago_customer_id, text=_coupon_text(row))
                for row in rows
            ),
            next_cursor=str(page + 1) if more else None,
        )

    def prices(self, cursor: str | None) -> ObservedPage[InventoryPrice]:
        return list_plans(self._client, self._permits, cursor)

    def price(self, price_id: str) -> InventoryPrice | None:
        return read_plan(self._client, self._permits, price_id)

    def customer(self, customer_id: str) -> InventoryCustomer | None:
        request = LagoRequest(
            context=f"customer {customer_id}",
            method="GET",
            path=("customers", customer_id),
            root="customer",
            response_type=CustomerResponse,
        )
        found = self._client.send_or_none("customer_not_found", request, self._permits)
        # A proxy may have turned the %2E of an id into a dot, and Lago reads what follows a dot as a format.
        if found is None or found.external_id != customer_id:
            return None
        coupons, _ = self._client.list_page(
            self._coupons_request(f"the coupons of customer {customer_id}", external_customer_id=customer_id),
            self._permits,
        )
        # A version of Lago that does not know the filter lists those of other customers, too.
        return _customer(found, tuple(_coupon_text(each) for each in coupons if each.lago_customer_id == found.lago_id))

    def subscriptions_of(self, customer_id: str) -> list[InventorySubscription]:
        request = self._subscriptions_request(
            f"subscriptions of customer {customer_id}", external_customer_id=customer_id
        )
        rows, _ = self._client.list_page(request, self._permits)
        return self._inventoried([row for row in rows if row.external_customer_id == customer_id])

    def _inventoried(self, rows: list[LagoSubscription]) -> list[InventorySubscription]:
        return [_subscription(row, self._plan(row.plan_code)) for row in without_successors(rows)]

    def _plan(self, code: str | None) -> InventoryPrice | None:
        """None: Lago has no plan under this code any more."""
        if code is None:
            return None
        if code not in self._plans:
            if len(self._plans) >= MAX_PLANS_REMEMBERED:
                self._plans.clear()
            self._plans[code] = read_plan(self._client, self._permits, code)
        return self._plans[code]

    def _subscriptions_request(self, context: str, **filters: str) -> LagoRequest[LagoSubscription]:
        return LagoRequest(
            context=context,
            method="GET",
            path=("subscriptions",),
            root="subscriptions",
            response_type=LagoSubscription,
            params={**filters, "status[]": LIVE_STATUSES, "per_page": str(LAGO_PAGE_SIZE)},
        )

    def _coupons_request(self, context: str, **filters: str) -> LagoRequest[AppliedCouponResponse]:
        return LagoRequest(
            context=context,
            method="GET",
            path=("applied_coupons",),
            root="applied_coupons",
            response_type=AppliedCouponResponse,
            params={**filters, "status": "active", "per_page": str(LAGO_PAGE_SIZE)},
        )


def _page_number(cursor: str | None) -> int:
    return int(cursor) if cursor is not None else 1


def _customer(found: CustomerResponse, discounts: tuple[str, ...]) -> InventoryCustomer:
    configuration = found.billing_configuration
    payment_provider = configuration.payment_provider if configuration is not None else None
    payer_id = configuration.provider_customer_id if configuration is not None else None
    is_stripe = payment_provider in {None, PAYMENT_PROVIDER_STRIPE}
    return InventoryCustomer(
        id=found.lago_id,
        external_id=found.external_id,
        name=found.name or None,
        # Lago accepts several addresses with commas between them, and gives the first one to Stripe (money.md 3).
        email=(found.email or "").split(",")[0].strip() or None,
        currency=found.currency,
        payer_id=(payer_id or None) if is_stripe else None,
        other_payer=None if is_stripe else payment_provider,
        discounts=discounts,
        is_addressable=unaddressable_reason(found.external_id) is None,
    )


def _subscription(row: LagoSubscription, plan: InventoryPrice | None) -> InventorySubscription:
    context = f"subscription {row.external_id}"
    period_end = row.current_billing_period_ending_at
    return InventorySubscription(
        id=row.lago_id,
        customer_id=row.lago_customer_id or "",
        external_id=row.external_id,
        status=row.status or "active",
        items=(_item(row, plan),),
        next_code=row.next_plan_code,
        arrangement=arrangement_of(row),
        trial_ends_at=_trial_ends_at(context, row, plan),
        next_at=parse_period_end(context, period_end) if period_end else None,
        is_paid_manually=is_paid_manually(row),
        is_addressable=unaddressable_reason(row.external_id or "") is None,
        created_at=parse_optional_time(row.external_id, row.created_at),
    )


def _item(row: LagoSubscription, plan: InventoryPrice | None) -> InventoryItem:
    """The amount is the subscription's: one with a price of its own is on another plan under the same code (B12)."""
    cents, currency = row.plan_amount_cents, row.plan_amount_currency
    amount = _iso_amount(int(cents), currency) if cents is not None and currency is not None else None
    return InventoryItem(
        price_id=row.plan_code or "",
        code=row.plan_code,
        amount=amount if plan is None or plan.amount is not None else None,
        currency=currency or (plan.currency if plan is not None else ""),
        interval=plan.interval if plan is not None else None,
        interval_count=plan.interval_count if plan is not None else 1,
        sold_price_id=cents,
        bills_usage=plan is not None and bool(plan.remarks),
        unusual=plan.unusual if plan is not None else ("Lago has no plan under its code any more",),
    )


def _iso_amount(cents: int, currency: str) -> int | None:
    try:
        return LAGO_UNITS.from_provider(cents, currency)
    except RejectedError:
        return None


def _trial_ends_at(context: str, row: LagoSubscription, plan: InventoryPrice | None) -> datetime | None:
    """Lago shows when a trial ended, and not when it will end."""
    if plan is None or not plan.trial_days or row.trial_ended_at is not None or row.started_at is None:
        return None
    return parse_time(context, row.started_at) + timedelta(days=plan.trial_days)


def _coupon_text(coupon: AppliedCouponResponse) -> str:
    if coupon.percentage_rate is not None:
        off = f"{coupon.percentage_rate:g} % off"
    elif coupon.amount_cents is not None and coupon.amount_currency is not None:
        off = f"{LAGO_UNITS.text(coupon.amount_cents, coupon.amount_currency)} off"
    else:
        off = f"coupon {coupon.coupon_code}"
    if coupon.frequency == "once":
        return f"{off} once"
    if coupon.frequency == "recurring":
        return f"{off} for {coupon.frequency_duration_remaining or coupon.frequency_duration} more periods"
    return off
