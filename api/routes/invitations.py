"""Invitations by mail: sent, listed, taken back, accepted. The token is in the mail and in no answer of ours."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from api import problems
from api.auth.authorization import TheAdmission
from api.context import TheRuntime
from api.routes.members import refuse_an_owner_by_others
from api.schemas.requests import Acceptance, InvitationId, NewInvitation, OrgId
from api.schemas.responses import Changed, Sync
from api.unit_of_work import IdempotencyKey, TheWriter, open_organization
from core.access import invitations as invitation_commands
from core.common.validation import one_of
from core.db.models.access import Invitation as Row
from core.db.models.organizations import ROLES, Role
from core.events.event_types import Change

router = APIRouter(tags=["invitations"])


class Invitation(BaseModel):
    """``invited_by`` is a user id, null: a service; ``mails``: how many it was given so far."""

    id: str = Field(examples=["inv_5a0c9c62-0f3e-4f5b-8c63-3b8f1d6f5a11"])
    email: str = Field(examples=["bob@acme.example"])
    role: Role
    invited_by: str | None = Field(examples=["user_1"])
    created_at: datetime
    expires_at: datetime
    mails: int = Field(examples=[1])


class Invitations(BaseModel):
    invitations: list[Invitation]
    count: int


class Revoked(BaseModel):
    status: Literal["revoked"] = "revoked"
    invitation_id: str


class Joined(Changed):
    org_id: str = Field(examples=["org_0b7c6a9e-2f4d-4c53-9a55-0f7b0a4c8d11"])
    role: Role


@router.post("/api/organizations/{org_id}/invitations", status_code=201, response_model=Invitation)
def invite(
    org_id: OrgId, body: NewInvitation, writer: TheWriter, admission: TheAdmission, key: IdempotencyKey = None
) -> Response:
    """Invite somebody by mail, for seven days; asked again, the same invitation gets another mail and seven new days.

    Only an owner invites an owner. An organization has at most 50 invitations pending.
    """
    refuse_an_owner_by_others(admission, body.role)

    def work(change: Change) -> Invitation:
        organization = open_organization(change, org_id)
        return _shown(invitation_commands.invite(change, organization, body.email, body.role, admission.user_id))

    return writer.once(key, body, 201, work)


@router.get("/api/organizations/{org_id}/invitations")
def index(org_id: OrgId, runtime: TheRuntime) -> Invitations:
    """Those that can still be accepted, oldest first."""
    with runtime.database.read() as session:
        found = [_shown(row) for row in invitation_commands.pending(session, org_id, runtime.clock())]
    return Invitations(invitations=found, count=len(found))


@router.delete("/api/organizations/{org_id}/invitations/{invitation_id}")
def revoke(org_id: OrgId, invitation_id: InvitationId, writer: TheWriter) -> Revoked:
    """Take one back: from now on its tokens open nothing."""

    def work(change: Change) -> Revoked:
        if not invitation_commands.revoke(change, org_id, invitation_id):
            detail = "No such invitation is pending: it was accepted, taken back, or has ended."
            raise problems.not_found(detail)
        return Revoked(invitation_id=invitation_id)

    return writer.change(work)


@router.post("/api/invitations/accept", response_model=Joined)
def accept(body: Acceptance, writer: TheWriter, admission: TheAdmission, key: IdempotencyKey = None) -> Response:
    """Join with the token of the mail, signed in with the address that it was sent to, which must be verified."""

    def work(change: Change) -> Joined:
        joined = invitation_commands.accept(change, body.token, admission.user_id or "")
        sync = Sync(sequence=joined.organization.billing_version)
        return Joined(status="accepted", sync=sync, org_id=joined.organization.id, role=joined.role)

    return writer.once(key, body, 200, work)


def _shown(row: Row) -> Invitation:
    return Invitation(
        id=row.id,
        email=row.email,
        role=one_of("role", row.role, ROLES),
        invited_by=row.invited_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        mails=row.mailed,
    )
