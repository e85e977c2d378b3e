"""Reconciler: makes one provider match the desired state of one organization (read, compare, call, write back).

It is level-triggered: it reads the organization as it is now. So a late, repeated or reordered message does no harm,
and a burst of messages costs two attempts. No transaction is open during a request. Every failure is stored in the
link's row: it is retried later, or the link is parked with an explanation for an operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final, Literal

import structlog
from sqlalchemy.exc import IntegrityError

from core.catalog.plans import Catalog
from core.common.clock import Clock
from core.common.error_place import raised_at
from core.compare.desired_state import DesiredState, PayerPolicy, customer_fingerprint, desired_state
from core.db.database import DATABASE_UNAVAILABLE_ERRORS, Database
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Management
from core.flow_control.payment_brake import PaymentLimit
from core.flow_control.rate_limiter import Priority
from core.flow_control.request_gate import RequestGates
from core.organizations import management
from core.ports.errors import (
    ConflictError,
    LeaseLostError,
    MustWaitError,
    NotYetAllowedError,
    OlderCustomerFoundError,
    ParkedError,
    PaymentBrakeError,
    RejectedError,
    RetryableError,
    ThrottledError,
    UnexpectedError,
)
from core.ports.provider import BillingProvider, Subscription
from core.ports.spec import LastKnown, Provider
from core.reconcile import backoff, lease, outcomes, payment_goals, planning, remote_check
from core.reconcile.account_guard import AccountGuard, WrongAccountError
from core.reconcile.attempt import ApplyResult, SyncAttempt
from core.reconcile.lease import LeaseRefusal, NoLease
from core.reconcile.observation import Observation, problem_of
from core.reconcile.outcomes import FollowUps
from core.reconcile.planning import Planner, PlanningContext, refuse_to_end
from core.reconcile.remote_check import CheckResult
from core.reconcile.steps import CheckRequest, IntentState, LinkFacts, MarksRequest, Progress, next_step

log = structlog.get_logger()

# About four minutes of growing waits. Then a program that fails at this link bothers the provider no more.
MAX_UNEXPECTED_ATTEMPTS: Final = 8
# Lago makes the last invoice of a subscription in a job, and asks for its payment in another one.
LAST_INVOICE_AFTER: Final = timedelta(minutes=1)
LAST_INVOICE_COLLECTED_WITHIN: Final = timedelta(hours=1)
# Failures of an attempt that had gone on: the link had waited for its payer already, or did not have to.
_ERROR_KINDS_AFTER_WAIT = frozenset({"unavailable", "throttled", "misconfigured", "unexpected"})


WaitCause = Literal[LeaseRefusal, "lease_lost", "wrong_account"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileResult:
    """``idle``: there was nothing to do. ``waiting``: there is, and this run may not do it, because of ``reason``.

    ``requeue_after``: seconds after which to try this link again. ``also_requeue``: the other links that have work now.
    ``version``: what the provider has, if this is known; ``request_count``: the requests that this run sent for it.
    """

    kind: Literal["synced", "observed", "idle", "waiting", "retry", "parked", "on_hold"]
    reason: WaitCause | None = None
    requeue_after: float | None = None
    also_requeue: tuple[Provider, ...] = ()
    error: str | None = None
    version: int | None = None
    request_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciler:
    database: Database
    providers: Mapping[Provider, BillingProvider]
    catalog: Catalog
    policy: PayerPolicy
    clock: Clock
    account_guard: AccountGuard
    management: Management = "manage"
    """The mode of organizations without one of their own."""
    payment_limit: PaymentLimit | None = None
    """Of the payment brake; None: it stops nothing."""
    request_gates: RequestGates = field(default_factory=RequestGates)

    def run(self, org_id: str, provider: Provider, *, bulk: bool = False) -> ReconcileResult:
        """Make one attempt at the link. Errors of the providers are handled; errors of the database are raised.

        ``bulk``: nobody waits for the result, so interactive changes go first.
        """
        attempt = lease.acquire(self.database, self.clock, org_id, provider)
        if isinstance(attempt, NoLease):
            return _result_without_attempt(attempt)
        # A probe of an open circuit breaker must not wait for a permit behind others.
        priority: Priority = "in_flight" if attempt.is_breaker_probe else "bulk" if bulk else "interactive"
        attempt.gate = gate = self.request_gates.open_gate(provider, org_id, priority)
        try:
            return self._run_to_its_end(attempt)
        except LeaseLostError:
            if not attempt.has_sent_writes:
                outcomes.release(attempt)
                return ReconcileResult(kind="waiting", reason="leased", requeue_after=_wait_after_reads(attempt))
            outcomes.invalidate_after_lost_lease(attempt)
            return ReconcileResult(
                kind="waiting", reason="lease_lost", requeue_after=backoff.LINK_COOLDOWN.total_seconds()
            )
        finally:
            gate.close()

    def _run_to_its_end(self, attempt: SyncAttempt) -> ReconcileResult:
        try:
            return self._run_attempt(attempt)
        except Exception as error:
            if isinstance(error, (LeaseLostError, IntegrityError, *DATABASE_UNAVAILABLE_ERRORS)):
                raise
            return _end_unexpectedly(attempt, error)

    def _run_attempt(self, attempt: SyncAttempt) -> ReconcileResult:
        try:
            return self._reconcile(attempt)
        except MustWaitError as must_wait:
            return ReconcileResult(
                kind="waiting",
                reason="request",
                requeue_after=outcomes.defer_request(attempt, must_wait.retry_after, is_reserved=must_wait.reserved),
            )
        except WrongAccountError as error:
            outcomes.trip_wrong_account(attempt, error.message)
            return ReconcileResult(kind="waiting", reason="wrong_account", error=str(error))
        except RetryableError as error:
            if isinstance(error, ThrottledError) and attempt.gate is not None:
                attempt.gate.record_throttle(error)
            return ReconcileResult(
                kind="retry", requeue_after=outcomes.schedule_retry(attempt, error), error=str(error)
            )
        except ParkedError as error:
            requeue_after = outcomes.park(attempt, error)
            kind: Literal["parked", "retry"] = "parked" if requeue_after is None else "retry"
            return ReconcileResult(kind=kind, requeue_after=requeue_after, error=str(error))
        except (ConflictError, PaymentBrakeError) as error:
            requeue_after = _put_on_hold(attempt, error)
            return ReconcileResult(
                kind="on_hold" if requeue_after is None else "retry", requeue_after=requeue_after, error=str(error)
            )

    def _reconcile(self, attempt: SyncAttempt) -> ReconcileResult:
        if self._is_observed(attempt):
            return self._observe(attempt)
        attempt.may_write = True
        attempt.payment_limit = self.payment_limit
        attempt.plan_goal = payment_goals.plan_goal(attempt.organization, attempt.links.values(), self.catalog)
        attempt.pays_nothing = _pays_nothing(attempt, self.catalog)
        desired = desired_state(attempt.provider, attempt.organization, attempt.links, self.catalog, self.policy)
        if desired.waits_for_payer and (requeue_after := self._defer_for_payer(attempt)) is not None:
            return ReconcileResult(kind="waiting", reason="payer", requeue_after=requeue_after)
        if desired.waits_for_lago:
            return ReconcileResult(kind="waiting", reason="lago_unread", requeue_after=outcomes.defer_for_lago(attempt))
        attempt.account = self.account_guard.verify(attempt)
        try:
            result, progress, check_result = self._take_steps(attempt, desired)
        except OlderCustomerFoundError as found:
            attempt.may_write = False
            attempt.record_older_customer(found.customer_id)
            return self._observe(attempt)
        follow_ups = _follow_ups(attempt, desired, result, self.catalog)
        all_checks_done = progress.checked or not desired.active
        completion = outcomes.complete(
            attempt, result, replace(follow_ups, all_checks_done=all_checks_done, check_result=check_result)
        )
        other_providers: tuple[Provider, ...] = ("lago",) if attempt.provider == "stripe" else ("stripe",)
        return ReconcileResult(
            kind="synced",
            requeue_after=completion.cooldown_seconds if completion.is_behind else None,
            also_requeue=other_providers if completion.requeue_other or attempt.other_is_read_again else (),
            version=attempt.organization.version,
            request_count=attempt.request_count,
        )

    def _is_observed(self, attempt: SyncAttempt) -> bool:
        """An id that came from outside may be of a customer that we made. Its marks in Stripe say so, and it is ours.

        They name the organization and this database, and nobody else writes them.
        """
        customer_id = attempt.link.customer_id
        if attempt.link.ownership == "theirs" and customer_id is not None:
            billing_provider = self.providers[attempt.provider]
            with suppress(ParkedError):  # the observation says it
                if billing_provider.has_our_marks(customer_id, attempt.organization.id, attempt):
                    attempt.record_ours()
        if management.removes_marks(attempt.organization, attempt.link, self.management):
            return False
        return management.is_link_observed(attempt.organization, attempt.link, attempt.links.values(), self.management)

    def _observe(self, attempt: SyncAttempt) -> ReconcileResult:
        """Plan the steps instead of taking them. It waits for no payer: it plans with the one that is there."""
        try:
            desired = desired_state(attempt.provider, attempt.organization, attempt.links, self.catalog, self.policy)
            attempt.account = self.account_guard.verify(attempt)
        except (ParkedError, ConflictError) as error:
            observation = Observation(version=attempt.organization.version, problem=problem_of(error))
        else:
            planner = Planner(
                billing_provider=self.providers[attempt.provider],
                context=PlanningContext(attempt),
                desired=desired,
                last_known=attempt.last_known,
                catalog=self.catalog,
                policy=self.policy,
            )
            try:
                observation = planner.observe(planning.facts_to_plan(link_facts(attempt, desired)))
            except OlderCustomerFoundError as found:
                attempt.record_older_customer(found.customer_id)
                return self._observe(attempt)  # with its id, so this happens once
        is_stale = outcomes.observe(attempt, observation)
        other_providers: tuple[Provider, ...] = ("lago",) if attempt.provider == "stripe" else ("stripe",)
        return ReconcileResult(
            kind="observed",
            also_requeue=other_providers if attempt.other_is_read_again else (),
            requeue_after=backoff.LINK_COOLDOWN.total_seconds() if is_stale else None,
            version=attempt.link.applied_version,
            request_count=attempt.request_count,
        )

    def _take_steps(
        self, attempt: SyncAttempt, desired: DesiredState
    ) -> tuple[ApplyResult, Progress, CheckResult | None]:
        """Take one step after the other until nothing is left. Each step is taken once, so this ends."""
        billing_provider = self.providers[attempt.provider]
        link = link_facts(attempt, desired)
        last_known = attempt.last_known
        result, progress = ApplyResult(), Progress()
        check_result: CheckResult | None = None
        while (step := next_step(replace(link, intent=intent_state(attempt)), desired, progress)) != "complete":
            match step:
                case "ensure_customer":
                    result = _ensure_customer(billing_provider, attempt, desired, last_known, result)
                    progress = replace(progress, customer_written=True)
                case "ensure_subscription":
                    result = _ensure_subscription(billing_provider, attempt, desired, last_known, result)
                    progress = replace(progress, subscription_written=True)
                case "end_subscription":
                    result = _end_subscription(billing_provider, attempt, desired, last_known, result)
                    progress = replace(progress, subscription_ended=True)
                case "refuse_to_end":
                    attempt.save_customer(result)
                    raise refuse_to_end(attempt, self.catalog)
                case "write_marks" | "remove_marks":
                    result = _change_marks(billing_provider, attempt, desired, last_known, result, step)
                    progress = replace(progress, marks_written=True, marks_removed=result.marks_removed)
                case "remove_payer":
                    result = _remove_payer(billing_provider, attempt, last_known, result)
                    progress = replace(progress, payer_removed=True)
                case "check":
                    # After all writes: what differs then was changed by somebody else.
                    reader = billing_provider.reader
                    check_result = remote_check.check(reader, attempt, desired, self.catalog, self.policy)
                    took_effect = check_result is not None and check_result.scheduled_change_took_effect
                    progress = replace(progress, checked=True)
                    if took_effect:
                        # What was written before the check is written again for the plan that is active now.
                        progress = replace(progress, plan_took_effect=True, subscription_written=False)
                        attempt.invalidate_plan()
                        last_known = attempt.last_known
        return result, progress, check_result

    def _defer_for_payer(self, attempt: SyncAttempt) -> float | None:
        """Seconds that this link still waits for the payer's id; ``None``: it goes on without a payer."""
        now = self.clock()
        until = (attempt.link.waiting_since or now) + self.policy.payer_wait
        if until <= now or attempt.link.payer_id is not None or attempt.link.error_kind in _ERROR_KINDS_AFTER_WAIT:
            return None
        return outcomes.defer_for_payer(attempt, until)


