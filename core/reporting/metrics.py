"""What is worth a metric: numbers read from the rows by indexes that hold only what waits, with no id among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, TextClause, func, select, text
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.db.base import Base
from core.db.models.billing_links import LINK_IS_OPEN_AND_BEHIND, BillingLink
from core.db.models.drift import DriftPlan
from core.db.models.email import Mail
from core.db.models.events import Event
from core.db.models.inbox import Hint
from core.db.models.organizations import Organization
from core.db.models.providers import StopKind
from core.db.models.webhooks import WebhookDelivery
from core.flow_control import circuit_breaker
from core.ports.spec import PROVIDERS, Provider

# The age of the oldest is looked for among so many: beyond that the number is what counts.
MOST_LOOKED_AT = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFigures:
    """``behind_since``: the last change of the organization that has waited longest; None: none is behind."""

    behind: int
    parked: int
    held: int
    behind_since: datetime | None
    stop: StopKind | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The last one with the billers that ended: how many organizations drifted, and findings by kind."""

    finished_at: datetime
    drifted: int
    kinds: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """``waiting`` and ``failed``: how many mails, webhooks out and hints (webhooks in) do."""

    links: Mapping[Provider, LinkFigures]
    comparison: Comparison | None
    events_pending: int
    events_since: datetime | None
    waiting: Mapping[str, int]
    failed: Mapping[str, int]


def read(session: Session) -> Figures:
    pending = Event.published_at.is_(None)
    return Figures(
        links=_links(session),
        comparison=comparison(session),
        events_pending=_count(session, Event, pending),
        events_since=session.scalar(select(Event.occurred_at).where(pending).order_by(Event.seq).limit(1)),
        waiting={
            "hints": _count(session, Hint, text("state = 'stored'")),
            "mails": _count(session, Mail, text("state = 'open'")),
            "webhooks": _count(session, WebhookDelivery, text("state = 'pending'")),
        },
        failed={
            "mails": _count(session, Mail, text("state = 'given_up'")),
            "webhooks": _count(session, WebhookDelivery, text("state = 'failed'")),
        },
    )


def comparison(session: Session) -> Comparison | None:
    row = session.scalars(
        select(DriftPlan).where(DriftPlan.plan_id.is_not(None)).order_by(DriftPlan.started_at.desc()).limit(1)
    ).one_or_none()
    if row is None or row.finished_at is None:
        return None
    return Comparison(finished_at=row.finished_at, drifted=int(row.counts["drifted"]), kinds=dict(row.counts["kinds"]))


def _links(session: Session) -> dict[Provider, LinkFigures]:
    behind = _by(session, text(LINK_IS_OPEN_AND_BEHIND), BillingLink.provider)
    stuck = _by(session, text("state <> 'open'"), BillingLink.provider, BillingLink.state)
    stops = circuit_breaker.stops(session)
    return {
        provider: LinkFigures(
            behind=behind.get((provider,), 0),
            parked=stuck.get((provider, "parked"), 0),
            held=stuck.get((provider, "held"), 0),
            behind_since=_behind_since(session, provider) if behind.get((provider,)) else None,
            stop=stops[provider].kind if provider in stops else None,
        )
        for provider in PROVIDERS
    }


def _behind_since(session: Session, provider: Provider) -> datetime | None:
    """Looked up one by one: a join would be planned as a walk through all organizations."""
    changed = select(Organization.updated_at).where(Organization.id == BillingLink.org_id).scalar_subquery()
    late = (
        select(changed.label("changed_at"))
        .where(BillingLink.provider == provider, text(LINK_IS_OPEN_AND_BEHIND))
        .order_by(BillingLink.sweep_at)
        .limit(MOST_LOOKED_AT)
        .subquery()
    )
    oldest: datetime | None = session.scalar(select(func.min(late.c.changed_at)))
    return oldest


def _by(
    session: Session, condition: ColumnElement[bool] | TextClause, *names: InstrumentedAttribute[str]
) -> dict[tuple[str, ...], int]:
    rows = session.execute(select(func.count(), *names).where(condition).group_by(*names))
    return {tuple(map(str, row[1:])): int(row[0]) for row in rows}


def _count(session: Session, table: type[Base], condition: ColumnElement[bool] | TextClause) -> int:
    return session.scalar(select(func.count()).select_from(table).where(condition)) or 0
