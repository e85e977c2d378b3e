"""The catalog held against what the billers sell: what is missing, what differs, and putting the missing on sale.

Nothing that exists is ever changed: a plan with subscribers is a contract.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from core.catalog.plans import Catalog, Plan
from core.ports.provider import Biller
from core.ports.spec import Offer, Provider


@dataclass(frozen=True, slots=True, kw_only=True)
class Offering:
    """One plan at one biller. ``problem`` None: sold there exactly as the catalog says."""

    tier: str
    provider: Provider
    code: str
    missing: bool
    problem: str | None


def wanted(catalog: Catalog, provider: Provider) -> list[tuple[Plan, Offer]]:
    """Lago sells every plan; Stripe those that it charges for (money.md 1)."""
    plans = [catalog.plan(tier) for tier in catalog.tiers()]
    return [
        (plan, _offer(plan, plan.lago_plan_code if provider == "lago" else plan.stripe_lookup_key))
        for plan in plans
        if provider == "lago" or plan.charged_by == "stripe"
    ]


def check(catalog: Catalog, billers: Iterable[Biller]) -> list[Offering]:
    """Raises ``ProviderError`` when a biller cannot be asked; that is never taken for "missing"."""
    return [
        _held_against(plan, offer, biller) for biller in billers for plan, offer in wanted(catalog, biller.provider)
    ]


def push(catalog: Catalog, billers: Iterable[Biller]) -> list[Offering]:
    """Put on sale what is missing; returns every plan as it stood before, ``missing`` ones being there now."""
    found = []
    for biller in billers:
        for plan, offer in wanted(catalog, biller.provider):
            offering = _held_against(plan, offer, biller)
            if offering.missing:
                biller.add_offer(offer)
            found.append(offering)
    return found


def _held_against(plan: Plan, offer: Offer, biller: Biller) -> Offering:
    theirs = biller.find_offer(offer.code)
    return Offering(
        tier=plan.tier,
        provider=biller.provider,
        code=offer.code,
        missing=theirs is None,
        problem="not on sale there" if theirs is None else _difference(offer, theirs),
    )


def _difference(ours: Offer, theirs: Offer) -> str | None:
    """Names may differ; what is paid may not."""
    fields: list[tuple[str, object, object]] = [
        ("amount", ours.amount, theirs.amount),
        ("currency", ours.currency, theirs.currency),
        ("interval", ours.interval, theirs.interval),
    ]
    differing = [f"{name} is {there}, the catalog says {here}" for name, here, there in fields if here != there]
    return "; ".join(differing) or None


def _offer(plan: Plan, code: str) -> Offer:
    return Offer(code=code, name=plan.name, amount=plan.amount, currency=plan.currency, interval=plan.interval)
