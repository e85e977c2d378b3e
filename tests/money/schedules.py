"""Scheduled changes that a provider carried out: an hour later the organization shows them, if our checks run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from core.db.models.organizations import Organization
from tests.money.prices import PriceWatch
from tests.money.tally import ShownLateError

SHOWN_WITHIN: Final = timedelta(hours=1)
# Longer than a link waits by itself. The sweep of a deployment is never so far from the one before.
LONGEST_GAP: Final = timedelta(minutes=17)


@dataclass(kw_only=True)
class ScheduleWatch:
    """``running_since``: since when sweep followed sweep while no provider had a fault."""

    running_since: datetime
    last_sweep: datetime

    def swept(self, now: datetime, *, faulty: bool) -> None:
        if faulty or now - self.last_sweep > LONGEST_GAP:
            self.running_since = now
        self.last_sweep = now

    def observe(self, organization: Organization, began_at: datetime | None, now: datetime) -> None:
        """``began_at``: when its pending plan began at the provider that charges. Raises ``ShownLateError``."""
        if began_at is None or now - self.last_sweep > LONGEST_GAP:
            return
        late_by = now - max(began_at, self.running_since)
        if late_by > SHOWN_WITHIN:
            message = (
                f"{organization.id} is on {organization.pending_plan_tier} since {began_at}, and shows "
                f"{organization.plan_tier} at {now}, after {late_by} of sweeps"
            )
            raise ShownLateError(message)


def began_at(prices: PriceWatch, organization: Organization, subscription_id: str | None) -> datetime | None:
    """When the pending plan took effect where the organization is charged; None if it has not."""
    sold = prices.in_stripe.get(subscription_id) if subscription_id is not None else prices.in_lago.get(organization.id)
    if sold is None or organization.pending_plan_tier is None or sold.tier != organization.pending_plan_tier:
        return None
    return sold.began_at
