"""Acquires the lease of a billing link, or says why there is none and how long to wait.

One worker at a time has it, only while there is work, and never while the provider's circuit breaker is open.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal

from sqlalchemy import Boolean, String, bindparam, func, literal_column, or_, select, update
from sqlalchemy.orm import Session

from core.common.clock import Clock
from core.db import leases
from core.db.base import UtcDateTime
from core.db.database import Database
from core.db.models.billing_links import LINK_HAS_WORK, BillingLink, WaitReason
from core.db.models.events import Event
from core.db.models.organizations import Organization
from core.db.models.providers import ProviderStatus
from core.events.event_types import ORGANIZATION_CHANGES, request_id_of
from core.flow_control import circuit_breaker
from core.ports.spec import Provider
from core.reconcile.attempt import LINK_LEASE, SyncAttempt, intent_from_json

# The worker that the sweep calls after a lease must see by its own clock that the lease has ended.
MAX_LEASE_CLOCK_SKEW = timedelta(seconds=1)

# Built once, because building a statement costs more than sending it.
_LINK_KEY: Final = bindparam("this_org", type_=String()), bindparam("this_provider", type_=String())
_NOW_PARAMETER: Final = bindparam("this_moment", type_=UtcDateTime())

# Waiting helps only a link that is active, has work and is not leased.
_HAS_WORK: Final = (
    BillingLink.org_id == _LINK_KEY[0],
    BillingLink.provider == _LINK_KEY[1],
    BillingLink.state == "active",
    literal_column(f"({LINK_HAS_WORK})", Boolean),
    leases.is_free(BillingLink, _NOW_PARAMETER),
)
_IS_DUE: Final = (
    *_HAS_WORK,
    or_(BillingLink.not_before.is_(None), BillingLink.not_before <= _NOW_PARAMETER),
)
_ACQUIRE_LEASE: Final = (
    update(BillingLink)
    .where(*_IS_DUE, circuit_breaker.allows(_LINK_KEY[1], _NOW_PARAMETER))
    .values(
        **leases.acquired(bindparam("token"), bindparam("until")),
        attempts=BillingLink.attempts + 1,
        # The sweep finds an attempt that died when its lease has ended.
        next_sweep_at=bindparam("sweep"),
    )
    .returning(BillingLink.org_id)
    .execution_options(synchronize_session=False)
)
# Bounded, because the events of memberships may be many. No provider sees them.
_RECENT_EVENTS: Final = (
    select(Event.seq, Event.type)
    .where(Event.org_id == _LINK_KEY[0])
    .order_by(Event.seq.desc())
    .limit(literal_column("20"))
    .subquery()
)
_NEWEST_CHANGE: Final = (
    select(func.max(_RECENT_EVENTS.c.seq)).where(_RECENT_EVENTS.c.type.in_(ORGANIZATION_CHANGES)).scalar_subquery()
)
_READ_LEASED_ROWS: Final = (
    select(BillingLink, ProviderStatus, Organization, Event.id, Event.caused_by)
    .select_from(BillingLink)
    .join(ProviderStatus, ProviderStatus.provider == _LINK_KEY[1])
    .join(Organization, Organization.id == BillingLink.org_id)
    .outerjoin(Event, Event.seq == _NEWEST_CHANGE)
    .where(BillingLink.org_id == _LINK_KEY[0])
)
_READ_REFUSAL: Final = (
    select(
        BillingLink.state,
        BillingLink.applied_version,
        BillingLink.not_before,
        BillingLink.not_before_reason,
        literal_column(f"({LINK_HAS_WORK})", Boolean).label("has_work"),
        leases.is_free(BillingLink, _NOW_PARAMETER).label("is_free"),
        ProviderStatus.breaker_reason,
        ProviderStatus.probe_at,
    )
    .join(ProviderStatus, ProviderStatus.provider == _LINK_KEY[1])
    .where(BillingLink.org_id == _LINK_KEY[0], BillingLink.provider == _LINK_KEY[1])
)
_SWEEP_AFTER_PROBE: Final = (
    update(BillingLink)
    .where(*_IS_DUE, BillingLink.next_sweep_at > bindparam("probe", type_=UtcDateTime()))
    .values(next_sweep_at=bindparam("probe", type_=UtcDateTime()))
    .execution_options(synchronize_session=False)
)


LeaseRefusal = Literal[
    "unknown_organization",
    "in_sync",
    "parked",
    "on_hold",
    "observed",
    "leased",
    "breaker_open",
    "probe_in_progress",
    WaitReason,
]
"""Why there is no attempt. leased: another worker has the link; it compares the version again before it ends, so no
change is missed. breaker_open, probe_in_progress: the sweep dispatches the link when the provider responds again. The
other words are the link's state, or what it waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoLease:
    """``requeue_after``: the seconds that the link itself waits. ``None``: nothing is to be sent again.

    ``version``: the version that the provider has; ``None``: there is no such organization.
    """

    reason: LeaseRefusal
    version: int | None
    requeue_after: float | None = None


