"""Plan changes: a higher tier applies now, a lower one at the end of the period."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.catalog.plans import Catalog
from core.common.validation import one_of
from core.db.models.events import EventData
from core.db.models.organizations import Organization
from core.events import outbox
from core.events.event_types import Change
from core.organizations.links import bump


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStep:
    """What asking for a plan comes to: these are the plans afterwards."""

    kind: Literal["nothing", "now", "period_end", "taken_back"]
    plan_tier: str
    pending_plan_tier: str | None


def plan_step(organization: Organization, plan_tier: str, catalog: Catalog) -> PlanStep:
    """A higher rank applies now; a lower one waits for the end of the period; the present one takes that back.

    Raises ``InvalidChangeError``.
    """
    one_of("plan_tier", plan_tier, catalog.tiers())
    present, pending = organization.plan_tier, organization.pending_plan_tier
    current = catalog.plans.get(present)
    billed = organization.status != "deleted"
    if billed and current is not None and catalog.plan(plan_tier).rank < current.rank:
        kind: Literal["nothing", "period_end"] = "nothing" if pending == plan_tier else "period_end"
        return PlanStep(kind=kind, plan_tier=present, pending_plan_tier=plan_tier)
    if plan_tier != present:
        return PlanStep(kind="now", plan_tier=plan_tier, pending_plan_tier=None)
    return PlanStep(kind="taken_back" if pending else "nothing", plan_tier=present, pending_plan_tier=None)


def change_plan(change: Change, organization: Organization, plan_tier: str, catalog: Catalog) -> None:
    """As ``plan_step`` says."""
    step = plan_step(organization, plan_tier, catalog)
    if step.kind == "nothing":
        return
    before = organization.plan_tier
    organization.plan_tier, organization.pending_plan_tier = step.plan_tier, step.pending_plan_tier
    organization.plan_effective_at = None
    bump(change, organization)
    at = "period_end" if step.pending_plan_tier else "now"
    data: EventData = {"from": before, "to": plan_tier, "at": at}
    outbox.record(change, "organization.plan_changed", organization.id, data)


def settle_plan(change: Change, organization: Organization, tier: str) -> None:
    """The biller says that a waiting downgrade took effect: ``tier`` is what the organization may use from now on.

    Where another one waits by now, the billers are told of that anew.
    """
    before, organization.plan_tier = organization.plan_tier, tier
    organization.plan_effective_at = None
    organization.updated_at = change.now
    if organization.pending_plan_tier == tier:
        organization.pending_plan_tier = None
    else:
        bump(change, organization)
    data: EventData = {"from": before, "to": tier, "at": "now"}
    outbox.record(change, "organization.plan_changed", organization.id, data)
