"""Our marks on what was adopted: written once it is managed, and removed when it is given back.

Nothing but metadata is sent, so no invoice, price, date or address changes. What is there is read first. So a second
run sends nothing, and the marks of another organization stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from core.ports.errors import RejectedError
from core.ports.planned import PlannedStep, StepKind
from core.ports.provider import AttemptContext
from core.ports.spec import LastKnown
from providers.stripe.client import StripeClient, with_new_idempotency_key
from providers.stripe.errors import RESOURCE_MISSING, STRIPE
from providers.stripe.metadata import ORG_ID_KEY, only_ours, read_marks, to_metadata
from providers.stripe.plan_changes import parse_state
from providers.stripe.responses import StripeCustomer, StripeSubscription
from providers.transport.safe_ids import printable

SCHEDULED_PLAN_NEEDS_MARKS: Final = "scheduled_plan_needs_marks"


@dataclass(frozen=True, slots=True)
class MetadataChange:
    object_id: str
    metadata: dict[str, str]
    send: Callable[[str, dict[str, str], AttemptContext], None]


class StripeMarks:
    def __init__(self, client: StripeClient) -> None:
        self._client = client

    def has(self, customer_id: str, org_id: str, attempt: AttemptContext) -> bool:
        """Whether the customer carries both of our marks, with this organization and this database."""
        if not customer_id.strip(". "):
            return False  # in a URL it names no customer
        customer = self._read_customer(customer_id, attempt)
        if customer is None or customer.deleted:
            return False
        return (customer.org_id, customer.database_id) == (org_id, attempt.database_id)

    def write(self, last_known: LastKnown, org_id: str, plan_code: str | None, attempt: AttemptContext) -> None:
        marks = {"org_id": org_id, "database_id": attempt.database_id}
        changes: list[MetadataChange] = []
        if last_known.customer_id is not None:
            customer = self._read_customer(last_known.customer_id, attempt)
            if customer is not None and not customer.deleted:
                found = only_ours(customer.metadata or {})
                _refuse_another_organization(customer.id, found, org_id)
                missing = _missing(found, to_metadata(marks))
                changes.append(MetadataChange(customer.id, missing, self._mark_customer))
        if last_known.subscription_id is not None and plan_code is not None:
            subscription = self._read_subscription(last_known.subscription_id, attempt)
            if subscription is not None and not subscription.has_ended:
                found = only_ours(subscription.metadata)
                _refuse_another_organization(subscription.id, found, org_id)
                # A plan that is scheduled has its own marks, which say what is paid.
                plan = {} if read_marks(found).get("next_plan") else {"plan": plan_code}
                missing = _missing(found, to_metadata(marks | plan))
                changes.append(MetadataChange(subscription.id, missing, self._mark_subscription))
        _send(changes, "write_marks", attempt)

    def remove(self, last_known: LastKnown, org_id: str, attempt: AttemptContext) -> None:
        changes: list[MetadataChange] = []
        if last_known.subscription_id is not None:
            subscription = self._read_subscription(last_known.subscription_id, attempt)
            if subscription is not None and not subscription.has_ended:
                removal = _removal(only_ours(subscription.metadata), org_id)
                if removal and not last_known.cancellation_is_planned:
                    _refuse_scheduled_plan(subscription, org_id)
                changes.append(MetadataChange(subscription.id, removal, self._mark_subscription))
        if last_known.customer_id is not None:
            customer = self._read_customer(last_known.customer_id, attempt)
            if customer is not None and not customer.deleted:
                removal = _removal(only_ours(customer.metadata or {}), org_id)
                changes.append(MetadataChange(customer.id, removal, self._mark_customer))
        _send(changes, "remove_marks", attempt)

    def _mark_customer(self, customer_id: str, metadata: dict[str, str], attempt: AttemptContext) -> None:
        options = with_new_idempotency_key("update_customer")
        self._client.send(
            attempt,
            "POST /v1/customers/{id}",
            f"change our metadata of customer {printable(customer_id)}",
            lambda: self._client.v1.customers.update(customer_id, {"metadata": metadata}, options),
            StripeCustomer,
        )

    def _mark_subscription(self, subscription_id: str, metadata: dict[str, str], attempt: AttemptContext) -> None:
        options = with_new_idempotency_key("change_subscription")
        self._client.send(
            attempt,
            "POST /v1/subscriptions/{id}",
            f"change our metadata of subscription {subscription_id}",
            lambda: self._client.v1.subscriptions.update(
                subscription_id, {"metadata": metadata, "proration_behavior": "none"}, options
            ),
            StripeSubscription,
        )

    def _read_customer(self, customer_id: str, attempt: AttemptContext) -> StripeCustomer | None:
        """None: Stripe has none. The steps after this one say what to do about that."""
        try:
            return self._client.send(
                attempt,
                "GET /v1/customers/{id}",
                f"read customer {printable(customer_id)}",
                lambda: self._client.v1.customers.retrieve(customer_id),
                StripeCustomer,
            )
        except RejectedError as error:
            if error.code != RESOURCE_MISSING:
                raise
            return None

    def _read_subscription(self, subscription_id: str, attempt: AttemptContext) -> StripeSubscription | None:
        try:
            return self._client.send(
                attempt,
                "GET /v1/subscriptions/{id}",
                f"read subscription {subscription_id}",
                lambda: self._client.v1.subscriptions.retrieve(subscription_id),
                StripeSubscription,
            )
        except RejectedError as error:
            if error.code != RESOURCE_MISSING:
                raise
            return None


def _send(changes: Sequence[MetadataChange], kind: StepKind, attempt: AttemptContext) -> None:
    """Only what changes something is sent."""
    effective = [each for each in changes if each.metadata]
    if effective:
        attempt.before_change(lambda: [PlannedStep(kind=kind, object_id=each.object_id) for each in effective])
    for each in effective:
        each.send(each.object_id, each.metadata, attempt)


def _missing(found: Mapping[str, str], metadata: Mapping[str, str]) -> dict[str, str]:
    return {} if metadata.items() <= found.items() else dict(metadata)


def _removal(found: Mapping[str, str], org_id: str) -> dict[str, str]:
    """Empty if nothing is to be removed, or if another organization has marked it. An empty value removes a key."""
    return {} if found.get(ORG_ID_KEY) not in {None, org_id} else dict.fromkeys(found, "")


def _refuse_another_organization(object_id: str, found: Mapping[str, str], org_id: str) -> None:
    marked = found.get(ORG_ID_KEY)
    if marked not in {None, org_id}:
        message = (
            f"{object_id} is marked as organization {printable(marked)} in Stripe, not as {org_id}; correct "
            f"metadata.{ORG_ID_KEY} in Stripe, then run `billing-sync retry {org_id}`"
        )
        raise RejectedError(STRIPE, message)


def _refuse_scheduled_plan(subscription: StripeSubscription, org_id: str) -> None:
    """Also for a free plan that has taken effect as quantity 0 of the price before it."""
    if not subscription.marks.get("next_plan"):
        return
    state = parse_state(subscription)
    if state.scheduled_plan is not None and not (state.took_effect and state.item.quantity):
        message = (
            f"subscription {subscription.id} goes on to {state.scheduled_plan} at the end of its period, and only our "
            f"metadata says what is paid until then: cancel that with `billing-sync set {org_id} --plan …` and its "
            f"current plan; or wait until it has taken effect, then run `billing-sync retry {org_id}`"
        )
        raise RejectedError(STRIPE, message, SCHEDULED_PLAN_NEEDS_MARKS)
