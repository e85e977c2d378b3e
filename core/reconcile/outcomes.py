"""Outcomes of a sync attempt: complete, defer, requeue, retry, park, put on hold, release.

Each outcome is one fenced write: an attempt whose lease was taken over changes nothing, and if it had sent something,
the next attempt reads or writes everything again. Without the lease only ``put_on_hold`` writes, if the attempt found
a conflict in a remote check that nobody has made since, and ``invalidate_after_lost_lease``, which sees to that.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import ColumnElement, and_, case, literal, or_, update
from sqlalchemy.orm import Session

from core.common.process_metrics import PROCESS_METRICS
from core.compare import charging_guard
from core.db import after_commit, leases
from core.db.models.billing_links import NO_ERROR, NO_MOVE, BillingLink
from core.db.models.history import AttemptOutcome
from core.db.models.organizations import Organization
from core.events import outbox
from core.events.event_types import ChangeContext
from core.flow_control import circuit_breaker
from core.organizations import commands, link_states, links, management, plan_changes
from core.organizations.links import SWEEP_GRACE
from core.ports import arrangement
from core.ports.errors import (
    ConflictError,
    LeaseLostError,
    MisconfiguredError,
    ObjectThrottledError,
    PaymentBrakeError,
    ProviderError,
    RetryableError,
    UnavailableError,
    UnexpectedError,
)
from core.reconcile import commands as reconcile_commands
from core.reconcile import customer_credit, operator_events, payment_problems
from core.reconcile.attempt import (
    ApplyResult,
    FencedRow,
    SyncAttempt,
    applied_values,
    fenced_update,
    loggable_request_id,
    payer_of,
    unique_customer_ids,
)
from core.reconcile.attempt_history import HISTORY_COLUMNS
from core.reconcile.backoff import (
    COOLDOWN_AFTER_CONCURRENT_CHANGE,
    LINK_COOLDOWN,
    Jitter,
    first_downgrade_check,
    retry_delay,
    sweep_at,
    wait_for_lago,
)
from core.reconcile.observation import Observation, to_json
from core.reconcile.remote_check import CheckResult

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowUps:
    """What the attempt means for the organization and for its other link. ``payer_id``: whom Lago is to charge.

    ``scheduled_plan_at`` is stored only while the downgrade that the attempt was about is pending. ``effective_tier``
    is stored also if another downgrade is pending by now, because it is what the provider charges. ``higher_tiers`` are
    the tiers above it, ``codes_in_lago`` its codes there.
    """

    scheduled_plan_at: datetime | None = None
    effective_tier: str | None = None
    higher_tiers: frozenset[str] = frozenset()
    codes_in_lago: frozenset[str] = frozenset()
    payer_id: str | None = None
    all_checks_done: bool = False
    """Whether the attempt did every remote check that was requested before it."""
    check_result: CheckResult | None = None
    """``None``: nothing was checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """``is_behind``: the organization changed meanwhile, or a remote check was requested. This link then needs another
    attempt after ``cooldown_seconds``.

    ``requeue_other``: the attempt affects the other link, which is behind now.
    """

    is_behind: bool
    cooldown_seconds: float
    requeue_other: bool = False


