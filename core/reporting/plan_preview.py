"""Preview of a plan change: which step it is, and what to ask the charging provider.

It uses the rule of the change itself (``plan_changes.decide_plan_change``). It changes nothing and calls no provider.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.catalog.plans import Catalog, CatalogPlan
from core.compare.desired_state import SoldCode, external_ids, sold_price, stored_codes
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.flow_control import circuit_breaker
from core.flow_control.circuit_breaker import OpenBreaker
from core.organizations import plan_changes
from core.organizations.plan_changes import PlannedPlanChange
from core.ports.external_ids import OWN_IDS
from core.ports.quotes import PlanChangeQuery
from core.ports.spec import PROVIDERS, Provider, SubscriptionSpec

CHARGING_PROVIDER_CHANGES: Final = (
    "This plan is charged by another provider than the current one. A new period begins there, and prepaid amounts are "
    "credited at the current provider."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanChangePreview:
    """``query``: for ``charged_by``, the provider that charges after the change; the other one issues no paid invoice.

    ``query`` is ``None`` if the charging provider changes, since a new period begins then. ``is_possible`` is False for
    a lower plan that the other provider charges: it cannot wait for the end of the period. ``effective_at`` is set if a
    provider has reported it already.
    """

    step: PlannedPlanChange
    charged_by: Provider
    query: PlanChangeQuery | None
    is_possible: bool
    currency: str
    effective_at: datetime | None
    open_breakers: Mapping[Provider, OpenBreaker]

    @property
    def other_providers(self) -> list[Provider]:
        """The providers that do not charge."""
        return [provider for provider in PROVIDERS if provider != self.charged_by]


def preview_change(session: Session, organization: Organization, plan_tier: str, catalog: Catalog) -> PlanChangePreview:
    """Raises ``InvalidChangeError`` for a plan that is not in the catalog."""
    step = plan_changes.decide_plan_change(organization, plan_tier, catalog)
    plan = catalog.plan(step.plan_tier)
    next_plan = catalog.plan(step.pending_plan_tier) if step.pending_plan_tier else None
    current_plan = catalog.plans.get(organization.plan_tier)
    keeps_provider = current_plan is None or current_plan.charged_by == plan.charged_by
    is_possible = next_plan is None or next_plan.charged_by == plan.charged_by
    links = {
        link.provider: link
        for link in session.scalars(select(BillingLink).where(BillingLink.org_id == organization.id))
    }
    query = _plan_change_query(organization.id, plan, next_plan, links) if keeps_provider and is_possible else None
    return PlanChangePreview(
        step=step,
        charged_by=plan.charged_by,
        query=query,
        is_possible=is_possible,
        currency=plan.currency,
        effective_at=organization.plan_effective_at if step.kind == "none" else None,
        open_breakers=circuit_breaker.open_breakers(session),
    )


def summary(preview: PlanChangePreview, organization: Organization, requested_tier: str) -> str:
    """What the change does, in a sentence or two. ``organization``: as it is before the change."""
    current_tier, pending_tier = organization.plan_tier, organization.pending_plan_tier
    if not preview.is_possible:
        return (
            f"{requested_tier} is charged by another provider than {current_tier}, so the change cannot wait until the "
            "end of the period."
        )
    match preview.step.kind:
        case "now":
            return f"{requested_tier} applies immediately."
        case "period_end":
            return (
                f"{current_tier} stays until the end of the paid period, then {requested_tier} applies. "
                f"Choosing {current_tier} again cancels the change."
            )
        case "canceled":
            return f"{current_tier} stays. The scheduled change to {pending_tier} is canceled."
        case "none":
            return (
                f"The change to {requested_tier} is already scheduled for the end of the period."
                if pending_tier
                else f"{requested_tier} is already the current plan."
            )


def _plan_change_query(
    org_id: str, plan: CatalogPlan, next_plan: CatalogPlan | None, links: Mapping[str, BillingLink]
) -> PlanChangeQuery:
    provider = plan.charged_by
    link = links.get(provider)
    renewal_plan = next_plan or plan
    sold = SoldCode.of(plan, provider, *(stored_codes(link) if link else ()))
    sold_next = SoldCode.of(next_plan, provider, link.applied_next_plan if link else None) if next_plan else None
    renewal_code = (sold_next or sold).code
    return PlanChangeQuery(
        spec=SubscriptionSpec(
            org_id=org_id,
            customer_id=(link.customer_id if link else None) or "",
            plan_code=sold.code,
            next_plan_code=sold_next.code if sold_next else None,
            former_plan_codes=sold.former,
            former_next_plan_codes=sold_next.former if sold_next else frozenset(),
            external_ids=external_ids(link) if link else OWN_IDS,
        ),
        subscription_id=link.subscription_id if link else None,
        list_price=renewal_plan.amount if renewal_code == renewal_plan.code(provider) else None,
        currency=renewal_plan.currency,
        sold_price=sold_price(link) if link else None,
    )
