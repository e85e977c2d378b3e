"""How a turn at a link ends: what was done, when to try again, and when to stop and wait for a person.

Each ending is one write under the turn's fence. Whoever comes back after its lease was taken changes nothing and makes
the next turn look at everything anew.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, case, or_, update
from sqlalchemy.orm import Session

from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.events import outbox
from core.events.event_types import Change
from core.flow_control import circuit_breaker
from core.organizations import commands, links, plan_changes
from core.organizations.links import SWEEP_GRACE
from core.ports.errors import (
    LeaseLostError,
    MisconfiguredError,
    ObjectThrottledError,
    ProviderError,
    RetryableError,
    UnavailableError,
)
from core.reconcile.attempt import UNSURE, Fenced, Made, Turn, fenced, ids_are_free, made_values, payer_of
from core.reconcile.backoff import BURST_REST, LONGEST_RETRY, REST, Jitter, delay


@dataclass(frozen=True, slots=True, kw_only=True)
class Consequences:
    """What the turn means for the organization and for the other biller. ``payer_id``: whom Lago is to charge.

    The first two apply only while the organization's plans are those that the turn was about.
    """

    downgrade_comes_at: datetime | None = None
    tier_in_effect: str | None = None
    payer_id: str | None = None
    looked: bool = False
    """Whether none of the hints that the turn knew of is left to be looked at."""
    owes: bool | None = None
    """Whether a payment failed there and is still open; ``None``: nobody looked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """``behind``: the organization moved on meanwhile, or a hint came, so this biller needs another round, after
    ``rest`` seconds.

    ``wakes_other``: what was learned or made here concerns the other biller, whose link is behind now.
    """

    behind: bool
    rest: float
    wakes_other: bool = False


def finish(turn: Turn, made: Made, consequences: Consequences) -> Finished:
    """Write back what was made and what is applied; the lease ends. Raises ``LeaseLostError``, ``RejectedError``."""
    now = turn.clock()
    with ids_are_free(turn), turn.database.write() as session:
        organization = commands.lock(session, turn.organization.id)
        if organization is None:
            message = f"{turn.organization.id} is gone"
            raise LeaseLostError(message)
        moved_on = organization.billing_version > turn.organization.billing_version
        seen = turn.link.hinted if consequences.looked else turn.link.looked
        values = {
            **made_values(turn, made),
            **_done_values(turn, now, behind=moved_on or seen < turn.link.hinted),
            "looked": seen,
            **_payment_values(turn, consequences.owes, now),
        }
        link = fenced(session, turn, values, ends=True)
        _learnt(session, turn, link, now)
        change = Change(session, now)
        # Also for one that moved on otherwise: the next round would not be told again, since nothing changes there.
        if consequences.tier_in_effect is not None and (
            not moved_on or _still_goes_down(organization, turn.organization)
        ):
            plan_changes.settle_plan(change, organization, consequences.tier_in_effect)
        elif (
            consequences.downgrade_comes_at is not None
            and organization.pending_plan_tier is not None
            and (not moved_on or _same_plans(organization, turn.organization))
        ):
            organization.plan_effective_at = consequences.downgrade_comes_at
        wakes_other = _concerns_the_other(session, turn, made, consequences)
        if wakes_other:
            _tell_the_other(change, organization, turn, in_sync=not moved_on)
        through = organization.billing_version
        if link.completes and through == turn.organization.billing_version:
            outbox.record(change, "organization.synced", organization.id, {"through": through}, hurry=False)
    rest = _rest(turn, behind=moved_on)
    behind = moved_on or link.hinted > seen
    return Finished(behind=behind, rest=rest.total_seconds() if rest else 0.0, wakes_other=wakes_other)


def postpone(turn: Turn, until: datetime, kind: str, message: str) -> float:
    """Nothing was sent and nothing is wrong: the link waits for something else until then, or for any change.

    Returns the seconds. What it waits for may have come during this very turn: then it does not wait.
    """
    now = turn.clock()
    with turn.database.write() as session:
        values: dict[str, Any] = {
            **_NO_LEASE,
            "attempts": case((BillingLink.attempts > 0, BillingLink.attempts - 1), else_=0),
            "next_attempt_at": case((_moved_on(turn), None), else_=until),
            "sweep_at": case((_moved_on(turn), now + SWEEP_GRACE), else_=until),
        }
        if turn.link.error_kind != kind:
            values |= {**_NO_ERROR, "error_kind": kind, "error_message": message, "error_at": now}
        link = fenced(session, turn, values)
        _learnt(session, turn, link, now)
    return (until - now).total_seconds() if link.next_attempt_at is not None else 0.0