def complete(attempt: SyncAttempt, result: ApplyResult, follow_ups: FollowUps) -> Completion:
    """Write back what is applied, and end the lease. Raises ``LeaseLostError``, ``RejectedError``."""
    now = attempt.clock()
    with unique_customer_ids(attempt), attempt.database.write() as session:
        organization = commands.lock(session, attempt.organization.id)
        if organization is None:
            message = f"organization {attempt.organization.id} does not exist any more"
            raise LeaseLostError(message)
        has_new_version = organization.version > attempt.organization.version
        cooldown = _cooldown(attempt, has_new_version=has_new_version)
        checks_done = attempt.link.checks_requested if follow_ups.all_checks_done else attempt.link.checks_done
        is_behind = has_new_version or checks_done < attempt.link.checks_requested
        values = {
            # Also one that was asked for while the catalog said that Stripe charges, and that it says no more.
            **(NO_MOVE if attempt.link.charging_move is not None else {}),
            **applied_values(attempt, result),
            **_completion_values(attempt, now, cooldown, is_behind=is_behind),
            **_unobserved_values(attempt),
            "checks_done": checks_done,
            **_check_values(session, attempt, follow_ups.check_result, now, result),
        }
        row = fenced_update(session, attempt, values, is_completion=True)
        _record_provider_health(session, attempt, row, now)
        if attempt.history.has_writes or result.customer or result.subscription or result.ended or result.payer_removed:
            _end_history(session, attempt, now, "synced", values)
        change = ChangeContext(session, now)
        version = organization.version
        _record_plan(change, organization, attempt, follow_ups)
        requeue_other = _affects_other_link(session, attempt, result, follow_ups) or (
            organization.version == version and _lago_follows(session, organization, attempt, follow_ups)
        )
        if requeue_other:
            _mark_other_link_for_sync(change, organization, attempt, is_in_sync=not has_new_version)
        if result.marks_removed:
            management.give_back(change, organization)
            links.mark_for_sync(change, organization, "management")
        if result.payer_removed:
            links.mark_for_sync(change, organization, "charging")
        _report_synced(change, organization, attempt, row)
        after_commit.call(session, lambda: _log_completed(attempt))
    begins_anew = result.marks_removed or result.payer_removed
    if not is_behind and _was_behind(attempt):
        PROCESS_METRICS.record_sync(attempt.provider, (now - attempt.organization.updated_at).total_seconds())
    return Completion(
        is_behind=has_new_version or begins_anew or row.checks_requested > checks_done,
        cooldown_seconds=cooldown.total_seconds() if cooldown else 0.0,
        requeue_other=requeue_other or begins_anew,
    )


def _record_plan(
    change: ChangeContext, organization: Organization, attempt: SyncAttempt, follow_ups: FollowUps
) -> None:
    """The plan that took effect, or when the scheduled one will."""
    has_new_version = organization.version > attempt.organization.version
    if follow_ups.effective_tier is not None:
        # Also if the organization changed in another way: the next attempt finds nothing to change at the provider and
        # would not report the plan again.
        if not has_new_version or _downgrade_is_pending(organization, attempt.organization):
            plan_changes.record_scheduled_plan_took_effect(
                change, organization, follow_ups.effective_tier, follow_ups.higher_tiers
            )
        return
    still_scheduled = organization.pending_plan_tier is not None and (
        not has_new_version or _same_downgrade_is_pending(organization, attempt.organization)
    )
    reported, stored = follow_ups.scheduled_plan_at, organization.plan_effective_at
    # Never later for the same scheduled plan: once its day has come, Lago names the end of the next period until its
    # billing job has run (lago.md 5.1), and a check on that day would find the plan active for long (B1).
    if reported is not None and still_scheduled and (stored is None or reported < stored):
        organization.plan_effective_at = reported
        organization.downgrade_recheck_at = first_downgrade_check(
            organization.id, attempt.provider, reported, change.now
        )


def _report_synced(change: ChangeContext, organization: Organization, attempt: SyncAttempt, row: FencedRow) -> None:
    version = organization.version
    if row.completes_version and version == attempt.organization.version:
        outbox.record(change, "organization.synced", organization.id, {"version": version}, notify_relay=False)


def observe(attempt: SyncAttempt, observation: Observation) -> bool:
    """Store what a reconcile would do, and end the lease. Nothing was sent, so nothing is applied.

    Returns whether it is out of date already: the organization changed meanwhile, or a remote check was requested.
    """
    now = attempt.clock()
    is_stale = or_(_has_new_version(attempt), BillingLink.checks_requested > attempt.link.checks_requested)
    with attempt.database.write() as session:
        values: dict[str, Any] = {
            **leases.RELEASED,
            **NO_ERROR,
            "state": case((is_stale, "active"), else_=link_states.values_after("observed")["state"]),
            "observation": to_json(observation),
            "observed_at": now,
            "checks_done": attempt.link.checks_requested,
            "attempts": 0,
            "not_before": now + LINK_COOLDOWN,
            "not_before_reason": "cooldown",
            "next_sweep_at": now + SWEEP_GRACE,
            "waiting_since": None,
        }
        row = fenced_update(session, attempt, values)
        _record_provider_health(session, attempt, row, now)
        after_commit.call(session, lambda: _log_observed(attempt, observation))
    return row.state == "active"


