"""Whether a biller is stopped, for all processes alike: one row each, changed within the turn that learnt something.

A biller that fails in a row, or refuses our key once, is stopped: turns are refused, nothing is counted against any
organization, and one turn at a time is let through as a probe. What waits stays in the rows; when a probe is answered
the sweep drains it.

    open           --``IN_A_ROW`` organizations meet no answer, none does in between-->  unavailable
    any            --one refusal of our key or settings-->                                misconfigured
    unavailable, misconfigured  --a probe is answered, or a process starts with a good key-->  open
    any            --a key of another account-->    wrong_account    --a process starts with the right key-->  open
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, exists, or_, select, text, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.selectable import ScalarSelect

from core.db.models.billing_links import LINK_IS_BEHIND, BillingLink
from core.db.models.providers import BillerStanding, StopKind
from core.ports.errors import MisconfiguredError, RetryableError
from core.ports.spec import PROVIDERS, Provider

IN_A_ROW = 5
# Seconds until the next probe: doubled by each that fails.
FIRST_WAIT = 2.0
LONGEST_WAIT = 60.0
# No second probe while one may still be under way; as long as a turn's lease, so a probe that died is replaced.
PROBING = timedelta(seconds=45)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """``probe_at`` None: nothing is tried before a person has acted."""

    kind: StopKind
    since: datetime
    message: str
    probe_at: datetime | None


def lets_in(provider: ColumnElement[str], now: ColumnElement[datetime]) -> ColumnElement[bool]:
    """A condition for a claim's own statement: the biller is not stopped, or its probe is due."""
    return ~exists().where(
        BillerStanding.provider == provider,
        BillerStanding.stop_kind.is_not(None),
        or_(BillerStanding.probe_at.is_(None), BillerStanding.probe_at > now),
    )


def take_probe(session: Session, provider: Provider, now: datetime) -> bool:
    """Whether this turn may be the one that tries a stopped biller; of several at once only one may."""
    taken = session.execute(
        update(BillerStanding)
        .where(
            BillerStanding.provider == provider,
            or_(BillerStanding.stop_kind.is_(None), BillerStanding.probe_at <= now),
        )
        .values(probe_at=now + PROBING)
        .returning(BillerStanding.provider)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return taken is not None


def give_probe_back(session: Session, provider: Provider, now: datetime) -> None:
    """The probe asked nothing, so the next turn may."""
    session.execute(
        update(BillerStanding)
        .where(BillerStanding.provider == provider, BillerStanding.probe_at.is_not(None))
        .values(probe_at=now)
        .execution_options(synchronize_session=False)
    )


def failures(provider: ColumnElement[str]) -> ScalarSelect[int]:
    """Failures in a row as they stand now, to be returned by a statement that is made anyway."""
    return select(BillerStanding.failures).where(BillerStanding.provider == provider).scalar_subquery()


def failed(session: Session, error: RetryableError, now: datetime, *, again: bool, probing: bool) -> None:
    """A turn met no answer, or a refusal that every organization will meet.

    ``again``: the same organization met the same before. It counts once, so that one whose own trouble it is stops
    nobody else. What was under way when the biller was stopped says nothing new.
    """
    refused = isinstance(error, MisconfiguredError)
    standing = _locked(session, error.provider)
    stopped = standing.stop_kind is not None
    if standing.stop_kind == "wrong_account" or (stopped and not probing) or (again and not refused and not probing):
        return
    if not refused:
        standing.failures = max(standing.failures + 1, IN_A_ROW if stopped else 0)
        if standing.failures < IN_A_ROW:
            standing.updated_at = now
            return
    wait = LONGEST_WAIT if refused else _wait(standing.failures)
    _stop(standing, "misconfigured" if refused else "unavailable", error.message, now)
    standing.probe_at = now + timedelta(seconds=wait)


def answered(session: Session, provider: Provider, now: datetime, *, probing: bool) -> None:
    """The biller answered a turn. Only a probe's answer opens it: what was under way before proves nothing."""
    is_open = BillerStanding.stop_kind.is_(None)
    session.execute(
        update(BillerStanding)
        .where(
            BillerStanding.provider == provider,
            or_(is_open, BillerStanding.stop_kind != "wrong_account") if probing else is_open,
        )
        .values(**_OPEN, updated_at=now)
        .execution_options(synchronize_session=False)
    )


def stop(session: Session, provider: Provider, message: str, now: datetime) -> None:
    """Our key is another account's: no probe either, until a process starts with the right one."""
    standing = _locked(session, provider)
    _stop(standing, "wrong_account", message, now)
    standing.probe_at = None


def resume(session: Session, provider: Provider, now: datetime) -> None:
    """A process found the key good at its start: whatever stopped the biller is over."""
    session.execute(
        update(BillerStanding)
        .where(
            BillerStanding.provider == provider,
            or_(BillerStanding.stop_kind.is_not(None), BillerStanding.failures > 0),
        )
        .values(**_OPEN, updated_at=now)
        .execution_options(synchronize_session=False)
    )


def probe_now(session: Session, now: datetime) -> list[Provider]:
    """A person's word: those that are stopped are tried at once, except with the key of another account."""
    tried = session.scalars(
        update(BillerStanding)
        .where(BillerStanding.stop_kind.in_(("unavailable", "misconfigured")))
        .values(probe_at=now)
        .returning(BillerStanding.provider)
        .execution_options(synchronize_session=False)
    ).all()
    return [provider for provider in PROVIDERS if provider in tried]


def forget_waits(session: Session, provider: Provider, now: datetime) -> None:
    """Organizations that wait because our settings were refused need not wait any longer."""
    session.execute(
        update(BillingLink)
        .where(
            BillingLink.provider == provider,
            text(f"state = 'open' AND ({LINK_IS_BEHIND})"),
            BillingLink.error_kind == "misconfigured",
            BillingLink.next_attempt_at > now,
        )
        .values(next_attempt_at=None, sweep_at=now)
        .execution_options(synchronize_session=False)
    )


def room(session: Session, provider: Provider, free: int, now: datetime) -> int:
    """How many links may be handed over: as many as are free, but one probe, or none, while the biller is stopped."""
    standing = session.get_one(BillerStanding, provider)
    if standing.stop_kind is None:
        return free
    return min(free, 1) if standing.probe_at is not None and standing.probe_at <= now else 0


def stops(session: Session) -> dict[Provider, Stop]:
    """The billers that are stopped."""
    rows = {row.provider: row for row in session.scalars(select(BillerStanding))}
    return {provider: stopped for provider in PROVIDERS if (stopped := stop_of(rows[provider])) is not None}


def stop_of(row: BillerStanding) -> Stop | None:
    if row.stop_kind is None or row.stopped_since is None:
        return None
    return Stop(kind=row.stop_kind, since=row.stopped_since, message=row.stop_message or "", probe_at=row.probe_at)


_OPEN: dict[str, object] = {
    "failures": 0,
    "stop_kind": None,
    "stop_message": None,
    "stopped_since": None,
    "probe_at": None,
}


def _locked(session: Session, provider: str) -> BillerStanding:
    return session.get_one(BillerStanding, provider, with_for_update=True, populate_existing=True)


def _stop(standing: BillerStanding, kind: StopKind, message: str, now: datetime) -> None:
    standing.stopped_since = standing.stopped_since or now
    standing.stop_kind = kind
    standing.stop_message = message
    standing.updated_at = now


def _wait(in_a_row: int) -> float:
    return float(min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(in_a_row - IN_A_ROW, 16)))
