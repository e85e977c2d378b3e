"""When a Lago subscription that we did not create becomes ours: if nothing changes that somebody pays.

It is under the organization's id, so it is the one that we would write to. On the plan's code it is left as it is, also
at a price of its own. On another plan, or with another one scheduled, it is a conflict that names both, before anything
is written.
"""

from __future__ import annotations

from datetime import timedelta

from lago_python_client.models.subscription import SubscriptionResponse

from core.compare.advice import Advice
from core.ports.errors import ConflictError
from core.ports.spec import OTHER_TERMS, LastKnown, SubscriptionSpec
from providers.lago.client import parse_time
from providers.lago.minor_units import LAGO_UNITS

# For clocks that differ. Our own first request to Lago comes after the link was stored.
_CLOCK_MARGIN = timedelta(seconds=60)


def refuse_other_plan(spec: SubscriptionSpec, last_known: LastKnown, found: SubscriptionResponse) -> None:
    """Raises ``ConflictError``. A subscription that is known, or may come from a request of ours, is not one of these.

    ``spec`` names the codes under which the plans were sold. A plan that somebody scheduled counts, too.
    """
    is_on_plan = found.plan_code == spec.plan_code and found.next_plan_code in {None, spec.next_plan_code}
    if is_on_plan or last_known.subscription_id is not None or not _is_somebody_elses(found, last_known):
        return
    parameters = {
        "org_id": spec.org_id,
        "subscription_id": found.lago_id,
        "theirs": f"{found.plan_code}{_price(found)}{_then(found.next_plan_code)}",
        "ours": f"{spec.plan_code}{_then(spec.next_plan_code)}",
    }
    raise ConflictError("lago", Advice("conflict_older_subscription", parameters).sentence, OTHER_TERMS)


def _is_somebody_elses(found: SubscriptionResponse, last_known: LastKnown) -> bool:
    """Our own is only created for a customer that we wrote before. Lago creates a record for each change of the plan,
    so one that is older than our link is not ours either."""
    if not last_known.confirmed:
        return True
    if last_known.linked_at is None or found.created_at is None:
        return False
    created_at = parse_time(f"subscription {found.external_id}", found.created_at)
    return created_at < last_known.linked_at - _CLOCK_MARGIN


def _then(next_plan_code: str | None) -> str:
    return f", then {next_plan_code}" if next_plan_code is not None else ""


def _price(found: SubscriptionResponse) -> str:
    if found.plan_amount_cents is None or found.plan_amount_currency is None:
        return ""
    return f" at {LAGO_UNITS.text(int(found.plan_amount_cents), found.plan_amount_currency)}"