def defer_for_payer(attempt: SyncAttempt, until: datetime) -> float:
    """Let the link wait for the payer until then, or until any change. Nothing was sent, nothing failed.

    Returns the seconds: 0 if the organization changed during this attempt, since the wait may be over.
    """
    now = attempt.clock()
    with attempt.database.write() as session:
        values: dict[str, Any] = {
            **leases.RELEASED,
            **NO_ERROR,
            "attempts": case((BillingLink.attempts > 0, BillingLink.attempts - 1), else_=0),
            "not_before": case((_has_new_version(attempt), None), else_=until),
            "not_before_reason": case((_has_new_version(attempt), None), else_="payer"),
            "next_sweep_at": case((_has_new_version(attempt), now + SWEEP_GRACE), else_=until),
            "waiting_since": attempt.link.waiting_since or now,
        }
        row = fenced_update(session, attempt, values)
        _record_provider_health(session, attempt, row, now)
    return (until - now).total_seconds() if row.not_before is not None else 0.0


def defer_for_lago(attempt: SyncAttempt) -> float:
    """Let Stripe wait until Lago was read. Nothing was sent, nothing failed. Whoever reads Lago ends the wait.

    Returns the seconds: 0 if that, or a change of the organization, came during this attempt.
    """
    now = attempt.clock()
    waiting_since = attempt.link.waiting_since or now
    until = now + wait_for_lago(now - waiting_since)
    with attempt.database.write() as session:
        commands.lock(session, attempt.organization.id)
        # An attempt at Lago that ends after this one finds the wait, because it locks the organization, too.
        is_unread = charging_guard.is_unread(session.get_one(BillingLink, (attempt.organization.id, "lago")))
        is_over = or_(_has_new_version(attempt), literal(not is_unread))
        values: dict[str, Any] = {
            **leases.RELEASED,
            **NO_ERROR,
            "attempts": case((BillingLink.attempts > 0, BillingLink.attempts - 1), else_=0),
            "not_before": case((is_over, None), else_=until),
            "not_before_reason": case((is_over, None), else_="lago_unread"),
            "next_sweep_at": case((is_over, now + SWEEP_GRACE), else_=until),
            "waiting_since": waiting_since,
        }
        row = fenced_update(session, attempt, values)
        _record_provider_health(session, attempt, row, now)
    return (until - now).total_seconds() if row.not_before is not None else 0.0


def defer_request(attempt: SyncAttempt, seconds: float, *, is_reserved: bool) -> float | None:
    """Let the link wait until its next request may be sent (``MustWaitError``). An earlier error stays.

    Returns the seconds after which to requeue it; ``None`` without a reservation: the sweep dispatches it.
    """
    now = attempt.clock()
    not_before = now + timedelta(seconds=seconds)
    with attempt.database.write() as session:
        values: dict[str, Any] = {
            **leases.RELEASED,
            "attempts": case((BillingLink.attempts > 0, BillingLink.attempts - 1), else_=0),
            "not_before": case((_has_new_version(attempt), None), else_=not_before),
            "not_before_reason": case((_has_new_version(attempt), None), else_="request"),
            "next_sweep_at": not_before + SWEEP_GRACE if is_reserved else not_before,
        }
        row = fenced_update(session, attempt, values)
        _record_provider_health(session, attempt, row, now)
        _end_history(session, attempt, now, "waiting", {})
    if not is_reserved:
        return None
    return seconds if row.not_before is not None else 0.0


