"""The dashboard: where a person belongs, as what, on which plan, whether both billers know it, and what was used."""

from __future__ import annotations

from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel

from api.auth.authorization import TheAdmission
from api.context import TheRuntime
from api.usage import Usage
from core.common.validation import one_of
from core.db.models.organizations import STATUSES, Role, Status
from core.flow_control import circuit_breaker
from core.organizations.queries import Entry
from core.ports.spec import Provider
from core.reconcile.link_status import Standing
from core.reporting import sync_status
from core.reporting.sync_status import Receipt

router = APIRouter(tags=["dashboard"])


class DashboardSync(BaseModel):
    sequence: int
    in_sync: bool
    providers: dict[Provider, Standing]


class Row(BaseModel):
    """``pending_plan`` waits until ``plan_effective_at``; null there: the biller has not said when."""

    org_id: str
    name: str
    plan: str
    pending_plan: str | None
    plan_effective_at: datetime | None
    status: Status
    role: Role | None
    team_size: int
    created_at: datetime
    sync: DashboardSync


class Dashboard(BaseModel):
    """``current``: the organization of `X-Organization-ID`, else the first; ``usage`` is its own."""

    organizations: list[Row]
    count: int
    current: str | None
    usage: Usage | None


@router.get("/api/dashboard")
def show(admission: TheAdmission, runtime: TheRuntime) -> Dashboard:
    """All organizations of the caller at a glance; answered within two seconds, whatever Lago does."""
    ids = [entry.organization.id for entry in admission.organizations]
    with runtime.database.read() as session:
        found = sync_status.receipts(session, ids, runtime.clock())
        stopped = "lago" in circuit_breaker.stops(session)
    rows = [_row(entry, found[entry.organization.id]) for entry in admission.organizations]
    current = admission.organization
    return Dashboard(
        organizations=rows,
        count=len(rows),
        current=current.organization.id if current else None,
        usage=runtime.usage.of(current.organization.id, stopped=stopped) if current else None,
    )


def _row(entry: Entry, receipt: Receipt) -> Row:
    organization = entry.organization
    return Row(
        org_id=organization.id,
        name=organization.name,
        plan=organization.plan_tier,
        pending_plan=organization.pending_plan_tier,
        plan_effective_at=organization.plan_effective_at,
        status=one_of("status", organization.status, STATUSES),
        role=entry.role,
        team_size=entry.team_size,
        created_at=organization.created_at,
        sync=DashboardSync(
            sequence=receipt.sequence,
            in_sync=receipt.in_sync,
            providers={provider: held.link.standing for provider, held in receipt.billers.items()},
        ),
    )
