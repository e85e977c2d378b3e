"""Members of an organization. The last owner cannot be removed or given another role."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api import problems
from api.auth.authorization import Principal
from api.context import ContextDep
from api.schemas import responses
from api.schemas.requests import AddMemberRequest, ChangeRoleRequest, OrgId, PageLimit, PageOffset, UserIdInPath
from api.schemas.responses import MemberChangeResponse, MemberList, SyncVersion
from api.unit_of_work import IdempotencyKey, UnitOfWorkDep, lock_undeleted_organization
from core.db.models.organizations import Membership, MembershipRole, Organization
from core.events.event_types import ChangeContext
from core.organizations import memberships, queries

router = APIRouter(tags=["members"])


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
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Add a user by id. Only an owner can add an owner."""

    def work(change: ChangeContext) -> MemberChangeResponse:
        require_owner_for_owner_role(unit_of_work.principal, body.role)
        return add_member(change, org_id, body)

    return unit_of_work.run_idempotent(idempotency_key, body, 201, work)


@router.put("/api/organizations/{org_id}/users/{user_id}/role")
def change_user_role(
    org_id: OrgId, user_id: UserIdInPath, body: ChangeRoleRequest, unit_of_work: UnitOfWorkDep
) -> MemberChangeResponse:
    """Change the role of a member."""
    return unit_of_work.run(lambda change: set_role(change, org_id, user_id, body.role))


@router.delete("/api/organizations/{org_id}/users/{user_id}")
def remove_user(org_id: OrgId, user_id: UserIdInPath, unit_of_work: UnitOfWorkDep) -> MemberChangeResponse:
    """Remove a member."""
    return unit_of_work.run(lambda change: remove_member(change, org_id, user_id))


def require_owner_for_owner_role(principal: Principal, role: MembershipRole) -> None:
    if role == "owner" and principal.role not in {"owner", "service"}:
        detail = "Only an owner can make another member an owner."
        raise problems.forbidden(detail)


def add_member(change: ChangeContext, org_id: str, body: AddMemberRequest) -> MemberChangeResponse:
    organization = lock_undeleted_organization(change, org_id)
    memberships.add(change, organization, body.user_id, body.role)
    return _member_change("added", organization, body.user_id, body.role)


def set_role(change: ChangeContext, org_id: str, user_id: str, role: MembershipRole) -> MemberChangeResponse:
    organization = lock_undeleted_organization(change, org_id)
    membership = _find_membership(change, org_id, user_id)
    if role != "owner":
        memberships.refuse_removing_last_owner(change.session, membership)
    memberships.change_role(change, membership, role)
    return _member_change("updated", organization, user_id, role)


def remove_member(change: ChangeContext, org_id: str, user_id: str) -> MemberChangeResponse:
    organization = lock_undeleted_organization(change, org_id)
    membership = _find_membership(change, org_id, user_id)
    memberships.refuse_removing_last_owner(change.session, membership)
    memberships.remove(change, membership)
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
