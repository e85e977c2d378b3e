"""What is due: links that are behind and were not heard of, and downgrades whose day has come.

The sweep needs nothing but these rows: with the broker wiped, workers killed or the database restored, it alone brings
everything home. A link handed over is not handed over again for a while, so a long queue is not filled with repeats.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import UnaryExpression, func, or_, select, text, update
from sqlalchemy.orm import Session

from core.db.database import Database
from core.db.models.billing_links import LINK_IS_ACTIVE_AND_BEHIND, BillingLink
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.ports.spec import Provider
from core.reconcile.commands import invalidate_plans

# Longer than what a sweep hands over takes at the biller's quota, with room for a turn and a place in line.
REDISPATCH_LINK_AFTER = timedelta(seconds=30)
# Lago's billing job runs every hour (lago.md 5.1); until it has run, the downgrade has not come.
DOWNGRADE_RECHECK_INTERVAL = timedelta(hours=1)
# One of so many that are handed over: an import fills the line for hours; a change of today must not stand behind it.
NEWEST_SHARE_DIVISOR = 4


def dispatch(session: Session, provider: Provider, limit: int, now: datetime) -> list[str]:
    """Organizations, up to ``limit``, whose link is behind and whose time has come: those that have been due longest,
    and then, where there are more, at least one and up to a quarter that came due last.
    """
    newest_limit = max(1, limit // NEWEST_SHARE_DIVISOR) if limit > 1 else 0
    oldest = _dispatch_in_order(session, provider, BillingLink.next_sweep_at.asc(), limit - newest_limit, now)
    if len(oldest) < limit - newest_limit:
        return oldest
    return oldest + _dispatch_in_order(session, provider, BillingLink.next_sweep_at.desc(), newest_limit, now)


def _dispatch_in_order(
    session: Session, provider: Provider, order: UnaryExpression[datetime], limit: int, now: datetime
) -> list[str]:
    if not limit:
        return []
    due = (
        select(BillingLink.org_id)
        .where(
            BillingLink.provider == provider,
            text(LINK_IS_ACTIVE_AND_BEHIND),
            BillingLink.next_sweep_at <= now,
            or_(BillingLink.lease_until.is_(None), BillingLink.lease_until < now),
        )
        .order_by(order)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    org_ids = list(session.scalars(due))
    if not org_ids:
        return []
    session.execute(
        update(BillingLink)
        .where(BillingLink.provider == provider, BillingLink.org_id.in_(org_ids))
        .values(next_sweep_at=now + REDISPATCH_LINK_AFTER)
        .execution_options(synchronize_session=False)
    )
    return org_ids


def count_in_flight(session: Session, provider: Provider, limit: int, now: datetime) -> int:
    """Links that are behind and on their way: a message, a turn or a short wait has them. Counted up to ``most``."""
    in_flight = (
        select(BillingLink.org_id)
        .where(
            BillingLink.provider == provider,
            text(LINK_IS_ACTIVE_AND_BEHIND),
            BillingLink.next_sweep_at > now,
            BillingLink.next_sweep_at <= now + REDISPATCH_LINK_AFTER,
        )
        .limit(limit)
    )
    return session.scalar(select(func.count()).select_from(in_flight.subquery())) or 0


def recheck_due_downgrades(database: Database, limit: int, now: datetime) -> int:
    """Have the billers asked about downgrades whose moment has passed; returns how many."""
    with database.write() as session:
        org_ids = session.scalars(
            select(Organization.id)
            .where(Organization.pending_plan_tier.is_not(None), Organization.plan_effective_at <= now)
            .order_by(Organization.plan_effective_at)
            .limit(limit)
        ).all()
        for org_id in org_ids:
            organization = commands.lock(session, org_id)
            if organization is None or organization.pending_plan_tier is None:
                continue
            if organization.plan_effective_at is None or organization.plan_effective_at > now:
                continue
            organization.plan_effective_at = now + DOWNGRADE_RECHECK_INTERVAL
            # One that waits for a person keeps its plan in mind: the day alone would make again what he ended there.
            invalidate_plans(ChangeContext(session, now), organization, BillingLink.state == "active")
    return len(org_ids)


def count_behind(session: Session) -> dict[str, int]:
    """Links that are not in sync and not parked, by biller."""
    rows = session.execute(
        select(BillingLink.provider, func.count()).where(text(LINK_IS_ACTIVE_AND_BEHIND)).group_by(BillingLink.provider)
    )
    return {row[0]: row[1] for row in rows}
