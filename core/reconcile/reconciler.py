"""Make one biller hold what one organization should be: claim, read, call, write back.

Level-triggered: the organization is read as it is now, so a late, repeated or reordered message does no harm, and many
messages of one burst cost two rounds. No transaction is open while the network is. Every failure ends in the row: tried
again later, or parked with a sentence for a person.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from core.catalog.plans import Catalog
from core.common.clock import Clock
from core.compare.desired_state import DOUBLE_CHARGING, DesiredState, PayerPolicy, customer_fingerprint, desired_state
from core.db.database import Database
from core.flow_control.rate_limiter import Priority
from core.flow_control.request_gate import RequestGates
from core.ports.errors import LeaseLostError, NoPermitError, ParkedError, RejectedError, RetryableError, ThrottledError
from core.ports.provider import BillingProvider, Subscription
from core.ports.spec import LastKnown, Provider, SubscriptionSpec
from core.reconcile import backoff, lease, outcomes, remote_check
from core.reconcile.account_guard import AccountGuard, WrongAccountError
from core.reconcile.attempt import ApplyResult, SyncAttempt
from core.reconcile.link_status import WAITING_FOR_PAYER
from core.reconcile.outcomes import FollowUps
from core.reconcile.remote_check import CheckResult

# Failures of a call that was made: whoever failed so has waited long enough, or did not have to.
_REQUEST_ERROR_KINDS = frozenset({"unavailable", "throttled", "misconfigured"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileResult:
    """``requeue_after``: seconds after which this biller should be tried once more. ``wake``: billers with new work
    now.
    """

    kind: Literal["synced", "idle", "waiting", "retry", "parked"]
    requeue_after: float | None = None
    also_requeue: tuple[Provider, ...] = ()
    error: str | None = None


IDLE_RESULT = ReconcileResult(kind="idle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciler:
    database: Database
    providers: Mapping[Provider, BillingProvider]
    catalog: Catalog
    policy: PayerPolicy
    clock: Clock
    account_guard: AccountGuard
    request_gates: RequestGates = field(default_factory=RequestGates)

    def run(self, org_id: str, provider: Provider, *, bulk: bool = False) -> ReconcileResult:
        """One round. Raises nothing of the billers; a database that does not answer is the caller's to see.

        ``bulk``: nobody waits for it, so it lets fresh changes go first.
        """
        attempt = lease.acquire(self.database, self.clock, org_id, provider)
        if attempt is None:
            return IDLE_RESULT
        if isinstance(attempt, float):
            return ReconcileResult(kind="waiting", requeue_after=attempt)
        # A probe of a stopped biller must not be kept from asking.
        priority: Priority = "in_flight" if attempt.is_breaker_probe else "bulk" if bulk else "interactive"
        attempt.gate = gate = self.request_gates.open_gate(provider, org_id, priority)
        try:
            return self._run_attempt(attempt)
        except LeaseLostError:
            if not attempt.request_count:
                outcomes.release(attempt)
                return IDLE_RESULT
            outcomes.invalidate_after_lost_lease(attempt)
            return ReconcileResult(kind="waiting", requeue_after=backoff.LINK_COOLDOWN.total_seconds())
        finally:
            gate.close()

    def _run_attempt(self, attempt: SyncAttempt) -> ReconcileResult:
        try:
            return self._reconcile(attempt)
        except NoPermitError as no_permit:
            return ReconcileResult(
                kind="waiting",
                requeue_after=outcomes.requeue_for_permit(
                    attempt, no_permit.retry_after, is_reserved=no_permit.reserved
                ),
            )
        except WrongAccountError as error:
            outcomes.trip_wrong_account(attempt, error.message)
            return ReconcileResult(kind="waiting", error=str(error))
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

    def _reconcile(self, attempt: SyncAttempt) -> ReconcileResult:
        desired = desired_state(attempt.provider, attempt.organization, attempt.other_link, self.catalog, self.policy)
        if desired.waits_for_payer and (requeue_after := self._defer_for_payer(attempt)) is not None:
            return ReconcileResult(kind="waiting", requeue_after=requeue_after)
        attempt.account = self.account_guard.verify(attempt)
        billing_provider = self.providers[attempt.provider]
        result = (
            _ensure(billing_provider, attempt, desired)
            if desired.active
            else _end_subscription(billing_provider, attempt, desired)
        )
        should_check = desired.active and _may_check(attempt, result)
        check_result = self._check_provider(billing_provider, attempt, desired) if should_check else None
        if check_result is not None and check_result.scheduled_change_took_effect:
            attempt.invalidate_plan()
            result = _ensure(billing_provider, attempt, desired)
        follow_ups = _follow_ups(attempt, desired, result, self.catalog)
        has_unpaid_invoice = check_result.has_unpaid_invoice if check_result is not None else None
        completion = outcomes.complete(
            attempt,
            result,
            replace(
                follow_ups, all_checks_done=should_check or not desired.active, has_unpaid_invoice=has_unpaid_invoice
            ),
        )
        other_providers: tuple[Provider, ...] = ("lago",) if attempt.provider == "stripe" else ("stripe",)
        return ReconcileResult(
            kind="synced",
            requeue_after=completion.cooldown_seconds if completion.is_behind else None,
            also_requeue=other_providers if completion.requeue_other else (),
        )

    def _check_provider(
        self, billing_provider: BillingProvider, attempt: SyncAttempt, desired: DesiredState
    ) -> CheckResult | None:
        """After what was to be made: then all that differs there is somebody else's doing."""
        try:
            return remote_check.check(billing_provider.reader, attempt, desired, self.catalog, self.policy)
        except RejectedError:
            attempt.mark_remote_changed()
            raise

    def _defer_for_payer(self, attempt: SyncAttempt) -> float | None:
        """Seconds that this link still waits for the payer's id; ``None``: it goes ahead without."""
        now = self.clock()
        is_waiting = attempt.link.error_kind == WAITING_FOR_PAYER
        since = attempt.link.error_at if is_waiting and attempt.link.error_at is not None else now
        until = since + self.policy.payer_wait
        if until <= now or attempt.link.payer_id is not None or attempt.link.error_kind in _REQUEST_ERROR_KINDS:
            return None
        return outcomes.defer(attempt, until, WAITING_FOR_PAYER, "waits for the Stripe customer that Lago is to charge")


