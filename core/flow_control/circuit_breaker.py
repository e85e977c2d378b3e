"""Circuit breaker per provider, stored in a row and updated in the attempt's own transaction.

All processes share it. Consecutive failures, or one rejected API key, open it: no attempt is made, nothing counts as a
failure of an organization, and one attempt at a time goes through as a probe. Links that wait stay in their rows, and
the sweep dispatches them when a probe gets a response.

    closed                      --``BREAKER_FAILURE_THRESHOLD`` organizations in a row get no response-->  unavailable
    closed, unavailable         --one rejection of our key or settings-->                          misconfigured
    misconfigured               --a probe gets no response-->                                      unavailable
    unavailable, misconfigured  --a probe gets a response, or a process starts with a valid key--> closed
    any                         --the key belongs to another account-->                            wrong_account
    wrong_account               --a process starts with the right key-->                           closed

The states other than ``closed`` are the ``reason`` of an open breaker. Each transition is logged once, after its
commit; a failure or a probe that changes no state is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import ColumnElement, exists, or_, select, text, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.selectable import ScalarSelect

from core.db import after_commit
from core.db.models.billing_links import LINK_IS_BEHIND, BillingLink
from core.db.models.providers import BreakerReason, ProviderStatus
from core.ports.errors import MisconfiguredError, RetryableError
from core.ports.spec import PROVIDERS, Provider

log = structlog.get_logger()

BREAKER_FAILURE_THRESHOLD = 5
# The time until the next probe, doubled by each probe that fails.
MIN_PROBE_BACKOFF_SECONDS = 2.0
MAX_PROBE_BACKOFF_SECONDS = 60.0
# No second probe starts while one may still run. As long as the lease of an attempt, so a probe that died is replaced.
PROBE_LEASE = timedelta(seconds=45)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBreaker:
    """``probe_at`` None: nothing is tried before an operator acts."""

    reason: BreakerReason
    open_since: datetime
    message: str
    probe_at: datetime | None


def allows(provider: ColumnElement[str], now: ColumnElement[datetime]) -> ColumnElement[bool]:
    """A condition for the statement that takes a lease: the circuit breaker is closed, or its probe is due."""
    return ~exists().where(
        ProviderStatus.provider == provider,
        ProviderStatus.breaker_reason.is_not(None),
        or_(ProviderStatus.probe_at.is_(None), ProviderStatus.probe_at > now),
    )


def acquire_probe(session: Session, provider: Provider, now: datetime) -> bool:
    """Whether this attempt may be the probe of an open circuit breaker; only one of several may."""
    acquired = session.execute(
        update(ProviderStatus)
        .where(
            ProviderStatus.provider == provider,
            or_(ProviderStatus.breaker_reason.is_(None), ProviderStatus.probe_at <= now),
        )
        .values(probe_at=now + PROBE_LEASE)
        .returning(ProviderStatus.provider)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return acquired is not None


def return_probe(session: Session, provider: Provider, now: datetime) -> None:
    """The probe sent no request, or it is not known what came of it, so the next attempt may be the probe."""
    session.execute(
        update(ProviderStatus)
        .where(ProviderStatus.provider == provider, ProviderStatus.probe_at.is_not(None))
        .values(probe_at=now)
        .execution_options(synchronize_session=False)
    )


def consecutive_failures(provider: ColumnElement[str]) -> ScalarSelect[int]:
    """The current number of consecutive failures, as an expression for a statement that is sent anyway."""
    return select(ProviderStatus.consecutive_failures).where(ProviderStatus.provider == provider).scalar_subquery()


def record_failure(
    session: Session, error: RetryableError, now: datetime, *, is_repeat: bool, is_probe: bool
) -> BreakerReason | None:
    """Count an attempt that got no response, or a rejection that every organization will get.

    Returns the reason if this opened the closed breaker.

    ``is_repeat``: the same organization failed like this before. It counts once, so that an organization with a problem
    of its own does not open the breaker for all. Attempts that ran already when the breaker opened do not count.
    """
    is_misconfigured = isinstance(error, MisconfiguredError)
    provider_status = _lock_status(session, error.provider)
    is_open = provider_status.breaker_reason is not None
    if (
        provider_status.breaker_reason == "wrong_account"
        or (is_open and not is_probe)
        or (is_repeat and not is_misconfigured and not is_probe)
    ):
        return None
    if not is_misconfigured:
        provider_status.consecutive_failures = max(
            provider_status.consecutive_failures + 1, BREAKER_FAILURE_THRESHOLD if is_open else 0
        )
        if provider_status.consecutive_failures < BREAKER_FAILURE_THRESHOLD:
            provider_status.updated_at = now
            return None
    backoff_seconds = (
        MAX_PROBE_BACKOFF_SECONDS if is_misconfigured else _probe_backoff_seconds(provider_status.consecutive_failures)
    )
    reason: BreakerReason = "misconfigured" if is_misconfigured else "unavailable"
    _open_breaker(session, provider_status, reason, error.message, now)
    provider_status.probe_at = now + timedelta(seconds=backoff_seconds)
    return None if is_open else reason


def record_success(session: Session, provider: Provider, now: datetime, *, is_probe: bool) -> None:
    """The provider responded to an attempt. Only a probe closes an open breaker: earlier requests prove nothing."""
    if is_probe:
        provider_status = _lock_status(session, provider)
        if provider_status.breaker_reason != "wrong_account":
            _close_breaker(session, provider_status, now)
        return
    session.execute(
        update(ProviderStatus)
        .where(ProviderStatus.provider == provider, ProviderStatus.breaker_reason.is_(None))
        .values(consecutive_failures=0, updated_at=now)
        .execution_options(synchronize_session=False)
    )


def open_for_wrong_account(session: Session, provider: Provider, message: str, now: datetime) -> BreakerReason | None:
    """Open it because our API key is another account's: no probe either, until a process starts with the right key.

    Returns the reason if this opened the closed breaker.
    """
    provider_status = _lock_status(session, provider)
    is_open = provider_status.breaker_reason is not None
    _open_breaker(session, provider_status, "wrong_account", message, now)
    provider_status.probe_at = None
    return None if is_open else "wrong_account"


def reset(session: Session, provider: Provider, now: datetime) -> None:
    """Close it: a process that starts found the key valid."""
    provider_status = _lock_status(session, provider)
    if provider_status.breaker_reason is not None or provider_status.consecutive_failures:
        _close_breaker(session, provider_status, now)


def probe_now(session: Session, now: datetime) -> list[Provider]:
    """An operator's retry: open breakers are probed now, except one that has the key of another account."""
    probed = session.scalars(
        update(ProviderStatus)
        .where(ProviderStatus.breaker_reason.in_(("unavailable", "misconfigured")))
        .values(probe_at=now)
        .returning(ProviderStatus.provider)
        .execution_options(synchronize_session=False)
    ).all()
    return [provider for provider in PROVIDERS if provider in probed]


