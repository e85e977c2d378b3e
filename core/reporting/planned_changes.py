"""The steps that an observed link would take, as sentences, and what they would change in what somebody pays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from core.ports.minor_units import amount_text
from core.ports.planned import PlannedPrice, PlannedStep, StepKind
from core.ports.spec import PROVIDER_NAMES, Provider
from core.reconcile.observation import Observation, ObservedProblem

_TEMPLATES: Final[Mapping[StepKind, str]] = {
    "create_customer": "create a customer in {name}",
    "update_customer": "update the customer {subject} in {name}: {fields}",
    "set_payer": "let Lago charge {payer}{payer_before}",
    "create_subscription": "create a subscription on {after} in {name}",
    "change_plan": "change the subscription {subject} in {name} from {before} to {after} now",
    "schedule_plan": "schedule {after} after {before} for the subscription {subject} in {name} {day}",
    "cancel_scheduled_plan": "cancel the change of the subscription {subject} in {name} from {after} to {before}",
    "change_collection": "change how the invoices of {subject} in {name} are paid: {after}",
    "end_subscription": "end the subscription {subject} in {name}",
    "credit_unused_time": "credit unused time on the invoice {subject} in {name}",
    "write_marks": "write our metadata to {subject} in {name}",
    "remove_marks": "remove our metadata from {subject} in {name}",
}
_ABOUT_MONEY: Final[frozenset[StepKind]] = frozenset(
    ("set_payer", "create_subscription", "change_plan", "schedule_plan", "cancel_scheduled_plan", "end_subscription")
)
"""Of a step without any amount."""


def sentences(provider: Provider, observation: Observation, *, is_adopted: bool = True) -> list[str]:
    """One for each step, then the problem. Without either: that nothing would be done.

    ``is_adopted`` False: something of the organization is to be adopted first. Its problems say how to make way for
    what we would create, and to follow them would harm who pays there already, so they are left out.
    """
    lines = [_sentence(provider, step, is_paid=observation.is_paid) for step in observation.steps]
    problem = observation.problem
    if problem is None:
        return lines or ["nothing"]
    if is_adopted or problem.is_about_theirs:
        lines.append(f"then {_end(problem)}" if lines else _end(problem))
    return lines


def not_adopted(org_id: str) -> str:
    """For an organization of which something is not adopted yet."""
    return f"not adopted yet: `billing-sync adopt {org_id}` or `billing-sync adopt discover` says what it is"


def _end(problem: ObservedProblem) -> str:
    if problem.is_about_theirs:
        return problem.message
    return f"{'an operator would decide' if problem.is_conflict else 'would be parked'}: {problem.message}"


def _sentence(provider: Provider, step: PlannedStep, *, is_paid: bool) -> str:
    day = f"on {step.effective_at:%Y-%m-%d}" if step.effective_at is not None else "at the end of the period"
    text = _TEMPLATES[step.kind].format(
        name=PROVIDER_NAMES[provider],
        subject=step.object_id or "that is created",
        fields=", ".join(step.fields),
        before=step.before,
        after=step.after,
        payer=step.after or "the Stripe customer that is created",
        payer_before=f", not {step.before}" if step.before is not None else "",
        day=day,
    )
    repeat = "; this was sent before and has no answer" if step.is_repeat else ""
    unpaid = "" if is_paid or not _money(step) else f", which nobody pays in {PROVIDER_NAMES[provider]}"
    return f"{text}{_money(step)}{unpaid}{repeat}"


def _money(step: PlannedStep) -> str:
    before, after = _price_text(step.price_before), _price_text(step.price_after)
    if before is not None and after is not None:
        return f": {before} → {after}"
    return f": {after or before}" if after or before else ""


def _price_text(price: PlannedPrice | None) -> str | None:
    if price is None:
        return None
    if price.amount is None or price.currency is None:
        return "an amount that is not known"
    return f"{amount_text(price.amount, price.currency)} {price.interval or ''}".rstrip()


def changes_payment(observation: Observation) -> bool:
    """Whether somebody would begin to pay, or would pay another amount. An amount that is not known may be another."""
    return any(_changes_payment(step, is_paid=observation.is_paid) for step in observation.steps)


def _changes_payment(step: PlannedStep, *, is_paid: bool) -> bool:
    if step.kind == "set_payer":
        return True
    prices = [price for price in (step.price_before, step.price_after) if price is not None]
    if not is_paid:
        return False
    if not prices:
        return step.kind in _ABOUT_MONEY
    if any(price.amount is None for price in prices):
        return True
    amounts = [price.amount if price is not None else 0 for price in (step.price_before, step.price_after)]
    return amounts[0] != amounts[1] or len({(price.currency, price.interval) for price in prices}) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MoneyChange:
    """What is paid for one interval in one currency before and after the steps that are counted. In minor units.

    ``at_period_end``: of the steps that take effect then, and not at once.
    """

    currency: str
    interval: str
    at_period_end: bool
    before: int
    after: int


def changes_money(observation: Observation) -> bool:
    """Whether a step begins, ends or changes what somebody pays, or may do so by an amount that is not known."""
    return observation.is_paid and any(map(_changes_money, observation.steps))


def _changes_money(step: PlannedStep) -> bool:
    prices = [price for price in (step.price_before, step.price_after) if price is not None]
    if not prices:
        return step.kind in _ABOUT_MONEY
    return step.price_before != step.price_after or any(price.amount is None for price in prices)


@dataclass(slots=True)
class MoneyTotals:
    """Of the steps that are paid and whose amounts are known, without credits.

    A create has no amount before, an end none after.
    """

    _totals: dict[tuple[str, str, bool], tuple[int, int]] = field(default_factory=dict)

    def add(self, observation: Observation) -> None:
        if not observation.is_paid:
            return
        for step in observation.steps:
            if step.kind != "credit_unused_time":
                self._add(step)

    def _add(self, step: PlannedStep) -> None:
        for price, is_after in ((step.price_before, False), (step.price_after, True)):
            if price is None or price.amount is None or price.currency is None:
                continue
            key = (price.currency, price.interval or "", step.at_period_end)
            before, after = self._totals.get(key, (0, 0))
            self._totals[key] = (before, after + price.amount) if is_after else (before + price.amount, after)

    def changes(self) -> list[MoneyChange]:
        return [
            MoneyChange(currency=currency, interval=interval, at_period_end=at_period_end, before=before, after=after)
            for (currency, interval, at_period_end), (before, after) in sorted(self._totals.items())
        ]
