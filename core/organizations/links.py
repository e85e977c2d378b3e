"""The billing links of an organization: new ones, and marking them for sync after a change.

A change that a provider must see raises the organization's version and each link's in the same transaction.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import and_, bindparam, case, update

from core.db.base import UtcDateTime
from core.db.models.billing_links import IS_CONFLICT, NO_ERROR, BillingLink
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import link_states

# The relay sends a sync request within moments of the commit. If the link is still behind after this, the sweep sends
# one.
SWEEP_GRACE = timedelta(seconds=20)
IS_CHECK_DUE = BillingLink.checks_done < BillingLink.checks_requested
"""A webhook reported something that no remote check has compared yet."""
# Further changes are sent together after a cooldown, and a request for another change would be throttled, too.
_WAIT_LASTS = and_(
    BillingLink.not_before_reason.in_(("cooldown", "object_limit")),
    BillingLink.not_before > bindparam("now", type_=UtcDateTime()),
)
_MARK_LINKS_FOR_SYNC = (
    update(BillingLink)
    .where(BillingLink.org_id == bindparam("of"))
    .values(
        desired_version=bindparam("version"),
        **link_states.values_after("changed"),
        attempts=0,
        not_before=case((_WAIT_LASTS, BillingLink.not_before)),
        not_before_reason=case((_WAIT_LASTS, BillingLink.not_before_reason)),
        next_sweep_at=bindparam("sweep"),
    )
    .execution_options(synchronize_session=False)
)


def new_link(org_id: str, provider: str, now: datetime, *, maybe_older: bool) -> dict[str, object]:
    """The row of a new link, to which nothing was applied yet. ``maybe_older``: the id came from outside."""
    return {
        "org_id": org_id,
        "provider": provider,
        "created_at": now,
        "routine_check_at": now,
        "maybe_older": maybe_older,
        "create_requested": False,
        "desired_version": 1,
        "applied_version": 0,
        "state": "active",
        "customer_state": "absent",
        "plan_state": "unknown",
        "attempts": 0,
        "next_sweep_at": now + SWEEP_GRACE,
        "generation": 0,
    }


def release_conflicts_of_deleted(change: ChangeContext, organization: Organization) -> None:
    """Release the links that are on hold for a conflict, so that billing ends. Call before ``mark_for_sync``."""
    change.session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == organization.id, IS_CONFLICT)
        .values(**link_states.values_after("deleted"), **NO_ERROR)
        .execution_options(synchronize_session=False)
    )


def mark_for_sync(change: ChangeContext, organization: Organization, *, completes_change: bool = False) -> None:
    """Raise the version. An attempt may run now; the sweep requests one after ``SWEEP_GRACE``.

    A parked link becomes active again; one on hold does not. ``completes_change``: the last change is not in sync yet,
    and this belongs to it, so the time of that change stays.
    """
    organization.version += 1
    if not completes_change:
        organization.updated_at = change.now
    change.session.flush()
    next_sweep_at = change.now + SWEEP_GRACE
    parameters = {
        "of": organization.id,
        "version": organization.version,
        "sweep": next_sweep_at,
        "now": change.now,
    }
    change.session.connection().execute(_MARK_LINKS_FOR_SYNC, parameters)
