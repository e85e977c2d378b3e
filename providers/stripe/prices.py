"""Prices by lookup key: what a plan costs at Stripe is found there, never assumed, and an unknown key is never free."""

from __future__ import annotations

import threading
import time

from stripe.params import PriceCreateParamsRecurring

from core.ports.errors import RejectedError
from core.ports.spec import Offer
from providers.stripe.client import Door, Lease, NoLease, once
from providers.stripe.errors import MISSING, PROVIDER
from providers.stripe.responses import Page, PriceAnswer, ProductAnswer

SECONDS_CACHED = 300.0  # stripe.md 5: a key moves to a new price when someone raises it; five minutes later we know
_MOST_CACHED = 10_000

_INTERVALS: dict[str, PriceCreateParamsRecurring] = {
    "weekly": {"interval": "week", "interval_count": 1},
    "monthly": {"interval": "month", "interval_count": 1},
    "quarterly": {"interval": "month", "interval_count": 3},
    "semiannual": {"interval": "month", "interval_count": 6},
    "yearly": {"interval": "year", "interval_count": 1},
}


class Prices:
    def __init__(self, door: Door) -> None:
        self._door = door
        self._known: dict[str, tuple[float, PriceAnswer]] = {}
        self._lock = threading.Lock()

    def priced(self, lookup_key: str, lease: Lease) -> PriceAnswer:
        """The active price under this key, at most ``SECONDS_CACHED`` old; ``RejectedError`` where there is none."""
        with self._lock:
            read_at, price = self._known.get(lookup_key, (0.0, None))
        if price is not None and time.monotonic() - read_at < SECONDS_CACHED:
            return price
        price = self._read(lookup_key, lease)
        if price is None:
            message = f"no active price with lookup key {lookup_key}: run billing-sync plans push"
            raise RejectedError(PROVIDER, message, "unknown_lookup_key")
        with self._lock:
            if len(self._known) >= _MOST_CACHED:
                self._known.clear()
            self._known[lookup_key] = (time.monotonic(), price)
        return price

    def find_offer(self, code: str) -> Offer | None:
        price = self._read(code, NoLease())
        if price is None:
            return None
        if price.unit_amount is None or price.recurring is None or isinstance(price.product, str):
            message = f"price {price.id} under lookup key {code} has no flat recurring amount; make one that has"
            raise RejectedError(PROVIDER, message)
        return Offer(
            code=code,
            name=price.product.name,
            amount=price.unit_amount,
            currency=price.currency.upper(),
            interval=interval_of(price),
        )

    def add_offer(self, offer: Offer) -> None:
        recurring = _INTERVALS.get(offer.interval)
        if recurring is None:
            message = f"plan {offer.code}: interval {offer.interval} is none of {', '.join(_INTERVALS)}"
            raise RejectedError(PROVIDER, message)
        product_id = f"billing_sync_{offer.code}"
        self._add_product(product_id, offer)
        options = once("create_price")
        try:
            self._door.send(
                NoLease(),
                "POST /v1/prices",
                f"create the price with lookup key {offer.code}",
                lambda: self._door.v1.prices.create(
                    {
                        "product": product_id,
                        "lookup_key": offer.code,
                        "unit_amount": offer.amount,
                        "currency": offer.currency.lower(),
                        "recurring": recurring,
                    },
                    options,
                ),
                PriceAnswer,
            )
        except RejectedError as error:
            # A lost answer, or another process: the key is unique, so what stands there decides.
            found = self.find_offer(offer.code)
            if found is None:
                message = f"{error.message}; an archived price may hold the lookup key: free it there"
                raise RejectedError(PROVIDER, message, error.code, error.request_id) from None
            if _terms(found) != _terms(offer):
                message = f"lookup key {offer.code} is on another price in Stripe; use a new key for new terms"
                raise RejectedError(PROVIDER, message, error.code, error.request_id) from None

    def _add_product(self, product_id: str, offer: Offer) -> None:
        options = once("create_product")
        try:
            self._door.send(
                NoLease(),
                "POST /v1/products",
                f"create product {product_id}",
                lambda: self._door.v1.products.create({"id": product_id, "name": offer.name}, options),
                ProductAnswer,
            )
        except RejectedError as error:
            if error.code != "resource_already_exists" and not self._has_product(product_id):
                raise

    def _has_product(self, product_id: str) -> bool:
        try:
            self._door.send(
                NoLease(),
                "GET /v1/products/{id}",
                f"read product {product_id}",
                lambda: self._door.v1.products.retrieve(product_id),
                ProductAnswer,
            )
        except RejectedError as error:
            if error.code != MISSING:
                raise
            return False
        return True

    def _read(self, lookup_key: str, lease: Lease) -> PriceAnswer | None:
        found = self._door.send(
            lease,
            "GET /v1/prices",
            f"look up price {lookup_key}",
            lambda: self._door.v1.prices.list(
                {"lookup_keys": [lookup_key], "active": True, "expand": ["data.product"], "limit": 1}
            ),
            Page[PriceAnswer],
        )
        return found.data[0] if found.data else None


def interval_of(price: PriceAnswer) -> str:
    """Our word for the price's interval; Stripe's own where the catalog has none, such as ``2 week``."""
    if price.recurring is None:
        return "once"
    mine = {"interval": price.recurring.interval, "interval_count": price.recurring.interval_count}
    if mine == {"interval": "month", "interval_count": 12}:
        return "yearly"
    named = (name for name, recurring in _INTERVALS.items() if recurring == mine)
    return next(named, f"{price.recurring.interval_count} {price.recurring.interval}")


def _terms(offer: Offer) -> tuple[int, str, str]:
    return offer.amount, offer.currency.upper(), offer.interval
