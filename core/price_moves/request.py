"""Which codes of a plan a move is between: both belong to one plan, at the provider that charges it."""

from __future__ import annotations

from dataclasses import dataclass

from core.catalog.plans import Catalog, CatalogPlan
from core.common.validation import InvalidChangeError
from core.ports.spec import PROVIDER_NAMES, PROVIDERS, Provider
from core.price_moves.row import MAX_NOTICE_DAYS


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceMoveRequest:
    provider: Provider
    tier: str
    from_code: str
    to_code: str
    at_period_end: bool
    notice_days: int


def checked(  # noqa: PLR0913 - what an operator types
    catalog: Catalog, tier: str, *, from_code: str, to_code: str, at_period_end: bool, notice_days: int
) -> PriceMoveRequest:
    """Raises ``InvalidChangeError`` with one sentence."""
    plan = catalog.plans.get(tier)
    if plan is None:
        raise InvalidChangeError("tier", f"{tier!r} is no plan of the catalog; it has {', '.join(catalog.tiers())}")
    if not 0 <= notice_days <= MAX_NOTICE_DAYS:
        raise InvalidChangeError("notice", f"a notice comes between 0 and {MAX_NOTICE_DAYS} days before")
    if from_code == to_code:
        raise InvalidChangeError("to", f"{to_code!r} is the code that they have already")
    providers = [provider for provider in PROVIDERS if plan.has_code(provider, from_code)]
    if not providers:
        raise InvalidChangeError("from", f"{from_code!r} is no code of {tier}: {_codes(plan)}")
    provider: Provider = plan.charged_by if plan.charged_by in providers else providers[0]
    if not plan.may_keep_code(provider, to_code):
        raise InvalidChangeError(
            "to", f"{to_code!r} is no code of {tier} at {PROVIDER_NAMES[provider]}, as {from_code!r} is: {_codes(plan)}"
        )
    if provider != plan.charged_by:
        raise InvalidChangeError(
            "from",
            f"{PROVIDER_NAMES[plan.charged_by]} charges {tier}, so nobody pays {from_code!r} at "
            f"{PROVIDER_NAMES[provider]}; name its codes at {PROVIDER_NAMES[plan.charged_by]}: {_codes(plan)}",
        )
    return PriceMoveRequest(
        provider=provider,
        tier=tier,
        from_code=from_code,
        to_code=to_code,
        at_period_end=at_period_end,
        notice_days=notice_days,
    )


def _codes(plan: CatalogPlan) -> str:
    by_provider = (
        f"{PROVIDER_NAMES[provider]} has {', '.join([plan.code(provider), *plan.former(provider)])}"
        for provider in PROVIDERS
    )
    return "; ".join(by_provider)