def _put_on_hold(attempt: SyncAttempt, error: ConflictError | PaymentBrakeError) -> float | None:
    if isinstance(error, ConflictError):
        return outcomes.put_on_hold(attempt, error)
    return outcomes.put_change_on_hold(attempt, error)


def _wait_after_reads(attempt: SyncAttempt) -> float | None:
    return backoff.LINK_COOLDOWN.total_seconds() if attempt.request_count else None


def _end_unexpectedly(attempt: SyncAttempt, error: Exception) -> ReconcileResult:
    """Of the error only the class and the place are told: its text may repeat what was sent."""
    name, at = type(error).__name__, raised_at(error)
    log.error("link_failed_unexpectedly", org_id=attempt.organization.id, provider=attempt.provider, error=name, at=at)
    message = f"the program failed unexpectedly ({name} at {at})"
    unexpected = UnexpectedError(attempt.provider, message)
    is_last = attempt.link.error_kind == UnexpectedError.kind and attempt.link.attempts >= MAX_UNEXPECTED_ATTEMPTS
    requeue_after = outcomes.park(attempt, unexpected) if is_last else outcomes.schedule_retry(attempt, unexpected)
    kind: Literal["parked", "retry"] = "parked" if requeue_after is None else "retry"
    return ReconcileResult(kind=kind, requeue_after=requeue_after, error=str(unexpected))


