"""The plans in Lago: what one costs there, and how one is created.

They are billed in advance: ``create_price`` sets ``pay_in_advance``, so a period is billed when it begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lago_python_client.base_model import BaseResponseModel
from lago_python_client.models import Plan as PlanBody

from core.ports.errors import RejectedError
from core.ports.provider import RequestPermits
from core.ports.spec import PriceSpec
from providers.lago.client import LagoClient, LagoRequest
from providers.lago.minor_units import LAGO_UNITS
from providers.transport.permits import READ_ONLY


class LagoCharge(BaseResponseModel):
    """A fixed charge, or a charge for usage."""

    billable_metric_code: str | None = None
    add_on_code: str | None = None

    @property
    def code(self) -> str:
        return self.billable_metric_code or self.add_on_code or "without a code"


class LagoPlan(BaseResponseModel):
    """What a plan costs. The SDK's model refuses a fixed charge without a display name (lago.md 1.3)."""

    code: str
    name: str
    amount_cents: int
    amount_currency: str
    interval: str
    pay_in_advance: bool = True
    trial_period: float | None = None
    bill_charges_monthly: bool | None = None
    bill_fixed_charges_monthly: bool | None = None
    pending_deletion: bool | None = None
    minimum_commitment: dict[str, object] | None = None
    charges: tuple[LagoCharge, ...] = ()
    fixed_charges: tuple[LagoCharge, ...] = ()


class LagoPlans:
    """``outside_attempts``: the permits of a request that creates a plan."""

    def __init__(self, client: LagoClient, outside_attempts: RequestPermits = READ_ONLY) -> None:
        self._client = client
        self._outside_attempts = outside_attempts

    def find(self, code: str, permits: RequestPermits = READ_ONLY) -> LagoPlan | None:
        """One call. Raises ``ProviderError``."""
        request = LagoRequest(
            context=f"plan {code}", method="GET", path=("plans", code), root="plan", response_type=LagoPlan
        )
        return self._client.send_or_none("plan_not_found", request, permits)

    def find_price(self, code: str) -> PriceSpec | None:
        found = self.find(code)
        return None if found is None else _price_spec(found)

    def create_price(self, price: PriceSpec) -> None:
        body = {
            "code": price.code,
            "name": price.name,
            "interval": price.interval,
            "amount_cents": LAGO_UNITS.to_provider(price.amount, price.currency),
            "amount_currency": price.currency,
            "pay_in_advance": True,
        }
        request = LagoRequest(
            context=f"plan {price.code}",
            method="POST",
            path=("plans",),
            root="plan",
            response_type=LagoPlan,
            body=PlanBody.parse_obj(body),
        )
        created = self._client.send_or_none("code:value_already_exist", request, self._outside_attempts)
        # After a lost response the repeated create finds the plan that the first one created.
        existing = self.find_price(price.code) if created is None else replace(_price_spec(created), other_terms=())
        if existing != price:
            message = f"plan {price.code}: Lago has a plan with this code that differs from plans.toml; compare the two"
            raise RejectedError("lago", message)


def _price_spec(plan: LagoPlan) -> PriceSpec:
    return PriceSpec(
        code=plan.code,
        name=plan.name,
        amount=LAGO_UNITS.from_provider(plan.amount_cents, plan.amount_currency),
        currency=plan.amount_currency,
        interval=plan.interval,
        other_terms=tuple(other_terms(plan)),
        remarks=remarks(plan),
    )


def remarks(plan: LagoPlan) -> tuple[str, ...]:
    return tuple(f"it bills usage, too: {charge.code}" for charge in plan.charges)


def other_terms(plan: LagoPlan) -> Iterator[str]:
    """What the catalog cannot say, and what we count on (lago.md 4, 5.1)."""
    if plan.pending_deletion:
        yield "Lago is deleting it, which ends its subscriptions"
    if not plan.pay_in_advance:
        yield "it is billed when a period has ended (pay_in_advance is off), and the catalog's plans when it begins"
    if plan.trial_period:
        yield f"it begins with {plan.trial_period:g} days that are free (trial_period)"
    if plan.bill_charges_monthly or plan.bill_fixed_charges_monthly:
        yield "charges are billed each month, so a scheduled downgrade takes effect at the end of a month"
    if plan.minimum_commitment:
        yield "it has a minimum commitment beside its amount"
    for charge in plan.fixed_charges:
        yield f"it has a fixed charge beside its amount: {charge.code}"
