"""Gives a payer to an organization that was adopted without one: from now on Lago charges its Stripe customer."""

from __future__ import annotations

from sqlalchemy import update

from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.events import link_history, outbox
from core.events.event_types import ChangeContext
from core.organizations.links import mark_for_sync


def give_payer(change: ChangeContext, organization: Organization) -> bool:
    """The caller has locked the organization. False: it has a payer, or gets one anyway, and nothing was changed.

    A reconcile sends the payer once the organization is managed.
    """
    given = change.session.scalars(
        update(BillingLink)
        .where(
            BillingLink.org_id == organization.id, BillingLink.provider == "lago", BillingLink.without_payer.is_(True)
        )
        .values(without_payer=False)
        .returning(BillingLink.org_id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if given is None:
        return False
    link_history.record_actions(change, organization.id, ["lago"], "payer_given")
    mark_for_sync(change, organization)
    outbox.record(change, "organization.sync_requested", organization.id, {})
    return True