def _result_without_attempt(no_lease: NoLease) -> ReconcileResult:
    match no_lease.reason:
        case "in_sync" | "unknown_organization":
            return ReconcileResult(kind="idle", reason=no_lease.reason, version=no_lease.version)
        case "parked" | "on_hold" | "observed":
            return ReconcileResult(kind=no_lease.reason, version=no_lease.version)
        case _:
            return ReconcileResult(
                kind="waiting",
                reason=no_lease.reason,
                version=no_lease.version,
                requeue_after=no_lease.requeue_after,
            )


def link_facts(attempt: SyncAttempt, desired: DesiredState) -> LinkFacts:
    """What the attempt read of its link when it began."""
    link = attempt.link
    check: CheckRequest = "only" if attempt.is_check_only else "requested" if attempt.is_check_requested else "none"
    return LinkFacts(
        customer=link.customer_state,
        fingerprint_matches=link.customer_fingerprint == customer_fingerprint(desired.customer),
        has_subscription=link.subscription_id is not None,
        plan=link.plan_state,
        plan_code=link.applied_plan,
        next_plan_code=link.applied_next_plan,
        intent=intent_state(attempt),
        scheduled_date_known=attempt.organization.plan_effective_at is not None,
        check=check,
        marks=_marks_request(link),
        sold_plan_code=link.sold_plan,
        is_moved=link.charging_move is not None,
        has_ended=link.charging_move == "ended",
    )


