"""What a change at Lago would be, for an attempt that only plans: computed from what was read, never sent.

Lago decides by the yearly amount whether a plan change is immediate (lago.md 5.1), so the same is computed before.
"""

from __future__ import annotations

from typing import Final

from lago_python_client.models.customer import CustomerResponse

from core.ports.planned import PlannedPrice, PlannedStep
from core.ports.spec import CustomerSpec
from providers.lago.minor_units import LAGO_UNITS
from providers.lago.plans import LagoPlan

_INTERVALS_PER_YEAR: Final = {"weekly": 52, "monthly": 12, "quarterly": 4, "semiannual": 2, "yearly": 1}


def customer_steps(spec: CustomerSpec, found: CustomerResponse | None, payer_to_send: str | None) -> list[PlannedStep]:
    """``found`` None: it is created. ``payer_to_send``: in this request; None: none is sent."""
    customer_id = found.lago_id if found is not None else None
    steps: list[PlannedStep] = []
    if found is None:
        steps.append(PlannedStep(kind="create_customer"))
    elif fields := _changed_fields(spec, found):
        steps.append(PlannedStep(kind="update_customer", object_id=customer_id, fields=fields))
    configuration = found.billing_configuration if found is not None else None
    payer = configuration.provider_customer_id if configuration is not None else None
    if payer_to_send is not None and payer != payer_to_send:
        steps.append(PlannedStep(kind="set_payer", object_id=customer_id, before=payer, after=payer_to_send))
    return steps


def _changed_fields(spec: CustomerSpec, found: CustomerResponse) -> tuple[str, ...]:
    """A value that we do not have is not sent, so it stays."""
    sent = {"name": spec.name, "email": spec.email, "currency": spec.currency}
    found_values = {"name": found.name, "email": found.email, "currency": found.currency}
    return tuple(name for name, value in sent.items() if value is not None and value != found_values[name])


def paid(cents: str | None, plan: LagoPlan | None) -> PlannedPrice | None:
    """``cents``: of a price of its own; None: the plan's. None if neither says what is paid."""
    if plan is None:
        return None
    amount = int(cents) if cents is not None else plan.amount_cents
    return PlannedPrice(
        amount=LAGO_UNITS.from_provider(amount, plan.amount_currency),
        currency=plan.amount_currency,
        interval=plan.interval,
    )


def is_immediate(cents: str | None, current: LagoPlan | None, new: LagoPlan | None) -> bool:
    """Whether Lago would change to the new plan at once: it costs no less a year. ``cents``: what is paid now."""
    if current is None or new is None:
        return True
    old_yearly = (int(cents) if cents is not None else current.amount_cents) * _INTERVALS_PER_YEAR[current.interval]
    return new.amount_cents * _INTERVALS_PER_YEAR[new.interval] >= old_yearly
