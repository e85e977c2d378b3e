"""`plans check` and `plans push`: the catalog compared with the providers' prices.

`plans push` creates missing prices. It never changes an existing one, because a plan with subscribers is a contract,
and creates none that is sold no longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from core.catalog.plans import Catalog, CatalogPlan
from core.ports.errors import ProviderError, RejectedError
from core.ports.provider import BillingProvider
from core.ports.spec import PriceSpec, Provider

_MAX_NAME_LENGTH: Final = 190
_UNPAID_USAGE: Final = (
    "usage beside the amount 0 is fine, and nobody pays it in Lago: let its charges cost nothing, or bill it in Stripe"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceStatus:
    """One plan at one provider. ``problem`` is None if the provider sells it exactly as the catalog says.

    ``missing``: it is not there; ``added``: it is there now, and was not. ``unknown``: the provider did not answer.
    ``sold_no_longer``: it is not there, and need not be. ``remarks``: what it has beside its terms.
    """

    tier: str
    provider: Provider
    code: str
    missing: bool = False
    added: bool = False
    unknown: bool = False
    sold_no_longer: bool = False
    problem: str | None = None
    remarks: tuple[str, ...] = ()


def expected_prices(catalog: Catalog, provider: Provider) -> list[tuple[CatalogPlan, PriceSpec]]:
    """Lago has a price for every plan, Stripe only for the plans that it charges for (money.md 1).

    Where Stripe charges, Lago also has the one of amount 0, if the plan names it.
    """
    plans = [catalog.plan(tier) for tier in catalog.tiers()]
    if provider == "stripe":
        return [(plan, _price_spec(plan, plan.stripe_lookup_key)) for plan in plans if plan.charged_by == "stripe"]
    return [(plan, price) for plan in plans for price in _prices_in_lago(plan)]


def _prices_in_lago(plan: CatalogPlan) -> Iterator[PriceSpec]:
    yield _price_spec(plan, plan.lago_plan_code)
    if plan.has_unpaid_plan and plan.lago_usage_plan_code is not None:
        price = _price_spec(plan, plan.lago_usage_plan_code)
        yield replace(price, name=f"{plan.name[:_MAX_NAME_LENGTH]} (usage)", amount=0)


def check(catalog: Catalog, billing_providers: Iterable[BillingProvider]) -> list[PriceStatus]:
    """Raises ``ProviderError`` if a provider cannot be read; that never counts as a missing price."""
    return [
        _compare(plan, price, billing_provider)
        for billing_provider in billing_providers
        for plan, price in expected_prices(catalog, billing_provider.provider)
    ]


def publish(catalog: Catalog, billing_providers: Iterable[BillingProvider]) -> list[PriceStatus]:
    """Create the missing prices. Returns the status of every plan after that.

    A price that cannot be created does not keep the others from it. A provider that cannot be reached is not called
    again for its other prices.
    """
    statuses = []
    for billing_provider in billing_providers:
        unreachable: ProviderError | None = None
        for plan, price in expected_prices(catalog, billing_provider.provider):
            status = PriceStatus(tier=plan.tier, provider=billing_provider.provider, code=price.code)
            if unreachable is None:
                try:
                    status = _publish(plan, price, billing_provider)
                except RejectedError as error:
                    status = replace(status, missing=True, problem=error.message)
                except ProviderError as error:
                    unreachable = error
            if unreachable is not None:
                status = replace(status, unknown=True, problem=unreachable.message)
            statuses.append(status)
    return statuses


def _publish(plan: CatalogPlan, price: PriceSpec, billing_provider: BillingProvider) -> PriceStatus:
    status = _compare(plan, price, billing_provider)
    if not status.missing:
        return status
    billing_provider.create_price(price)
    return replace(status, missing=False, added=True, problem=None)


def _compare(plan: CatalogPlan, expected: PriceSpec, billing_provider: BillingProvider) -> PriceStatus:
    status = PriceStatus(tier=plan.tier, provider=billing_provider.provider, code=expected.code)
    try:
        actual = billing_provider.find_price(expected.code)
    except RejectedError as error:
        return replace(status, problem=error.message)
    if actual is None and not plan.offered and billing_provider.provider == plan.charged_by:
        # The other provider needs it all the same, for the organizations that stay on it.
        return replace(status, sold_no_longer=True)
    if actual is None:
        return replace(status, missing=True, problem="no such price at the provider")
    unpaid = [_UNPAID_USAGE] if plan.is_usage_code(expected.code) and actual.remarks else []
    return replace(status, problem=_difference(expected, actual), remarks=(*actual.remarks, *unpaid))


def _difference(expected: PriceSpec, actual: PriceSpec) -> str | None:
    """Names may differ. Amount, currency, interval and the other terms may not."""
    fields: list[tuple[str, object, object]] = [
        ("amount", expected.amount, actual.amount),
        ("currency", expected.currency, actual.currency),
        ("interval", expected.interval, actual.interval),
    ]
    differing = [
        f"{name} is {actual_value} at the provider but {expected_value} in the catalog"
        for name, expected_value, actual_value in fields
        if expected_value != actual_value
    ]
    return "; ".join([*differing, *actual.other_terms]) or None


def _price_spec(plan: CatalogPlan, code: str) -> PriceSpec:
    return PriceSpec(code=code, name=plan.name, amount=plan.amount, currency=plan.currency, interval=plan.interval)
