"""Stripe prices by lookup key. A price is always read from Stripe, and an unknown lookup key never counts as free."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from stripe.params import PriceCreateParamsRecurring

from core.ports.errors import RejectedError
from core.ports.provider import RequestPermits
from core.ports.spec import PriceSpec
from providers.stripe.client import StripeClient, with_new_idempotency_key
from providers.stripe.errors import RESOURCE_MISSING, STRIPE
from providers.stripe.minor_units import STRIPE_UNITS
from providers.stripe.responses import StripePage, StripePrice, StripeProduct
from providers.transport.permits import READ_ONLY

# A lookup key moves to a new price when somebody raises it (stripe.md 5). We see that within five minutes.
PRICE_CACHE_SECONDS = 300.0
_MAX_CACHED_PRICES = 10_000

_INTERVALS: dict[str, PriceCreateParamsRecurring] = {
    "weekly": {"interval": "week", "interval_count": 1},
    "monthly": {"interval": "month", "interval_count": 1},
    "quarterly": {"interval": "month", "interval_count": 3},
    "semiannual": {"interval": "month", "interval_count": 6},
    "yearly": {"interval": "year", "interval_count": 1},
}


class StripePrices:
    """``outside_attempts``: the permits of a request that creates a price."""

    def __init__(self, client: StripeClient, outside_attempts: RequestPermits = READ_ONLY) -> None:
        self._client = client
        self._outside_attempts = outside_attempts
        self._cache: dict[str, tuple[float, StripePrice]] = {}
        self._lock = threading.Lock()

    def active_price(self, lookup_key: str, guard: RequestPermits) -> StripePrice:
        """The active price under this key, at most ``PRICE_CACHE_SECONDS`` old. Raises ``RejectedError`` if none is."""
        with self._lock:
            read_at, price = self._cache.get(lookup_key, (0.0, None))
        if price is not None and time.monotonic() - read_at < PRICE_CACHE_SECONDS:
            return price
        price = self._find_active(lookup_key, guard)
        if price is None:
            message = (
                f"no active price with lookup key {lookup_key}; run `billing-sync plans push`, or make it active again "
                "in Stripe if plans.toml has `offered = false` for it"
            )
            raise RejectedError(STRIPE, message, "unknown_lookup_key")
        with self._lock:
            if len(self._cache) >= _MAX_CACHED_PRICES:
                self._cache.clear()
            self._cache[lookup_key] = (time.monotonic(), price)
        return price

    def price_by_id(self, price_id: str, guard: RequestPermits) -> StripePrice:
        """Also one that is sold no longer. Raises ``RejectedError`` if there is none."""
        return self._client.send(
            guard,
            "GET /v1/prices/{id}",
            f"read price {price_id}",
            lambda: self._client.v1.prices.retrieve(price_id),
            StripePrice,
        )

    def find_price(self, code: str) -> PriceSpec | None:
        price = self._find_active(code, READ_ONLY)
        if price is None:
            return None
        if price.unit_amount is None or price.recurring is None:
            message = f"price {price.id} under lookup key {code} has no flat recurring amount; create one that has"
            raise RejectedError(STRIPE, message)
        return PriceSpec(
            code=code,
            name=price.product if isinstance(price.product, str) else price.product.name,
            amount=STRIPE_UNITS.from_provider(price.unit_amount, price.currency.upper()),
            currency=price.currency.upper(),
            interval=interval_of(price),
            other_terms=tuple(other_terms(price)),
            remarks=remarks(price),
        )

    def create_price(self, spec: PriceSpec) -> None:
        recurring = _INTERVALS.get(spec.interval)
        if recurring is None:
            message = f"plan {spec.code}: interval {spec.interval} is not one of {', '.join(_INTERVALS)}"
            raise RejectedError(STRIPE, message)
        product_id = f"billing_sync_{spec.code}"
        self._create_product(product_id, spec)
        options = with_new_idempotency_key("create_price")
        try:
            self._client.send(
                self._outside_attempts,
                "POST /v1/prices",
                f"create the price with lookup key {spec.code}",
                lambda: self._client.v1.prices.create(
                    {
                        "product": product_id,
                        "lookup_key": spec.code,
                        "unit_amount": STRIPE_UNITS.to_provider(spec.amount, spec.currency.upper()),
                        "currency": spec.currency.lower(),
                        "recurring": recurring,
                    },
                    options,
                ),
                StripePrice,
            )
        except RejectedError as error:
            # The response was lost, or another process was first. The key is unique, so the existing price decides.
            found = self.find_price(spec.code)
            if found is None:
                archived = self._find(spec.code, READ_ONLY, active=False)
                if archived is None:
                    raise
                message = f"the archived price {archived.id} has the lookup key {spec.code}; remove it there in Stripe"
                raise RejectedError(STRIPE, message, error.code, error.request_id) from None
            if _terms(found) != _terms(spec):
                message = (
                    f"lookup key {spec.code} belongs to another price in Stripe; use a new lookup key for new terms"
                )
                raise RejectedError(STRIPE, message, error.code, error.request_id) from None

    def _create_product(self, product_id: str, spec: PriceSpec) -> None:
        options = with_new_idempotency_key("create_product")
        try:
            self._client.send(
                self._outside_attempts,
                "POST /v1/products",
                f"create product {product_id}",
                lambda: self._client.v1.products.create({"id": product_id, "name": spec.name}, options),
                StripeProduct,
            )
        except RejectedError as error:
            if error.code != "resource_already_exists" and not self._has_product(product_id):
                raise

    def _has_product(self, product_id: str) -> bool:
        try:
            self._client.send(
                READ_ONLY,
                "GET /v1/products/{id}",
                f"read product {product_id}",
                lambda: self._client.v1.products.retrieve(product_id),
                StripeProduct,
            )
        except RejectedError as error:
            if error.code != RESOURCE_MISSING:
                raise
            return False
        return True

    def _find_active(self, lookup_key: str, guard: RequestPermits) -> StripePrice | None:
        return self._find(lookup_key, guard, active=True)

    def _find(self, lookup_key: str, guard: RequestPermits, *, active: bool) -> StripePrice | None:
        found = self._client.send(
            guard,
            "GET /v1/prices",
            f"look up price {lookup_key}",
            lambda: self._client.v1.prices.list(
                {"lookup_keys": [lookup_key], "active": active, "expand": ["data.product"], "limit": 1}
            ),
            StripePage[StripePrice],
        )
        return found.data[0] if found.data else None


def interval_of(price: StripePrice) -> str:
    """The catalog's word for the price's interval, or Stripe's own if the catalog has none, such as ``2 week``."""
    if price.recurring is None:
        return "once"
    stripe_interval = {"interval": price.recurring.interval, "interval_count": price.recurring.interval_count}
    if stripe_interval == {"interval": "month", "interval_count": 12}:
        return "yearly"
    names = (name for name, recurring in _INTERVALS.items() if recurring == stripe_interval)
    return next(names, f"{price.recurring.interval_count} {price.recurring.interval}")


def remarks(price: StripePrice) -> tuple[str, ...]:
    return ("its amount includes tax",) if price.tax_behavior == "inclusive" else ()


def other_terms(price: StripePrice) -> Iterator[str]:
    """What the catalog cannot say (stripe.md 5)."""
    if price.recurring is not None and price.recurring.usage_type == "metered":
        yield "it is metered, so a subscription pays for usage and not the amount"
    if price.billing_scheme == "tiered":
        yield "its amount has tiers"
    if price.transform_quantity is not None:
        yield f"its quantity is divided by {price.transform_quantity.divide_by}"
    if price.recurring is not None and price.recurring.trial_period_days:
        yield f"it begins with {price.recurring.trial_period_days} days that are free"


def _terms(spec: PriceSpec) -> tuple[int, str, str]:
    return spec.amount, spec.currency.upper(), spec.interval
