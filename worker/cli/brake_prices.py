"""What a change that the payment brake holds would make of what is paid: old and new price, as far as they are known.

What was sold may cost something else than the catalog says today, and an amount that is not known is never a guess.
"""

from __future__ import annotations

from core.catalog.plans import Catalog
from core.ports.errors import RejectedError
from core.ports.minor_units import amount_text
from core.ports.planned import PlannedPrice
from core.reconcile.payment_goals import ON_HOLD_CODES
from core.reconcile.payment_holds import ChangeOnHold
from providers.lago.minor_units import LAGO_UNITS


def price_before(found: ChangeOnHold, catalog: Catalog) -> PlannedPrice | None:
    """What was sold. None: not known."""
    tier = None if found.before is None else catalog.tier_of(found.provider, found.before)
    if tier is None:
        return None
    plan = catalog.plan(tier)
    if found.provider == "lago" and found.sold_price_id is not None and found.sold_price_id.isdecimal():
        try:
            amount = LAGO_UNITS.from_provider(int(found.sold_price_id), plan.currency)
        except RejectedError:
            return None
        return PlannedPrice(amount=amount, currency=plan.currency, interval=plan.interval)
    # A former code was sold at another amount, and an adopted subscription may have a price or a quantity of its own.
    if found.is_adopted or found.before != plan.code(found.provider):
        return None
    return PlannedPrice(amount=plan.amount, currency=plan.currency, interval=plan.interval)


def price_after(found: ChangeOnHold, catalog: Catalog) -> PlannedPrice | None:
    """What the organization's plan costs. None: not known, or it ends."""
    plan = catalog.plans.get(found.next_plan or found.plan)
    if plan is None or ends(found):
        return None
    # The quantity of an adopted subscription in Stripe stays, and is not stored.
    if found.provider == "stripe" and found.is_adopted:
        return None
    # Without another plan or another code of it, what was sold stays.
    is_same_plan = found.before is not None and found.next_plan is None and plan.has_code(found.provider, found.before)
    code = found.target or (found.before if is_same_plan and found.before is not None else plan.code(found.provider))
    if code == found.before:
        return price_before(found, catalog)
    if code != plan.code(found.provider):
        return None
    return PlannedPrice(amount=plan.amount, currency=plan.currency, interval=plan.interval)


def change_text(found: ChangeOnHold, catalog: Catalog) -> str:
    payer = f"another payer ({found.payer_before} → {found.payer_after})" if found.payer_after is not None else None
    tier = None if found.before is None else catalog.tier_of(found.provider, found.before)
    before = _text(tier or found.before, price_before(found, catalog))
    if ends(found):
        return f"{before} → ended"
    if payer is not None and found.code == ON_HOLD_CODES["payer"] and not _brings_plan(found, tier):
        return payer
    when = " at the end of the period" if found.next_plan else ""
    plan = f"{before} → {_text(found.next_plan or found.plan, price_after(found, catalog))}{when}"
    return plan if payer is None else f"{plan}, and {payer}"


def ends(found: ChangeOnHold) -> bool:
    return found.is_deleted or found.code == ON_HOLD_CODES["end"]


def _brings_plan(found: ChangeOnHold, tier: str | None) -> bool:
    return tier != found.plan or found.next_plan is not None or found.target is not None


def _text(plan: str | None, price: PlannedPrice | None) -> str:
    if plan is None:
        return "unknown"
    if price is None or price.amount is None or price.currency is None:
        return f"{plan} (unknown amount)"
    return f"{plan} ({amount_text(price.amount, price.currency)} {price.interval})"
