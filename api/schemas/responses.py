"""Response bodies, with the field names that existing callers know."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from core.common.validation import one_of
from core.db.models.organizations import ORGANIZATION_STATUSES, MembershipRole, OrganizationStatus
from core.organizations.queries import Member, OrganizationRow


class SyncVersion(BaseModel):
    """Pass ``version`` to ``GET …/sync?version=`` to learn when both providers are in sync."""

    version: int = Field(examples=[3])


class ChangeResponse(BaseModel):
    """``status`` says what was done."""

    status: str = Field(examples=["updated"])
    sync: SyncVersion


class CreateOrganizationResponse(BaseModel):
    org_id: str = Field(examples=["org_0b7c6a9e-2f4d-4c53-9a55-0f7b0a4c8d11"])
    status: Literal["created"] = "created"
    sync: SyncVersion


class PlanChangeResponse(ChangeResponse):
    """``plan_tier`` is effective now; ``pending_plan_tier`` takes effect at the end of the paid period."""

    plan_tier: str = Field(examples=["professional"])
    pending_plan_tier: str | None
    effective: Literal["now", "period_end"]


class MemberChangeResponse(ChangeResponse):
    user_id: str
    role: MembershipRole | None = Field(
        description="null: no longer a member. With `status` invited: the role that the user gets by accepting."
    )


class OrganizationResponse(BaseModel):
    """``role`` is the caller's own; null for a service. The customer ids are null for a member, who sees no billing."""

    id: str = Field(examples=["org_0b7c6a9e-2f4d-4c53-9a55-0f7b0a4c8d11"])
    name: str = Field(examples=["Acme"])
    created_at: datetime
    plan_tier: str = Field(examples=["professional"])
    pending_plan_tier: str | None
    plan_effective_at: datetime | None
    status: OrganizationStatus
    lago_customer_id: str | None
    stripe_customer_id: str | None
    role: MembershipRole | None
    team_size: int


class OrganizationList(BaseModel):
    organizations: list[OrganizationResponse]
    count: int


class OrganizationPage(OrganizationList):
    """``count`` is of this page. Send ``next_cursor`` as ``cursor`` for the next page; null: this is the last page."""

    next_cursor: str | None


class OrganizationChoice(BaseModel):
    id: str
    name: str
    plan: str
    role: MembershipRole | None


class OrganizationChoices(BaseModel):
    """``default``: the organization used when a request names none."""

    organizations: list[OrganizationChoice]
    count: int
    default: str | None


class MemberResponse(BaseModel):
    user_id: str
    role: MembershipRole
    joined_at: datetime


class MemberList(BaseModel):
    """``count`` is of this page, ``total`` of all."""

    users: list[MemberResponse]
    count: int
    total: int


def organization_response(row: OrganizationRow, *, to_service: bool = False) -> OrganizationResponse:
    organization = row.organization
    sees_billing = to_service or row.role != "member"
    return OrganizationResponse(
        id=organization.id,
        name=organization.name,
        created_at=organization.created_at,
        plan_tier=organization.plan_tier,
        pending_plan_tier=organization.pending_plan_tier,
        plan_effective_at=organization.plan_effective_at,
        status=one_of("status", organization.status, ORGANIZATION_STATUSES),
        lago_customer_id=row.lago_customer_id if sees_billing else None,
        stripe_customer_id=row.stripe_customer_id if sees_billing else None,
        role=row.role,
        team_size=row.team_size,
    )


def member_response(row: Member) -> MemberResponse:
    return MemberResponse(user_id=row.user_id, role=row.role, joined_at=row.joined_at)
