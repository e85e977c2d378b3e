"""Reports read from the rows: sync status, parked links, failures, and numbers of inbox messages.

They need neither a provider nor the broker, and they lock no row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from sqlalchemy import ColumnElement, TextClause, and_, func, or_, select, text
from sqlalchemy.orm import Session

from core.common.names import name_key
from core.db.models.billing_links import (
    CREDIT_IS_LEFT,
    IS_CONFLICT,
    IS_NO_CONFLICT,
    IS_NOT_BRAKED,
    IS_NOT_OBSERVED,
    LINK_IS_BEHIND,
    NEEDS_OPERATOR,
    PAYMENT_BRAKE,
    BillingLink,
)
from core.db.models.events import Event
from core.db.models.inbox import ServiceEvent
from core.db.models.organizations import Membership, Organization
from core.db.models.providers import ProviderStatus
from core.flow_control import circuit_breaker
from core.flow_control.circuit_breaker import OpenBreaker
from core.inbox import provider_webhooks
from core.ports.spec import PROVIDERS, Provider
from core.reconcile import payment_holds
from core.reconcile.link_status import LinkReport, link_report
from core.reconcile.payment_goals import ON_HOLD_CODES
from core.reporting.inbox_messages import _merge_counts
from core.reporting.metrics import DriftReportSummary, count_credit_left, count_payment_problems, last_drift_report

MAX_FAILURE_GROUPS = 20

_IS_BEHIND = text(
    f"state = 'active' AND ({LINK_IS_BEHIND}) AND {IS_NOT_OBSERVED}"
)  # no other table has columns of these names
_NEEDS_OPERATOR = and_(BillingLink.state != "active", BillingLink.state != "observed")
_IS_OBSERVED = or_(
    BillingLink.state == "observed", and_(BillingLink.state == "active", BillingLink.observed_at.is_not(None))
)
LinkFilter = Literal["parked", "behind", "unpaid", "credit"]
_LINK_CONDITIONS: Mapping[LinkFilter, ColumnElement[bool] | TextClause] = {
    "parked": _NEEDS_OPERATOR,
    "behind": _IS_BEHIND,
    "unpaid": BillingLink.payment_status.is_not(None),
    "credit": text(CREDIT_IS_LEFT),
}
_ON_HOLD_WITHOUT_CONFLICT = select(BillingLink.org_id).where(BillingLink.state == "on_hold", IS_NO_CONFLICT).distinct()
_ON_HOLD_SINCE_IMPORT = _ON_HOLD_WITHOUT_CONFLICT.where(BillingLink.error_kind.is_distinct_from(PAYMENT_BRAKE))


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationReport:
    id: str
    name: str
    plan_tier: str
    pending_plan_tier: str | None
    plan_effective_at: datetime | None
    status: str
    members: int
    created_at: datetime
    updated_at: datetime
    links: Mapping[Provider, LinkReport]

    @property
    def in_sync(self) -> bool:
        return all(link.status == "in_sync" for link in self.links.values())

    @property
    def is_to_be_adopted(self) -> bool:
        """Nothing is written to it before. A deleted one cannot be adopted."""
        return self.status != "deleted" and any(link.is_theirs for link in self.links.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationReportPage:
    """``total``: the number of organizations without the limit."""

    organizations: list[OrganizationReport]
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSummary:
    """One provider and its links. ``behind_since``: the last change of the organization that has waited longest.

    ``payment_problems``: the number of links with each payment problem that there is. ``credit_left``: the number of
    customers with credit that no invoice will use, those of deleted organizations included.

    ``account_id``: the account that the API key must belong to; ``None``: the provider was not called yet.
    ``open_breaker``: ``None`` if the circuit breaker is closed. ``webhooks_refused_since``: ``None`` if the signature
    of the last webhook was valid.
    """

    in_sync: int
    behind: int
    parked: int
    observed: int
    behind_since: datetime | None
    payment_problems: Mapping[str, int]
    credit_left: int
    account_id: str | None
    livemode: bool | None
    open_breaker: OpenBreaker | None
    webhooks_refused_since: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """Links with the same error. ``message`` is the message of one of them."""

    provider: str
    state: str
    kind: str
    code: str | None
    links: int
    since: datetime | None
    message: str | None

    @property
    def is_end_on_hold(self) -> bool:
        """Somebody who has left goes on paying."""
        return self.code == ON_HOLD_CODES["end"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    organizations: int
    providers: Mapping[Provider, ProviderSummary]
    failures: list[FailureGroup]
    unpublished: int
    unpublished_since: datetime | None
    inbox: Mapping[str, int]
    last_drift_report: DriftReportSummary | None
    changes_on_hold: Mapping[str, int]
    """Links that the payment brake holds, by code."""
    charged_by_other: Mapping[Provider, int] = field(default_factory=dict)
    """Organizations that the other provider charges, by the one that is to charge."""

    @property
    def in_sync(self) -> bool:
        return not self.unpublished and all(
            not (each.behind or each.parked or each.observed) for each in self.providers.values()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedLink:
    """A link that waits for an operator: parked or on hold."""

    org_id: str
    name: str
    link: LinkReport


def summarize(session: Session) -> Overview:
    unpublished, unpublished_since = session.execute(
        select(func.count(), func.min(Event.occurred_at)).where(Event.published_at.is_(None))
    ).one()
    inbox_rows = session.execute(select(ServiceEvent.status, func.count()).group_by(ServiceEvent.status))
    return Overview(
        organizations=session.scalar(select(func.count(Organization.id)).where(Organization.status != "deleted")) or 0,
        providers=_provider_summaries(session),
        failures=_failure_groups(session),
        unpublished=unpublished,
        unpublished_since=unpublished_since,
        inbox=_merge_counts({row[0]: row[1] for row in inbox_rows}, provider_webhooks.count_by_state(session)),
        last_drift_report=last_drift_report(session),
        changes_on_hold=payment_holds.count_on_hold(session),
    )


def list_organizations(  # noqa: PLR0913 - each is one filter
    session: Session,
    now: datetime,
    *,
    plan: str | None,
    search: str | None,
    limit: int,
    links: Collection[LinkFilter] = (),
) -> OrganizationReportPage:
    """Organizations that are not deleted, oldest first. ``search``: a part of the name, ignoring case.

    ``links``: only those with a link in one of these states; ``parked`` includes links on hold, ``unpaid`` is every
    payment problem. ``credit`` is credit that no invoice will use, and includes deleted organizations.
    """
    conditions: list[ColumnElement[bool]] = [_is_listed(links)]
    if plan is not None:
        conditions.append(or_(Organization.plan_tier == plan, Organization.pending_plan_tier == plan))
    if search is not None:
        conditions.append(Organization.name_key.contains(name_key(search), autoescape=True))
    rows = session.scalars(
        select(Organization).where(*conditions).order_by(Organization.created_at, Organization.id).limit(limit)
    ).all()
    total = session.scalar(select(func.count(Organization.id)).where(*conditions)) or 0
    return OrganizationReportPage(organizations=_organization_reports(session, rows, now), total=total)


def _is_listed(links: Collection[LinkFilter]) -> ColumnElement[bool]:
    is_alive = Organization.status != "deleted"
    with_link = {each: Organization.id.in_(select(BillingLink.org_id).where(_LINK_CONDITIONS[each])) for each in links}
    if not with_link:
        return is_alive
    return or_(*(condition if each == "credit" else and_(is_alive, condition) for each, condition in with_link.items()))


def organization_report(session: Session, org_id: str, now: datetime) -> OrganizationReport | None:
    row = session.get(Organization, org_id)
    return None if row is None else _organization_reports(session, [row], now)[0]


def parked_links(session: Session, now: datetime, limit: int) -> tuple[list[ParkedLink], int]:
    """Links that wait for an operator, longest first, and their number without the limit."""
    rows = session.execute(
        select(BillingLink, Organization.name)
        .join(Organization, Organization.id == BillingLink.org_id)
        .where(_NEEDS_OPERATOR)
        .order_by(BillingLink.error_at, BillingLink.org_id, BillingLink.provider)
        .limit(limit)
    )
    links = [ParkedLink(org_id=link.org_id, name=name, link=link_report(link, now)) for link, name in rows]
    return links, session.scalar(select(func.count()).select_from(BillingLink).where(_NEEDS_OPERATOR)) or 0


def organization_ids_to_retry(session: Session, after: str, limit: int, error: str | None = None) -> list[str]:
    """Organizations after the id ``after`` with a parked link, or with a link that has this error code or kind.

    Organizations with a link on hold since an import are included only if ``error`` is given. A link that is on hold
    for a conflict or by the payment brake does not count, because no retry releases it.
    """
    is_parked = (BillingLink.state == "parked") & BillingLink.org_id.not_in(_ON_HOLD_WITHOUT_CONFLICT)
    has_error = or_(BillingLink.error_code == error, BillingLink.error_kind == error) & IS_NO_CONFLICT & IS_NOT_BRAKED
    rows = (
        select(BillingLink.org_id)
        .distinct()
        .where(is_parked if error is None else has_error, BillingLink.org_id > after)
    )
    return list(session.scalars(rows.order_by(BillingLink.org_id).limit(limit)))


def count_on_hold_since_import(session: Session) -> int:
    """Number of organizations with a link on hold: an operator must check what an import could not decide."""
    return session.scalar(select(func.count()).select_from(_ON_HOLD_SINCE_IMPORT.subquery())) or 0


def count_conflicts(session: Session, *, org_id: str | None = None, error: str | None = None) -> int:
    """Number of links that are on hold because their provider was changed: all, or those that meet what is given."""
    conflicts = select(func.count()).select_from(BillingLink).where(IS_CONFLICT)
    if org_id is not None:
        conflicts = conflicts.where(BillingLink.org_id == org_id)
    if error is not None:
        conflicts = conflicts.where(or_(BillingLink.error_code == error, BillingLink.error_kind == error))
    return session.scalar(conflicts) or 0


def error_codes(session: Session) -> list[str]:
    """The error codes and kinds that links have now."""
    rows = session.execute(select(BillingLink.error_code, BillingLink.error_kind).distinct().limit(200))
    return sorted({code for row in rows for code in row if code})


def _provider_summaries(session: Session) -> dict[Provider, ProviderSummary]:
    total = _count_by_provider(session)
    parked = _count_by_provider(session, _NEEDS_OPERATOR)
    observed = _count_by_provider(session, _IS_OBSERVED)
    behind = {
        row[0]: (row[1], row[2])
        for row in session.execute(
            select(BillingLink.provider, func.count(), func.min(Organization.updated_at))
            .join(Organization, Organization.id == BillingLink.org_id)
            .where(_IS_BEHIND)
            .group_by(BillingLink.provider)
        )
    }
    provider_statuses = {row.provider: row for row in session.scalars(select(ProviderStatus))}
    payment_problems = count_payment_problems(session)
    credit_left = count_credit_left(session)
    summaries: dict[Provider, ProviderSummary] = {}
    for provider in PROVIDERS:
        behind_count, since = behind.get(provider, (0, None))
        parked_count, observed_count = parked.get(provider, 0), observed.get(provider, 0)
        in_sync = max(0, total.get(provider, 0) - behind_count - parked_count - observed_count)
        summaries[provider] = ProviderSummary(
            in_sync=in_sync,
            behind=behind_count,
            parked=parked_count,
            observed=observed_count,
            behind_since=since,
            payment_problems=payment_problems[provider],
            credit_left=credit_left[provider],
            account_id=provider_statuses[provider].account_id,
            livemode=provider_statuses[provider].livemode,
            open_breaker=circuit_breaker.open_breaker_of(provider_statuses[provider]),
            webhooks_refused_since=provider_statuses[provider].webhooks_refused_since,
        )
    return summaries


def _count_by_provider(session: Session, *conditions: ColumnElement[bool]) -> dict[str, int]:
    rows = session.execute(select(BillingLink.provider, func.count()).where(*conditions).group_by(BillingLink.provider))
    return {row[0]: row[1] for row in rows}


def failures_for_operators(session: Session) -> list[FailureGroup]:
    """Errors of the links that wait for an operator: ends that are on hold, then the most frequent."""
    return _failure_groups(session, text(NEEDS_OPERATOR))


def _failure_groups(session: Session, *conditions: TextClause) -> list[FailureGroup]:
    """Errors of links that wait for an operator first, then of links that are retried; the most frequent first.

    Before all an end that is on hold: somebody who left goes on paying.
    """
    kinds = (BillingLink.provider, BillingLink.state, BillingLink.error_kind, BillingLink.error_code)
    rows = session.execute(
        select(*kinds, func.count().label("links"), func.min(BillingLink.error_at), func.min(BillingLink.error_message))
        .where(BillingLink.error_kind.is_not(None), *conditions)
        .group_by(*kinds)
        .order_by(payment_holds.ENDS_FIRST, BillingLink.state.desc(), text("links DESC"), *kinds)
        .limit(MAX_FAILURE_GROUPS)
    )
    return [
        FailureGroup(
            provider=row[0], state=row[1], kind=str(row[2]), code=row[3], links=row[4], since=row[5], message=row[6]
        )
        for row in rows
    ]


def _organization_reports(session: Session, rows: Collection[Organization], now: datetime) -> list[OrganizationReport]:
    ids = [row.id for row in rows]
    members = {
        row[0]: row[1]
        for row in session.execute(
            select(Membership.org_id, func.count()).where(Membership.org_id.in_(ids)).group_by(Membership.org_id)
        )
    }
    open_breakers = circuit_breaker.open_breakers(session)
    links: dict[str, dict[Provider, LinkReport]] = {org_id: {} for org_id in ids}
    for link in session.scalars(select(BillingLink).where(BillingLink.org_id.in_(ids))):
        report = link_report(link, now, open_breakers)
        links[link.org_id][report.provider] = report
    return [
        OrganizationReport(
            id=row.id,
            name=row.name,
            plan_tier=row.plan_tier,
            pending_plan_tier=row.pending_plan_tier,
            plan_effective_at=row.plan_effective_at,
            status=row.status,
            members=members.get(row.id, 0),
            created_at=row.created_at,
            updated_at=row.updated_at,
            links={provider: links[row.id][provider] for provider in PROVIDERS if provider in links[row.id]},
        )
        for row in rows
    ]
