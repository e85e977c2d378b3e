"""When a Lago subscription that we did not create becomes ours: if nothing changes that somebody pays.

It is under the organization's id, so it is the one that we would write to. On the plan's code it is left as it is, also
at a price of its own. On another plan, or with another one scheduled, it is a conflict that names both, before anything
is written.
"""

from __future__ import annotations

from lago_python_client.models.subscription import SubscriptionResponse

from core.compare.advice import Advice
from core.ports.errors import ConflictError
from core.ports.spec import OTHER_TERMS, LastKnown, SubscriptionSpec
from providers.lago.minor_units import LAGO_UNITS
from providers.lago.plans import LagoPlan


def refuse_other_plan(spec: SubscriptionSpec, last_known: LastKnown, found: SubscriptionResponse) -> None:
    """Raises ``ConflictError``. A subscription that is known, or may come from a request of ours, is not one of these.

    ``spec`` names the codes under which the plans were sold. A plan that somebody scheduled counts, too.
    """
    is_on_plan = found.plan_code == spec.plan_code and found.next_plan_code in {None, spec.next_plan_code}
    if is_on_plan or last_known.subscription_id is not None or last_known.subscription_requested:
        return
    parameters = {
        "org_id": spec.org_id,
        "subscription_id": found.lago_id,
        "theirs": f"{found.plan_code}{_price(found)}{_then(found.next_plan_code)}",
        "ours": f"{spec.plan_code}{_then(spec.next_plan_code)}",
    }
    raise ConflictError("lago", Advice("conflict_older_subscription", parameters).sentence, OTHER_TERMS)


def sells_again(spec: SubscriptionSpec, last_known: LastKnown) -> bool:
    """Whether the plan is one that was sold before, at a price that we know. Only then its price is worth a request."""
    sold = last_known.sold_price
    return sold is not None and sold.plan_code == spec.plan_code and not spec.charged_by_other_provider


def refuse_other_price(
    spec: SubscriptionSpec, last_known: LastKnown, found: SubscriptionResponse, plan: LagoPlan | None
) -> None:
    """Call before the plan is sold again. Raises ``ConflictError`` if Lago would sell it at another price than before.

    Lago has forgotten a price of its own, for example because a downgrade took effect before it was taken back. Or
    somebody has changed the plan in Lago since. A plan that is not in Lago is refused by Lago itself.
    """
    sold = last_known.sold_price
    if sold is None or plan is None or int(sold.price_id) == plan.amount_cents:
        return
    parameters = {
        "org_id": spec.org_id,
        "paid": LAGO_UNITS.text(int(sold.price_id), plan.amount_currency),
        "plan": spec.plan_code,
        "listed": LAGO_UNITS.text(plan.amount_cents, plan.amount_currency),
        "theirs": found.plan_code,
    }
    raise ConflictError("lago", Advice("conflict_price_of_its_own", parameters).sentence, OTHER_TERMS)


def _then(next_plan_code: str | None) -> str:
    return f", then {next_plan_code}" if next_plan_code is not None else ""


def _price(found: SubscriptionResponse) -> str:
    if found.plan_amount_cents is None or found.plan_amount_currency is None:
        return ""
    return f" at {LAGO_UNITS.text(int(found.plan_amount_cents), found.plan_amount_currency)}"
