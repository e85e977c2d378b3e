"""Plans what one reconcile of an observed link would do, with the code that would do it, and writes nothing.

The steps are those of ``next_step``, and each runs the provider's own method. That method reads as ever, and ends where
it would write: so what is planned, and what is refused, is what a reconcile does. Later steps are planned as if the
earlier ones had been taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NoReturn, TypeVar

from core.catalog.plans import Catalog
from core.common.json_types import Json
from core.compare import charging_guard
from core.compare.desired_state import DesiredState, PayerPolicy
from core.ports.errors import ConflictError, ParkedError, RejectedError
from core.ports.observed import ObservedState
from core.ports.planned import PaymentChange, PlannedStep, WritePlannedError
from core.ports.provider import BillingProvider, Customer, Intent
from core.ports.spec import CUSTOMER_NOT_OURS, PROVIDER_NAMES, LastKnown, Provider
from core.reconcile import remote_check
from core.reconcile.attempt import SyncAttempt
from core.reconcile.observation import Observation, problem_of
from core.reconcile.steps import LinkFacts, Progress, next_step

ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class PlanningContext:
    """An ``AttemptContext`` that lets reads through and ends a method at its first write. ``steps``: the plan."""

    attempt: SyncAttempt
    steps: list[PlannedStep] = field(default_factory=list)

    @property
    def may_write(self) -> bool:
        return False

    @property
    def database_id(self) -> str:
        return self.attempt.database_id

    @property
    def intent(self) -> Intent | None:
        return self.attempt.intent

    def before_change(
        self,
        describe: Callable[[], Iterable[PlannedStep]],
        payment: PaymentChange | None = None,  # noqa: ARG002 - nothing is sent
    ) -> None:
        for step in describe():  # one by one: it may raise after some
            self.steps.append(step)
        raise WritePlannedError

    def before_request(self, operation: str) -> None:
        if not operation.startswith("GET "):
            _refuse_undescribed(operation)
        self.attempt.before_request(operation)

    def after_response(self, request_id: str | None) -> None:
        self.attempt.after_response(request_id)

    def acquire_permit_ahead(self, operation: str) -> None:
        _refuse_undescribed(operation)

    def record_intent(self, operation: str, body: Mapping[str, Json]) -> Intent:  # noqa: ARG002 - nothing is stored
        _refuse_undescribed(operation)

    def resend_intent(self) -> Intent:
        _refuse_undescribed("the request of the intent")

    def record_no_older_customer(self) -> None:
        _refuse_undescribed("the request of the customer")

    def record_subscription_request(self) -> None:
        _refuse_undescribed("the request of the subscription")

    def run(self, method: Callable[[], ResultT]) -> ResultT | None:
        """The result of a method that wrote nothing; None if it would write, which is then in ``steps``."""
        try:
            return method()
        except WritePlannedError:
            return None


def _refuse_undescribed(operation: str) -> NoReturn:
    """It would be missing in the report. An unexpected error is retried, logged, and parks the link in the end."""
    message = f"{operation} would be sent without a description of the change"
    raise RuntimeError(message)


def refuse_to_end(attempt: SyncAttempt, catalog: Catalog) -> RejectedError:
    return charging_guard.setting_would_end(
        attempt.provider,
        attempt.organization.id,
        attempt.link.subscription_id,
        credits_unused_time=catalog.ending.stripe_prorate,
    )


def facts_to_plan(link: LinkFacts) -> LinkFacts:
    """Nobody writes to an observed link, so what the provider has is compared each time."""
    return replace(link, check="requested") if link.check == "none" else link


def _is_shown(observed: ObservedState, customer_id: str, last_known: LastKnown, provider: Provider) -> bool:
    """Whether all of its subscriptions are in what was read. Lago finds a customer by its external id only, and unless
    that is known, it may be under another one.
    """
    is_found = any(each.id == customer_id for each in observed.customers)
    return is_found or provider == "stripe" or last_known.external_ids.customer_id is not None


@dataclass(slots=True, kw_only=True)
class Planner:
    """Plans one attempt. ``last_known``: what it read of its link."""

    billing_provider: BillingProvider
    context: PlanningContext
    desired: DesiredState
    last_known: LastKnown
    catalog: Catalog
    policy: PayerPolicy
    customer_id: str | None = None

    def observe(self, link: LinkFacts) -> Observation:
        """Raises what is retried, as a reconcile does. What would park the link or put it on hold is the problem."""
        attempt, problem = self.context.attempt, None
        try:
            if self.desired.active or attempt.link.ownership != "theirs":
                self._plan(link)
            else:
                self._refuse_what_is_still_charged()
        except (ParkedError, ConflictError) as error:
            problem = problem_of(error)
        return Observation(
            version=attempt.organization.version,
            is_paid=self._is_paid(),
            steps=tuple(self.context.steps),
            problem=problem,
        )

    def _is_paid(self) -> bool:
        """Stripe charges for each subscription; Lago where it is to charge, or has a payer now."""
        is_at_stripe = self.billing_provider.provider == "stripe"
        return is_at_stripe or self.desired.is_charging or self.last_known.payer_id is not None

    def _refuse_what_is_still_charged(self) -> None:
        """The organization is deleted. We end what is ours only, and what a deleted one has cannot be adopted."""
        attempt, customer_id = self.context.attempt, self.last_known.customer_id
        if customer_id is None or not customer_id.strip(". "):
            return  # in a URL it names no customer
        reader = self.billing_provider.reader.with_permits(attempt)
        observed = reader.read(attempt.organization.id, [customer_id], self.last_known.external_ids)
        is_shown = _is_shown(observed, customer_id, self.last_known, attempt.provider)
        if is_shown and not observed.subscriptions:
            return
        name = PROVIDER_NAMES[attempt.provider]
        unseen = "" if is_shown else f"; {name} has no customer {customer_id} under our id, so this cannot be checked"
        message = (
            f"the organization is deleted, but customer {customer_id} in {name} is not ours and may still pay: end its "
            f"subscriptions in {name}{unseen}"
        )
        raise RejectedError(attempt.provider, message, CUSTOMER_NOT_OURS)

    def _plan(self, link: LinkFacts) -> None:
        """Plan one step after the other until nothing is left. Each is planned once, so this ends."""
        progress = Progress()
        self.customer_id = self.last_known.customer_id
        while (step := next_step(link, self.desired, progress)) != "complete":
            match step:
                case "ensure_customer":
                    self._plan_customer()
                    progress = replace(progress, customer_written=True)
                    # The answer to a create that was sent before ends its intent.
                    link = replace(link, intent="none") if link.intent == "create_customer" else link
                case "ensure_subscription":
                    self._plan_subscription()
                    progress = replace(progress, subscription_written=True)
                case "end_subscription":
                    self._plan_end()
                    progress = replace(progress, subscription_ended=True)
                case "refuse_to_end":
                    raise refuse_to_end(self.context.attempt, self.catalog)
                case "write_marks" | "remove_marks":
                    self._plan_marks(is_removal=step == "remove_marks")
                    progress = replace(progress, marks_written=True, marks_removed=step == "remove_marks")
                case "remove_payer":
                    self._plan_charging_move()
                    progress = replace(progress, payer_removed=True)
                case "check":
                    progress = replace(progress, checked=True)
                    if self._finds_plan_in_effect():
                        progress = replace(progress, plan_took_effect=True, subscription_written=False)
                        self.last_known = replace(self.last_known, plan_code=None)

    def _finds_plan_in_effect(self) -> bool:
        reader = self.billing_provider.reader
        result = remote_check.check(reader, self.context.attempt, self.desired, self.catalog, self.policy)
        return result is not None and result.scheduled_change_took_effect

    def _plan_customer(self) -> None:
        customer: Customer | None = self.context.run(
            lambda: self.billing_provider.ensure_customer(self.desired.customer, self.last_known, self.context)
        )
        if customer is not None:
            self.customer_id = customer.id
            self.last_known = replace(self.last_known, maybe_older=customer.is_older)
        elif self.customer_id is None:
            self.customer_id = next((step.object_id for step in self.context.steps if step.object_id), None)
        if self.desired.waits_for_payer and self.last_known.payer_id is None:
            # A reconcile waits until Stripe has the customer, and sets it then.
            self.context.steps.append(PlannedStep(kind="set_payer", object_id=self.customer_id))

    def _plan_subscription(self) -> None:
        org_id = self.context.attempt.organization.id
        # A customer that is to be created has no id yet, and no subscription.
        spec = self.desired.subscription_spec(org_id, self.customer_id or "")
        if spec is not None:
            self.context.run(lambda: self.billing_provider.ensure_subscription(spec, self.last_known, self.context))
        if any(step.kind == "cancel_scheduled_plan" for step in self.context.steps):
            self.last_known = replace(self.last_known, cancellation_is_planned=True)

    def _plan_marks(self, *, is_removal: bool = False) -> None:
        org_id, context = self.context.attempt.organization.id, self.context
        plan_code = self.desired.plan_code if self.desired.is_charging else None
        if is_removal:
            context.run(lambda: self.billing_provider.remove_marks(self.last_known, org_id, context))
        else:
            context.run(lambda: self.billing_provider.write_marks(self.last_known, org_id, plan_code, context))

    def _plan_charging_move(self) -> None:
        org_id = self.context.attempt.organization.id
        self.context.run(
            lambda: self.billing_provider.remove_payer(self.last_known, org_id, self.context, collects=False)
        )

    def _plan_end(self) -> None:
        org_id = self.context.attempt.organization.id
        if self.desired.active:
            self.billing_provider.refuse_arranged_end(self.last_known, org_id, self.context)
        self.context.run(lambda: self.billing_provider.end_subscription(self.last_known, org_id, self.context))
