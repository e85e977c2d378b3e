"""The predecessor's paths under ``/api/v1/subscriptions``: plans, with the names that their callers know.

They are about the organization of ``X-Organization-ID``, else the caller's first. Amounts are in minor units.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from api import problems
from api.auth.authorization import Principal, PrincipalDep
from api.context import ContextDep
from api.routes.plan_preview import PlanPreviewResponse, build_preview
from api.routing import ApiRoute
from api.schemas.requests import LegacyChangePlanRequest, PlanTier
from api.schemas.responses import SyncVersion
from api.unit_of_work import IdempotencyKey, UnitOfWorkDep, lock_active_organization
from core.catalog.plans import Catalog, CatalogPlan
from core.common.validation import one_of
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import ORGANIZATION_STATUSES, Organization, OrganizationStatus
from core.events.event_types import ChangeContext
from core.organizations import plan_changes
from core.organizations.plan_changes import PlannedPlanChange

router = APIRouter(tags=["older paths"], route_class=ApiRoute)

SUBSCRIPTIONS_PATH = "/api/v1/subscriptions"


class LegacyPlan(BaseModel):
    """``amount`` is in the minor unit of ``currency``, for one ``interval``."""

    id: str
    tier_code: str = Field(examples=["professional"])
    plan_code: str
    name: str
    display_name: str
    amount: int = Field(examples=[4900])
    currency: str = Field(examples=["USD"])
    interval: str = Field(examples=["monthly"])


class LegacyPlanList(BaseModel):
    """Plans, lowest first."""

    plans: list[LegacyPlan]


class LegacyCurrentPlan(BaseModel):
    """``has_subscription``: the charging provider has a subscription. ``plan`` null: it is not in the catalog."""

    has_subscription: bool
    tier: str
    tier_code: str
    status: OrganizationStatus
    plan: LegacyPlan | None
    pending_tier: str | None
    effective_date: datetime | None


class LegacyPlanChange(BaseModel):
    """``effective_date`` null: at the end of the period, whose date the provider has not reported yet."""

    success: Literal[True] = True
    current_tier: str
    target_tier: str
    effective_date: datetime | None
    message: str
    sync: SyncVersion


class LegacyPlanPreview(BaseModel):
    old_tier: str
    new_tier: str
    is_upgrade: bool
    effective_date: datetime | None
    preview: PlanPreviewResponse


@router.get(f"{SUBSCRIPTIONS_PATH}/plans")
def list_plans(context: ContextDep) -> LegacyPlanList:
    """List the plans that are on sale."""
    return LegacyPlanList(plans=[_legacy_plan(context.catalog.plan(tier)) for tier in context.catalog.offered_tiers()])


@router.get(f"{SUBSCRIPTIONS_PATH}/current")
def get_current_plan(principal: PrincipalDep, context: ContextDep) -> LegacyCurrentPlan:
    """The plan of the organization."""
    row = _require_organization(principal)
    plan = context.catalog.plans.get(row.plan_tier)
    with context.database.read() as session:
        link = session.get(BillingLink, (row.id, plan.charged_by)) if plan else None
    return LegacyCurrentPlan(
        has_subscription=link is not None and link.subscription_id is not None,
        tier=row.plan_tier,
        tier_code=row.plan_tier,
        status=one_of("status", row.status, ORGANIZATION_STATUSES),
        plan=_legacy_plan(plan) if plan else None,
        pending_tier=row.pending_plan_tier,
        effective_date=row.plan_effective_at,
    )


@router.post(f"{SUBSCRIPTIONS_PATH}/upgrade", response_model=LegacyPlanChange)
def upgrade(
    body: LegacyChangePlanRequest,
    unit_of_work: UnitOfWorkDep,
    principal: PrincipalDep,
    context: ContextDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Upgrade only; applies immediately."""
    return _change_plan(body, unit_of_work, principal, context.catalog, idempotency_key, required_step="now")


