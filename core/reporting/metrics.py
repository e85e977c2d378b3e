"""Values of the metrics, read with partial indexes; no ids among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, TextClause, and_, func, select, text
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.backup import backups
from core.db.base import Base
from core.db.database import is_read_only
from core.db.models.billing_links import (
    CREDIT_IS_LEFT,
    IS_NOT_OBSERVED,
    LINK_IS_ACTIVE_WITH_WORK,
    NEEDS_OPERATOR,
    BillingLink,
)
from core.db.models.drift import DriftReportRecord
from core.db.models.email import Email
from core.db.models.events import Event
from core.db.models.inbox import ProviderWebhook, ServiceEvent
from core.db.models.organizations import Organization
from core.db.models.providers import BreakerReason, ProviderStatus
from core.db.models.webhooks import WebhookDelivery
from core.flow_control import circuit_breaker
from core.ports.planned import PaymentChangeKind
from core.ports.spec import PROVIDERS, Provider
from core.reconcile import payment_holds
from core.reconcile.payment_goals import ON_HOLD_CODES
from core.reporting import heartbeats
from core.reporting.heartbeats import PROCESS_KINDS

# The oldest change is looked for among this many links; with more of them, their number matters more than the age.
MAX_LINKS_SCANNED_FOR_AGE = 10_000
_IS_BEHIND = text(f"{LINK_IS_ACTIVE_WITH_WORK} AND {IS_NOT_OBSERVED}")
# They are stored permanently, and nobody marks them as done.
REJECTED_EVENTS_SHOWN_FOR = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkMetrics:
    """``behind_since``: the last change of the organization that has waited longest; ``None``: no link is behind.

    ``webhooks_refused``: the signature of the provider's last webhook was not valid.
    """

    behind: int
    parked: int
    on_hold: int
    payment_problems: Mapping[str, int]
    credit_left: int
    behind_since: datetime | None
    breaker_reason: BreakerReason | None
    webhooks_refused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReportSummary:
    """The last finished drift report: the number of drifted organizations, and of findings by kind."""

    finished_at: datetime
    drifted: int
    kinds: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreMetrics:
    """``processes``: with a heartbeat in the last minute, by kind; each kind is named.

    ``waiting`` and ``failed``: emails, webhook deliveries, service events; ``waiting`` has provider webhooks, too.

    ``changes_on_hold``: links that the payment brake holds, by kind.

    Failed service events are those that were rejected within the last hour.
    """

    links: Mapping[Provider, LinkMetrics]
    last_drift_report: DriftReportSummary | None
    events_pending: int
    oldest_pending_event_at: datetime | None
    waiting: Mapping[str, int]
    failed: Mapping[str, int]
    changes_on_hold: Mapping[PaymentChangeKind, int]
    last_backup_at: datetime | None
    """``None``: none was taken yet."""
    processes: Mapping[str, int]
    database_is_read_only: bool


def read(session: Session, now: datetime) -> StoreMetrics:
    pending = Event.published_at.is_(None)
    is_newly_rejected = and_(
        text("service_events.status = 'rejected'"), ServiceEvent.rejected_at > now - REJECTED_EVENTS_SHOWN_FOR
    )
    last_backup = backups.newest(session)
    return StoreMetrics(
        links=_link_metrics(session),
        last_drift_report=last_drift_report(session),
        events_pending=_count(session, Event, pending),
        oldest_pending_event_at=session.scalar(select(Event.occurred_at).where(pending).order_by(Event.seq).limit(1)),
        waiting={
            "provider_webhooks": _count(session, ProviderWebhook, text("state = 'stored'")),
            "service_events": _count(session, ServiceEvent, ServiceEvent.status == "waiting"),
            "emails": _count(session, Email, text("state = 'pending'")),
            "webhook_deliveries": _count(session, WebhookDelivery, text("state = 'pending'")),
        },
        failed={
            "emails": _count(session, Email, text("state = 'failed'")),
            "service_events": _count(session, ServiceEvent, is_newly_rejected),
            "webhook_deliveries": _count(session, WebhookDelivery, text("state = 'failed'")),
        },
        changes_on_hold=_changes_on_hold(session),
        last_backup_at=last_backup.taken_at if last_backup is not None else None,
        processes=_count_processes(session, now),
        database_is_read_only=is_read_only(session),
    )


def _changes_on_hold(session: Session) -> dict[PaymentChangeKind, int]:
    by_code = payment_holds.count_on_hold(session)
    return {kind: by_code.get(code, 0) for kind, code in ON_HOLD_CODES.items()}


def _count_processes(session: Session, now: datetime) -> dict[str, int]:
    running = heartbeats.count_running(session, now)
    return {kind: running.get(kind, 0) for kind in PROCESS_KINDS}


def last_drift_report(session: Session) -> DriftReportSummary | None:
    row = session.scalars(
        select(DriftReportRecord)
        .where(DriftReportRecord.report_id.is_not(None))
        .order_by(DriftReportRecord.started_at.desc())
        .limit(1)
    ).one_or_none()
    if row is None or row.finished_at is None:
        return None
    return DriftReportSummary(
        finished_at=row.finished_at, drifted=int(row.counts["drifted"]), kinds=dict(row.counts["kinds"])
    )


def _link_metrics(session: Session) -> dict[Provider, LinkMetrics]:
    behind = _count_by(session, _IS_BEHIND, BillingLink.provider)
    needs_operator = _count_by(session, text(NEEDS_OPERATOR), BillingLink.provider, BillingLink.state)
    payment_problems = count_payment_problems(session)
    credit_left = count_credit_left(session)
    open_breakers = circuit_breaker.open_breakers(session)
    is_refused = ProviderStatus.webhooks_refused_since.is_not(None)
    refused = set(session.scalars(select(ProviderStatus.provider).where(is_refused)))
    return {
        provider: LinkMetrics(
            behind=behind.get((provider,), 0),
            parked=needs_operator.get((provider, "parked"), 0),
            on_hold=needs_operator.get((provider, "on_hold"), 0),
            payment_problems=payment_problems[provider],
            credit_left=credit_left[provider],
            behind_since=_behind_since(session, provider) if behind.get((provider,)) else None,
            breaker_reason=open_breakers[provider].reason if provider in open_breakers else None,
            webhooks_refused=provider in refused,
        )
        for provider in PROVIDERS
    }


def count_payment_problems(session: Session) -> dict[Provider, dict[str, int]]:
    """The number of links with each payment problem. A deleted organization's is never checked again."""
    rows = session.execute(
        select(BillingLink.provider, BillingLink.payment_status, func.count())
        .join(Organization, Organization.id == BillingLink.org_id)
        .where(text("payment_status IS NOT NULL"), Organization.status != "deleted")
        .group_by(BillingLink.provider, BillingLink.payment_status)
    ).all()
    return {provider: {str(row[1]): row[2] for row in rows if row[0] == provider} for provider in PROVIDERS}


