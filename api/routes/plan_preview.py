"""Plan preview: what a plan change would do and cost, before it is made. An unknown amount is null, never 0."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from api import problems
from api.auth.authorization import PrincipalDep
from api.context import ApiContext, ContextDep
from api.provider_queries import QueryFailure
from api.routing import ApiRoute
from api.schemas.requests import ChangePlanRequest, OrgId
from core.db.models.organizations import Organization
from core.ports.quotes import Quote
from core.ports.spec import PROVIDER_NAMES, Provider
from core.reporting import plan_preview
from core.reporting.plan_preview import PlanChangePreview

router = APIRouter(tags=["plans"], route_class=ApiRoute)

_NO_PROVIDERS: Final = QueryFailure(kind="unavailable", detail="this process has no provider configured")


class ProviderCharge(BaseModel):
    """What one provider will charge, in minor units of ``currency``; null: unknown, see ``reason``."""

    charges: bool = Field(description="Whether this provider charges after the change.")
    state: Literal["known", "partial", "unknown", "unavailable", "none"] = Field(
        description="`unavailable`: no response in time; `none`: this provider charges nothing."
    )
    currency: str | None = Field(examples=["USD"])
    now: int | None = Field(description="Invoiced with the change.", examples=[0])
    prorated: int | None = Field(
        description="The prorated part of it or of the next invoice; negative: a credit.",
        examples=[2513],
    )
    next: int | None = Field(description="Amount of the invoice at `next_at`.", examples=[12413])
    next_at: datetime | None
    reason: str | None


class PlanPreviewResponse(BaseModel):
    """``plan_tier`` and ``pending_plan_tier`` as they would be after the change.

    ``effective_at`` null: nothing takes effect, or no provider reports the end of the period.
    """

    org_id: str
    change: Literal["now", "period_end", "canceled", "none", "rejected"]
    plan_tier: str = Field(examples=["enterprise"])
    pending_plan_tier: str | None
    effective_at: datetime | None
    summary: str = Field(examples=["enterprise applies immediately."])
    providers: dict[Provider, ProviderCharge]


@router.post("/api/organizations/{org_id}/plan/preview")
def preview_plan(
    org_id: OrgId, body: ChangePlanRequest, context: ContextDep, principal: PrincipalDep
) -> PlanPreviewResponse:
    """Preview a plan change and its charges. Responds within three seconds and changes nothing."""
    return build_preview(context, org_id, body.plan_tier, for_service=principal.role == "service")


def build_preview(context: ApiContext, org_id: str, plan_tier: str, *, for_service: bool) -> PlanPreviewResponse:
    """``for_service``: with the provider's own messages."""
    with context.database.read() as session:
        organization = session.get(Organization, org_id)
        if organization is None:
            raise problems.organization_not_found()
        problems.refuse_deleted(organization)
        planned_change = plan_preview.preview_change(session, organization, plan_tier, context.catalog)
    charge = _provider_charge(context, planned_change, for_service=for_service)
    charges = {
        planned_change.charged_by: charge,
        **{other: _no_charge(planned_change.charged_by) for other in planned_change.other_providers},
    }
    return PlanPreviewResponse(
        org_id=org_id,
        change=planned_change.step.kind if planned_change.is_possible else "rejected",
        plan_tier=planned_change.step.plan_tier,
        pending_plan_tier=planned_change.step.pending_plan_tier,
        effective_at=_effective_at(context, planned_change, charge),
        summary=plan_preview.summary(planned_change, organization, plan_tier),
        providers=charges,
    )


def _provider_charge(context: ApiContext, planned_change: PlanChangePreview, *, for_service: bool) -> ProviderCharge:
    result = _request_quote(context, planned_change)
    if isinstance(result, Quote):
        return _quoted_charge(result)
    provider_name = PROVIDER_NAMES[planned_change.charged_by]
    if result is None:
        return _unknown_charge(
            "unknown",
            planned_change,
            plan_preview.CHARGING_PROVIDER_CHANGES if planned_change.is_possible else "The change is not possible.",
        )
    detail = f" ({result.detail})" if for_service and result.detail else ""
    if result.kind == "rejected":
        return _unknown_charge("unknown", planned_change, f"{provider_name} rejects this change{detail}.")
    reason = f"{provider_name} cannot be reached now{detail}. You can still make the change."
    return _unknown_charge("unavailable", planned_change, reason)


def _request_quote(context: ApiContext, planned_change: PlanChangePreview) -> Quote | QueryFailure | None:
    if planned_change.query is None:
        return None
    if (open_breaker := planned_change.open_breakers.get(planned_change.charged_by)) is not None:
        return QueryFailure(kind="unavailable", detail=open_breaker.message)
    if context.provider_queries is None:
        return _NO_PROVIDERS
    return context.provider_queries.quote(planned_change.charged_by, planned_change.query)


def _quoted_charge(quote: Quote) -> ProviderCharge:
    amounts = (quote.now, quote.prorated, quote.next)
    known = sum(amount is not None for amount in amounts)
    return ProviderCharge(
        charges=True,
        state="known" if known == len(amounts) else "partial" if known else "unknown",
        currency=quote.currency,
        now=quote.now,
        prorated=quote.prorated,
        next=quote.next,
        next_at=quote.next_at,
        reason=_as_sentence(quote.reason),
    )


def _unknown_charge(
    state: Literal["unknown", "unavailable"], planned_change: PlanChangePreview, reason: str
) -> ProviderCharge:
    return ProviderCharge(
        charges=True,
        state=state,
        currency=planned_change.currency,
        now=None,
        prorated=None,
        next=None,
        next_at=None,
        reason=reason,
    )


def _no_charge(charged_by: Provider) -> ProviderCharge:
    return ProviderCharge(
        charges=False,
        state="none",
        currency=None,
        now=None,
        prorated=None,
        next=None,
        next_at=None,
        reason=f"{PROVIDER_NAMES[charged_by]} charges for this plan.",
    )


def _effective_at(context: ApiContext, planned_change: PlanChangePreview, charge: ProviderCharge) -> datetime | None:
    if not planned_change.is_possible:
        return None
    match planned_change.step.kind:
        case "now":
            return context.clock()
        case "period_end":
            return charge.next_at
        case "none" if planned_change.step.pending_plan_tier is not None:
            return planned_change.effective_at or charge.next_at
    return None


def _as_sentence(reason: str | None) -> str | None:
    return f"{reason[0].upper()}{reason[1:]}." if reason else None