def _ensure(billing_provider: BillingProvider, attempt: SyncAttempt, desired: DesiredState) -> ApplyResult:
    last_known = attempt.last_known
    fingerprint = customer_fingerprint(desired.customer)
    customer = None
    if (
        last_known.customer_id is None
        or attempt.link.customer_fingerprint != fingerprint
        or attempt.has_intent("create_customer")
    ):
        attempt.mark_customer_unknown(desired.customer.payer_id)
        customer = billing_provider.ensure_customer(desired.customer, last_known, attempt)
    customer_id = customer.id if customer else last_known.customer_id
    result = ApplyResult(
        customer=customer,
        customer_fingerprint=fingerprint if customer else None,
        payer_id=desired.customer.payer_id if customer else None,
    )
    if customer_id is None:
        return result
    if desired.plan_code is None:
        return _hand_over_charging(billing_provider, attempt, desired, last_known, result)
    if not _needs_subscription_call(attempt, desired, last_known):
        return result
    attempt.save_customer(result)
    attempt.mark_plan_unknown(desired.next_plan_code)
    spec = SubscriptionSpec(
        org_id=attempt.organization.id,
        customer_id=customer_id,
        plan_code=desired.plan_code,
        next_plan_code=desired.next_plan_code,
    )
    return replace(result, subscription=billing_provider.ensure_subscription(spec, last_known, attempt))


def _may_check(attempt: SyncAttempt, result: ApplyResult) -> bool:
    """A look may fail, so what follows of a subscription that was made or ended does not wait for it: the next turn
    looks. A customer that is known is written again as well as once.
    """
    only_rewrote_customer = attempt.link.customer_id is not None and result.subscription is None and not result.ended
    return attempt.is_check_only or (attempt.is_check_requested and only_rewrote_customer)