def _marks_request(link: BillingLink) -> MarksRequest:
    """What was not adopted has no marks of ours to write or to remove."""
    if link.ownership != "adopted":
        return "none"
    return "due" if link.marks == "due" else "removal" if link.marks == "removal" else "none"


def intent_state(attempt: SyncAttempt) -> IntentState:
    if attempt.intent is None:
        return "none"
    return "create_subscription" if attempt.has_intent("create_subscription") else "create_customer"


def _ensure_customer(
    billing_provider: BillingProvider,
    attempt: SyncAttempt,
    desired: DesiredState,
    last_known: LastKnown,
    result: ApplyResult,
) -> ApplyResult:
    payer_id = desired.customer.payer_id if desired.active else None
    if desired.active:
        attempt.prepare_customer_write(payer_id, sends_name=desired.customer.name is not None)
    customer = billing_provider.ensure_customer(desired.customer, last_known, attempt)
    return replace(
        result,
        customer=customer,
        credit=customer.credit or result.credit,
        customer_fingerprint=customer_fingerprint(desired.customer),
        payer_id=payer_id,
    )


def _ensure_subscription(
    billing_provider: BillingProvider,
    attempt: SyncAttempt,
    desired: DesiredState,
    last_known: LastKnown,
    result: ApplyResult,
) -> ApplyResult:
    customer_id = result.customer.id if result.customer else last_known.customer_id
    spec = desired.subscription_spec(attempt.organization.id, customer_id) if customer_id is not None else None
    if spec is None:
        message = "a subscription needs a customer and a plan"
        raise RuntimeError(message)
    attempt.save_customer(result)
    if result.customer is not None:
        last_known = replace(last_known, maybe_older=result.customer.is_older)
    # While the code that was sold is not known, today's code is no note of it. A plan of amount 0 may be scheduled.
    may_be_scheduled = desired.plan_code if desired.lago_plan_is_unpaid else desired.next_plan_code
    attempt.prepare_subscription_write(None if desired.former_next_plan_codes else may_be_scheduled)
    return replace(result, subscription=billing_provider.ensure_subscription(spec, last_known, attempt))