@router.post(f"{SUBSCRIPTIONS_PATH}/downgrade", response_model=LegacyPlanChange)
def downgrade(
    body: LegacyChangePlanRequest,
    unit_of_work: UnitOfWorkDep,
    principal: PrincipalDep,
    context: ContextDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Downgrade only; applies at the end of the period."""
    return _change_plan(body, unit_of_work, principal, context.catalog, idempotency_key, required_step="period_end")


@router.post(f"{SUBSCRIPTIONS_PATH}/change", response_model=LegacyPlanChange)
def change_plan(
    body: LegacyChangePlanRequest,
    unit_of_work: UnitOfWorkDep,
    principal: PrincipalDep,
    context: ContextDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """As `PATCH /api/organizations/{org_id}/plan`."""
    return _change_plan(body, unit_of_work, principal, context.catalog, idempotency_key, required_step=None)


@router.get(f"{SUBSCRIPTIONS_PATH}/preview-change")
def preview_change(
    target_tier: Annotated[PlanTier, Query()], principal: PrincipalDep, context: ContextDep
) -> LegacyPlanPreview:
    """As `POST /api/organizations/{org_id}/plan/preview`."""
    row = _require_organization(principal)
    preview = build_preview(context, row.id, target_tier, for_service=principal.role == "service")
    return LegacyPlanPreview(
        old_tier=row.plan_tier,
        new_tier=target_tier,
        is_upgrade=preview.change == "now",
        effective_date=preview.effective_at,
        preview=preview,
    )


def _change_plan(  # noqa: PLR0913 - the request and its caller
    body: LegacyChangePlanRequest,
    unit_of_work: UnitOfWorkDep,
    principal: Principal,
    catalog: Catalog,
    idempotency_key: str | None,
    *,
    required_step: Literal["now", "period_end"] | None,
) -> Response:
    org_id = _require_organization(principal).id

    def work(change: ChangeContext) -> LegacyPlanChange:
        organization = lock_active_organization(change, org_id)
        step = plan_changes.decide_plan_change(organization, body.target_tier, catalog)
        _require_step(organization, step, required_step)
        previous_tier = organization.plan_tier
        plan_changes.change_plan(change, organization, body.target_tier, catalog)
        return LegacyPlanChange(
            current_tier=previous_tier,
            target_tier=body.target_tier,
            effective_date=change.now if step.kind == "now" else organization.plan_effective_at,
            message=_STEP_MESSAGES[step.kind],
            sync=SyncVersion(version=organization.version),
        )

    return unit_of_work.run_idempotent(idempotency_key, body, 200, work)


_STEP_MESSAGES = {
    "now": "The plan applies now",
    "period_end": "The plan applies at the end of the period",
    "canceled": "The scheduled downgrade is canceled",
    "none": "Nothing changes",
}


def _require_step(
    organization: Organization, step: PlannedPlanChange, required_step: Literal["now", "period_end"] | None
) -> None:
    is_lower = step.pending_plan_tier is not None
    if required_step == "now" and (is_lower or step.kind != "now"):
        detail = f"The plan is not higher than {organization.plan_tier}. No change was made."
        raise problems.conflict("not-an-upgrade", detail)
    if required_step == "period_end" and not is_lower:
        detail = f"The plan is not lower than {organization.plan_tier}. No change was made."
        raise problems.conflict("not-a-downgrade", detail)


def _require_organization(principal: Principal) -> Organization:
    if principal.organization is None:
        raise problems.organization_not_found()
    return principal.organization.organization


def _legacy_plan(plan: CatalogPlan) -> LegacyPlan:
    return LegacyPlan(
        id=plan.tier,
        tier_code=plan.tier,
        plan_code=plan.lago_plan_code,
        name=plan.name,
        display_name=plan.name,
        amount=plan.amount,
        currency=plan.currency,
        interval=plan.interval,
    )
