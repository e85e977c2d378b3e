"""Stores which credit the customers in Stripe's listing have, which is the only sight of a deleted organization's."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import or_, update

from core.compare.local_state import LocalState
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.ports.observed import ObservedState
from core.reconcile.customer_credit import credit_values, is_news


def record(
    database: Database, local: LocalState, observed: ObservedState, listed_since: datetime, now: datetime
) -> None:
    """Store what a listing shows that was begun at ``listed_since``. What was seen after that time is newer."""
    link = local.links["stripe"]
    credit = next((each.credit for each in observed.customers if each.id == link.customer_id), None)
    if credit is None or not is_news(link, credit):
        return
    with database.write() as session:
        session.execute(
            update(BillingLink)
            .where(
                BillingLink.org_id == link.org_id,
                BillingLink.provider == link.provider,
                BillingLink.customer_id == link.customer_id,
                or_(BillingLink.credit_since.is_(None), BillingLink.credit_since < listed_since),
            )
            .values(credit_values(credit, now))
            .execution_options(synchronize_session=False)
        )