def stand_in_line(turn: Turn, seconds: float, *, rung: bool) -> float | None:
    """The biller's quota is used up until then. Like ``postpone``, and an error that the link met before stays.

    Returns the seconds after which it must be rung; ``None``: the sweep finds it (``rung`` False).
    """
    now = turn.clock()
    until = now + timedelta(seconds=seconds)
    with turn.database.write() as session:
        values: dict[str, Any] = {
            **_NO_LEASE,
            "attempts": case((BillingLink.attempts > 0, BillingLink.attempts - 1), else_=0),
            "next_attempt_at": case((_moved_on(turn), None), else_=until),
            "sweep_at": until + SWEEP_GRACE if rung else until,
        }
        link = fenced(session, turn, values)
        _learnt(session, turn, link, now)
    if not rung:
        return None
    return seconds if link.next_attempt_at is not None else 0.0


def try_later(turn: Turn, error: RetryableError, jitter: Jitter = random.uniform) -> float:
    """Record the failure and when to try again; returns the seconds until then."""
    now = turn.clock()
    seconds = delay(error, turn.link.attempts, jitter)
    due = now + timedelta(seconds=seconds)
    sweep_at = due if seconds > LONGEST_RETRY else due + SWEEP_GRACE
    with turn.database.write() as session:
        values = {**_error_values(error, now), **_NO_LEASE, "next_attempt_at": due, "sweep_at": sweep_at}
        if isinstance(error, ObjectThrottledError):
            values["rest_until"] = due  # one more change of it is one more that would be refused
        link = fenced(session, turn, values)
        if isinstance(error, UnavailableError | MisconfiguredError):
            again = turn.link.error_kind == "unavailable"
            circuit_breaker.failed(session, error, now, again=again, probing=turn.probing)
        else:
            _learnt(session, turn, link, now)
    return seconds


def park(turn: Turn, error: ProviderError) -> float | None:
    """Repeating cannot help: the link waits for its data to change, or for a person.

    If its data changed during this very turn, nothing is parked: returns the seconds until it is tried with that.
    """
    now = turn.clock()
    with turn.database.write() as session:
        values = {
            **_error_values(error, now),
            **_NO_LEASE,
            "state": case((_moved_on(turn), "open"), else_="parked"),
            "rest_until": now + REST,
            "sweep_at": now + SWEEP_GRACE,
        }
        link = fenced(session, turn, values)
        _learnt(session, turn, link, now)
    return REST.total_seconds() if link.state == "open" else None


def stop_biller(turn: Turn, message: str) -> None:
    """The key is another account's: nothing was sent, and no turn begins before a person has acted."""
    now = turn.clock()
    with turn.database.write() as session:
        attempts = case((BillingLink.attempts > 0, BillingLink.attempts - 1), else_=0)
        fenced(session, turn, {**_NO_LEASE, "attempts": attempts, "sweep_at": now})
        circuit_breaker.stop(session, turn.provider, message, now)


def let_go(turn: Turn) -> None:
    """This turn lost the link before it sent anything; if nobody has it by now, the next may begin."""
    with turn.database.write() as session:
        if turn.probing:
            circuit_breaker.give_probe_back(session, turn.provider, turn.clock())
        session.execute(
            update(BillingLink)
            .where(
                BillingLink.org_id == turn.organization.id,
                BillingLink.provider == turn.provider,
                BillingLink.lease_token == turn.token,
            )
            .values(_NO_LEASE)
            .execution_options(synchronize_session=False)
        )


def disturb(turn: Turn) -> None:
    """This turn sent something and lost the link: whatever is believed applied there is made again."""
    with turn.database.write() as session:
        organization = commands.lock(session, turn.organization.id)
        if organization is None:
            return
        ours = BillingLink.lease_token == turn.token
        session.execute(
            update(BillingLink)
            .where(BillingLink.org_id == organization.id, BillingLink.provider == turn.provider)
            .values(
                applied_customer=case((BillingLink.applied_customer.is_not(None), UNSURE), else_=None),
                applied_plan=case((BillingLink.applied_plan == UNSURE, UNSURE), else_=None),
                generation=BillingLink.generation + 1,
                lease_until=case((ours, None), else_=BillingLink.lease_until),
            )
            .execution_options(synchronize_session=False)
        )
        links.bump(Change(session, turn.clock()), organization)