def schedule_retry(attempt: SyncAttempt, error: RetryableError, jitter: Jitter = random.uniform) -> float:
    """Record the failure and when to try again; returns the seconds until then."""
    now = attempt.clock()
    # Unexpected errors are counted by themselves: an outage before the first one says nothing about the program.
    is_first_unexpected = isinstance(error, UnexpectedError) and attempt.link.error_kind != error.kind
    seconds = retry_delay(error, 1 if is_first_unexpected else attempt.link.attempts, jitter)
    # If the organization changed during this attempt, the failures before that say nothing about the new data. Only a
    # limit of the object applies to it, too.
    seconds_if_changed = (
        seconds if isinstance(error, ObjectThrottledError) else min(seconds, retry_delay(error, 1, jitter))
    )
    retry_at, retry_at_if_changed = now + timedelta(seconds=seconds), now + timedelta(seconds=seconds_if_changed)
    with attempt.database.write() as session:
        values = {
            **_error_values(attempt, error, now),
            **leases.RELEASED,
            "not_before": case((_has_new_version(attempt), retry_at_if_changed), else_=retry_at),
            "not_before_reason": "object_limit" if isinstance(error, ObjectThrottledError) else "backoff",
            "next_sweep_at": case(
                (_has_new_version(attempt), sweep_at(now, seconds_if_changed)),
                else_=sweep_at(now, seconds),
            ),
        }
        if is_first_unexpected:
            values["attempts"] = case((BillingLink.attempts > 1, 1), else_=BillingLink.attempts)
        row = fenced_update(session, attempt, values)
        _end_history(session, attempt, now, "retry", {}, error)
        if isinstance(error, UnavailableError | MisconfiguredError):
            is_repeat = attempt.link.error_kind == "unavailable"
            opened = circuit_breaker.record_failure(
                session, error, now, is_repeat=is_repeat, is_probe=attempt.is_breaker_probe
            )
            operator_events.record_unavailable(ChangeContext(session, now), attempt.provider, opened)
        else:
            _record_provider_health(session, attempt, row, now, error)
    return seconds if row.not_before == retry_at else seconds_if_changed


def park(attempt: SyncAttempt, error: ProviderError) -> float | None:
    """Park the link: repeating cannot help until its data changes or an operator acts.

    If its data changed during this attempt, it is not parked: returns the seconds until it is tried with the new data.
    """
    now = attempt.clock()
    with attempt.database.write() as session:
        values = {
            **_error_values(attempt, error, now),
            **leases.RELEASED,
            "state": case((_has_new_version(attempt), "active"), else_=link_states.values_after("parked")["state"]),
            "not_before": now + LINK_COOLDOWN,
            "not_before_reason": "cooldown",
            "next_sweep_at": now + SWEEP_GRACE,
        }
        row = fenced_update(session, attempt, values)
        _record_provider_health(session, attempt, row, now, error)
        is_parked = row.state == "parked"
        _end_history(session, attempt, now, "parked" if is_parked else "retry", {"state": row.state}, error)
        if is_parked:
            after_commit.call(session, lambda: _log_needs_operator(attempt, error, on_hold=False))
            operator_events.record_parked(ChangeContext(session, now), attempt.organization.id, error)
    return None if is_parked else LINK_COOLDOWN.total_seconds()


def put_change_on_hold(attempt: SyncAttempt, error: PaymentBrakeError) -> float | None:
    """Put the link on hold: the payment brake holds its change, and nothing of it was sent.

    If its data changed during this attempt, it is not: returns the seconds until it is tried with the new data.
    """
    now = attempt.clock()
    with attempt.database.write() as session:
        commands.lock(session, attempt.organization.id)  # before the rows, as a deletion does, so that it sees the hold
        state = link_states.values_after("payment_on_hold")["state"]
        values = {
            **_error_values(attempt, error, now),
            **leases.RELEASED,
            "state": case((_has_new_version(attempt), "active"), else_=state),
            "not_before": now + LINK_COOLDOWN,
            "not_before_reason": "cooldown",
            "next_sweep_at": now + SWEEP_GRACE,
        }
        row = fenced_update(session, attempt, values)
        _record_provider_health(session, attempt, row, now)
        is_on_hold = row.state == "on_hold"
        _end_history(session, attempt, now, "on_hold" if is_on_hold else "retry", {"state": row.state}, error)
        if is_on_hold:
            after_commit.call(session, lambda: _log_needs_operator(attempt, error, on_hold=True))
            operator_events.record_payment_on_hold(ChangeContext(session, now), attempt.organization.id, error)
    return None if is_on_hold else LINK_COOLDOWN.total_seconds()


