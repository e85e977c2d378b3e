"""Reads from Lago the usage of the current period, and a quote for a plan change. It never writes.

Lago bills an upgrade at once: the rest of the period for the new plan, less the unused part of the old one. It gives
that amount only afterwards (its invoice preview needs a licence), so the amount stays unknown. Lago does say when a
period ends.
"""

from __future__ import annotations

from lago_python_client.base_model import BaseResponseModel
from lago_python_client.models.subscription import SubscriptionResponse

from core.ports.errors import MisconfiguredError
from core.ports.provider import RequestPermits
from core.ports.quotes import PlanChangeQuery, Quote, Usage, UsageLine
from providers.lago.client import LagoClient, LagoRequest, parse_period_end, parse_time
from providers.lago.minor_units import LAGO_UNITS

_EXTRAS_NOTE = "next is the plan's price without usage, taxes and discounts"
_NO_LAGO_SUBSCRIPTION = (
    f"Lago has no subscription for this organization yet, so the current period is unknown; {_EXTRAS_NOTE}"
)
_IMMEDIATE_AMOUNT_UNKNOWN = (
    "Lago bills the rest of the period for the new plan, less the unused part of the old one, and gives the amount "
    f"only with that invoice; {_EXTRAS_NOTE}"
)
_FORMER_PRICE = f"the plan was sold under a former code, whose price the catalog does not have; {_EXTRAS_NOTE}"


class LagoMetric(BaseResponseModel):
    code: str
    name: str


class LagoChargeUsage(BaseResponseModel):
    units: str
    amount_cents: int
    billable_metric: LagoMetric


class LagoUsage(BaseResponseModel):
    """The usage of a period. The SDK's model refuses a null in ``presentation_by`` (lago.md 1.3)."""

    from_datetime: str
    to_datetime: str
    currency: str
    amount_cents: int
    charges_usage: list[LagoChargeUsage]


class LagoUsageAndPreview:
    """An ``InvoicePreviewer`` and a ``UsageReader``."""

    def __init__(self, client: LagoClient, permits: RequestPermits | None = None) -> None:
        self._client = client
        self._permits = permits

    def with_permits(self, permits: RequestPermits) -> LagoUsageAndPreview:
        return LagoUsageAndPreview(self._client, permits)

    def quote(self, query: PlanChangeQuery) -> Quote:
        org_id = query.spec.org_id
        context = f"subscription {org_id}"
        request = LagoRequest(
            context=context,
            method="GET",
            path=("subscriptions", org_id),
            root="subscription",
            response_type=SubscriptionResponse,
        )
        found = self._client.send_or_none("subscription_not_found", request, self._permits)
        if found is None:
            return Quote(currency=query.currency, next=query.list_price, reason=_NO_LAGO_SUBSCRIPTION)
        period_ends_at = found.current_billing_period_ending_at
        spec = query.spec.as_sold(found.plan_code, found.next_plan_code)
        keeps_plan = found.plan_code == spec.plan_code
        is_listed = (spec.next_plan_code or spec.plan_code) == (query.spec.next_plan_code or query.spec.plan_code)
        next_amount = query.list_price if is_listed else None
        return Quote(
            currency=query.currency,
            now=0 if keeps_plan else None,
            prorated=0 if keeps_plan else None,
            next=next_amount,
            next_at=parse_period_end(context, period_ends_at) if period_ends_at else None,
            reason=_FORMER_PRICE if next_amount is None else _EXTRAS_NOTE if keeps_plan else _IMMEDIATE_AMOUNT_UNKNOWN,
        )

    def usage(self, org_id: str) -> Usage | None:
        """Requested without taxes, because a tax integration would be called each time (lago.md 6)."""
        context = f"usage of {org_id}"
        request = LagoRequest(
            context=context,
            method="GET",
            path=("customers", org_id, "current_usage"),
            root="customer_usage",
            response_type=LagoUsage,
            params={"external_subscription_id": org_id, "apply_taxes": "false"},
        )
        try:
            found = self._client.send_or_none("no_active_subscription", request, self._permits)
        except MisconfiguredError as error:
            # Lago answers the same for an unknown customer as for an unknown URL (lago.md 6).
            if error.code != "resource_not_found":
                raise
            return None
        return None if found is None else _to_usage(context, found)


def _to_usage(context: str, found: LagoUsage) -> Usage:
    return Usage(
        since=parse_time(context, found.from_datetime),
        until=parse_time(context, found.to_datetime),
        currency=found.currency,
        amount=LAGO_UNITS.from_provider(found.amount_cents, found.currency),
        metrics=tuple(
            UsageLine(
                code=each.billable_metric.code,
                name=each.billable_metric.name,
                units=each.units,
                amount=LAGO_UNITS.from_provider(each.amount_cents, found.currency),
            )
            for each in found.charges_usage
        ),
    )
