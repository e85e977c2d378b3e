"""Reads from Lago the usage of the current period, and a quote for a plan change. It never writes.

Lago bills an upgrade at once: the rest of the period for the new plan, less the unused part of the old one. It gives
that amount only afterwards (its invoice preview needs a licence), so the amount stays unknown. Lago does say when a
period ends.
"""

from __future__ import annotations

from dataclasses import replace

from lago_python_client.base_model import BaseResponseModel
from lago_python_client.models.subscription import SubscriptionResponse

from core.ports.errors import MisconfiguredError
from core.ports.external_ids import OWN_IDS, ExternalIds
from core.ports.provider import RequestPermits
from core.ports.quotes import PlanChangeQuery, Quote, Usage, UsageLine
from providers.lago.client import LagoClient, LagoRequest, parse_period_end, parse_time
from providers.lago.minor_units import LAGO_UNITS
from providers.lago.plans import LagoPlan, LagoPlans
from providers.transport.permits import READ_ONLY

_EXTRAS_NOTE = "next is the plan's price without usage, taxes and discounts"
_NO_LAGO_SUBSCRIPTION = (
    f"Lago has no subscription for this organization yet, so the current period is unknown; {_EXTRAS_NOTE}"
)
_IMMEDIATE_AMOUNT_UNKNOWN = (
    "Lago bills the rest of the period for the new plan, less the unused part of the old one, and gives the amount "
    f"only with that invoice; {_EXTRAS_NOTE}"
)
_PLAN_NOT_IN_LAGO = "Lago does not have the plan; run `billing-sync plans push`"
_NEW_INTERVAL = (
    "the plans have different intervals, so a new billing period begins, and its end is known only afterwards; "
    f"{_EXTRAS_NOTE}"
)
_BILLED_AFTERWARDS = (
    "the plan is billed when a period has ended (pay_in_advance is off in Lago), so the next invoice is for the period "
    "that runs now, and its amount is known only with it"
)
_MAY_BE_FREE = "the plan begins with free days (trial_period in Lago); the first invoice comes when they end"


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


class LagoPlannedSubscription(SubscriptionResponse):
    plan: LagoPlan | None = None
    """As it is billed here: a price of its own is in it, too."""


class LagoUsageAndPreview:
    """An ``InvoicePreviewer`` and a ``UsageReader``."""

    def __init__(self, client: LagoClient, permits: RequestPermits = READ_ONLY) -> None:
        self._client = client
        self._plans = LagoPlans(client)
        self._permits = permits

    def with_permits(self, permits: RequestPermits) -> LagoUsageAndPreview:
        return LagoUsageAndPreview(self._client, permits)

    def quote(self, query: PlanChangeQuery) -> Quote:
        """One call, and a second one for the price of another plan."""
        org_id = query.spec.org_id
        context = f"subscription {org_id}"
        request = LagoRequest(
            context=context,
            method="GET",
            path=("subscriptions", query.spec.external_ids.subscription_of(org_id)),
            root="subscription",
            response_type=LagoPlannedSubscription,
        )
        found = self._client.send_or_none("subscription_not_found", request, self._permits)
        if found is None:
            return Quote(currency=query.currency, next=query.list_price, reason=_NO_LAGO_SUBSCRIPTION)
        spec = query.spec.as_sold(found.plan_code, found.next_plan_code)
        current = found.plan or self._plans.find(found.plan_code or "", self._permits)
        renewal_code = spec.next_plan_code or spec.plan_code
        keeps_price = renewal_code == found.plan_code
        renewal = current if keeps_price else self._plans.find(renewal_code, self._permits)
        keeps_plan = found.plan_code == spec.plan_code
        quote = Quote(
            currency=query.currency, now=0 if keeps_plan else None, prorated=0 if keeps_plan else None, reason=None
        )
        if current is None or renewal is None:
            return replace(quote, reason=_PLAN_NOT_IN_LAGO)
        if (reason := _why_next_is_unknown(found, current, renewal)) is not None:
            return replace(quote, reason=reason)
        if not keeps_plan and current.interval != renewal.interval:
            return replace(quote, next=_price(renewal), reason=_NEW_INTERVAL)
        period_ends_at = found.current_billing_period_ending_at
        own_cents = found.plan_amount_cents if keeps_price else None
        return replace(
            quote,
            next=_price(renewal) if own_cents is None else _amount(int(own_cents), renewal),
            next_at=parse_period_end(context, period_ends_at) if period_ends_at else None,
            reason=_EXTRAS_NOTE if keeps_plan else _IMMEDIATE_AMOUNT_UNKNOWN,
        )

    def usage(self, org_id: str, external_ids: ExternalIds = OWN_IDS) -> Usage | None:
        """Requested without taxes, because a tax integration would be called each time (lago.md 6)."""
        context = f"usage of {org_id}"
        request = LagoRequest(
            context=context,
            method="GET",
            path=("customers", external_ids.customer_of(org_id), "current_usage"),
            root="customer_usage",
            response_type=LagoUsage,
            params={
                "external_subscription_id": external_ids.subscription_of(org_id),
                "apply_taxes": "false",
            },
        )
        try:
            found = self._client.send_or_none("no_active_subscription", request, self._permits)
        except MisconfiguredError as error:
            # Lago answers the same for an unknown customer as for an unknown URL (lago.md 6).
            if error.code != "resource_not_found":
                raise
            return None
        return None if found is None else _to_usage(context, found)


def _why_next_is_unknown(found: LagoPlannedSubscription, current: LagoPlan, renewal: LagoPlan) -> str | None:
    """Lago counts free days from the first subscription of the customer, so they are over for good (lago.md 5.1)."""
    if not (current.pay_in_advance and renewal.pay_in_advance):
        return _BILLED_AFTERWARDS
    if found.trial_ended_at is None and (current.trial_period or renewal.trial_period):
        return _MAY_BE_FREE
    return None


def _price(plan: LagoPlan) -> int:
    return _amount(plan.amount_cents, plan)


def _amount(cents: int, plan: LagoPlan) -> int:
    return LAGO_UNITS.from_provider(cents, plan.amount_currency)


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
