"""Commands that make a link reconcile again although its organization did not change: retry, release, invalidate.

A link that is on hold for a conflict is reconciled again only after ``end_conflict``: a retry would overwrite what
somebody changed at the provider, although nobody decided that.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import ColumnElement, and_, case, select, update
from sqlalchemy.orm import Session

from core.db import leases
from core.db.models.billing_links import IS_CONFLICT, IS_NO_CONFLICT, BillingLink
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import links as organization_links
from core.organizations.links import SWEEP_GRACE
from core.ports.spec import PROVIDERS, Provider
from core.reconcile.attempt import NO_ERROR, UNKNOWN

PAYER_CHANGED: Final = "payer_changed"
"""The error code of a conflict about the payer in Lago."""
# With it the next attempt reads the customer before it writes it. Lago may have a subscription whose create was never
# answered. The customer stays ours then, so that the subscription can be ended.
_UNCONFIRMED_FINGERPRINT = case(
    (
        and_(
            BillingLink.provider == "lago",
            BillingLink.subscription_id.is_(None),
            BillingLink.customer_fingerprint.is_not(None),
        ),
        UNKNOWN,
    ),
    else_=None,
)


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
    """An operator's retry: both links are tried now, also if they are parked, waiting, or on hold since an import.

    Everything is read or written again. A link that is on hold for a conflict stays as it is.
    """
    change.session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == organization.id, IS_NO_CONFLICT)
        .values(
            state=case((BillingLink.state == "on_hold", "active"), else_=BillingLink.state),
            customer_fingerprint=_UNCONFIRMED_FINGERPRINT,
            cooldown_until=None,
            # No provider can be asked whether a payer is still rejected; the operator has seen that it was.
            payment_status=case(
                (BillingLink.payment_status == "payer_rejected", None), else_=BillingLink.payment_status
            ),
        )
        .execution_options(synchronize_session=False)
    )
    invalidate_plans_and_mark_for_sync(change, organization, IS_NO_CONFLICT)


def conflicting_providers(session: Session, org_id: str) -> list[Provider]:
    """The providers at which the organization's link is on hold for a conflict."""
    found = set(session.scalars(select(BillingLink.provider).where(BillingLink.org_id == org_id, IS_CONFLICT)))
    return [provider for provider in PROVIDERS if provider in found]


def end_conflict(change: ChangeContext, organization: Organization, provider: Provider) -> bool:
    """End the hold of a conflict: the next attempt makes the provider match the organization as it is now.

    The caller has locked the organization. Returns False, and changes nothing, if there is no conflict.
    """
    released = change.session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == organization.id, BillingLink.provider == provider, IS_CONFLICT)
        .values(
            state="active",
            # A payer is written without a read before: a customer that is read first keeps the payer that it has.
            customer_fingerprint=case(
                (BillingLink.error_code == PAYER_CHANGED, UNKNOWN), else_=_UNCONFIRMED_FINGERPRINT
            ),
            applied_plan=case((BillingLink.applied_plan == UNKNOWN, UNKNOWN), else_=None),
            cooldown_until=None,
            **NO_ERROR,
        )
        .returning(BillingLink.org_id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if released is None:
        return False
    organization_links.mark_for_sync(change, organization)
    return True


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
