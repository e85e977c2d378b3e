"""Moves whoever is on a full Lago plan, although Stripe charges, to the plan of amount 0 of its tier (decision 0031).

Only the code to which the link moves is stored. Lago lowers a price at the end of its period, and the attempts do that.
No amount changes that somebody pays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.orm import Session

from core.catalog.plans import Catalog, CatalogPlan
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.events import link_history, outbox
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.organizations.links import mark_for_sync

_IS_MOVED_NOW: Final = BillingLink.state == "active"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnFullPlan:
    """Numbers by tier. ``left``: those that are observed, parked or on hold, which are not moved."""

    moved: Counter[str]
    left: Counter[str]


def tiers_with_usage_plan(catalog: Catalog) -> list[str]:
    """Those that Stripe charges for, lowest rank first."""
    return [tier for tier in catalog.tiers() if catalog.plan(tier).has_unpaid_plan]


def count(session: Session, catalog: Catalog, tiers: Collection[str]) -> OnFullPlan:
    counted = (
        select(Organization.plan_tier, _IS_MOVED_NOW, func.count())
        .join(BillingLink, BillingLink.org_id == Organization.id)
        .where(_is_on_full_plan(catalog, tiers))
        .group_by(Organization.plan_tier, _IS_MOVED_NOW)
    )
    found = OnFullPlan(moved=Counter(), left=Counter())
    for tier, is_moved, number in session.execute(counted):
        (found.moved if is_moved else found.left)[tier] = number
    return found


def next_org_ids(session: Session, catalog: Catalog, tiers: Collection[str], after: str, limit: int) -> Sequence[str]:
    """Those to move, by ascending id."""
    return session.scalars(
        select(BillingLink.org_id)
        .join(Organization, Organization.id == BillingLink.org_id)
        .where(_is_on_full_plan(catalog, tiers), _IS_MOVED_NOW, BillingLink.org_id > after)
        .order_by(BillingLink.org_id)
        .limit(limit)
    ).all()


def move(change: ChangeContext, org_id: str, catalog: Catalog) -> bool:
    """Store the code, and mark the links for sync. Returns False, and changes nothing, if it needs no move any more."""
    organization = commands.lock(change.session, org_id)
    is_deleted = organization is not None and organization.status == "deleted"
    if organization is None or is_deleted or organization.plan_tier not in tiers_with_usage_plan(catalog):
        return False
    plan = catalog.plan(organization.plan_tier)
    moved = change.session.scalars(
        update(BillingLink)
        .where(BillingLink.org_id == org_id, _has_full_plan(plan), _IS_MOVED_NOW)
        .values(target_plan=plan.lago_usage_plan_code, target_at_period_end=False)
        .returning(BillingLink.org_id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if moved is None:
        return False
    link_history.record_actions(change, org_id, ["lago"], "usage_plan_set", plan=plan.lago_usage_plan_code)
    mark_for_sync(change, organization)
    outbox.record(change, "organization.sync_requested", org_id, {})
    return True


def _is_on_full_plan(catalog: Catalog, tiers: Collection[str]) -> ColumnElement[bool]:
    plans = [catalog.plan(tier) for tier in tiers]
    of_tiers = [and_(Organization.plan_tier == plan.tier, _has_full_plan(plan)) for plan in plans]
    return and_(Organization.status != "deleted", or_(*of_tiers))


def _has_full_plan(plan: CatalogPlan) -> ColumnElement[bool]:
    """Sold, and neither moved nor to be moved. What waits for the end of Lago's period is moved already."""
    unpaid = [plan.lago_usage_plan_code or "", *plan.former_codes.lago_usage]
    return and_(
        BillingLink.provider == "lago",
        BillingLink.subscription_id.is_not(None),
        BillingLink.sold_plan.in_([plan.lago_plan_code, *plan.former_codes.lago]),
        func.coalesce(BillingLink.applied_next_plan, "").not_in(unpaid),
        func.coalesce(BillingLink.target_plan, "") != plan.lago_usage_plan_code,
    )
