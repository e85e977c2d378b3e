"""The recurring prices of a Stripe account, page by page, also those without a lookup key (``core.ports.inventory``).

Without ``active``, Stripe may list the active prices only, so both kinds are read: the active ones first.
"""

from __future__ import annotations

from typing import Final

from stripe.params import PriceListParams

from core.ports.errors import RejectedError
from core.ports.inventory import Interval, InventoryPrice
from core.ports.observed import ObservedPage
from core.ports.provider import RequestPermits
from providers.stripe.client import STRIPE_PAGE_SIZE, StripeClient
from providers.stripe.errors import RESOURCE_MISSING
from providers.stripe.minor_units import STRIPE_UNITS
from providers.stripe.prices import other_terms, remarks
from providers.stripe.responses import StripePage, StripePrice, StripeProduct
from providers.transport.safe_ids import printable

_INTERVALS: Final[dict[str, Interval]] = {"day": "day", "week": "week", "month": "month", "year": "year"}
_ACTIVE: Final = "active"
_ARCHIVED: Final = "archived"


def list_prices(client: StripeClient, permits: RequestPermits, cursor: str | None) -> ObservedPage[InventoryPrice]:
    """``cursor``: ``active`` or ``archived``, and the id after which the page begins."""
    kind, _, last_id = (cursor or _ACTIVE).partition(" ")
    params: PriceListParams = {
        "active": kind == _ACTIVE,
        "type": "recurring",
        "expand": ["data.product"],
        "limit": STRIPE_PAGE_SIZE,
    }
    if last_id:
        params["starting_after"] = last_id
    page = client.send(
        permits,
        "GET /v1/prices",
        f"list the {kind} prices",
        lambda: client.v1.prices.list(params),
        StripePage[StripePrice],
    )
    next_cursor = f"{kind} {page.data[-1].id}" if page.has_more and page.data else None
    if next_cursor is None and kind == _ACTIVE:
        next_cursor = _ARCHIVED
    return ObservedPage(rows=tuple(map(inventory_price, page.data)), next_cursor=next_cursor)


def read_price(client: StripeClient, permits: RequestPermits, price_id: str) -> InventoryPrice | None:
    try:
        price = client.send(
            permits,
            "GET /v1/prices/{id}",
            f"read price {printable(price_id)}",
            lambda: client.v1.prices.retrieve(price_id, {"expand": ["product"]}),
            StripePrice,
        )
    except RejectedError as error:
        if error.code != RESOURCE_MISSING:
            raise
        return None
    return inventory_price(price)


def inventory_price(price: StripePrice) -> InventoryPrice:
    """``amount`` is None where the price alone does not say what a period costs."""
    amount, problems = flat_amount(price)
    interval, interval_count = interval_and_count(price)
    product = price.product if isinstance(price.product, StripeProduct) else StripeProduct(id=price.product)
    return InventoryPrice(
        id=price.id,
        code=price.lookup_key,
        name=product.name,
        amount=amount,
        currency=price.currency.upper(),
        interval=interval,
        interval_count=interval_count,
        active=price.active and product.active,
        unusual=(*other_terms(price), *problems),
        remarks=remarks(price),
    )


def flat_amount(price: StripePrice) -> tuple[int | None, tuple[str, ...]]:
    """What one unit costs for a period, in ISO minor units. None: nothing says that, for the reason that is named."""
    charges_usage = price.recurring is not None and price.recurring.usage_type == "metered"
    if price.unit_amount is None or charges_usage or price.billing_scheme == "tiered":
        return None, ("it has no flat amount",)
    try:
        return STRIPE_UNITS.from_provider(price.unit_amount, price.currency.upper()), ()
    except RejectedError as error:
        return None, (error.message,)


def interval_and_count(price: StripePrice) -> tuple[Interval | None, int]:
    if price.recurring is None:
        return None, 1
    return _INTERVALS.get(price.recurring.interval), price.recurring.interval_count