_NO_LEASE: dict[str, Any] = {"lease_token": None, "lease_until": None}
_NO_ERROR: dict[str, Any] = {
    "error_kind": None,
    "error_code": None,
    "error_message": None,
    "error_request_id": None,
    "error_at": None,
}


def _moved_on(turn: Turn) -> ColumnElement[bool]:
    return BillingLink.wanted_version > turn.organization.billing_version


def _still_goes_down(now: Organization, then: Organization) -> bool:
    """Whether a downgrade waits, be it another one by now: the one that came is not undone for that."""
    return now.pending_plan_tier is not None and now.plan_tier == then.plan_tier


def _same_plans(now: Organization, then: Organization) -> bool:
    """Whether the downgrade that the turn was about still waits, whatever else changed."""
    plans = (now.plan_tier, now.pending_plan_tier)
    return now.pending_plan_tier is not None and plans == (then.plan_tier, then.pending_plan_tier)


def _concerns_the_other(session: Session, turn: Turn, made: Made, consequences: Consequences) -> bool:
    """A payer that Lago has not been told, or a charger that gave way; seen in the rows as they are now."""
    if turn.organization.status == "deleted":
        return False
    if turn.provider == "lago":
        return turn.link.payer_id is not None and made.customer is not None and payer_of(made) is None
    other = session.get_one(BillingLink, (turn.organization.id, turn.other.provider), populate_existing=True)
    new_payer = consequences.payer_id is not None and consequences.payer_id != other.payer_id
    return new_payer or made.ended


def _learnt(session: Session, turn: Turn, link: Fenced, now: datetime) -> None:
    """What this turn shows of the biller itself. Nothing is written where all goes well."""
    if turn.calls and (turn.probing or link.failures):
        circuit_breaker.answered(session, turn.provider, now, probing=turn.probing)
    elif turn.probing:
        circuit_breaker.give_probe_back(session, turn.provider, now)


def _rest(turn: Turn, *, behind: bool) -> timedelta | None:
    if not turn.calls:
        return None
    return BURST_REST if behind else REST


def _done_values(turn: Turn, now: datetime, *, behind: bool) -> dict[str, Any]:
    rest = _rest(turn, behind=behind)
    values: dict[str, Any] = {
        **_NO_LEASE,
        **_NO_ERROR,
        "applied_version": turn.organization.billing_version,
        "attempts": 0,
        "next_attempt_at": None,
        "rest_until": now + rest if rest else None,
        "intent": None,
    }
    if behind:
        return values | {"sweep_at": now + SWEEP_GRACE}
    # It was in sync before it was looked at, too.
    return values if turn.only_looks else values | {"synced_at": now}


def _payment_values(turn: Turn, owes: bool | None, now: datetime) -> dict[str, Any]:  # noqa: FBT001 - three answers
    """What was told of a payer that is not taken stays: no biller can be asked for that."""
    failed = BillingLink.payment == "failed"
    if owes is None:
        return {}
    if owes:
        since = case((failed, BillingLink.payment_since), else_=now)
        return {"payment": "failed", "payment_since": since}
    # A reason that was told in mid-turn belongs to the next look.
    told = or_(BillingLink.hinted > turn.link.hinted, BillingLink.payment == "refused")
    return {
        "payment": case((failed, None), else_=BillingLink.payment),
        "payment_since": case((failed, None), else_=BillingLink.payment_since),
        "payment_code": case((told, BillingLink.payment_code), else_=None),
    }


def _error_values(error: ProviderError, now: datetime) -> dict[str, Any]:
    return {
        "error_kind": error.kind,
        "error_code": error.code,
        "error_message": error.message,
        "error_request_id": error.request_id,
        "error_at": now,
    }


def _tell_the_other(change: Change, organization: Organization, turn: Turn, *, in_sync: bool) -> None:
    """What happened here is a change that the other biller must see; this one has seen it."""
    links.bump(change, organization)
    if in_sync:
        change.session.execute(
            update(BillingLink)
            .where(BillingLink.org_id == organization.id, BillingLink.provider == turn.provider)
            .values(applied_version=organization.billing_version)
            .execution_options(synchronize_session=False)
        )
