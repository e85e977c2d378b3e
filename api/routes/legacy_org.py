"""The predecessor's paths under ``/api/v1/org``: the same core, with the names that their callers know."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from api import problems
from api.auth.authorization import Principal, PrincipalDep
from api.context import ContextDep
from api.routes import members, organizations
from api.routing import ApiRoute
from api.schemas.requests import (
    AddMemberRequest,
    ChangeRoleRequest,
    OrgId,
    PageLimit,
    PageOffset,
    UpdateOrganizationRequest,
    UserIdInPath,
)
from api.schemas.responses import ChangeResponse, MemberChangeResponse, SyncVersion
from api.unit_of_work import IdempotencyKey, UnitOfWorkDep
from core.common.validation import one_of
from core.db.models.organizations import ORGANIZATION_STATUSES, MembershipRole, OrganizationStatus
from core.events.event_types import ChangeContext
from core.organizations import queries
from core.organizations.queries import OrganizationRow

router = APIRouter(tags=["older paths"], route_class=ApiRoute)


class LegacyOrganization(BaseModel):
    id: str
    name: str
    role: MembershipRole | None
    plan_tier: str
    status: OrganizationStatus
    member_count: int
    joined_at: datetime | None


class LegacyRole(BaseModel):
    id: MembershipRole
    name: str
    description: str
    permissions: list[str]


class LegacyRoles(BaseModel):
    roles: list[LegacyRole]


class LegacyMember(BaseModel):
    id: str
    user_id: str
    org_role: MembershipRole
    createdAt: datetime  # noqa: N815 - the callers' own name


class LegacyMemberPage(BaseModel):
    members: list[LegacyMember]
    total: int
    offset: int
    limit: int


class LegacyMemberChange(BaseModel):
    success: Literal[True] = True
    message: str
    user_id: str
    role: MembershipRole | None
    sync: SyncVersion


class LegacyStats(BaseModel):
    total_members: int
    members_by_role: dict[MembershipRole, int]
    created_at: datetime
    plan_tier: str
    status: OrganizationStatus
    organization_name: str


class LegacyBilling(BaseModel):
    plan_tier: str
    pending_plan_tier: str | None
    lago_customer_id: str | None
    stripe_customer_id: str | None
    status: OrganizationStatus
    created_at: datetime


class LegacySettings(BaseModel):
    name: str
    billing_email: str | None
    currency: str | None


class LegacyOrganizationSettings(BaseModel):
    id: str
    name: str
    plan_tier: str
    status: OrganizationStatus
    created_at: datetime
    settings: LegacySettings


LEGACY_ROLES: Final = LegacyRoles(
    roles=[
        LegacyRole(
            id="owner",
            name="Owner",
            description="Manages everything, including members and owners",
            permissions=["manage_members", "manage_billing", "manage_settings", "delete_org", "view_all"],
        ),
        LegacyRole(
            id="billing_admin",
            name="Billing Admin",
            description="Manages plan, billing details and new members",
            permissions=["manage_billing", "manage_settings", "view_all"],
        ),
        LegacyRole(id="member", name="Member", description="Views the organization", permissions=["view_all"]),
    ]
)


@router.get("/api/v1/org/my-orgs")
def list_my_organizations(principal: PrincipalDep) -> list[LegacyOrganization]:
    """The caller's organizations."""
    return [
        LegacyOrganization(
            id=entry.organization.id,
            name=entry.organization.name,
            role=entry.role,
            plan_tier=entry.organization.plan_tier,
            status=_organization_status(entry),
            member_count=entry.team_size,
            joined_at=entry.joined_at,
        )
        for entry in principal.organizations
    ]


@router.get("/api/v1/org/roles")
def list_roles() -> LegacyRoles:
    """The roles that a member can have."""
    return LEGACY_ROLES


@router.get("/api/v1/org/{org_id}/members")
def list_members(
    org_id: OrgId, context: ContextDep, limit: PageLimit = 100, offset: PageOffset = 0
) -> LegacyMemberPage:
    """List members."""
    with context.database.read() as session:
        members_found, total = queries.list_members(session, org_id, limit, offset)
    rows = [
        LegacyMember(id=member.user_id, user_id=member.user_id, org_role=member.role, createdAt=member.joined_at)
        for member in members_found
    ]
    return LegacyMemberPage(members=rows, total=total, offset=offset, limit=limit)


