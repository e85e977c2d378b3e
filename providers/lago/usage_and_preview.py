"""What Lago tells of a plan change before it is made, and of the usage of the running period: reads alone.

Lago bills an upgrade at once, the new plan's rest of the period less what is left of the old one, and tells no amount
before (its invoice preview wants a licence): that part stays unknown. When a period ends, it tells.
"""

from __future__ import annotations

from datetime import timedelta

from lago_python_client.models.customer_usage import CustomerUsageResponse
from lago_python_client.models.subscription import SubscriptionResponse

from core.ports.errors import MisconfiguredError
from core.ports.provider import Pace
from core.ports.quotes import Metered, PlanQuestion, Quote, Usage
from providers.lago.client import Call, LagoHttp, moment

_ON_TOP = "next is the plan's price; usage, taxes and discounts come on top"
_NOT_THERE = f"Lago holds no subscription of it yet, so it tells nothing of the running period; {_ON_TOP}"
_AT_ONCE = (
    "Lago bills the new plan for the rest of the period, less what is left of the old one, and tells no amount before "
    f"it has made that invoice; {_ON_TOP}"
)
# Its last second; the next period begins after it.
_A_PERIOD_ENDS = timedelta(seconds=1)


class LagoTeller:
    """A ``Teller`` and a ``Meter``."""

    def __init__(self, http: LagoHttp, pace: Pace | None = None) -> None:
        self._http = http
        self._pace = pace

    def paced(self, pace: Pace) -> LagoTeller:
        return LagoTeller(self._http, pace)

    def quote(self, question: PlanQuestion) -> Quote:
        org_id = question.spec.org_id
        about = f"subscription {org_id}"
        call = Call(
            about=about,
            method="GET",
            path=("subscriptions", org_id),
            root="subscription",
            answer=SubscriptionResponse,
        )
        found = self._http.send_unless("subscription_not_found", call, self._pace)
        if found is None:
            return Quote(currency=question.currency, next=question.listed, why=_NOT_THERE)
        ends = found.current_billing_period_ending_at
        stays = found.plan_code == question.spec.plan_code
        return Quote(
            currency=question.currency,
            now=0 if stays else None,
            prorated=0 if stays else None,
            next=question.listed,
            next_at=moment(about, ends) + _A_PERIOD_ENDS if ends else None,
            why=_ON_TOP if stays else _AT_ONCE,
        )

    def usage(self, org_id: str) -> Usage | None:
        """Asked without taxes: a tax integration would be called each time (lago.md 6)."""
        about = f"usage of {org_id}"
        call = Call(
            about=about,
            method="GET",
            path=("customers", org_id, "current_usage"),
            root="customer_usage",
            answer=CustomerUsageResponse,
            params={"external_subscription_id": org_id, "apply_taxes": "false"},
        )
        try:
            found = self._http.send_unless("no_active_subscription", call, self._pace)
        except MisconfiguredError as error:
            # What Lago says of an unknown customer here is what it says of an unknown address (lago.md 6).
            if error.code != "resource_not_found":
                raise
            return None
        return None if found is None else _usage(about, found)


def _usage(about: str, found: CustomerUsageResponse) -> Usage:
    return Usage(
        since=moment(about, found.from_datetime),
        until=moment(about, found.to_datetime),
        currency=found.currency,
        amount=found.amount_cents,
        metrics=tuple(
            Metered(
                code=each.billable_metric.code,
                name=each.billable_metric.name,
                units=each.units,
                amount=each.amount_cents,
            )
            for each in found.charges_usage
        ),
    )
