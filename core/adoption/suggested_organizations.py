"""Organizations without a customer that may be the ones of customers in conflicts: observed until that is decided.

Managed, such an organization gets new customers and a subscription, and whoever pays for the old one pays twice. So
each gets a mode of its own, which an operator changes. One that has a customer, or whose mode an operator set, stays.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from sqlalchemy import select

from core.db.models.billing_links import BillingLink
from core.events.event_types import ChangeContext
from core.organizations import commands, management


def observe_undecided(change: ChangeContext, org_ids: Collection[str]) -> Iterator[str]:
    """The ids of those that are observed by a mode of their own, also since before."""
    for org_id in sorted(org_ids):
        organization = commands.lock(change.session, org_id)
        if organization is None or organization.status == "deleted" or organization.management == "manage":
            continue
        links = change.session.scalars(select(BillingLink).where(BillingLink.org_id == org_id))
        if any(_may_have_customer(link) for link in links):
            continue
        management.set_mode(change, organization, "observe")
        yield org_id


def _may_have_customer(link: BillingLink) -> bool:
    return (
        link.customer_id is not None
        or link.external_customer_id is not None
        or link.customer_state != "absent"
        or link.intent is not None
    )