def count_credit_left(session: Session) -> dict[Provider, int]:
    """The number of customers with credit that no invoice will use. Those of deleted organizations count, too."""
    counts = _count_by(session, text(CREDIT_IS_LEFT), BillingLink.provider)
    return {provider: counts.get((provider,), 0) for provider in PROVIDERS}


def _behind_since(session: Session, provider: Provider) -> datetime | None:
    """Reads each organization in a subquery: a join would be planned as a scan of all organizations."""
    changed_at = select(Organization.updated_at).where(Organization.id == BillingLink.org_id).scalar_subquery()
    behind = (
        select(changed_at.label("changed_at"))
        .where(BillingLink.provider == provider, _IS_BEHIND)
        .order_by(BillingLink.next_sweep_at)
        .limit(MAX_LINKS_SCANNED_FOR_AGE)
        .subquery()
    )
    oldest_change: datetime | None = session.scalar(select(func.min(behind.c.changed_at)))
    return oldest_change


def _count_by(
    session: Session, condition: ColumnElement[bool] | TextClause, *columns: InstrumentedAttribute[str]
) -> dict[tuple[str, ...], int]:
    rows = session.execute(select(func.count(), *columns).where(condition).group_by(*columns))
    return {tuple(map(str, row[1:])): int(row[0]) for row in rows}


def _count(session: Session, model: type[Base], condition: ColumnElement[bool] | TextClause) -> int:
    return session.scalar(select(func.count()).select_from(model).where(condition)) or 0