def _needs_subscription_call(attempt: SyncAttempt, desired: DesiredState, last_known: LastKnown) -> bool:
    """Whether the subscription must be made, changed, or asked when its scheduled plan comes."""
    if attempt.intent is not None:
        return True
    if (desired.plan_code, desired.next_plan_code) == (last_known.plan_code, last_known.next_plan_code):
        return (
            desired.is_charging
            and desired.next_plan_code is not None
            and attempt.organization.plan_effective_at is None
        )
    # Where the other biller charges and its period ended first, this one comes to the same plan on its own day.
    is_already_scheduled = last_known.plan_code is not None and last_known.next_plan_code == desired.plan_code
    return desired.is_charging or desired.next_plan_code is not None or not is_already_scheduled


def _hand_over_charging(
    billing_provider: BillingProvider,
    attempt: SyncAttempt,
    desired: DesiredState,
    last_known: LastKnown,
    result: ApplyResult,
) -> ApplyResult:
    """No subscription of ours may live here: one that does is ended when the plan changed, by the declared policy.

    When only a setting changed, a person must have said so with a retry: a setting that was lost ends nothing
    (money.md 23).
    """
    if last_known.subscription_id is None and not attempt.has_intent("create_subscription"):
        return result
    is_retry_requested = not last_known.confirmed
    attempt.save_customer(result)
    if (
        last_known.plan_code in {None, desired.uncharged_plan_code}
        and not last_known.ending_started
        and not is_retry_requested
    ):
        raise RejectedError(
            attempt.provider,
            f"the settings say now that Lago charges this plan, but Stripe has the subscription "
            f"{last_known.subscription_id or 'in the making'}: set charged_by back, or retry to have it ended",
            DOUBLE_CHARGING,
        )
    attempt.mark_plan_ending()
    billing_provider.end_subscription(last_known, attempt.organization.id, attempt)
    return replace(result, ended=True)


def _end_subscription(billing_provider: BillingProvider, attempt: SyncAttempt, desired: DesiredState) -> ApplyResult:
    """End the subscription that we made, if one can be there; the customer stays (money.md 12)."""
    result = ApplyResult()
    if attempt.has_intent("create_customer"):
        # It may exist already: learn its id rather than leave a customer that nobody knows.
        customer = billing_provider.ensure_customer(desired.customer, attempt.last_known, attempt)
        result = ApplyResult(customer=customer, customer_fingerprint=customer_fingerprint(desired.customer))
    # Also where none is known: one that a late worker made would charge for ever.
    may_have_subscription = attempt.link.customer_fingerprint is not None
    if (
        attempt.link.subscription_id is None
        and not may_have_subscription
        and not attempt.has_intent("create_subscription")
    ):
        return result
    attempt.mark_plan_ending()
    billing_provider.end_subscription(attempt.last_known, attempt.organization.id, attempt)
    return replace(result, ended=True)


def _follow_ups(attempt: SyncAttempt, desired: DesiredState, result: ApplyResult, catalog: Catalog) -> FollowUps:
    customer_id = result.customer.id if result.customer else attempt.link.customer_id
    subscription = result.subscription if desired.is_charging else None
    return FollowUps(
        scheduled_plan_at=subscription.next_plan_at if subscription else None,
        effective_tier=_effective_tier(attempt.provider, desired, subscription, catalog) if subscription else None,
        payer_id=customer_id if desired.provides_payer else None,
    )


def _effective_tier(
    provider: Provider, desired: DesiredState, subscription: Subscription, catalog: Catalog
) -> str | None:
    """A downgrade that came: the one that still waits here, or one that was replaced before its coming was known."""
    if subscription.plan_code == desired.plan_code:
        return None
    tier = catalog.tier_of(provider, subscription.plan_code)
    if tier is None:
        message = (
            f"subscription {subscription.id} is on {subscription.plan_code}, which no plan of the catalog has as "
            "its code"
        )
        raise RejectedError(provider, message, "unknown_plan")
    return tier
