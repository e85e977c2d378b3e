"""Who has a turn at a link: one at a time, only where there is work, and none while its biller is stopped."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import Boolean, String, bindparam, literal_column, or_, select, update
from sqlalchemy.orm import Session

from core.common.clock import Clock
from core.db.base import UtcDateTime
from core.db.database import Database
from core.db.models.billing_links import LINK_HAS_WORK, BillingLink
from core.db.models.organizations import Organization
from core.db.models.providers import ProviderStatus
from core.flow_control import circuit_breaker
from core.ports.spec import Provider
from core.reconcile.attempt import LINK_LEASE, SyncAttempt, intent_from_json

# Whoever the sweep rings when a lease is over must find it over by its own clock.
MAX_LEASE_CLOCK_SKEW = timedelta(seconds=1)

# Written once: to build a statement costs more than to send it.
_LINK_KEY: Final = bindparam("this_org", type_=String()), bindparam("this_provider", type_=String())
_NOW_PARAMETER: Final = bindparam("this_moment", type_=UtcDateTime())

# Only a link that is open, behind and free will have a turn by waiting.
_HAS_WORK: Final = (
    BillingLink.org_id == _LINK_KEY[0],
    BillingLink.provider == _LINK_KEY[1],
    BillingLink.state == "active",
    literal_column(f"({LINK_HAS_WORK})", Boolean),
    or_(BillingLink.lease_until.is_(None), BillingLink.lease_until < _NOW_PARAMETER),
)
_IS_DUE: Final = (
    *_HAS_WORK,
    or_(BillingLink.not_before.is_(None), BillingLink.not_before <= _NOW_PARAMETER),
    or_(BillingLink.cooldown_until.is_(None), BillingLink.cooldown_until <= _NOW_PARAMETER),
)
_ACQUIRE_LEASE: Final = (
    update(BillingLink)
    .where(*_IS_DUE, circuit_breaker.allows(_LINK_KEY[1], _NOW_PARAMETER))
    .values(
        lease_token=bindparam("token"),
        lease_until=bindparam("until"),
        attempts=BillingLink.attempts + 1,
        # A turn that dies without a word is found by the sweep when its lease is over.
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
    select(BillingLink.not_before, BillingLink.cooldown_until, ProviderStatus.breaker_reason, ProviderStatus.probe_at)
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
    """A turn; or the seconds until one may be had; or ``None``: nothing to do, parked, or somebody else's turn.

    Somebody else's turn looks at the version again before it ends, so nothing is missed. ``None`` as well while the
    biller is stopped: the row waits, and the sweep hands it over when the biller answers again.
    """
    try:
        with database.write() as session:
            return _acquire(session, database, clock, org_id, provider)
    except _ProbeInProgressError:
        return None


class _ProbeInProgressError(Exception):
    """Another turn tries the stopped biller; rolls this claim back."""


def _acquire(
    session: Session, database: Database, clock: Clock, org_id: str, provider: Provider
) -> SyncAttempt | float | None:
    now = clock()
    token = str(uuid4())
    parameters: dict[str, Any] = {"this_org": org_id, "this_provider": provider, "this_moment": now}
    lease_values = {"token": token, "until": now + LINK_LEASE, "sweep": now + LINK_LEASE + MAX_LEASE_CLOCK_SKEW}
    # Through the connection: the unit of work costs twice the statement, and knows nothing of this row yet.
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
    """Why there was no turn: the link's own wait, or a biller that is stopped."""
    row = session.execute(_READ_WAIT_REASON, parameters).one_or_none()
    if row is None:
        return None
    if row.breaker_reason is not None:
        # Handed over once the biller may answer again, after all that is older.
        if row.probe_at is not None:
            session.execute(_SWEEP_AFTER_PROBE, {**parameters, "probe": row.probe_at})
        return None
    wait_ends = [wait_end for wait_end in (row.not_before, row.cooldown_until) if wait_end is not None]
    return max(0.05, (max(wait_ends) - parameters["this_moment"]).total_seconds()) if wait_ends else None
