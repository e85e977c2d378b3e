"""What makes a link reconcile again without a change of its organization: a check, a retry, a repair."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, case, or_, update

from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import links as organization_links
from core.organizations.links import SWEEP_GRACE
from core.ports.spec import Provider
from core.reconcile.attempt import UNKNOWN


def invalidate_plans(change: ChangeContext, organization: Organization, *conditions: ColumnElement[bool]) -> None:
    """Nothing is believed of the subscriptions any more: the next round reads them at the billers."""
    change.session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == organization.id, BillingLink.applied_plan != UNKNOWN, *conditions)
        .values(applied_plan=None)
        .execution_options(synchronize_session=False)
    )
    organization_links.mark_for_sync(change, organization)


def retry(change: ChangeContext, organization: Organization) -> None:
    """A person's word: whatever parked or waits is tried now, and everything is read or made again."""
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
            # Lago may hold a subscription that was never heard of; the customer stays ours, so that it can be ended.
            customer_fingerprint=case((may_have_unknown_subscription, UNKNOWN), else_=None),
            cooldown_until=None,
            # Nobody can be asked for a payer that was refused; the person has seen it.
            payment_status=case(
                (BillingLink.payment_status == "payer_rejected", None), else_=BillingLink.payment_status
            ),
        )
        .execution_options(synchronize_session=False)
    )
    invalidate_plans(change, organization)


def invalidate(change: ChangeContext, org_id: str, provider: Provider, *, customer: bool, plan: bool) -> bool:
    """One link's round makes or reads these again; nothing changes for the other biller. Only while it is in sync."""
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
            or_(BillingLink.lease_until.is_(None), BillingLink.lease_until < change.now),
        )
        .values(applied_version=BillingLink.desired_version - 1, next_sweep_at=change.now + SWEEP_GRACE, **values)
        .returning(BillingLink.org_id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return invalidated is not None
