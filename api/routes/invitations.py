"""Invitations: send, list and revoke them; see, accept and decline one's own. A token is only in its email, never in a
response."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from api import problems
from api.auth.authorization import PrincipalDep
from api.context import ApiContext, ContextDep
from api.routes.members import require_owner_for_owner_role
from api.routing import ApiRoute
from api.schemas.requests import AcceptInvitationRequest, InvitationId, InviteRequest, OrgId
from api.schemas.responses import ChangeResponse, SyncVersion
from api.unit_of_work import IdempotencyKey, UnitOfWorkDep, lock_active_organization
from core.access import invitations as invitation_commands
from core.access import received_invitations, users
from core.access.invitations import Invitee
from core.access.received_invitations import AcceptedInvitation
from core.access.users import UserProfile
from core.common.validation import one_of
from core.db.models.access import Invitation as InvitationRow
from core.db.models.organizations import MEMBERSHIP_ROLES, MembershipRole
from core.events.event_types import ChangeContext
from core.inbox import service_events

router = APIRouter(tags=["invitations"], route_class=ApiRoute)


class InvitationResponse(BaseModel):
    """Either ``email`` or ``user_id`` is set. ``invited_by`` is a user id, null: a service."""

    id: str = Field(examples=["inv_5a0c9c62-0f3e-4f5b-8c63-3b8f1d6f5a11"])
    email: str | None = Field(examples=["bob@acme.example"])
    user_id: str | None
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


class ReceivedInvitationResponse(BaseModel):
    """``role``: the one that you get."""

    id: str = Field(examples=["inv_5a0c9c62-0f3e-4f5b-8c63-3b8f1d6f5a11"])
    org_id: str = Field(examples=["org_0b7c6a9e-2f4d-4c53-9a55-0f7b0a4c8d11"])
    organization: str = Field(examples=["Acme"])
    role: MembershipRole
    expires_at: datetime


class ReceivedInvitationList(BaseModel):
    invitations: list[ReceivedInvitationResponse]
    count: int


class InvitationDeclined(BaseModel):
    status: Literal["declined"] = "declined"
    invitation_id: str


class InvitationAccepted(ChangeResponse):
    org_id: str = Field(examples=["org_0b7c6a9e-2f4d-4c53-9a55-0f7b0a4c8d11"])
    role: MembershipRole


@router.post("/api/organizations/{org_id}/invitations", status_code=201, response_model=InvitationResponse)
def create_invitation(
    org_id: OrgId,
    body: InviteRequest,
    unit_of_work: UnitOfWorkDep,
    context: ContextDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Invite a user by email, for seven days. A repeat sends another email and restarts the seven days.

    Only an owner can invite an owner, and only an owner can repeat an owner's invitation. An organization has at most
    50 pending invitations.
    """

    def work(change: ChangeContext) -> InvitationResponse:
        require_owner_for_owner_role(unit_of_work.principal, body.role)
        organization = lock_active_organization(change, org_id)
        inviter, limits = unit_of_work.principal.user_id, context.user_limits
        return _invitation_response(
            invitation_commands.invite(change, organization, Invitee(email=body.email), body.role, inviter, limits)
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
    """Revoke an invitation; its tokens stop working. Only an owner can revoke an owner's."""

    def work(change: ChangeContext) -> InvitationRevoked:
        if not invitation_commands.revoke(change, org_id, invitation_id, unit_of_work.principal.user_id):
            detail = "No such invitation is pending: it was accepted, revoked, or has expired."
            raise problems.not_found(detail)
        return InvitationRevoked(invitation_id=invitation_id)

    return unit_of_work.run(work)


@router.post("/api/invitations/accept", response_model=InvitationAccepted)
def accept_invitation(
    body: AcceptInvitationRequest,
    unit_of_work: UnitOfWorkDep,
    context: ContextDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept an invitation with the token from the email.

    The caller must be signed in with the invited address, and the address must be verified.
    """

    def work(change: ChangeContext) -> InvitationAccepted:
        user_id = unit_of_work.principal.user_id or ""
        return _accepted(change, context, user_id, received_invitations.accept_by_token(change, body.token, user_id))

    return unit_of_work.run_idempotent(idempotency_key, body, 200, work)


@router.get("/api/invitations")
def list_received_invitations(principal: PrincipalDep, context: ContextDep) -> ReceivedInvitationList:
    """The invitations that you can accept, oldest first: to your user id, and to your verified email address."""
    caller = principal.caller
    if not isinstance(caller, UserProfile):
        raise TypeError(type(caller))
    with context.database.read() as session:
        received = received_invitation_responses(session, caller, context.clock())
    return ReceivedInvitationList(invitations=received, count=len(received))


@router.post("/api/invitations/{invitation_id}/accept")
def accept_received_invitation(
    invitation_id: InvitationId, unit_of_work: UnitOfWorkDep, context: ContextDep
) -> InvitationAccepted:
    """Accept one of your invitations."""

    def work(change: ChangeContext) -> InvitationAccepted:
        user_id = unit_of_work.principal.user_id or ""
        return _accepted(change, context, user_id, received_invitations.accept(change, invitation_id, user_id))

    return unit_of_work.run(work)


@router.post("/api/invitations/{invitation_id}/decline")
def decline_received_invitation(invitation_id: InvitationId, unit_of_work: UnitOfWorkDep) -> InvitationDeclined:
    """Decline one of your invitations. It cannot be accepted any more."""

    def work(change: ChangeContext) -> InvitationDeclined:
        received_invitations.decline(change, invitation_id, unit_of_work.principal.user_id or "")
        return InvitationDeclined(invitation_id=invitation_id)

    return unit_of_work.run(work)


def received_invitation_responses(
    session: Session, user: UserProfile, now: datetime
) -> list[ReceivedInvitationResponse]:
    email = users.verified_email(session, user)
    return [
        ReceivedInvitationResponse(
            id=each.id,
            org_id=each.organization.id,
            organization=each.organization.name,
            role=each.role,
            expires_at=each.expires_at,
        )
        for each in received_invitations.list_received(session, user.user_id, email, now)
    ]


def _accepted(
    change: ChangeContext, context: ApiContext, user_id: str, accepted: AcceptedInvitation
) -> InvitationAccepted:
    organization = accepted.organization
    if accepted.role == "owner":
        service_events.apply_waiting_for_owner(change, context.catalog, organization, user_id)
    sync = SyncVersion(version=organization.version)
    return InvitationAccepted(status="accepted", sync=sync, org_id=organization.id, role=accepted.role)


def _invitation_response(row: InvitationRow) -> InvitationResponse:
    return InvitationResponse(
        id=row.id,
        email=row.email or None,
        user_id=row.user_id,
        role=one_of("role", row.role, MEMBERSHIP_ROLES),
        invited_by=row.invited_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        emails_sent=row.emails_sent,
    )
