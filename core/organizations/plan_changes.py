"""Plan changes: a higher tier applies now, a lower one at the end of the period."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from core.catalog.plans import Catalog
from core.common.validation import one_of
from core.db.models.events import EventData
from core.db.models.organizations import Organization
from core.events import outbox
from core.events.event_types import ChangeContext
from core.organizations.links import FreedBy, clear_targets, mark_for_sync
from core.organizations.validation import checked_offered, checked_plan_currency


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPlanChange:
    """What a plan change does, and the organization's plans afterwards."""

    kind: Literal["none", "now", "period_end", "canceled"]
    plan_tier: str
    pending_plan_tier: str | None


def decide_plan_change(
    organization: Organization, plan_tier: str, catalog: Catalog, *, is_theirs: bool = False
) -> PlannedPlanChange:
    """A higher rank applies now, a lower one at the end of the period; the current plan cancels a scheduled one.

    ``is_theirs``: a provider has it already, so it may be sold no longer. Raises ``InvalidChangeError``.
    """
    one_of("plan_tier", plan_tier, catalog.tiers())
    current_tier, pending_tier = organization.plan_tier, organization.pending_plan_tier
    current_plan = catalog.plans.get(current_tier)
    if plan_tier not in {current_tier, pending_tier}:
        if not is_theirs:
            checked_offered("plan_tier", plan_tier, catalog)
        currency = organization.currency or (current_plan.currency if current_plan else None)
        checked_plan_currency("plan_tier", plan_tier, currency, catalog)
    billed = organization.status != "deleted"
    if billed and current_plan is not None and catalog.plan(plan_tier).rank < current_plan.rank:
        kind: Literal["none", "period_end"] = "none" if pending_tier == plan_tier else "period_end"
        return PlannedPlanChange(kind=kind, plan_tier=current_tier, pending_plan_tier=plan_tier)
    if plan_tier != current_tier:
        return PlannedPlanChange(kind="now", plan_tier=plan_tier, pending_plan_tier=None)
    return PlannedPlanChange(
        kind="canceled" if pending_tier else "none", plan_tier=current_tier, pending_plan_tier=None
    )


def change_plan(
    change: ChangeContext, organization: Organization, plan_tier: str, catalog: Catalog, *, is_theirs: bool = False
) -> None:
    """Change the plan as ``decide_plan_change`` decides."""
    step = decide_plan_change(organization, plan_tier, catalog, is_theirs=is_theirs)
    if step.kind == "none":
        return
    before = organization.plan_tier
    organization.plan_tier, organization.pending_plan_tier = step.plan_tier, step.pending_plan_tier
    organization.plan_effective_at = organization.downgrade_recheck_at = None
    clear_targets(change, organization.id)
    mark_for_sync(change, organization)
    at = "period_end" if step.pending_plan_tier else "now"
    data: EventData = {"from": before, "to": plan_tier, "at": at, "pending": step.pending_plan_tier}
    outbox.record(change, "organization.plan_changed", organization.id, data)


def adopt_plan(change: ChangeContext, organization: Organization, tier: str, by: FreedBy = "resolve") -> None:
    """An operator decided that ``tier``, which a provider charges already, is right: it applies now, up or down."""
    before, organization.plan_tier = organization.plan_tier, tier
    organization.pending_plan_tier = organization.plan_effective_at = organization.downgrade_recheck_at = None
    clear_targets(change, organization.id)
    mark_for_sync(change, organization, by)
    data: EventData = {"from": before, "to": tier, "at": "now", "pending": None}
    outbox.record(change, "organization.plan_changed", organization.id, data)


def record_scheduled_plan_took_effect(
    change: ChangeContext, organization: Organization, tier: str, higher_tiers: Collection[str] = ()
) -> None:
    """A provider reported that a scheduled downgrade took effect: ``tier`` is the organization's plan from now on.

    If another plan is scheduled by now, both links are marked for sync. It was scheduled for the end of the period that
    has ended. If it is one of the ``higher_tiers``, no provider can schedule it any more, so it applies now.
    """
    before, pending = organization.plan_tier, organization.pending_plan_tier
    organization.plan_tier = tier
    organization.plan_effective_at = organization.downgrade_recheck_at = None
    organization.updated_at = change.now
    clear_targets(change, organization.id)
    if pending == tier:
        organization.pending_plan_tier = None
    else:
        mark_for_sync(change, organization, "due_downgrade")
    data: EventData = {"from": before, "to": tier, "at": "now", "pending": organization.pending_plan_tier}
    outbox.record(change, "organization.plan_changed", organization.id, data)
    if pending is not None and pending in higher_tiers:
        organization.plan_tier, organization.pending_plan_tier = pending, None
        data = {"from": tier, "to": pending, "at": "now", "pending": None}
        outbox.record(change, "organization.plan_changed", organization.id, data)
