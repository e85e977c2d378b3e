"""The billing links of an organization: new ones, and marking them for sync after a change.

A change that a provider must see raises the organization's version and each link's in the same transaction.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from functools import partial
from typing import Literal, cast

import structlog
from sqlalchemy import ColumnElement, and_, bindparam, case, or_, select, text, update

from core.db import after_commit
from core.db.base import UtcDateTime
from core.db.models.billing_links import IS_BRAKED, IS_CONFLICT, NEEDS_OPERATOR, NO_ERROR, NO_TARGET, BillingLink
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext, request_id_of
from core.organizations import link_states
from core.ports.spec import PROVIDERS, Provider

log = structlog.get_logger()

FreedBy = Literal[
    "change",
    "deletion",
    "retry",
    "resolve",
    "brake",
    "price_move",
    "set-customer-id",
    "due_downgrade",
    "other_link",
    "management",
    "charging",
]
"""What made a link active again that was parked or on hold. other_link: the attempt at the organization's other link
changed who charges, or lost its lease."""
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
_MARK_FOR_SYNC = (
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
_MARK_UNPARKED_FOR_SYNC = _MARK_FOR_SYNC.where(BillingLink.state != "parked")
_MARK_REMAINING_FOR_SYNC = _MARK_FOR_SYNC.where(BillingLink.desired_version < bindparam("version")).returning(
    BillingLink.provider
)


def new_link(
    org_id: str, provider: str, now: datetime, *, maybe_older: bool, customer_id: str | None = None
) -> dict[str, object]:
    """The row of a new link, to which nothing was applied yet. ``maybe_older``: the id came from outside.

    ``customer_id`` came from outside, too, so its customer is not ours.
    """
    return {
        "org_id": org_id,
        "provider": provider,
        "created_at": now,
        "routine_check_at": now,
        "maybe_older": maybe_older,
        "subscription_requested": False,
        "desired_version": 1,
        "applied_version": 0,
        "state": "active",
        "customer_id": customer_id,
        "customer_state": "absent" if customer_id is None else "unconfirmed",
        "ownership": "ours" if customer_id is None else "theirs",
        "plan_state": "unknown",
        "attempts": 0,
        "next_sweep_at": now + SWEEP_GRACE,
        "generation": 0,
    }


def release_deleted(change: ChangeContext, organization: Organization) -> None:
    """Release the links that are on hold for a conflict or by the payment brake, so that billing ends.

    Call before ``mark_for_sync``. The end takes a place of its own at the brake.
    """
    rows = change.session.scalars(
        update(BillingLink)
        .where(BillingLink.org_id == organization.id, or_(IS_CONFLICT, IS_BRAKED))
        .values(**link_states.values_after("deleted"), **NO_ERROR)
        .returning(BillingLink.provider)
        .execution_options(synchronize_session=False)
    )
    log_freed(change, organization.id, cast("Collection[Provider]", rows.all()), "deletion")


def mark_for_sync(
    change: ChangeContext, organization: Organization, by: FreedBy = "change", *, completes_change: bool = False
) -> None:
    """Raise the version. An attempt may run now; the sweep requests one after ``SWEEP_GRACE``.

    A parked link becomes active again; one on hold does not. ``by`` is logged for a link that was parked.
    ``completes_change``: the last change is not in sync yet, and this belongs to it, so the time of that change stays.
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
    connection = change.session.connection()
    # One statement if no link is parked. The second one marks whatever the first has left, so no link is missed.
    if connection.execute(_MARK_UNPARKED_FOR_SYNC, parameters).rowcount < len(PROVIDERS):
        freed = connection.scalars(_MARK_REMAINING_FOR_SYNC, parameters).all()
        log_freed(change, organization.id, cast("Collection[Provider]", freed), by)


def clear_targets(change: ChangeContext, org_id: str) -> None:
    """Move the organization to no other code of its plan: it changes to another plan."""
    change.session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == org_id, BillingLink.target_plan.is_not(None))
        .values(NO_TARGET)
        .execution_options(synchronize_session=False)
    )


def end_attempts(change: ChangeContext, org_id: str) -> None:
    """Call where it changed whose the customers are, or who decides. The caller has locked the organization.

    An attempt that runs, at either provider, loses its lease, so it sends nothing that it has not sent yet. Both links
    are compared with the providers again.
    """
    change.session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == org_id)
        .values(generation=BillingLink.generation + 1, checks_requested=BillingLink.checks_requested + 1)
        .execution_options(synchronize_session=False)
    )


def lock_inactive(change: ChangeContext, org_id: str, *conditions: ColumnElement[bool]) -> list[Provider]:
    """The links that are parked or on hold, with their rows locked: for a caller that makes them active."""
    found = change.session.scalars(
        select(BillingLink.provider)
        .where(BillingLink.org_id == org_id, text(NEEDS_OPERATOR), *conditions)
        .with_for_update()
    )
    return cast("list[Provider]", list(found))


def log_freed(change: ChangeContext, org_id: str, providers: Collection[Provider], by: FreedBy) -> None:
    """Log, after the commit, that these links became active again."""
    request_id = request_id_of(change.cause.caused_by)
    for provider in sorted(providers):
        after_commit.call(change.session, partial(_log_freed, org_id, provider, by, request_id))


def _log_freed(org_id: str, provider: Provider, by: FreedBy, request_id: str | None) -> None:
    # A program that only uses ``OrgManager`` has no logging of ours: the line would go to its standard output.
    if structlog.is_configured():
        log.warning("link_freed", org_id=org_id, provider=provider, by=by, request_id=request_id)
