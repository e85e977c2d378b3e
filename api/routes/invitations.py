"""Invitations by email: send, list, revoke and accept them. The token is only in the email, never in a response."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from api import problems
from api.auth.authorization import PrincipalDep
from api.context import ContextDep
from api.routes.members import require_owner_for_owner_role
from api.schemas.requests import AcceptInvitationRequest, InvitationId, InviteRequest, OrgId
from api.schemas.responses import ChangeResponse, SyncVersion
from api.unit_of_work import IdempotencyKey, UnitOfWorkDep, lock_undeleted_organization
from core.access import invitations as invitation_commands
from core.common.validation import one_of
from core.db.models.access import Invitation as InvitationRow
from core.db.models.organizations import MEMBERSHIP_ROLES, MembershipRole
from core.events.event_types import ChangeContext

router = APIRouter(tags=["invitations"])


class InvitationResponse(BaseModel):
    """``invited_by`` is a user id, null: a service; ``emails_sent``: number of emails sent."""

    id: str = Field(examples=["inv_5a0c9c62-0f3e-4f5b-8c63-3b8f1d6f5a11"])
    email: str = Field(examples=["bob@acme.example"])
    role: MembershipRole
    invited_by: str | None = Field(examples=["user_1"])
    created_at: datetime
    expires_at: datetime
    emails_sent: int = Field(examples=[1])


class InvitationList(BaseModel):
    invitations: list[InvitationResponse]
    count: int


class InvitationRevoked(BaseModel):
    status: Literal["revoked"] = "revoked"
    invitation_id: str


class InvitationAccepted(ChangeResponse):
    org_id: str = Field(examples=["org_0b7c6a9e-2f4d-4c53-9a55-0f7b0a4c8d11"])
    role: MembershipRole


@router.post("/api/organizations/{org_id}/invitations", status_code=201, response_model=InvitationResponse)
def create_invitation(
    org_id: OrgId,
    body: InviteRequest,
    unit_of_work: UnitOfWorkDep,
    principal: PrincipalDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Invite a user by email, for seven days. A repeat sends another email and restarts the seven days.

    Only an owner can invite an owner. An organization has at most 50 pending invitations.
    """

    def work(change: ChangeContext) -> InvitationResponse:
        require_owner_for_owner_role(unit_of_work.principal, body.role)
        organization = lock_undeleted_organization(change, org_id)
        return _invitation_response(
            invitation_commands.invite(change, organization, body.email, body.role, principal.user_id)
        )

    return unit_of_work.run_idempotent(idempotency_key, body, 201, work)


@router.get("/api/organizations/{org_id}/invitations")
def list_invitations(org_id: OrgId, context: ContextDep) -> InvitationList:
    """List the invitations that can still be accepted, oldest first."""
    with context.database.read() as session:
        pending = [
            _invitation_response(row) for row in invitation_commands.list_pending(session, org_id, context.clock())
        ]
    return InvitationList(invitations=pending, count=len(pending))


@router.delete("/api/organizations/{org_id}/invitations/{invitation_id}")
def revoke_invitation(org_id: OrgId, invitation_id: InvitationId, unit_of_work: UnitOfWorkDep) -> InvitationRevoked:
    """Revoke an invitation; its tokens stop working."""

    def work(change: ChangeContext) -> InvitationRevoked:
        if not invitation_commands.revoke(change, org_id, invitation_id):
            detail = "No such invitation is pending: it was accepted, revoked, or has expired."
            raise problems.not_found(detail)
        return InvitationRevoked(invitation_id=invitation_id)

    return unit_of_work.run(work)


@router.post("/api/invitations/accept", response_model=InvitationAccepted)
def accept_invitation(
    body: AcceptInvitationRequest,
    unit_of_work: UnitOfWorkDep,
    principal: PrincipalDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept an invitation with the token from the email.

    The caller must be signed in with the invited address, and the address must be verified.
    """

    def work(change: ChangeContext) -> InvitationAccepted:
        accepted = invitation_commands.accept(change, body.token, principal.user_id or "")
        sync = SyncVersion(version=accepted.organization.version)
        return InvitationAccepted(status="accepted", sync=sync, org_id=accepted.organization.id, role=accepted.role)

    return unit_of_work.run_idempotent(idempotency_key, body, 200, work)


def _invitation_response(row: InvitationRow) -> InvitationResponse:
    return InvitationResponse(
        id=row.id,
        email=row.email,
        role=one_of("role", row.role, MEMBERSHIP_ROLES),
        invited_by=row.invited_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        emails_sent=row.emails_sent,
    )
