"""Acquires the lease of a billing link, or says how long to wait.

One worker at a time has it, only while there is work, and never while the provider's circuit breaker is open.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Boolean, String, bindparam, literal_column, or_, select, update
from sqlalchemy.orm import Session

from core.common.clock import Clock
from core.db import leases
from core.db.base import UtcDateTime
from core.db.database import Database
from core.db.models.billing_links import LINK_HAS_WORK, BillingLink
from core.db.models.organizations import Organization
from core.db.models.providers import ProviderStatus
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
_READ_LEASED_ROWS: Final = (
    select(BillingLink, ProviderStatus, Organization)
    .select_from(BillingLink)
    .join(ProviderStatus, ProviderStatus.provider == _LINK_KEY[1])
    .join(Organization, Organization.id == BillingLink.org_id)
    .where(BillingLink.org_id == _LINK_KEY[0])
)
_READ_WAIT_REASON: Final = (
    select(BillingLink.not_before, ProviderStatus.breaker_reason, ProviderStatus.probe_at)
    .join(ProviderStatus, ProviderStatus.provider == _LINK_KEY[1])
    .where(*_HAS_WORK)
)
_SWEEP_AFTER_PROBE: Final = (
    update(BillingLink)
    .where(*_IS_DUE, BillingLink.next_sweep_at > bindparam("probe", type_=UtcDateTime()))
    .values(next_sweep_at=bindparam("probe", type_=UtcDateTime()))
    .execution_options(synchronize_session=False)
)


def acquire(database: Database, clock: Clock, org_id: str, provider: Provider) -> SyncAttempt | float | None:
    """The attempt, or the seconds to wait, or ``None``.

    ``None``: there is nothing to do, the link is parked, or another worker has the lease. That worker compares the
    version again before it ends, so no change is missed. It is also ``None`` while the provider's circuit breaker is
    open: the sweep dispatches the link when the provider responds again.
    """
    try:
        with database.write() as session:
            return _acquire(session, database, clock, org_id, provider)
    except _ProbeInProgressError:
        return None


class _ProbeInProgressError(Exception):
    """Another attempt is the probe of the open circuit breaker; raised to roll this lease back."""


def _acquire(
    session: Session, database: Database, clock: Clock, org_id: str, provider: Provider
) -> SyncAttempt | float | None:
    now = clock()
    token = leases.new_token()
    parameters: dict[str, Any] = {"this_org": org_id, "this_provider": provider, "this_moment": now}
    lease_values = {"token": token, "until": now + LINK_LEASE, "sweep": now + LINK_LEASE + MAX_LEASE_CLOCK_SKEW}
    # Sent on the connection: the unit of work would cost twice as much as the statement, and has not loaded this row.
    if session.connection().execute(_ACQUIRE_LEASE, parameters | lease_values).one_or_none() is None:
        return _wait_seconds(session, parameters)
    rows = session.execute(_READ_LEASED_ROWS, parameters).all()
    links_by_provider, provider_status, organization = (
        {link.provider: link for link, _, _ in rows},
        rows[0][1],
        rows[0][2],
    )
    is_breaker_probe = provider_status.breaker_reason is not None
    if is_breaker_probe and not circuit_breaker.acquire_probe(session, provider, now):
        raise _ProbeInProgressError
    link = links_by_provider.pop(provider)
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
    )


def _wait_seconds(session: Session, parameters: dict[str, Any]) -> float | None:
    """Why there is no lease: the link's own wait gives the seconds, an open circuit breaker gives ``None``."""
    row = session.execute(_READ_WAIT_REASON, parameters).one_or_none()
    if row is None:
        return None
    if row.breaker_reason is not None:
        # Dispatched after the next probe, behind all links that have waited longer.
        if row.probe_at is not None:
            session.execute(_SWEEP_AFTER_PROBE, {**parameters, "probe": row.probe_at})
        return None
    if row.not_before is None:
        return None
    seconds: float = (row.not_before - parameters["this_moment"]).total_seconds()
    return max(0.05, seconds)
