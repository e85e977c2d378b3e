"""Members of an organization. The last owner stays: somebody must be there who may decide."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api import problems
from api.auth.authorization import Admission, TheAdmission
from api.context import TheRuntime
from api.schemas import responses
from api.schemas.requests import Limit, NewMember, Offset, OrgId, UserIdInPath, WantedRole
from api.schemas.responses import MemberChanged, Members, Sync
from api.unit_of_work import IdempotencyKey, TheWriter, open_organization
from core.db.models.organizations import Membership, Organization, Role
from core.events.event_types import Change
from core.organizations import memberships, queries

router = APIRouter(tags=["members"])


@router.get("/api/organizations/{org_id}/users")
def index(org_id: OrgId, runtime: TheRuntime, limit: Limit = 100, offset: Offset = 0) -> Members:
    """Who belongs to it, in the order of joining."""
    with runtime.database.read() as session:
        found, total = queries.members(session, org_id, limit, offset)
    return Members(users=[responses.member(each) for each in found], count=len(found), total=total)


@router.post("/api/organizations/{org_id}/users", status_code=201, response_model=MemberChanged)
def add(
    org_id: OrgId, body: NewMember, writer: TheWriter, admission: TheAdmission, key: IdempotencyKey = None
) -> Response:
    """Add somebody whose user id is known; only an owner makes another owner."""
    refuse_an_owner_by_others(admission, body.role)
    return writer.once(key, body, 201, lambda change: taken_in(change, org_id, body))


@router.put("/api/organizations/{org_id}/users/{user_id}/role")
def change_role(org_id: OrgId, user_id: UserIdInPath, body: WantedRole, writer: TheWriter) -> MemberChanged:
    """Give a member another role."""
    return writer.change(lambda change: given_role(change, org_id, user_id, body.role))


@router.delete("/api/organizations/{org_id}/users/{user_id}")
def remove(org_id: OrgId, user_id: UserIdInPath, writer: TheWriter) -> MemberChanged:
    """Take a member out."""
    return writer.change(lambda change: taken_out(change, org_id, user_id))


def refuse_an_owner_by_others(admission: Admission, role: Role) -> None:
    if role == "owner" and admission.role not in {"owner", "service"}:
        detail = "Only an owner makes another owner."
        raise problems.forbidden(detail)


def taken_in(change: Change, org_id: str, body: NewMember) -> MemberChanged:
    organization = open_organization(change, org_id)
    memberships.add(change, organization, body.user_id, body.role)
    return _changed("added", organization, body.user_id, body.role)


def given_role(change: Change, org_id: str, user_id: str, role: Role) -> MemberChanged:
    organization = open_organization(change, org_id)
    membership = _member(change, org_id, user_id)
    if role != "owner":
        memberships.refuse_without_owner(change.session, membership)
    memberships.change_role(change, membership, role)
    return _changed("updated", organization, user_id, role)


def taken_out(change: Change, org_id: str, user_id: str) -> MemberChanged:
    organization = open_organization(change, org_id)
    membership = _member(change, org_id, user_id)
    memberships.refuse_without_owner(change.session, membership)
    memberships.remove(change, membership)
    return _changed("removed", organization, user_id, None)


def _member(change: Change, org_id: str, user_id: str) -> Membership:
    membership = memberships.find(change.session, org_id, user_id)
    if membership is None:
        detail = "This user is not in the organization."
        raise problems.not_found(detail)
    return membership


def _changed(status: str, organization: Organization, user_id: str, role: Role | None) -> MemberChanged:
    sync = Sync(sequence=organization.billing_version)
    return MemberChanged(status=status, sync=sync, user_id=user_id, role=role)