def clear_backoffs(session: Session, provider: Provider, now: datetime) -> None:
    """End the backoff of the links that wait because our settings were rejected."""
    session.execute(
        update(BillingLink)
        .where(
            BillingLink.provider == provider,
            text(f"state = 'active' AND ({LINK_IS_BEHIND})"),
            BillingLink.error_kind == "misconfigured",
            BillingLink.not_before > now,
        )
        .values(not_before=None, not_before_reason=None, next_sweep_at=now)
        .execution_options(synchronize_session=False)
    )


def free_capacity(session: Session, provider: Provider, capacity: int, now: datetime) -> int:
    """How many links may be dispatched: ``capacity``, but one probe or none while the circuit breaker is open."""
    provider_status = session.get_one(ProviderStatus, provider)
    if provider_status.breaker_reason is None:
        return capacity
    return min(capacity, 1) if provider_status.probe_at is not None and provider_status.probe_at <= now else 0


def open_breakers(session: Session) -> dict[Provider, OpenBreaker]:
    """The providers whose circuit breaker is open."""
    rows = {row.provider: row for row in session.scalars(select(ProviderStatus))}
    return {provider: breaker for provider in PROVIDERS if (breaker := open_breaker_of(rows[provider])) is not None}


def open_breaker_of(row: ProviderStatus) -> OpenBreaker | None:
    if row.breaker_reason is None or row.open_since is None:
        return None
    return OpenBreaker(
        reason=row.breaker_reason, open_since=row.open_since, message=row.breaker_message or "", probe_at=row.probe_at
    )


def _lock_status(session: Session, provider: str) -> ProviderStatus:
    return session.get_one(ProviderStatus, provider, with_for_update=True, populate_existing=True)


def _open_breaker(
    session: Session, provider_status: ProviderStatus, reason: BreakerReason, message: str, now: datetime
) -> None:
    provider, before = provider_status.provider, provider_status.breaker_reason
    since = provider_status.open_since = provider_status.open_since or now
    provider_status.breaker_reason = reason
    provider_status.breaker_message = message
    provider_status.updated_at = now
    if reason == before:
        return
    name = "provider_breaker_opened" if before is None else "provider_breaker_reason_changed"
    after_commit.call(
        session,
        lambda: log.warning(name, provider=provider, reason=reason, message=message, since=since.isoformat()),
    )


def _close_breaker(session: Session, provider_status: ProviderStatus, now: datetime) -> None:
    provider, reason, since = provider_status.provider, provider_status.breaker_reason, provider_status.open_since
    provider_status.consecutive_failures = 0
    provider_status.breaker_reason = provider_status.breaker_message = None
    provider_status.open_since = provider_status.probe_at = None
    provider_status.updated_at = now
    if reason is not None and since is not None:
        after_commit.call(
            session,
            lambda: log.warning("provider_breaker_closed", provider=provider, reason=reason, since=since.isoformat()),
        )


def _probe_backoff_seconds(failure_count: int) -> float:
    return float(
        min(
            MAX_PROBE_BACKOFF_SECONDS,
            MIN_PROBE_BACKOFF_SECONDS * 2 ** min(failure_count - BREAKER_FAILURE_THRESHOLD, 16),
        )
    )
