"""Gives an adopted organization back: its customers and subscriptions stay as they are, and are observed again.

Our metadata in Stripe is removed first, by a reconcile, if it may have been written. Until then the link is adopted and
waits for that, and nothing else is written at either provider. Without it, or afterwards, both links are theirs.
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from core.db.models.billing_links import BillingLink
from core.db.models.history import LinkHistory
from core.db.models.organizations import Organization
from core.events import link_history, outbox
from core.events.event_types import ChangeContext
from core.organizations import management
from core.organizations.links import end_attempts, mark_for_sync

Release = Literal["released", "removes_marks", "released_before", "not_adopted"]
"""removes_marks: our metadata is removed at the next reconcile, and the links are theirs afterwards."""


def release(change: ChangeContext, organization: Organization) -> Release:
    """Idempotent. The caller has locked the organization."""
    links = change.session.scalars(select(BillingLink).where(BillingLink.org_id == organization.id)).all()
    adopted = [link for link in links if link.ownership == "adopted"]
    if not adopted:
        return "released_before" if any(link.ownership == "theirs" for link in links) else "not_adopted"
    if any(link.marks == "removal" for link in adopted):
        return "removes_marks"
    ids = {link.provider: link.customer_id for link in adopted}
    if any(_may_have_marks(change.session, link) for link in adopted):
        _remove_marks(change, organization)
        release_kind: Release = "removes_marks"
    else:
        management.give_back(change, organization)
        release_kind = "released"
    for provider, customer_id in ids.items():
        link_history.record_actions(change, organization.id, [provider], "released", customer_id=customer_id)
    outbox.record(change, "organization.released", organization.id, {})
    mark_for_sync(change, organization)
    return release_kind


def _may_have_marks(session: Session, link: BillingLink) -> bool:
    """Whether we wrote metadata, or anything else since the adoption, which may have carried some."""
    if link.provider != "stripe":
        return False
    if link.marks == "ours":
        return True
    of_link = (LinkHistory.org_id == link.org_id, LinkHistory.provider == link.provider)
    adopted = session.scalar(select(func.max(LinkHistory.seq)).where(*of_link, LinkHistory.kind == "adopted"))
    if adopted is None:
        return True  # so long ago that the history does not have it any more
    attempts = select(LinkHistory.data).where(*of_link, LinkHistory.kind == "attempt", LinkHistory.seq > adopted)
    return any(data["requests"] for data in session.scalars(attempts))


def _remove_marks(change: ChangeContext, organization: Organization) -> None:
    """An attempt that writes them now would store that they are there."""
    change.session.execute(
        update(BillingLink)
        .where(
            BillingLink.org_id == organization.id, BillingLink.provider == "stripe", BillingLink.ownership == "adopted"
        )
        .values(marks="removal")
        .execution_options(synchronize_session=False)
    )
    end_attempts(change, organization.id)
