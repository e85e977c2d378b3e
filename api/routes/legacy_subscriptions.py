"""The paths under ``/api/v1/subscriptions`` that the organization manager's callers know: the plans in their words.

They mean the organization of ``X-Organization-ID``, else the caller's first. Amounts are in minor units, as everywhere.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from api import problems
from api.auth.authorization import Admission, TheAdmission
from api.context import TheRuntime
from api.routes.plan_preview import PlanPreview, previewed
from api.schemas.requests import TargetPlan, Tier
from api.schemas.responses import Sync
from api.unit_of_work import IdempotencyKey, TheWriter, open_organization
from core.catalog.plans import Catalog, Plan
from core.common.validation import one_of
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import STATUSES, Organization, Status
from core.events.event_types import Change
from core.organizations import plan_changes
from core.organizations.plan_changes import PlanStep

router = APIRouter(tags=["older paths"])

PREFIX = "/api/v1/subscriptions"


class PlanRow(BaseModel):
    """``amount`` is in the minor unit of ``currency``, for one ``interval``."""

    id: str
    tier_code: str = Field(examples=["professional"])
    plan_code: str
    name: str
    display_name: str
    amount: int = Field(examples=[4900])
    currency: str = Field(examples=["USD"])
    interval: str = Field(examples=["monthly"])


class Plans(BaseModel):
    """The lowest first."""

    plans: list[PlanRow]


class Current(BaseModel):
    """``has_subscription``: the biller that charges for the plan holds one. ``plan`` null: it is in no catalog."""

    has_subscription: bool
    tier: str
    tier_code: str
    status: Status
    plan: PlanRow | None
    pending_tier: str | None
    effective_date: datetime | None


class PlanDone(BaseModel):
    """``effective_date`` null: at the end of the period, once the biller has said when that is."""

    success: Literal[True] = True
    current_tier: str
    target_tier: str
    effective_date: datetime | None
    message: str
    sync: Sync


class ChangePreview(BaseModel):
    old_tier: str
    new_tier: str
    is_upgrade: bool
    effective_date: datetime | None
    preview: PlanPreview


@router.get(f"{PREFIX}/plans")
def index(runtime: TheRuntime) -> Plans:
    """What can be had."""
    return Plans(plans=[_row(runtime.catalog.plan(tier)) for tier in runtime.catalog.tiers()])


@router.get(f"{PREFIX}/current")
def current(admission: TheAdmission, runtime: TheRuntime) -> Current:
    """The plan of the organization."""
    row = _organization(admission)
    plan = runtime.catalog.plans.get(row.plan_tier)
    with runtime.database.read() as session:
        link = session.get(BillingLink, (row.id, plan.charged_by)) if plan else None
    return Current(
        has_subscription=link is not None and link.subscription_id is not None,
        tier=row.plan_tier,
        tier_code=row.plan_tier,
        status=one_of("status", row.status, STATUSES),
        plan=_row(plan) if plan else None,
        pending_tier=row.pending_plan_tier,
        effective_date=row.plan_effective_at,
    )


@router.post(f"{PREFIX}/upgrade", response_model=PlanDone)
def upgrade(
    body: TargetPlan, writer: TheWriter, admission: TheAdmission, runtime: TheRuntime, key: IdempotencyKey = None
) -> Response:
    """To a higher plan alone, at once."""
    return _changed(body, writer, admission, runtime.catalog, key, only="now")


@router.post(f"{PREFIX}/downgrade", response_model=PlanDone)
def downgrade(
    body: TargetPlan, writer: TheWriter, admission: TheAdmission, runtime: TheRuntime, key: IdempotencyKey = None
) -> Response:
    """To a lower plan alone, at the end of the period."""
    return _changed(body, writer, admission, runtime.catalog, key, only="period_end")


@router.post(f"{PREFIX}/change", response_model=PlanDone)
def change(
    body: TargetPlan, writer: TheWriter, admission: TheAdmission, runtime: TheRuntime, key: IdempotencyKey = None
) -> Response:
    """As `PATCH /api/organizations/{org_id}/plan`."""
    return _changed(body, writer, admission, runtime.catalog, key, only=None)


@router.get(f"{PREFIX}/preview-change")
def preview_change(
    target_tier: Annotated[Tier, Query()], admission: TheAdmission, runtime: TheRuntime
) -> ChangePreview:
    """As `POST /api/organizations/{org_id}/plan/preview`."""
    row = _organization(admission)
    found = previewed(runtime, row.id, target_tier, full=admission.role == "service")
    return ChangePreview(
        old_tier=row.plan_tier,
        new_tier=target_tier,
        is_upgrade=found.change == "now",
        effective_date=found.effective_at,
        preview=found,
    )


def _changed(  # noqa: PLR0913 - what is asked, and who asks
    body: TargetPlan,
    writer: TheWriter,
    admission: Admission,
    catalog: Catalog,
    key: str | None,
    *,
    only: Literal["now", "period_end"] | None,
) -> Response:
    org_id = _organization(admission).id

    def work(change: Change) -> PlanDone:
        organization = open_organization(change, org_id)
        step = plan_changes.plan_step(organization, body.target_tier, catalog)
        _refuse_another_way(organization, step, only)
        present = organization.plan_tier
        plan_changes.change_plan(change, organization, body.target_tier, catalog)
        return PlanDone(
            current_tier=present,
            target_tier=body.target_tier,
            effective_date=change.now if step.kind == "now" else organization.plan_effective_at,
            message=_MESSAGES[step.kind],
            sync=Sync(sequence=organization.billing_version),
        )

    return writer.once(key, body, 200, work)


_MESSAGES = {
    "now": "The plan applies now",
    "period_end": "The plan applies at the end of the period",
    "taken_back": "The lower plan that waited does not come",
    "nothing": "Nothing changes",
}


def _refuse_another_way(organization: Organization, step: PlanStep, only: Literal["now", "period_end"] | None) -> None:
    lower = step.pending_plan_tier is not None
    if only == "now" and (lower or step.kind != "now"):
        detail = f"That is no higher plan than {organization.plan_tier}: nothing was changed."
        raise problems.conflict("not-an-upgrade", detail)
    if only == "period_end" and not lower:
        detail = f"That is no lower plan than {organization.plan_tier}: nothing was changed."
        raise problems.conflict("not-a-downgrade", detail)


def _organization(admission: Admission) -> Organization:
    if admission.organization is None:
        raise problems.no_organization()
    return admission.organization.organization


def _row(plan: Plan) -> PlanRow:
    return PlanRow(
        id=plan.tier,
        tier_code=plan.tier,
        plan_code=plan.lago_plan_code,
        name=plan.name,
        display_name=plan.name,
        amount=plan.amount,
        currency=plan.currency,
        interval=plan.interval,
    )
