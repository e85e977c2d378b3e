"""Commands that make a link reconcile again although its organization did not change: retry and invalidate."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, case, update

from core.db import leases
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import links as organization_links
from core.organizations.links import SWEEP_GRACE
from core.ports.spec import Provider
from core.reconcile.attempt import UNKNOWN


def invalidate_plans_and_mark_for_sync(
    change: ChangeContext, organization: Organization, *conditions: ColumnElement[bool]
) -> None:
    """Invalidate the last-known plans: the next attempt reads the subscriptions at both providers."""
    change.session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == organization.id, BillingLink.applied_plan != UNKNOWN, *conditions)
        .values(applied_plan=None)
        .execution_options(synchronize_session=False)
    )
    organization_links.mark_for_sync(change, organization)


def retry(change: ChangeContext, organization: Organization) -> None:
    """An operator's retry: both links are tried now, also if they are parked, on hold or waiting.

    Everything is read or written again.
    """
    may_have_unknown_subscription = and_(
        BillingLink.provider == "lago",
        BillingLink.subscription_id.is_(None),
        BillingLink.customer_fingerprint.is_not(None),
    )
    change.session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == organization.id)
        .values(
            state=case((BillingLink.state == "on_hold", "active"), else_=BillingLink.state),
            # Lago may have a subscription whose create was never answered. The customer stays ours, so it can be ended.
            customer_fingerprint=case((may_have_unknown_subscription, UNKNOWN), else_=None),
            cooldown_until=None,
            # No provider can be asked whether a payer is still rejected; the operator has seen that it was.
            payment_status=case(
                (BillingLink.payment_status == "payer_rejected", None), else_=BillingLink.payment_status
            ),
        )
        .execution_options(synchronize_session=False)
    )
    invalidate_plans_and_mark_for_sync(change, organization)


def invalidate(change: ChangeContext, org_id: str, provider: Provider, *, customer: bool, plan: bool) -> bool:
    """Make one link's next attempt write or read its customer or plan again. The other link does not change.

    Returns False, and changes nothing, if the link is not in sync.
    """
    values: dict[str, object] = {"customer_fingerprint": UNKNOWN} if customer else {}
    values |= {"applied_plan": None} if plan else {}
    invalidated = change.session.execute(
        update(BillingLink)
        .where(
            BillingLink.org_id == org_id,
            BillingLink.provider == provider,
            BillingLink.state == "active",
            BillingLink.applied_version == BillingLink.desired_version,
            BillingLink.intent.is_(None),
            leases.is_free(BillingLink, change.now),
        )
        .values(applied_version=BillingLink.desired_version - 1, next_sweep_at=change.now + SWEEP_GRACE, **values)
        .returning(BillingLink.org_id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return invalidated is not None