def _end_subscription(
    billing_provider: BillingProvider,
    attempt: SyncAttempt,
    desired: DesiredState,
    last_known: LastKnown,
    result: ApplyResult,
) -> ApplyResult:
    """End our subscription by the declared policy; the customer stays."""
    attempt.save_customer(result)
    if desired.active:
        # Before the note that we end it: what ends by itself meanwhile was not ended by us.
        billing_provider.refuse_arranged_end(last_known, attempt.organization.id, attempt)
    attempt.prepare_subscription_end()
    credit = billing_provider.end_subscription(last_known, attempt.organization.id, attempt)
    return replace(result, ended=True, credit=credit or result.credit)


def _change_marks(  # noqa: PLR0913, PLR0917 - as the other steps, and which one
    billing_provider: BillingProvider,
    attempt: SyncAttempt,
    desired: DesiredState,
    last_known: LastKnown,
    result: ApplyResult,
    step: Literal["write_marks", "remove_marks"],
) -> ApplyResult:
    org_id = attempt.organization.id
    if step == "remove_marks":
        billing_provider.remove_marks(last_known, org_id, attempt)
        return replace(result, marks_removed=True)
    attempt.save_customer(result)
    billing_provider.write_marks(last_known, org_id, desired.plan_code if desired.is_charging else None, attempt)
    return replace(result, marks_written=True)


def _remove_payer(
    billing_provider: BillingProvider, attempt: SyncAttempt, last_known: LastKnown, result: ApplyResult
) -> ApplyResult:
    """Lago makes and collects the last invoice in jobs. It has time for that, but not for ever: nobody is charged."""
    if result.ended:
        attempt.save_end_before_move(result)
    ended_at, now = attempt.link.charging_move_at, attempt.clock()
    ended_for = now - ended_at if ended_at is not None else timedelta(0)
    if ended_for < LAST_INVOICE_AFTER:
        message = "the subscription has ended, and Lago makes its last invoice before the payer is taken out"
        remaining = (LAST_INVOICE_AFTER - ended_for).total_seconds()
        raise NotYetAllowedError(attempt.provider, message, "last_invoice_awaited", retry_after=remaining)
    attempt.prepare_payer_removal()
    billing_provider.remove_payer(
        last_known, attempt.organization.id, attempt, collects=ended_for < LAST_INVOICE_COLLECTED_WITHIN
    )
    return replace(result, ended=False, payer_removed=True)


def _pays_nothing(attempt: SyncAttempt, catalog: Catalog) -> bool:
    """Whether the plan that was sold costs nothing. One that is not known is not free.

    What was sold under a former code may have cost something, and so may what was adopted at a price of its own.
    """
    code = attempt.link.sold_plan
    tier = catalog.tier_of(attempt.provider, code) if code is not None else None
    if code is None or tier is None:
        return False
    plan = catalog.plan(tier)
    is_at_catalog_price = code == plan.code(attempt.provider) and attempt.link.ownership != "adopted"
    return (plan.amount == 0 and is_at_catalog_price) or (attempt.provider == "lago" and plan.is_usage_code(code))


def _follow_ups(attempt: SyncAttempt, desired: DesiredState, result: ApplyResult, catalog: Catalog) -> FollowUps:
    customer_id = result.customer.id if result.customer else attempt.link.customer_id
    subscription = result.subscription if desired.is_charging else None
    effective_tier = _effective_tier(attempt, desired, subscription, catalog) if subscription else None
    return FollowUps(
        scheduled_plan_at=subscription.next_plan_at if subscription else None,
        effective_tier=effective_tier,
        higher_tiers=catalog.tiers_above(effective_tier) if effective_tier is not None else frozenset(),
        codes_in_lago=_codes_in_lago(effective_tier, catalog) if effective_tier is not None else frozenset(),
        payer_id=customer_id if desired.provides_payer else None,
    )


def _codes_in_lago(tier: str, catalog: Catalog) -> frozenset[str]:
    plan = catalog.plan(tier)
    return frozenset([plan.code("lago"), *plan.former("lago")])


def _effective_tier(
    attempt: SyncAttempt, desired: DesiredState, subscription: Subscription, catalog: Catalog
) -> str | None:
    """The tier of a downgrade that took effect: the pending one, or one that was replaced before this was known."""
    if desired.is_plan(subscription.plan_code):
        return None
    tier = catalog.tier_of(attempt.provider, subscription.plan_code)
    if tier is None:
        message = (
            f"subscription {subscription.id} is on {subscription.plan_code}, which is not the code of any plan in the "
            "catalog"
        )
        raise RejectedError(attempt.provider, message, "unknown_plan")
    return None if tier == attempt.organization.plan_tier else tier
