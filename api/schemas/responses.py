"""What callers get, with the field names that the guide's callers know."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from core.common.validation import one_of
from core.db.models.organizations import STATUSES, Role, Status
from core.organizations.queries import Entry, Member


class Sync(BaseModel):
    """Hand ``sequence`` to ``GET …/sync?through=`` to learn when both billers hold the change."""

    sequence: int = Field(examples=[3])


class Changed(BaseModel):
    """``status`` says what was done."""

    status: str = Field(examples=["updated"])
    sync: Sync


class Created(BaseModel):
    org_id: str = Field(examples=["org_0b7c6a9e-2f4d-4c53-9a55-0f7b0a4c8d11"])
    status: Literal["created"] = "created"
    sync: Sync


class PlanChanged(Changed):
    """``plan_tier`` may be used now; ``pending_plan_tier`` waits for the end of the paid period."""

    plan_tier: str = Field(examples=["professional"])
    pending_plan_tier: str | None
    effective: Literal["now", "period_end"]


class MemberChanged(Changed):
    user_id: str
    role: Role | None = Field(description="null: not a member any more.")


class Organization(BaseModel):
    """``role`` is the caller's own; null where a service asks."""

    id: str = Field(examples=["org_0b7c6a9e-2f4d-4c53-9a55-0f7b0a4c8d11"])
    name: str = Field(examples=["Acme"])
    created_at: datetime
    plan_tier: str = Field(examples=["professional"])
    pending_plan_tier: str | None
    plan_effective_at: datetime | None
    status: Status
    lago_customer_id: str | None
    stripe_customer_id: str | None
    role: Role | None
    team_size: int


class Organizations(BaseModel):
    organizations: list[Organization]
    count: int


class OrganizationsPage(Organizations):
    """``count`` is of this page; ``next_cursor`` asks for the next one, null: this is the last."""

    next_cursor: str | None


class Choice(BaseModel):
    id: str
    name: str
    plan: str
    role: Role | None


class Choices(BaseModel):
    """``default``: the organization that is meant where a request names none."""

    organizations: list[Choice]
    count: int
    default: str | None


class MemberOf(BaseModel):
    user_id: str
    role: Role
    joined_at: datetime


class Members(BaseModel):
    """``count`` is of this page, ``total`` of all."""

    users: list[MemberOf]
    count: int
    total: int


def organization(entry: Entry) -> Organization:
    row = entry.organization
    return Organization(
        id=row.id,
        name=row.name,
        created_at=row.created_at,
        plan_tier=row.plan_tier,
        pending_plan_tier=row.pending_plan_tier,
        plan_effective_at=row.plan_effective_at,
        status=one_of("status", row.status, STATUSES),
        lago_customer_id=entry.lago_customer_id,
        stripe_customer_id=entry.stripe_customer_id,
        role=entry.role,
        team_size=entry.team_size,
    )


def member(found: Member) -> MemberOf:
    return MemberOf(user_id=found.user_id, role=found.role, joined_at=found.joined_at)