def put_on_hold(attempt: SyncAttempt, error: ConflictError) -> float | None:
    """Put the link on hold: somebody changed the provider. One write, so that no crash lets an attempt overwrite that.

    A change of the organization during this attempt makes no difference, because it does not say what is to become of
    the provider's change. Only a deleted organization goes on, so that billing ends: returns the seconds until then.
    """
    now = attempt.clock()
    with attempt.database.write() as session:
        organization = commands.lock(session, attempt.organization.id)
        is_deleted = organization is None or organization.status == "deleted"
        # What a check read holds without the lease, too, unless another attempt has made the same check since.
        has_lease = and_(leases.is_mine(BillingLink, attempt.lease_token), BillingLink.generation == attempt.generation)
        is_undecided = BillingLink.checks_done < attempt.link.checks_requested
        values: dict[str, Any] = {
            **leases.RELEASED,
            "generation": BillingLink.generation + 1,  # another attempt that has the lease now must not write any more
            "not_before": now + LINK_COOLDOWN,
            "not_before_reason": "cooldown",
            "next_sweep_at": now + SWEEP_GRACE,
        }
        if not is_deleted:
            values |= {
                **_error_values(attempt, error, now),
                **link_states.values_after("conflict_found"),
                "applied_version": _BEHIND_VERSION,
            }
        if error.arrangement is not None:
            values["arrangement"] = arrangement.to_json(error.arrangement)
        decided = session.scalars(
            update(BillingLink)
            .where(
                BillingLink.org_id == attempt.organization.id,
                BillingLink.provider == attempt.provider,
                BillingLink.state == "active",
                or_(has_lease, is_undecided),
            )
            .values(values)
            .returning(BillingLink.org_id)
            .execution_options(synchronize_session=False)
        ).one_or_none()
        if decided is None:
            message = f"another attempt at {attempt.organization.id} decided what {attempt.provider} has"
            raise LeaseLostError(message)
        circuit_breaker.record_success(session, attempt.provider, now, is_probe=attempt.is_breaker_probe)
        state = "active" if is_deleted else "on_hold"
        outcome: AttemptOutcome = "retry" if is_deleted else "on_hold"
        _end_history(session, attempt, now, outcome, {"state": state}, error)
        if not is_deleted:
            after_commit.call(session, lambda: _log_needs_operator(attempt, error, on_hold=True))
    return LINK_COOLDOWN.total_seconds() if is_deleted else None


def trip_wrong_account(attempt: SyncAttempt, message: str) -> None:
    """Open the circuit breaker: the API key is another account's. Nothing was sent, and only an operator can fix it."""
    now = attempt.clock()
    with attempt.database.write() as session:
        attempts = case((BillingLink.attempts > 0, BillingLink.attempts - 1), else_=0)
        fenced_update(session, attempt, {**leases.RELEASED, "attempts": attempts, "next_sweep_at": now})
        opened = circuit_breaker.open_for_wrong_account(session, attempt.provider, message, now)
        operator_events.record_unavailable(ChangeContext(session, now), attempt.provider, opened)


def release(attempt: SyncAttempt) -> None:
    """End an attempt that lost its lease before it sent a write. If no other worker has the lease, it is free now."""
    with attempt.database.write() as session:
        if attempt.is_breaker_probe:
            circuit_breaker.return_probe(session, attempt.provider, attempt.clock())
        session.execute(
            update(BillingLink)
            .where(
                BillingLink.org_id == attempt.organization.id,
                BillingLink.provider == attempt.provider,
                leases.is_mine(BillingLink, attempt.lease_token),
            )
            .values(leases.RELEASED)
            .execution_options(synchronize_session=False)
        )


def invalidate_after_lost_lease(attempt: SyncAttempt) -> None:
    """End an attempt that lost its lease after it sent a write: everything counts as unknown and is written again."""
    with attempt.database.write() as session:
        organization = commands.lock(session, attempt.organization.id)
        if organization is None:
            return
        is_own_lease = leases.is_mine(BillingLink, attempt.lease_token)
        change = ChangeContext(session, attempt.clock())
        attempt.history.end(session, change.now, "lease_lost", {}, {})
        reconcile_commands.invalidate(
            change,
            organization.id,
            ["lease_lost"],
            BillingLink.provider == attempt.provider,
            generation=BillingLink.generation + 1,
            lease_until=case((is_own_lease, None), else_=BillingLink.lease_until),
        )
        links.mark_for_sync(change, organization, "other_link")