@router.post("/api/v1/org/{org_id}/members", status_code=201, response_model=LegacyMemberChange)
def add_member(
    org_id: OrgId,
    body: AddMemberRequest,
    unit_of_work: UnitOfWorkDep,
    context: ContextDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """As `POST /api/organizations/{org_id}/users`."""

    def work(change: ChangeContext) -> LegacyMemberChange:
        changed = members.add_member(change, context, unit_of_work.principal, org_id, body)
        return _legacy_member_change(f"User {changed.status} to organization", changed)

    return unit_of_work.run_idempotent(idempotency_key, body, 201, work)


@router.put("/api/v1/org/{org_id}/members/{user_id}/role")
def change_role(
    org_id: OrgId, user_id: UserIdInPath, body: ChangeRoleRequest, unit_of_work: UnitOfWorkDep, context: ContextDep
) -> LegacyMemberChange:
    """As `PUT /api/organizations/{org_id}/users/{user_id}/role`."""
    changed = unit_of_work.run(lambda change: members.set_role(change, context, org_id, user_id, body.role))
    return _legacy_member_change("User role updated", changed)


@router.delete("/api/v1/org/{org_id}/members/{user_id}")
def remove_member(org_id: OrgId, user_id: UserIdInPath, unit_of_work: UnitOfWorkDep) -> LegacyMemberChange:
    """As `DELETE /api/organizations/{org_id}/users/{user_id}`."""
    changed = unit_of_work.run(lambda change: members.remove_member(change, org_id, user_id))
    return _legacy_member_change("User removed from organization", changed)


@router.get("/api/v1/org/{org_id}/stats")
def get_stats(org_id: OrgId, principal: PrincipalDep, context: ContextDep) -> LegacyStats:
    """Number of members by role."""
    entry = _require_organization(principal)
    with context.database.read() as session:
        by_role = queries.count_roles(session, org_id)
    return LegacyStats(
        total_members=sum(by_role.values()),
        members_by_role=by_role,
        created_at=entry.organization.created_at,
        plan_tier=entry.organization.plan_tier,
        status=_organization_status(entry),
        organization_name=entry.organization.name,
    )


@router.get("/api/v1/org/{org_id}/billing")
def get_billing(org_id: OrgId, principal: PrincipalDep) -> LegacyBilling:  # noqa: ARG001 - the authorization looked it up
    """The plan and both provider customer ids."""
    entry = _require_organization(principal)
    return LegacyBilling(
        plan_tier=entry.organization.plan_tier,
        pending_plan_tier=entry.organization.pending_plan_tier,
        lago_customer_id=entry.lago_customer_id,
        stripe_customer_id=entry.stripe_customer_id,
        status=_organization_status(entry),
        created_at=entry.organization.created_at,
    )


@router.get("/api/v1/org/{org_id}/settings")
def get_settings(org_id: OrgId, principal: PrincipalDep) -> LegacyOrganizationSettings:  # noqa: ARG001 - the authorization looked it up
    """The settings of the organization."""
    entry = _require_organization(principal)
    organization = entry.organization
    return LegacyOrganizationSettings(
        id=organization.id,
        name=organization.name,
        plan_tier=organization.plan_tier,
        status=_organization_status(entry),
        created_at=organization.created_at,
        settings=LegacySettings(
            name=organization.name,
            billing_email=organization.billing_email,
            currency=organization.currency,
        ),
    )


@router.put("/api/v1/org/{org_id}/settings")
def change_settings(
    org_id: OrgId, body: UpdateOrganizationRequest, context: ContextDep, unit_of_work: UnitOfWorkDep
) -> ChangeResponse:
    """As `PATCH /api/organizations/{org_id}`."""
    return organizations.update_organization(org_id, body, context, unit_of_work)


def _require_organization(principal: Principal) -> OrganizationRow:
    if principal.organization is None:
        raise problems.organization_not_found()
    return principal.organization


def _organization_status(entry: OrganizationRow) -> OrganizationStatus:
    return one_of("status", entry.organization.status, ORGANIZATION_STATUSES)


def _legacy_member_change(message: str, changed: MemberChangeResponse) -> LegacyMemberChange:
    return LegacyMemberChange(message=message, user_id=changed.user_id, role=changed.role, sync=changed.sync)
