"""Whether a reconcile did what was planned: its steps, applied to what the provider had, make what it has now."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from core.db.models.organizations import Organization
from core.ports.planned import PlannedStep
from core.ports.spec import Provider
from tests.observing.terms import CustomerCard, ProviderTerms, Terms

NEW = "new"


@dataclass(kw_only=True)
class Expectation:
    """``payer``: the Stripe customer that a step without an id means."""

    provider: Provider
    organization: Organization
    payer: str | None
    customers: dict[str, CustomerCard]
    subscriptions: dict[str, Terms]
    credited: int | None
    """None: a step says that the amount is not known before."""
    credits: int = 0
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, provider: Provider, organization: Organization, payer: str | None, before: ProviderTerms
    ) -> Expectation:
        return cls(
            provider=provider,
            organization=organization,
            payer=payer,
            customers=dict(before.customers),
            subscriptions=dict(before.subscriptions),
            credited=before.credited,
        )

    def apply(self, step: PlannedStep) -> None:
        match step.kind:
            case "create_customer" | "update_customer" | "set_payer" | "write_marks" | "remove_marks":
                self._apply_to_customer(step)
            case "credit_unused_time":
                self.credits += 1
                amount = step.price_after.amount if step.price_after is not None else None
                self.credited = None if amount is None or self.credited is None else self.credited + amount
            case _:
                self._apply_to_subscription(step)

    def _apply_to_customer(self, step: PlannedStep) -> None:
        desired = self.organization
        match step.kind:
            case "create_customer":
                is_stripe = self.provider == "stripe"
                if step.object_id in self.customers:
                    return  # it was created, and the answer was lost
                card = CustomerCard(name=desired.name, email=desired.billing_email, is_marked=is_stripe)
                self.customers[NEW] = card
            case "update_customer":
                customer_id = step.object_id or NEW
                card = self.customers[customer_id]
                self.customers[customer_id] = replace(
                    card,
                    name=desired.name if "name" in step.fields else card.name,
                    email=desired.billing_email if "email" in step.fields else card.email,
                    is_marked=card.is_marked or "metadata" in step.fields,
                )
            case "write_marks" | "remove_marks" if step.object_id in self.customers:
                card = self.customers[step.object_id]
                self.customers[step.object_id] = replace(card, is_marked=step.kind == "write_marks")
            case "set_payer":
                customer_id = step.object_id or NEW
                card = self.customers[customer_id]
                if card.payer != step.before:
                    self.problems.append(f"the payer before was {card.payer}, not {step.before}")
                self.customers[customer_id] = replace(card, payer=step.after or self.payer)

    def _apply_to_subscription(self, step: PlannedStep) -> None:
        key = self._key_of(step)
        if step.kind == "create_subscription":
            if step.is_repeat and self.subscriptions:
                return
            assert step.price_after is not None
            self.subscriptions[key] = Terms(plan=step.after, paid=step.price_after)
            return
        terms = self.subscriptions[key]
        expected_before = terms.next_paid if step.kind == "cancel_scheduled_plan" else terms.paid
        if step.kind != "change_collection" and step.price_before != expected_before:
            self.problems.append(f"{step.kind}: the price before was {expected_before}, not {step.price_before}")
        match step.kind:
            case "change_plan":
                assert step.price_after is not None
                self.subscriptions[key] = replace(terms, plan=step.after, paid=step.price_after)
            case "schedule_plan":
                self.subscriptions[key] = replace(terms, next_plan=step.after, next_paid=step.price_after)
            case "cancel_scheduled_plan":
                self.subscriptions[key] = replace(terms, next_plan=None, next_paid=None)
            case "change_collection":
                self.subscriptions[key] = replace(terms, collection=step.after)
            case "end_subscription":
                del self.subscriptions[key]

    def _key_of(self, step: PlannedStep) -> str:
        if self.provider == "lago":
            return self.organization.id
        return step.object_id or NEW

    def differences(self, after: ProviderTerms) -> list[str]:
        """Between what was planned and what the provider has."""
        found = list(self.problems)
        found += _compare("customer", self.customers, after.customers)
        found += _compare("subscription", self.subscriptions, after.subscriptions)
        # The share of the last second may be rounded otherwise on each invoice.
        if self.credited is not None and abs(self.credited - after.credited) > self.credits:
            found.append(f"credited: planned {self.credited}, has {after.credited}")
        return found


def _compare(
    object_type: str, planned: dict[str, object] | dict[str, CustomerCard] | dict[str, Terms], has: object
) -> list[str]:
    assert isinstance(has, dict)
    found = []
    made = [key for key in has if key not in planned]
    names = {NEW: made[0]} if NEW in planned and len(made) == 1 else {}
    expected = {names.get(key, key): value for key, value in planned.items()}
    for key in sorted({*expected, *has}):
        left, right = expected.get(key), has.get(key)
        if isinstance(left, Terms) and isinstance(right, Terms):
            # How a new subscription is collected, and the plan that our metadata names, are no part of a step.
            right = replace(right, collection=left.collection) if left.collection is None else right
            right = replace(right, plan=left.plan) if None in {left.plan, right.plan} else right
        if left != right:
            found.append(f"{object_type} {key}: planned {left}, has {right}")
    return found
