"""The dashboard: a user's organizations with role, plan and sync status, and the usage of the current one."""

from __future__ import annotations

from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel

from api.auth.authorization import PrincipalDep
from api.context import ContextDep
from api.routing import ApiRoute
from api.usage import UsageResponse
from core.common.validation import one_of
from core.compare import local_state
from core.db.models.organizations import ORGANIZATION_STATUSES, MembershipRole, OrganizationStatus
from core.flow_control import circuit_breaker
from core.organizations.queries import OrganizationRow
from core.ports.external_ids import OWN_IDS
from core.ports.spec import Provider
from core.reconcile.link_status import SyncStatus
from core.reporting import sync_status
from core.reporting.sync_status import VersionStatus

router = APIRouter(tags=["dashboard"], route_class=ApiRoute)


class DashboardSync(BaseModel):
    version: int
    in_sync: bool
    providers: dict[Provider, SyncStatus]


class DashboardRow(BaseModel):
    """``pending_plan`` takes effect at ``plan_effective_at``; null: the provider has not reported the date."""

    org_id: str
    name: str
    plan: str
    pending_plan: str | None
    plan_effective_at: datetime | None
    status: OrganizationStatus
    role: MembershipRole | None
    team_size: int
    created_at: datetime
    sync: DashboardSync


class Dashboard(BaseModel):
    """``current``: the organization of `X-Organization-ID`, else the first. ``usage`` is of that organization, null for
    a member of it, who sees no billing.

    ``unpaid``: the number of these organizations with a payment problem. ``credit_left``: of those with credit at a
    provider that no invoice will use. Neither counts those in which you are only a member.
    """

    organizations: list[DashboardRow]
    count: int
    unpaid: int
    credit_left: int
    current: str | None
    usage: UsageResponse | None


@router.get("/api/dashboard")
def get_dashboard(principal: PrincipalDep, context: ContextDep) -> Dashboard:
    """All organizations of the caller. Responds within two seconds even if Lago is down."""
    ids = [entry.organization.id for entry in principal.organizations]
    current = principal.organization
    with context.database.read() as session:
        version_statuses = sync_status.version_statuses(session, ids, context.clock())
        lago_down = "lago" in circuit_breaker.open_breakers(session)
        local = local_state.load(session, current.organization.id) if current else None
    rows = [_dashboard_row(entry, version_statuses[entry.organization.id]) for entry in principal.organizations]
    # As with the route /billing: a member sees no billing.
    with_billing = [entry.organization.id for entry in principal.organizations if entry.role != "member"]
    links = [[each.link for each in version_statuses[org_id].providers.values()] for org_id in with_billing]
    sees_usage = current is not None and current.role != "member"
    return Dashboard(
        organizations=rows,
        count=len(rows),
        unpaid=sum(any(link.payment_status is not None for link in of_one) for of_one in links),
        credit_left=sum(any(link.credit_is_left for link in of_one) for of_one in links),
        current=current.organization.id if current else None,
        usage=context.usage_reader.read(
            current.organization.id, local.external_ids("lago") if local else OWN_IDS, provider_down=lago_down
        )
        if current and sees_usage
        else None,
    )


def _dashboard_row(row: OrganizationRow, version_status: VersionStatus) -> DashboardRow:
    organization = row.organization
    return DashboardRow(
        org_id=organization.id,
        name=organization.name,
        plan=organization.plan_tier,
        pending_plan=organization.pending_plan_tier,
        plan_effective_at=organization.plan_effective_at,
        status=one_of("status", organization.status, ORGANIZATION_STATUSES),
        role=row.role,
        team_size=row.team_size,
        created_at=organization.created_at,
        sync=DashboardSync(
            version=version_status.latest_version,
            in_sync=version_status.in_sync,
            providers={
                provider: link_version.link.status for provider, link_version in version_status.providers.items()
            },
        ),
    )