def _log_completed(attempt: SyncAttempt) -> None:
    # Each link is checked in turn, so a check that found nothing is no news.
    write = log.debug if attempt.is_check_only else log.info
    write(
        "link_checked" if attempt.is_check_only else "link_synced",
        org_id=attempt.organization.id,
        provider=attempt.provider,
        version=attempt.organization.version,
        requests=attempt.request_count,
        provider_request_ids=list(attempt.provider_request_ids),
        event_id=attempt.event_id,
        request_id=attempt.request_id,
        previous_error=attempt.link.error_code or attempt.link.error_kind,
    )


def _log_observed(attempt: SyncAttempt, observation: Observation) -> None:
    log.info(
        "link_observed",
        org_id=attempt.organization.id,
        provider=attempt.provider,
        version=attempt.organization.version,
        requests=attempt.request_count,
        steps=[step.kind for step in observation.steps],
        problem=observation.problem.code or observation.problem.kind if observation.problem is not None else None,
    )


def _log_needs_operator(attempt: SyncAttempt, error: ProviderError, *, on_hold: bool) -> None:
    log.warning(
        "link_on_hold" if on_hold else "link_parked",
        org_id=attempt.organization.id,
        provider=attempt.provider,
        version=attempt.organization.version,
        error_kind=error.kind,
        error_code=error.code,
        message=error.message,
        provider_request_id=loggable_request_id(error.request_id),
        event_id=attempt.event_id,
        request_id=attempt.request_id,
    )


# The version of a link that must be reconciled again.
_BEHIND_VERSION = case(
    (BillingLink.applied_version >= BillingLink.desired_version, BillingLink.desired_version - 1),
    else_=BillingLink.applied_version,
)


def _was_behind(attempt: SyncAttempt) -> bool:
    """Whether the attempt was about a change of the organization, and not only about a remote check."""
    return attempt.link.applied_version < attempt.organization.version


def _has_new_version(attempt: SyncAttempt) -> ColumnElement[bool]:
    return BillingLink.desired_version > attempt.organization.version


def _downgrade_is_pending(current: Organization, attempted: Organization) -> bool:
    """Whether a downgrade is pending, even a different one: the one that took effect is kept all the same."""
    return current.pending_plan_tier is not None and current.plan_tier == attempted.plan_tier


def _same_downgrade_is_pending(current: Organization, attempted: Organization) -> bool:
    """Whether the downgrade that the attempt was about is still pending, whatever else changed."""
    plans = (current.plan_tier, current.pending_plan_tier)
    return current.pending_plan_tier is not None and plans == (attempted.plan_tier, attempted.pending_plan_tier)


def _affects_other_link(session: Session, attempt: SyncAttempt, result: ApplyResult, follow_ups: FollowUps) -> bool:
    """Whether the attempt changed who charges, or who may; decided by the current rows."""
    if attempt.organization.status == "deleted":
        return False
    if attempt.provider == "lago":
        gave_way = result.customer is not None and charging_guard.lago_gave_way(attempt.link.payer_id, payer_of(result))
        return gave_way or _ends_wait_for_lago(session, attempt)
    other_link = session.get_one(
        BillingLink, (attempt.organization.id, attempt.other_link.provider), populate_existing=True
    )
    return charging_guard.lago_must_know(other_link, follow_ups.payer_id, ended_at_stripe=result.ended)


def _lago_follows(session: Session, organization: Organization, attempt: SyncAttempt, follow_ups: FollowUps) -> bool:
    """Whether Stripe has switched to a lower plan that Lago was not given to schedule, so it gets it now.

    An attempt at Lago that is under way has not stored yet what it leaves scheduled there.
    """
    if attempt.provider == "lago" or follow_ups.effective_tier in {None, attempt.organization.plan_tier}:
        return False
    if organization.plan_tier != follow_ups.effective_tier:
        return False
    at_lago = session.get_one(BillingLink, (attempt.organization.id, "lago"), populate_existing=True)
    is_in_sync = at_lago.applied_version == organization.version and at_lago.intent is None
    return not (is_in_sync and at_lago.applied_next_plan in follow_ups.codes_in_lago)


def _ends_wait_for_lago(session: Session, attempt: SyncAttempt) -> bool:
    """Once Lago was in sync nobody waits for that any more, so the row is not read."""
    if attempt.link.synced_at is not None:
        return False
    at_stripe = session.get_one(BillingLink, (attempt.organization.id, "stripe"), populate_existing=True)
    return at_stripe.not_before_reason == "lago_unread"


