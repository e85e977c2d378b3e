"""Plans: what a change would come to, asked before it is made. An amount that nobody tells is null, never 0."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from api import problems
from api.auth.authorization import TheAdmission
from api.context import Runtime, TheRuntime
from api.provider_queries import Unanswered
from api.routes.sync_status import NAMES
from api.schemas.requests import OrgId, WantedPlan
from core.db.models.organizations import Organization
from core.ports.quotes import Quote
from core.ports.spec import Provider
from core.reporting import plan_preview
from core.reporting.plan_preview import Outlook

router = APIRouter(tags=["plans"])

_NOBODY_NAMED: Final = Unanswered(kind="unavailable", detail="this process was given no biller")


class Charge(BaseModel):
    """What one biller will charge, in minor units of ``currency``. null: not known; ``why`` says for what reason."""

    charges: bool = Field(description="Whether this biller charges after the change.")
    state: Literal["told", "partly", "unknown", "unavailable", "nothing"] = Field(
        description="`unavailable`: it did not answer in time; `nothing`: it makes no invoice that is paid."
    )
    currency: str | None = Field(examples=["USD"])
    now: int | None = Field(description="Invoiced with the change.", examples=[0])
    prorated: int | None = Field(
        description="Of it, or of the next invoice, what settles the period that runs; negative: a credit.",
        examples=[2513],
    )
    next: int | None = Field(description="What the invoice at `next_at` takes.", examples=[12413])
    next_at: datetime | None
    why: str | None


class PlanPreview(BaseModel):
    """``plan_tier`` and ``pending_plan_tier`` as they would be afterwards.

    ``effective_at`` null: nothing takes effect, or no biller says when the period ends.
    """

    org_id: str
    change: Literal["now", "period_end", "taken_back", "nothing", "refused"]
    plan_tier: str = Field(examples=["enterprise"])
    pending_plan_tier: str | None
    effective_at: datetime | None
    says: str = Field(examples=["enterprise applies at once."])
    billers: dict[Provider, Charge]


@router.post("/api/organizations/{org_id}/plan/preview")
def preview(org_id: OrgId, body: WantedPlan, runtime: TheRuntime, admission: TheAdmission) -> PlanPreview:
    """What would change when, and what each biller would charge; answers within three seconds and changes nothing."""
    return previewed(runtime, org_id, body.plan_tier, full=admission.role == "service")


def previewed(runtime: Runtime, org_id: str, plan_tier: str, *, full: bool) -> PlanPreview:
    """``full``: with the biller's own words."""
    with runtime.database.read() as session:
        organization = session.get(Organization, org_id)
        if organization is None:
            raise problems.no_organization()
        problems.refuse_deleted(organization)
        outlook = plan_preview.outlook(session, organization, plan_tier, runtime.catalog)
        present, pending = organization.plan_tier, organization.pending_plan_tier
    charging = _charging(runtime, outlook, full=full)
    billers = {outlook.charged_by: charging, **{other: _nothing(outlook.charged_by) for other in outlook.others}}
    return PlanPreview(
        org_id=org_id,
        change=outlook.step.kind if outlook.can_be else "refused",
        plan_tier=outlook.step.plan_tier,
        pending_plan_tier=outlook.step.pending_plan_tier,
        effective_at=_effective_at(runtime, outlook, charging),
        says=_says(outlook, present, pending, plan_tier),
        billers=billers,
    )


def _charging(runtime: Runtime, outlook: Outlook, *, full: bool) -> Charge:
    answer = _asked(runtime, outlook)
    if isinstance(answer, Quote):
        return _told(answer)
    name = NAMES[outlook.charged_by]
    if answer is None:
        return _unknown("unknown", outlook, _MOVES if outlook.can_be else "It cannot be: nothing is charged.")
    if answer.kind == "refused":
        why = f"{name} does not take this change as it is."
        return _unknown("unknown", outlook, f"{why} {answer.detail}" if full else why)
    why = f"{name} cannot be asked now; the change itself does not wait for that."
    return _unknown("unavailable", outlook, f"{why} {answer.detail}" if full and answer.detail else why)


def _asked(runtime: Runtime, outlook: Outlook) -> Quote | Unanswered | None:
    if outlook.question is None:
        return None
    if (stop := outlook.stops.get(outlook.charged_by)) is not None:
        return Unanswered(kind="unavailable", detail=stop.message)
    if runtime.asking is None:
        return _NOBODY_NAMED
    return runtime.asking.quote(outlook.charged_by, outlook.question)


def _told(quote: Quote) -> Charge:
    amounts = (quote.now, quote.prorated, quote.next)
    known = sum(amount is not None for amount in amounts)
    return Charge(
        charges=True,
        state="told" if known == len(amounts) else "partly" if known else "unknown",
        currency=quote.currency,
        now=quote.now,
        prorated=quote.prorated,
        next=quote.next,
        next_at=quote.next_at,
        why=_sentence(quote.why),
    )


def _unknown(state: Literal["unknown", "unavailable"], outlook: Outlook, why: str) -> Charge:
    return Charge(
        charges=True, state=state, currency=outlook.currency, now=None, prorated=None, next=None, next_at=None, why=why
    )


def _nothing(charged_by: Provider) -> Charge:
    return Charge(
        charges=False,
        state="nothing",
        currency=None,
        now=None,
        prorated=None,
        next=None,
        next_at=None,
        why=f"{NAMES[charged_by]} bills this plan.",
    )


def _effective_at(runtime: Runtime, outlook: Outlook, charging: Charge) -> datetime | None:
    if not outlook.can_be:
        return None
    match outlook.step.kind:
        case "now":
            return runtime.clock()
        case "period_end":
            return charging.next_at
        case "nothing" if outlook.step.pending_plan_tier is not None:
            return outlook.effective_at or charging.next_at
    return None


def _says(outlook: Outlook, present: str, pending: str | None, wanted: str) -> str:
    if not outlook.can_be:
        return f"{wanted} is charged by another biller than {present}, so it cannot wait for the period's end."
    match outlook.step.kind:
        case "now":
            return f"{wanted} applies at once."
        case "period_end":
            return (
                f"{present} stays until the period that is paid ends, then {wanted} applies; {present} takes it back."
            )
        case "taken_back":
            return f"{present} stays: {pending} does not come at the period's end."
        case "nothing":
            return f"{wanted} waits for the period's end already." if pending else f"{wanted} is the plan already."


def _sentence(why: str | None) -> str | None:
    return f"{why[0].upper()}{why[1:]}." if why else None


_MOVES: Final = (
    "Who charges changes with this plan: a period begins at the new biller, and what was paid in advance is credited "
    "where it was paid."
)