def acquire(database: Database, clock: Clock, org_id: str, provider: Provider) -> SyncAttempt | NoLease:
    """The attempt, or why there is none."""
    try:
        with database.write() as session:
            return _acquire(session, database, clock, org_id, provider)
    except _ProbeInProgressError as error:
        return NoLease(reason="probe_in_progress", version=error.version)


class _ProbeInProgressError(Exception):
    """Another attempt is the probe of the open circuit breaker; raised to roll this lease back."""

    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.version = version


def _acquire(
    session: Session, database: Database, clock: Clock, org_id: str, provider: Provider
) -> SyncAttempt | NoLease:
    now = clock()
    token = leases.new_token()
    parameters: dict[str, Any] = {"this_org": org_id, "this_provider": provider, "this_moment": now}
    lease_values = {"token": token, "until": now + LINK_LEASE, "sweep": now + LINK_LEASE + MAX_LEASE_CLOCK_SKEW}
    # Sent on the connection: the unit of work would cost twice as much as the statement, and has not loaded this row.
    if session.connection().execute(_ACQUIRE_LEASE, parameters | lease_values).one_or_none() is None:
        return _refusal(session, parameters)
    rows = session.execute(_READ_LEASED_ROWS, parameters).all()
    links_by_provider = {row[0].provider: row[0] for row in rows}
    _, provider_status, organization, event_id, caused_by = rows[0]
    link = links_by_provider.pop(provider)
    is_breaker_probe = provider_status.breaker_reason is not None
    if is_breaker_probe and not circuit_breaker.acquire_probe(session, provider, now):
        raise _ProbeInProgressError(link.applied_version)
    (other_link,) = links_by_provider.values()
    return SyncAttempt(
        database=database,
        clock=clock,
        provider=provider,
        organization=organization,
        link=link,
        other_link=other_link,
        provider_status=provider_status,
        is_breaker_probe=is_breaker_probe,
        lease_token=token,
        lease_until=now + LINK_LEASE,
        generation=link.generation,
        intent=intent_from_json(link.intent),
        event_id=event_id,
        request_id=request_id_of(caused_by),
    )


def _refusal(session: Session, parameters: dict[str, Any]) -> NoLease:
    """Why there is no lease. Only the link's own wait gives seconds."""
    row = session.execute(_READ_REFUSAL, parameters).one_or_none()
    if row is None:
        return NoLease(reason="unknown_organization", version=None)
    reason: LeaseRefusal
    seconds: float | None = None
    if row.state != "active":
        reason = row.state
    elif not row.has_work:
        reason = "in_sync"
    elif not row.is_free:
        reason = "leased"
    elif row.breaker_reason is not None:
        reason = "breaker_open"
        # Dispatched after the next probe, behind all links that have waited longer.
        if row.probe_at is not None:
            session.execute(_SWEEP_AFTER_PROBE, {**parameters, "probe": row.probe_at})
    elif row.not_before is not None:
        reason = row.not_before_reason or "backoff"
        seconds = max(0.05, (row.not_before - parameters["this_moment"]).total_seconds())
    else:
        # It became free just now, so another worker had it.
        reason = "leased"
    return NoLease(reason=reason, version=row.applied_version, requeue_after=seconds)