def _end_history(  # noqa: PLR0913, PLR0917 - an outcome, and what the link is after it
    session: Session,
    attempt: SyncAttempt,
    now: datetime,
    outcome: AttemptOutcome,
    written: Mapping[str, Any],
    error: ProviderError | None = None,
) -> None:
    link = {name: getattr(attempt.link, name) for name in HISTORY_COLUMNS}
    attempt.history.end(session, now, outcome, link, written, error)


def _record_provider_health(
    session: Session, attempt: SyncAttempt, row: FencedRow, now: datetime, error: ProviderError | None = None
) -> None:
    """Tell the circuit breaker what the attempt shows of the provider. Nothing is written while all is well.

    After an unexpected error nobody knows whether the provider responded.
    """
    has_response = attempt.request_count and not isinstance(error, UnexpectedError)
    if has_response and (attempt.is_breaker_probe or row.consecutive_failures):
        circuit_breaker.record_success(session, attempt.provider, now, is_probe=attempt.is_breaker_probe)
    elif attempt.is_breaker_probe:
        circuit_breaker.return_probe(session, attempt.provider, now)


def _cooldown(attempt: SyncAttempt, *, has_new_version: bool) -> timedelta | None:
    if not attempt.request_count:
        return None
    return COOLDOWN_AFTER_CONCURRENT_CHANGE if has_new_version else LINK_COOLDOWN


def _completion_values(
    attempt: SyncAttempt, now: datetime, cooldown: timedelta | None, *, is_behind: bool
) -> dict[str, Any]:
    values: dict[str, Any] = {
        **leases.RELEASED,
        **NO_ERROR,
        "applied_version": attempt.organization.version,
        "attempts": 0,
        "not_before": now + cooldown if cooldown else None,
        "not_before_reason": "cooldown" if cooldown else None,
        "waiting_since": None,
        "intent": None,
    }
    if is_behind:
        return values | {"next_sweep_at": now + SWEEP_GRACE}
    # Before a remote check it was in sync already, so the time stays.
    return values if attempt.is_check_only else values | {"synced_at": now}


def _unobserved_values(attempt: SyncAttempt) -> dict[str, Any]:
    """An attempt at a managed organization ends what was observed: from then on the link counts as any other."""
    return {"observation": None, "observed_at": None} if attempt.may_write else {}


def _check_values(
    session: Session, attempt: SyncAttempt, check_result: CheckResult | None, now: datetime, result: ApplyResult
) -> dict[str, Any]:
    arranged = {"arrangement": arrangement.to_json(check_result.arrangement)} if check_result is not None else {}
    price_id = check_result.sold_price_id if check_result is not None else None
    # The check compared with the plan that was sold before this attempt.
    is_read = price_id is not None and result.subscription is None and not result.ended
    priced = {"sold_price_id": price_id} if is_read else {}
    checked_credit = check_result.credit if check_result is not None else None
    credited = customer_credit.values_after_attempt(attempt.link, checked_credit or result.credit, now)
    return (
        arranged
        | priced
        | credited
        | payment_problems.values_after_attempt(
            session,
            attempt,
            check_result.payment if check_result is not None else None,
            now,
            payer_accepted=result.customer is not None and result.customer.payer_accepted,
        )
    )


def _error_values(attempt: SyncAttempt, error: ProviderError, now: datetime) -> dict[str, Any]:
    """An error ends the wait for the payer: later the link waits for it again."""
    return {
        **_unobserved_values(attempt),
        "waiting_since": None,
        "error_kind": error.kind,
        "error_code": error.code,
        "error_message": error.message,
        "error_request_id": error.request_id,
        "error_at": now,
    }


def _mark_other_link_for_sync(
    change: ChangeContext, organization: Organization, attempt: SyncAttempt, *, is_in_sync: bool
) -> None:
    """Raise the version for the other link. This link has that version already if it is in sync."""
    links.mark_for_sync(change, organization, "other_link", completes_change=_was_behind(attempt))
    if is_in_sync:
        change.session.execute(
            update(BillingLink)
            .where(BillingLink.org_id == organization.id, BillingLink.provider == attempt.provider)
            .values(applied_version=organization.version)
            .execution_options(synchronize_session=False)
        )
