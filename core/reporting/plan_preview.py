"""What a plan change would come to, before it is made: which step it is, and what each biller is to be asked about it.

By the same rule as the change itself (``organizations.plan_step``). Nothing is changed and nobody is asked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.catalog.plans import Catalog, Plan
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.flow_control import circuit_breaker
from core.flow_control.circuit_breaker import Stop
from core.organizations import plan_changes
from core.organizations.plan_changes import PlanStep
from core.ports.quotes import PlanQuestion
from core.ports.spec import PROVIDERS, Provider, SubscriptionSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """``question`` is for ``charged_by``, the biller that charges then; the other one makes no invoice that is paid.

    It is ``None`` where the charger changes: a new period begins at the other biller. ``can_be`` False: a lower plan
    that somebody else charges cannot wait for the period's end. ``effective_at``: where a biller has said it already.
    """

    step: PlanStep
    charged_by: Provider
    question: PlanQuestion | None
    can_be: bool
    currency: str
    effective_at: datetime | None
    stops: Mapping[Provider, Stop]

    @property
    def others(self) -> list[Provider]:
        """The billers that do not charge."""
        return [provider for provider in PROVIDERS if provider != self.charged_by]


def outlook(session: Session, organization: Organization, plan_tier: str, catalog: Catalog) -> Outlook:
    """Raises ``InvalidChangeError`` for a plan that is not in the catalog."""
    step = plan_changes.plan_step(organization, plan_tier, catalog)
    plan = catalog.plan(step.plan_tier)
    following = catalog.plan(step.pending_plan_tier) if step.pending_plan_tier else None
    before = catalog.plans.get(organization.plan_tier)
    stays = before is None or before.charged_by == plan.charged_by
    can_be = following is None or following.charged_by == plan.charged_by
    links = {
        link.provider: link
        for link in session.scalars(select(BillingLink).where(BillingLink.org_id == organization.id))
    }
    asked = _question(organization.id, plan, following, links) if stays and can_be else None
    return Outlook(
        step=step,
        charged_by=plan.charged_by,
        question=asked,
        can_be=can_be,
        currency=plan.currency,
        effective_at=organization.plan_effective_at if step.kind == "nothing" else None,
        stops=circuit_breaker.stops(session),
    )


def _question(org_id: str, plan: Plan, following: Plan | None, links: Mapping[str, BillingLink]) -> PlanQuestion:
    provider = plan.charged_by
    link = links.get(provider)
    renewed = following or plan
    return PlanQuestion(
        spec=SubscriptionSpec(
            org_id=org_id,
            customer_id=(link.customer_id if link else None) or "",
            plan_code=_code(plan, provider),
            next_plan_code=_code(following, provider) if following else None,
        ),
        subscription_id=link.subscription_id if link else None,
        listed=renewed.amount,
        currency=renewed.currency,
    )


def _code(plan: Plan, provider: Provider) -> str:
    return plan.stripe_lookup_key if provider == "stripe" else plan.lago_plan_code
