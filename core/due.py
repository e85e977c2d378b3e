"""What is due: links that are behind and were not heard of, and downgrades whose day has come.

The sweep needs nothing but these rows: with the broker wiped, workers killed or the database restored, it alone brings
everything home. A link handed over is not handed over again for a while, so a long queue is not filled with repeats.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import uuid4

from sqlalchemy import ColumnElement, UnaryExpression, and_, case, func, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core import organizations
from core.database import Database
from core.events import Change
from core.gateways import Provider
from core.models import LINK_HAS_WORK, BillingLink, Job, Organization
from core.organizations import SWEEP_GRACE
from core.turns import UNSURE

# Written out, not bound: SQLite uses a partial index only where it reads the index's own condition.
LINK_IS_OPEN_AND_BEHIND = f"state = 'open' AND ({LINK_HAS_WORK})"

# Longer than what a sweep hands over takes at the biller's quota, with room for a turn and a place in line.
HANDED_OVER = timedelta(seconds=30)
# Lago's billing job runs every hour (lago.md 5.1); until it has run, the downgrade has not come.
ASK_AGAIN = timedelta(hours=1)
# One of so many that are handed over: an import fills the line for hours; a change of today must not stand behind it.
ONE_OF_THE_LATEST_IN = 4


def links(session: Session, provider: Provider, limit: int, now: datetime) -> list[str]:
    """Organizations, up to ``limit``, whose link is behind and whose time has come: those that have been due longest,
    and then, where there are more, at least one and up to a quarter that came due last.
    """
    latest = max(1, limit // ONE_OF_THE_LATEST_IN) if limit > 1 else 0
    oldest = _taken(session, provider, BillingLink.sweep_at.asc(), limit - latest, now)
    if len(oldest) < limit - latest:
        return oldest
    return oldest + _taken(session, provider, BillingLink.sweep_at.desc(), latest, now)


def _taken(
    session: Session, provider: Provider, order: UnaryExpression[datetime], limit: int, now: datetime
) -> list[str]:
    if not limit:
        return []
    due = (
        select(BillingLink.org_id)
        .where(
            BillingLink.provider == provider,
            text(LINK_IS_OPEN_AND_BEHIND),
            BillingLink.sweep_at <= now,
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
        .values(sweep_at=now + HANDED_OVER)
        .execution_options(synchronize_session=False)
    )
    return org_ids


def in_hand(session: Session, provider: Provider, most: int, now: datetime) -> int:
    """Links that are behind and on their way: a message, a turn or a short wait has them. Counted up to ``most``."""
    on_their_way = (
        select(BillingLink.org_id)
        .where(
            BillingLink.provider == provider,
            text(LINK_IS_OPEN_AND_BEHIND),
            BillingLink.sweep_at > now,
            BillingLink.sweep_at <= now + HANDED_OVER,
        )
        .limit(most)
    )
    return session.scalar(select(func.count()).select_from(on_their_way.subquery())) or 0


def downgrades(database: Database, limit: int, now: datetime) -> int:
    """Have the billers asked about downgrades whose moment has passed; returns how many."""
    with database.write() as session:
        org_ids = session.scalars(
            select(Organization.id)
            .where(Organization.pending_plan_tier.is_not(None), Organization.plan_effective_at <= now)
            .order_by(Organization.plan_effective_at)
            .limit(limit)
        ).all()
        for org_id in org_ids:
            organization = organizations.lock(session, org_id)
            if organization is None or organization.pending_plan_tier is None:
                continue
            if organization.plan_effective_at is None or organization.plan_effective_at > now:
                continue
            organization.plan_effective_at = now + ASK_AGAIN
            # One that waits for a person keeps its plan in mind: the day alone would make again what he ended there.
            look_again(Change(session, now), organization, BillingLink.state == "open")
    return len(org_ids)


def look_again(change: Change, organization: Organization, *those: ColumnElement[bool]) -> None:
    """Nothing is believed of the subscriptions any more: the next round reads them at the billers."""
    change.session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == organization.id, BillingLink.applied_plan != UNSURE, *those)
        .values(applied_plan=None)
        .execution_options(synchronize_session=False)
    )
    organizations.bump(change, organization)


def retry(change: Change, organization: Organization) -> None:
    """A person's word: whatever parked or waits is tried now, and everything is read or made again."""
    unheard = and_(
        BillingLink.provider == "lago",
        BillingLink.subscription_id.is_(None),
        BillingLink.applied_customer.is_not(None),
    )
    change.session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == organization.id)
        .values(
            state=case((BillingLink.state == "held", "open"), else_=BillingLink.state),
            # Lago may hold a subscription that was never heard of; the customer stays ours, so that it can be ended.
            applied_customer=case((unheard, UNSURE), else_=None),
            rest_until=None,
            # Nobody can be asked for a payer that was refused; the person has seen it.
            payment=case((BillingLink.payment == "refused", None), else_=BillingLink.payment),
        )
        .execution_options(synchronize_session=False)
    )
    look_again(change, organization)


def forget(change: Change, org_id: str, provider: Provider, *, customer: bool, plan: bool) -> bool:
    """One link's round makes or reads these again; nothing changes for the other biller. Only while it is in sync."""
    values: dict[str, object] = {"applied_customer": UNSURE} if customer else {}
    values |= {"applied_plan": None} if plan else {}
    forgotten = change.session.execute(
        update(BillingLink)
        .where(
            BillingLink.org_id == org_id,
            BillingLink.provider == provider,
            BillingLink.state == "open",
            BillingLink.applied_version == BillingLink.wanted_version,
            BillingLink.intent.is_(None),
            or_(BillingLink.lease_until.is_(None), BillingLink.lease_until < change.now),
        )
        .values(applied_version=BillingLink.wanted_version - 1, sweep_at=change.now + SWEEP_GRACE, **values)
        .returning(BillingLink.org_id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return forgotten is not None


def take_job(session: Session, name: str, seconds: float, now: datetime) -> bool:
    """Whether this caller may run the periodic job now; nobody else may for ``seconds``."""
    values = {"name": name, "lease_token": str(uuid4()), "lease_until": now + timedelta(seconds=seconds)}
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(Job).values(values)
    taken = session.execute(
        statement.on_conflict_do_update(
            index_elements=[Job.name],
            set_={"lease_token": statement.excluded.lease_token, "lease_until": statement.excluded.lease_until},
            where=Job.lease_until < now,
        ).returning(Job.name)
    ).one_or_none()
    return taken is not None


def rest(session: Session, name: str, until: datetime) -> None:
    """The job is over: the next one may take it from then on."""
    session.execute(update(Job).where(Job.name == name).values(lease_token=None, lease_until=until))


def count_behind(session: Session) -> dict[str, int]:
    """Links that are not in sync and not parked, by biller."""
    rows = session.execute(
        select(BillingLink.provider, func.count()).where(text(LINK_IS_OPEN_AND_BEHIND)).group_by(BillingLink.provider)
    )
    return {row[0]: row[1] for row in rows}
