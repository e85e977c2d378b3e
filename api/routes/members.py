"""Members of an organization. The last owner cannot leave, be removed or get another role."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api import problems
from api.auth.authorization import Principal
from api.context import ApiContext, ContextDep
from api.routing import ApiRoute
from api.schemas import responses
from api.schemas.requests import (
    AddMemberRequest,
    ChangeRoleOfRequest,
    ChangeRoleRequest,
    OrgId,
    PageLimit,
    PageOffset,
    UserIdInPath,
    UserIdInQuery,
)
from api.schemas.responses import MemberChangeResponse, MemberList, SyncVersion
from api.unit_of_work import IdempotencyKey, UnitOfWorkDep, lock_active_organization, lock_undeleted_organization
from core.access import invitations
from core.access.invitations import Invitee
from core.db.models.organizations import Membership, MembershipRole, Organization
from core.events.event_types import ChangeContext
from core.inbox import service_events
from core.organizations import memberships, queries

router = APIRouter(tags=["members"], route_class=ApiRoute)


@router.get("/api/organizations/{org_id}/users")
def list_users(org_id: OrgId, context: ContextDep, limit: PageLimit = 100, offset: PageOffset = 0) -> MemberList:
    """List members, in the order of joining."""
    with context.database.read() as session:
        found, total = queries.list_members(session, org_id, limit, offset)
    return MemberList(users=[responses.member_response(each) for each in found], count=len(found), total=total)


@router.post("/api/organizations/{org_id}/users", status_code=201, response_model=MemberChangeResponse)
def add_user(
    org_id: OrgId,
    body: AddMemberRequest,
    unit_of_work: UnitOfWorkDep,
    context: ContextDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """A service adds a user by id. A user invites one, who accepts; only an owner can invite an owner."""
    return unit_of_work.run_idempotent(
        idempotency_key, body, 201, lambda change: add_member(change, context, unit_of_work.principal, org_id, body)
    )


@router.put("/api/organizations/{org_id}/users")
def change_role_of_user(
    org_id: OrgId, body: ChangeRoleOfRequest, unit_of_work: UnitOfWorkDep, context: ContextDep
) -> MemberChangeResponse:
    """Change the role of a member whose id cannot be in a path."""
    return unit_of_work.run(lambda change: set_role(change, context, org_id, body.user_id, body.role))


@router.put("/api/organizations/{org_id}/users/{user_id}/role")
def change_user_role(
    org_id: OrgId, user_id: UserIdInPath, body: ChangeRoleRequest, unit_of_work: UnitOfWorkDep, context: ContextDep
) -> MemberChangeResponse:
    """Change the role of a member."""
    return unit_of_work.run(lambda change: set_role(change, context, org_id, user_id, body.role))


@router.delete("/api/organizations/{org_id}/users")
def remove_user_by_query(org_id: OrgId, user_id: UserIdInQuery, unit_of_work: UnitOfWorkDep) -> MemberChangeResponse:
    """Remove a member whose id cannot be in a path."""
    return unit_of_work.run(lambda change: remove_member(change, org_id, user_id))


@router.delete("/api/organizations/{org_id}/users/{user_id}")
def remove_user(org_id: OrgId, user_id: UserIdInPath, unit_of_work: UnitOfWorkDep) -> MemberChangeResponse:
    """Remove a member."""
    return unit_of_work.run(lambda change: remove_member(change, org_id, user_id))


@router.post("/api/organizations/{org_id}/leave")
def leave(org_id: OrgId, unit_of_work: UnitOfWorkDep) -> MemberChangeResponse:
    """Leave the organization. The last owner cannot."""
    user_id = unit_of_work.principal.user_id or ""
    return unit_of_work.run(lambda change: remove_member(change, org_id, user_id))


def require_owner_for_owner_role(principal: Principal, role: MembershipRole) -> None:
    if role == "owner" and principal.role not in {"owner", "service"}:
        detail = "Only an owner can make another member an owner."
        raise problems.forbidden(detail)


def add_member(
    change: ChangeContext, context: ApiContext, principal: Principal, org_id: str, body: AddMemberRequest
) -> MemberChangeResponse:
    """A user who calls invites: nobody is put into an organization by another user."""
    require_owner_for_owner_role(principal, body.role)
    organization = lock_active_organization(change, org_id)
    if principal.user_id is None:
        memberships.add(change, organization, body.user_id, body.role)
        if body.role == "owner":
            service_events.apply_waiting_for_owner(change, context.catalog, organization, body.user_id)
        return _member_change("added", organization, body.user_id, body.role)
    invitee = Invitee(user_id=body.user_id)
    invitations.invite(change, organization, invitee, body.role, principal.user_id, context.user_limits)
    return _member_change("invited", organization, body.user_id, body.role)


def set_role(
    change: ChangeContext, context: ApiContext, org_id: str, user_id: str, role: MembershipRole
) -> MemberChangeResponse:
    organization = lock_undeleted_organization(change, org_id)
    memberships.change_role(change, _find_membership(change, org_id, user_id), role)
    if role == "owner":
        service_events.apply_waiting_for_owner(change, context.catalog, organization, user_id)
    return _member_change("updated", organization, user_id, role)


def remove_member(change: ChangeContext, org_id: str, user_id: str) -> MemberChangeResponse:
    organization = lock_undeleted_organization(change, org_id)
    memberships.remove(change, _find_membership(change, org_id, user_id))
    return _member_change("removed", organization, user_id, None)


def _find_membership(change: ChangeContext, org_id: str, user_id: str) -> Membership:
    membership = memberships.lock(change.session, org_id, user_id)
    if membership is None:
        detail = "The user is not a member of this organization."
        raise problems.not_found(detail)
    return membership


def _member_change(
    status: str, organization: Organization, user_id: str, role: MembershipRole | None
) -> MemberChangeResponse:
    sync = SyncVersion(version=organization.version)
    return MemberChangeResponse(status=status, sync=sync, user_id=user_id, role=role)
