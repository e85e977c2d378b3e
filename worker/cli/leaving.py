"""What a person is told when a command ends subscriptions in Stripe, and the catalog credits no paid time."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from core.catalog.plans import Catalog
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization


def count_ends_without_credit(session: Session, org_ids: Collection[str], catalog: Catalog) -> int:
    """How many of these organizations have a subscription of ours in Stripe that their next attempt may end."""
    if catalog.ending.stripe_prorate:
        return 0
    charged_by_lago = [plan.tier for plan in catalog.plans.values() if plan.charged_by == "lago"]
    leaving = (
        select(func.count())
        .select_from(BillingLink)
        .join(Organization, Organization.id == BillingLink.org_id)
        .where(
            BillingLink.org_id.in_(org_ids),
            BillingLink.provider == "stripe",
            BillingLink.subscription_id.is_not(None),
            or_(Organization.status == "deleted", Organization.plan_tier.in_(charged_by_lago)),
        )
    )
    return session.scalar(leaving) or 0


def no_credit_notice(count: int) -> str:
    which = "The subscription in Stripe" if count == 1 else f"{count} subscriptions in Stripe"
    return (
        f"{which} will be ended, and nothing is credited for paid time that is left, because stripe_prorate is false "
        "in plans.toml."
    )
