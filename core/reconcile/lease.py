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
from core.db.models.providers import BillerStanding
from core.flow_control import circuit_breaker
from core.ports.spec import Provider
from core.reconcile.attempt import LEASE, Turn, loaded

# Whoever the sweep rings when a lease is over must find it over by its own clock.
CLOCKS_MAY_DIFFER = timedelta(seconds=1)

# Written once: to build a statement costs more than to send it.
_LINK: Final = bindparam("this_org", type_=String()), bindparam("this_biller", type_=String())
_NOW: Final = bindparam("this_moment", type_=UtcDateTime())

# Only a link that is open, behind and free will have a turn by waiting.
_HAS_WORK: Final = (
    BillingLink.org_id == _LINK[0],
    BillingLink.provider == _LINK[1],
    BillingLink.state == "open",
    literal_column(f"({LINK_HAS_WORK})", Boolean),
    or_(BillingLink.lease_until.is_(None), BillingLink.lease_until < _NOW),
)
_IS_DUE: Final = (
    *_HAS_WORK,
    or_(BillingLink.next_attempt_at.is_(None), BillingLink.next_attempt_at <= _NOW),
    or_(BillingLink.rest_until.is_(None), BillingLink.rest_until <= _NOW),
)
_CLAIM: Final = (
    update(BillingLink)
    .where(*_IS_DUE, circuit_breaker.lets_in(_LINK[1], _NOW))
    .values(
        lease_token=bindparam("token"),
        lease_until=bindparam("until"),
        attempts=BillingLink.attempts + 1,
        # A turn that dies without a word is found by the sweep when its lease is over.
        sweep_at=bindparam("sweep"),
    )
    .returning(BillingLink.org_id)
    .execution_options(synchronize_session=False)
)
_READ: Final = (
    select(BillingLink, BillerStanding, Organization)
    .select_from(BillingLink)
    .join(BillerStanding, BillerStanding.provider == _LINK[1])
    .join(Organization, Organization.id == BillingLink.org_id)
    .where(BillingLink.org_id == _LINK[0])
)
_WHY_NOT: Final = (
    select(BillingLink.next_attempt_at, BillingLink.rest_until, BillerStanding.stop_kind, BillerStanding.probe_at)
    .join(BillerStanding, BillerStanding.provider == _LINK[1])
    .where(*_HAS_WORK)
)
_AFTER_THE_PROBE: Final = (
    update(BillingLink)
    .where(*_IS_DUE, BillingLink.sweep_at > bindparam("probe", type_=UtcDateTime()))
    .values(sweep_at=bindparam("probe", type_=UtcDateTime()))
    .execution_options(synchronize_session=False)
)


def claim(database: Database, clock: Clock, org_id: str, provider: Provider) -> Turn | float | None:
    """A turn; or the seconds until one may be had; or ``None``: nothing to do, parked, or somebody else's turn.

    Somebody else's turn looks at the version again before it ends, so nothing is missed. ``None`` as well while the
    biller is stopped: the row waits, and the sweep hands it over when the biller answers again.
    """
    try:
        with database.write() as session:
            return _claimed(session, database, clock, org_id, provider)
    except _ProbeTakenError:
        return None


class _ProbeTakenError(Exception):
    """Another turn tries the stopped biller; rolls this claim back."""


def _claimed(
    session: Session, database: Database, clock: Clock, org_id: str, provider: Provider
) -> Turn | float | None:
    now = clock()
    token = str(uuid4())
    this: dict[str, Any] = {"this_org": org_id, "this_biller": provider, "this_moment": now}
    lease = {"token": token, "until": now + LEASE, "sweep": now + LEASE + CLOCKS_MAY_DIFFER}
    # Through the connection: the unit of work costs twice the statement, and knows nothing of this row yet.
    if session.connection().execute(_CLAIM, this | lease).one_or_none() is None:
        return _wait(session, this)
    rows = session.execute(_READ, this).all()
    links, standing, organization = {link.provider: link for link, _, _ in rows}, rows[0][1], rows[0][2]
    probing = standing.stop_kind is not None
    if probing and not circuit_breaker.take_probe(session, provider, now):
        raise _ProbeTakenError
    link = links.pop(provider)
    (other,) = links.values()
    return Turn(
        database=database,
        clock=clock,
        provider=provider,
        organization=organization,
        link=link,
        other=other,
        standing=standing,
        probing=probing,
        token=token,
        lease_until=now + LEASE,
        generation=link.generation,
        intent=loaded(link.intent),
    )


def _wait(session: Session, this: dict[str, Any]) -> float | None:
    """Why there was no turn: the link's own wait, or a biller that is stopped."""
    row = session.execute(_WHY_NOT, this).one_or_none()
    if row is None:
        return None
    if row.stop_kind is not None:
        # Handed over once the biller may answer again, after all that is older.
        if row.probe_at is not None:
            session.execute(_AFTER_THE_PROBE, {**this, "probe": row.probe_at})
        return None
    moments = [moment for moment in (row.next_attempt_at, row.rest_until) if moment is not None]
    return max(0.05, (max(moments) - this["this_moment"]).total_seconds()) if moments else None
