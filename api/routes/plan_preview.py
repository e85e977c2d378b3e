"""Plans: what a change would come to, asked before it is made. An amount that nobody tells is null, never 0."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from api import problems
from api.auth.authorization import PrincipalDep
from api.context import ApiContext, ContextDep
from api.provider_queries import QueryFailure
from api.routes.sync_status import PROVIDER_DISPLAY_NAMES
from api.schemas.requests import ChangePlanRequest, OrgId
from core.db.models.organizations import Organization
from core.ports.quotes import Quote
from core.ports.spec import Provider
from core.reporting import plan_preview
from core.reporting.plan_preview import PlanChangePreview

router = APIRouter(tags=["plans"])

_NO_PROVIDERS: Final = QueryFailure(kind="unavailable", detail="this process was given no biller")


class ProviderCharge(BaseModel):
    """What one biller will charge, in minor units of ``currency``. null: not known; ``why`` says for what reason."""

    charges: bool = Field(description="Whether this biller charges after the change.")
    state: Literal["known", "partial", "unknown", "unavailable", "none"] = Field(
        description="`unavailable`: it did not answer in time; `none`: it makes no invoice that is paid."
    )
    currency: str | None = Field(examples=["USD"])
    now: int | None = Field(description="Invoiced with the change.", examples=[0])
    prorated: int | None = Field(
        description="Of it, or of the next invoice, what settles the period that runs; negative: a credit.",
        examples=[2513],
    )
    next: int | None = Field(description="What the invoice at `next_at` takes.", examples=[12413])
    next_at: datetime | None
    reason: str | None


class PlanPreviewResponse(BaseModel):
    """``plan_tier`` and ``pending_plan_tier`` as they would be afterwards.

    ``effective_at`` null: nothing takes effect, or no biller says when the period ends.
    """

    org_id: str
    change: Literal["now", "period_end", "canceled", "none", "rejected"]
    plan_tier: str = Field(examples=["enterprise"])
    pending_plan_tier: str | None
    effective_at: datetime | None
    summary: str = Field(examples=["enterprise applies at once."])
    providers: dict[Provider, ProviderCharge]


@router.post("/api/organizations/{org_id}/plan/preview")
def preview_plan(
    org_id: OrgId, body: ChangePlanRequest, context: ContextDep, principal: PrincipalDep
) -> PlanPreviewResponse:
    """What would change when, and what each biller would charge; answers within three seconds and changes nothing."""
    return build_preview(context, org_id, body.plan_tier, for_service=principal.role == "service")


def build_preview(context: ApiContext, org_id: str, plan_tier: str, *, for_service: bool) -> PlanPreviewResponse:
    """``full``: with the biller's own words."""
    with context.database.read() as session:
        organization = session.get(Organization, org_id)
        if organization is None:
            raise problems.organization_not_found()
        problems.refuse_deleted(organization)
        planned_change = plan_preview.preview_change(session, organization, plan_tier, context.catalog)
        current_tier, pending_tier = organization.plan_tier, organization.pending_plan_tier
    charge = _provider_charge(context, planned_change, for_service=for_service)
    billers = {
        planned_change.charged_by: charge,
        **{other: _no_charge(planned_change.charged_by) for other in planned_change.other_providers},
    }
    return PlanPreviewResponse(
        org_id=org_id,
        change=planned_change.step.kind if planned_change.is_possible else "rejected",
        plan_tier=planned_change.step.plan_tier,
        pending_plan_tier=planned_change.step.pending_plan_tier,
        effective_at=_effective_at(context, planned_change, charge),
        summary=_summary(planned_change, current_tier, pending_tier, plan_tier),
        providers=billers,
    )


def _provider_charge(context: ApiContext, planned_change: PlanChangePreview, *, for_service: bool) -> ProviderCharge:
    result = _request_quote(context, planned_change)
    if isinstance(result, Quote):
        return _quoted_charge(result)
    provider_name = PROVIDER_DISPLAY_NAMES[planned_change.charged_by]
    if result is None:
        return _unknown_charge(
            "unknown",
            planned_change,
            _CHARGING_PROVIDER_CHANGES if planned_change.is_possible else "It cannot be: nothing is charged.",
        )
    if result.kind == "rejected":
        why = f"{provider_name} does not take this change as it is."
        return _unknown_charge("unknown", planned_change, f"{why} {result.detail}" if for_service else why)
    why = f"{provider_name} cannot be asked now; the change itself does not wait for that."
    return _unknown_charge(
        "unavailable", planned_change, f"{why} {result.detail}" if for_service and result.detail else why
    )


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
    state: Literal["unknown", "unavailable"], planned_change: PlanChangePreview, why: str
) -> ProviderCharge:
    return ProviderCharge(
        charges=True,
        state=state,
        currency=planned_change.currency,
        now=None,
        prorated=None,
        next=None,
        next_at=None,
        reason=why,
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
        reason=f"{PROVIDER_DISPLAY_NAMES[charged_by]} bills this plan.",
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


def _summary(
    planned_change: PlanChangePreview, current_tier: str, pending_tier: str | None, requested_tier: str
) -> str:
    if not planned_change.is_possible:
        return (
            f"{requested_tier} is charged by another biller than {current_tier}, so it cannot wait for the "
            "period's end."
        )
    match planned_change.step.kind:
        case "now":
            return f"{requested_tier} applies at once."
        case "period_end":
            return (
                f"{current_tier} stays until the period that is paid ends, then {requested_tier} applies; "
                f"{current_tier} takes it back."
            )
        case "canceled":
            return f"{current_tier} stays: {pending_tier} does not come at the period's end."
        case "none":
            return (
                f"{requested_tier} waits for the period's end already."
                if pending_tier
                else f"{requested_tier} is the plan already."
            )


def _as_sentence(why: str | None) -> str | None:
    return f"{why[0].upper()}{why[1:]}." if why else None


_CHARGING_PROVIDER_CHANGES: Final = (
    "Who charges changes with this plan: a period begins at the new biller, and what was paid in advance is credited "
    "where it was paid."
)
