"""The plans of a Lago account, page by page (``core.ports.inventory``).

The list leaves out what one plan shows: its fixed charges (lago.md 13.1). Lago archives no plan.
"""

from __future__ import annotations

from typing import Final

from core.ports.errors import RejectedError
from core.ports.inventory import Interval, InventoryPrice
from core.ports.observed import ObservedPage
from core.ports.provider import RequestPermits
from providers.lago.client import LagoClient, LagoRequest
from providers.lago.minor_units import LAGO_UNITS
from providers.lago.plans import LagoPlan, LagoPlans, other_terms, remarks

_PLANS_PER_PAGE: Final = 100
_INTERVALS: Final[dict[str, tuple[Interval, int]]] = {
    "weekly": ("week", 1),
    "monthly": ("month", 1),
    "quarterly": ("month", 3),
    "semiannual": ("month", 6),
    "yearly": ("year", 1),
}


def list_plans(client: LagoClient, permits: RequestPermits, cursor: str | None) -> ObservedPage[InventoryPrice]:
    """``cursor``: the number of the page."""
    page = int(cursor) if cursor is not None else 1
    request = LagoRequest(
        context="the list of plans",
        method="GET",
        path=("plans",),
        root="plans",
        response_type=LagoPlan,
        params={"page": str(page), "per_page": str(_PLANS_PER_PAGE)},
    )
    rows, more = client.list_page(request, permits)
    return ObservedPage(rows=tuple(map(inventory_price, rows)), next_cursor=str(page + 1) if more else None)


def read_plan(client: LagoClient, permits: RequestPermits, code: str) -> InventoryPrice | None:
    plan = LagoPlans(client).find(code, permits)
    return None if plan is None else inventory_price(plan)


def inventory_price(plan: LagoPlan) -> InventoryPrice:
    """A plan that costs nothing and bills usage has no flat amount: it is not free."""
    amount: int | None = None
    problems: tuple[str, ...] = ()
    if plan.amount_cents == 0 and plan.charges:
        problems = ("it has no flat amount",)
    else:
        try:
            amount = LAGO_UNITS.from_provider(plan.amount_cents, plan.amount_currency)
        except RejectedError as error:
            problems = (error.message,)
    interval, interval_count = interval_and_count(plan.interval)
    return InventoryPrice(
        id=plan.code,
        code=plan.code,
        name=plan.name,
        amount=amount,
        currency=plan.amount_currency,
        interval=interval,
        interval_count=interval_count,
        active=not plan.pending_deletion,
        unusual=(*other_terms(plan), *problems),
        remarks=remarks(plan),
        trial_days=plan.trial_period,
    )


def interval_and_count(interval: str) -> tuple[Interval | None, int]:
    """Of Lago's word for it; None for one that is not known."""
    return _INTERVALS.get(interval, (None, 1))
