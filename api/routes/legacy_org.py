"""The paths under ``/api/v1/org`` that the organization manager's callers know: the same core in their words."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from api import problems
from api.auth.authorization import Admission, TheAdmission
from api.context import TheRuntime
from api.routes import members, organizations
from api.schemas.requests import Details, Limit, NewMember, Offset, OrgId, UserIdInPath, WantedRole
from api.schemas.responses import Changed, MemberChanged, Sync
from api.unit_of_work import IdempotencyKey, TheWriter
from core.common.validation import one_of
from core.db.models.organizations import STATUSES, Role, Status
from core.events.event_types import Change
from core.organizations import queries
from core.organizations.queries import Entry

router = APIRouter(tags=["older paths"])


class Mine(BaseModel):
    id: str
    name: str
    role: Role | None
    plan_tier: str
    status: Status
    member_count: int
    joined_at: datetime | None


class RoleWords(BaseModel):
    id: Role
    name: str
    description: str
    permissions: list[str]


class Roles(BaseModel):
    roles: list[RoleWords]


class MemberRow(BaseModel):
    id: str
    user_id: str
    org_role: Role
    createdAt: datetime  # noqa: N815 - the callers' own word


class MemberPage(BaseModel):
    members: list[MemberRow]
    total: int
    offset: int
    limit: int


class Done(BaseModel):
    success: Literal[True] = True
    message: str
    user_id: str
    role: Role | None
    sync: Sync


class Stats(BaseModel):
    total_members: int
    members_by_role: dict[Role, int]
    created_at: datetime
    plan_tier: str
    status: Status
    organization_name: str


class Billing(BaseModel):
    plan_tier: str
    pending_plan_tier: str | None
    lago_customer_id: str | None
    stripe_customer_id: str | None
    status: Status
    created_at: datetime


class Settings(BaseModel):
    name: str
    billing_email: str | None
    currency: str | None


class OrganizationSettings(BaseModel):
    id: str
    name: str
    plan_tier: str
    status: Status
    created_at: datetime
    settings: Settings


ROLES: Final = Roles(
    roles=[
        RoleWords(
            id="owner",
            name="Owner",
            description="Decides everything, members and other owners too",
            permissions=["manage_members", "manage_billing", "manage_settings", "delete_org", "view_all"],
        ),
        RoleWords(
            id="billing_admin",
            name="Billing Admin",
            description="Decides about plan, billing details and new members",
            permissions=["manage_billing", "manage_settings", "view_all"],
        ),
        RoleWords(id="member", name="Member", description="Sees the organization", permissions=["view_all"]),
    ]
)


@router.get("/api/v1/org/my-orgs")
def mine(admission: TheAdmission) -> list[Mine]:
    """The caller's organizations."""
    return [
        Mine(
            id=entry.organization.id,
            name=entry.organization.name,
            role=entry.role,
            plan_tier=entry.organization.plan_tier,
            status=_status(entry),
            member_count=entry.team_size,
            joined_at=entry.joined_at,
        )
        for entry in admission.organizations
    ]


@router.get("/api/v1/org/roles")
def roles() -> Roles:
    """The roles that a member can have."""
    return ROLES


@router.get("/api/v1/org/{org_id}/members")
def list_members(org_id: OrgId, runtime: TheRuntime, limit: Limit = 100, offset: Offset = 0) -> MemberPage:
    """Who belongs to it."""
    with runtime.database.read() as session:
        found, total = queries.members(session, org_id, limit, offset)
    rows = [MemberRow(id=m.user_id, user_id=m.user_id, org_role=m.role, createdAt=m.joined_at) for m in found]
    return MemberPage(members=rows, total=total, offset=offset, limit=limit)


@router.post("/api/v1/org/{org_id}/members", status_code=201, response_model=Done)
def add_member(
    org_id: OrgId, body: NewMember, writer: TheWriter, admission: TheAdmission, key: IdempotencyKey = None
) -> Response:
    """As `POST /api/organizations/{org_id}/users`."""
    members.refuse_an_owner_by_others(admission, body.role)

    def work(change: Change) -> Done:
        return _done("User added to organization", members.taken_in(change, org_id, body))

    return writer.once(key, body, 201, work)


@router.put("/api/v1/org/{org_id}/members/{user_id}/role")
def change_role(org_id: OrgId, user_id: UserIdInPath, body: WantedRole, writer: TheWriter) -> Done:
    """As `PUT /api/organizations/{org_id}/users/{user_id}/role`."""
    changed = writer.change(lambda change: members.given_role(change, org_id, user_id, body.role))
    return _done("User role updated", changed)


@router.delete("/api/v1/org/{org_id}/members/{user_id}")
def remove_member(org_id: OrgId, user_id: UserIdInPath, writer: TheWriter) -> Done:
    """As `DELETE /api/organizations/{org_id}/users/{user_id}`."""
    changed = writer.change(lambda change: members.taken_out(change, org_id, user_id))
    return _done("User removed from organization", changed)


@router.get("/api/v1/org/{org_id}/stats")
def stats(org_id: OrgId, admission: TheAdmission, runtime: TheRuntime) -> Stats:
    """How many members there are, by role."""
    entry = _entry(admission)
    with runtime.database.read() as session:
        by_role = queries.roles(session, org_id)
    return Stats(
        total_members=sum(by_role.values()),
        members_by_role=by_role,
        created_at=entry.organization.created_at,
        plan_tier=entry.organization.plan_tier,
        status=_status(entry),
        organization_name=entry.organization.name,
    )


@router.get("/api/v1/org/{org_id}/billing")
def billing(org_id: OrgId, admission: TheAdmission) -> Billing:  # noqa: ARG001 - the admission looked it up
    """The plan, and the customers at both billers."""
    entry = _entry(admission)
    return Billing(
        plan_tier=entry.organization.plan_tier,
        pending_plan_tier=entry.organization.pending_plan_tier,
        lago_customer_id=entry.lago_customer_id,
        stripe_customer_id=entry.stripe_customer_id,
        status=_status(entry),
        created_at=entry.organization.created_at,
    )


@router.get("/api/v1/org/{org_id}/settings")
def settings(org_id: OrgId, admission: TheAdmission) -> OrganizationSettings:  # noqa: ARG001 - the admission looked it up
    """What can be set."""
    entry = _entry(admission)
    organization = entry.organization
    return OrganizationSettings(
        id=organization.id,
        name=organization.name,
        plan_tier=organization.plan_tier,
        status=_status(entry),
        created_at=organization.created_at,
        settings=Settings(
            name=organization.name, billing_email=organization.billing_email, currency=organization.currency
        ),
    )


@router.put("/api/v1/org/{org_id}/settings")
def change_settings(org_id: OrgId, body: Details, writer: TheWriter) -> Changed:
    """As `PATCH /api/organizations/{org_id}`."""
    return organizations.change_details(org_id, body, writer)


def _entry(admission: Admission) -> Entry:
    if admission.organization is None:
        raise problems.no_organization()
    return admission.organization


def _status(entry: Entry) -> Status:
    return one_of("status", entry.organization.status, STATUSES)


def _done(message: str, changed: MemberChanged) -> Done:
    return Done(message=message, user_id=changed.user_id, role=changed.role, sync=changed.sync)
