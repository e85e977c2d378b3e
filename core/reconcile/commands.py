"""What makes a link reconcile again without a change of its organization: a check, a retry, a repair."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, case, or_, update

from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.events.event_types import Change
from core.organizations import links as organization_links
from core.organizations.links import SWEEP_GRACE
from core.ports.spec import Provider
from core.reconcile.attempt import UNSURE


def look_again(change: Change, organization: Organization, *those: ColumnElement[bool]) -> None:
    """Nothing is believed of the subscriptions any more: the next round reads them at the billers."""
    change.session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == organization.id, BillingLink.applied_plan != UNSURE, *those)
        .values(applied_plan=None)
        .execution_options(synchronize_session=False)
    )
    organization_links.bump(change, organization)


def retry(change: Change, organization: Organization) -> None:
    """A person's word: whatever parked or waits is tried now, and everything is read or made again."""
    unheard = and_(
        BillingLink.provider == "lago",
        BillingLink.subscription_id.is_(None),
        BillingLink.applied_customer.is_not(None),
    )
    change.session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == organization.id)
        .values(
            state=case((BillingLink.state == "held", "open"), else_=BillingLink.state),
            # Lago may hold a subscription that was never heard of; the customer stays ours, so that it can be ended.
            applied_customer=case((unheard, UNSURE), else_=None),
            rest_until=None,
            # Nobody can be asked for a payer that was refused; the person has seen it.
            payment=case((BillingLink.payment == "refused", None), else_=BillingLink.payment),
        )
        .execution_options(synchronize_session=False)
    )
    look_again(change, organization)


def forget(change: Change, org_id: str, provider: Provider, *, customer: bool, plan: bool) -> bool:
    """One link's round makes or reads these again; nothing changes for the other biller. Only while it is in sync."""
    values: dict[str, object] = {"applied_customer": UNSURE} if customer else {}
    values |= {"applied_plan": None} if plan else {}
    forgotten = change.session.execute(
        update(BillingLink)
        .where(
            BillingLink.org_id == org_id,
            BillingLink.provider == provider,
            BillingLink.state == "open",
            BillingLink.applied_version == BillingLink.wanted_version,
            BillingLink.intent.is_(None),
            or_(BillingLink.lease_until.is_(None), BillingLink.lease_until < change.now),
        )
        .values(applied_version=BillingLink.wanted_version - 1, sweep_at=change.now + SWEEP_GRACE, **values)
        .returning(BillingLink.org_id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return forgotten is not None
