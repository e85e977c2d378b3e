"""Commands that make a link reconcile again although its organization did not change: retry, end a conflict, repair.

A link that is on hold for a conflict is reconciled again only after ``end_conflict``: a retry would overwrite what
somebody changed at the provider, although nobody decided that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, case, func, not_, or_, select, update
from sqlalchemy.orm import Session

from core.db import leases
from core.db.models.billing_links import IS_CONFLICT, IS_NO_CONFLICT, BillingLink
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import link_states
from core.organizations import links as organization_links
from core.organizations.link_states import LinkEvent
from core.organizations.links import SWEEP_GRACE
from core.ports.spec import PROVIDERS, Provider
from core.reconcile.attempt import NO_ERROR

PAYER_CHANGED: Final = "payer_changed"
"""The error code of a conflict about the payer in Lago."""
# Lago may have a subscription whose create was never answered. The customer stays ours, so that it can be ended.
_MAY_HAVE_UNKNOWN_SUBSCRIPTION = and_(
    BillingLink.provider == "lago",
    BillingLink.subscription_id.is_(None),
    BillingLink.customer_state.in_(("unknown", "applied")),
)
# A customer that is read before it is written keeps its payer.
_IS_PAYER_CONFLICT = func.coalesce(BillingLink.error_code, "") == PAYER_CHANGED
_NO_WAIT: Final[dict[str, Any]] = {"not_before": None, "not_before_reason": None}


def invalidate(
    change: ChangeContext, org_id: str, events: Sequence[LinkEvent], *conditions: ColumnElement[bool], **values: object
) -> list[str]:
    """Discard what is known of the providers, as the events say in ``TRANSITIONS``. Returns whose links met the
    conditions.

    Every discard that is not an attempt's own goes through here: ``retry``, ``end_conflict``, ``repair``, a downgrade
    that is due, and an attempt that lost its lease.
    """
    new_states = {name: value for event in events for name, value in link_states.values_after(event).items()}
    rows = change.session.scalars(
        update(BillingLink)
        .where(BillingLink.org_id == org_id, *conditions)
        .values({**new_states, **values})
        .returning(BillingLink.provider)
        .execution_options(synchronize_session=False)
    )
    return list(rows)


def retry(change: ChangeContext, organization: Organization) -> None:
    """An operator's retry: both links are tried now, also if they are parked, waiting, or on hold since an import.

    Everything is read or written again. A link that is on hold for a conflict stays as it is.
    """
    # No provider can be asked whether a payer is still rejected; the operator has seen that it was.
    is_payer_rejected = BillingLink.payment_status == "payer_rejected"
    payment_status = case((is_payer_rejected, None), else_=BillingLink.payment_status)
    keeps_customer = _MAY_HAVE_UNKNOWN_SUBSCRIPTION
    by_event: dict[LinkEvent, ColumnElement[bool]] = {
        "retried_keeping_customer": keeps_customer,
        "retried": not_(keeps_customer),
    }
    for event, condition in by_event.items():
        invalidate(
            change, organization.id, [event], IS_NO_CONFLICT, condition, payment_status=payment_status, **_NO_WAIT
        )
    organization_links.mark_for_sync(change, organization)


def conflicting_providers(session: Session, org_id: str) -> list[Provider]:
    """The providers at which the organization's link is on hold for a conflict."""
    found = set(session.scalars(select(BillingLink.provider).where(BillingLink.org_id == org_id, IS_CONFLICT)))
    return [provider for provider in PROVIDERS if provider in found]


def end_conflict(change: ChangeContext, organization: Organization, provider: Provider) -> bool:
    """End the hold of a conflict: the next attempt makes the provider match the organization as it is now.

    The caller has locked the organization. Returns False, and changes nothing, if there is no conflict.
    """
    keeps_customer = or_(_IS_PAYER_CONFLICT, _MAY_HAVE_UNKNOWN_SUBSCRIPTION)
    by_event: dict[LinkEvent, ColumnElement[bool]] = {
        "conflict_ended_keeping_customer": keeps_customer,
        "conflict_ended": not_(keeps_customer),
    }
    is_this_conflict = and_(BillingLink.provider == provider, IS_CONFLICT)
    ended = [
        invalidate(change, organization.id, [event], is_this_conflict, condition, **_NO_WAIT, **NO_ERROR)
        for event, condition in by_event.items()
    ]
    if not any(ended):
        return False
    organization_links.mark_for_sync(change, organization)
    return True


def repair(change: ChangeContext, org_id: str, provider: Provider, events: Sequence[LinkEvent]) -> bool:
    """Make one link's next attempt write or read again what a drift repair corrects. The other link does not change.

    Returns False, and changes nothing, if the link is not in sync.
    """
    is_in_sync = and_(
        BillingLink.provider == provider,
        BillingLink.state == "active",
        BillingLink.applied_version == BillingLink.desired_version,
        BillingLink.intent.is_(None),
        leases.is_free(BillingLink, change.now),
    )
    due = {"applied_version": BillingLink.desired_version - 1, "next_sweep_at": change.now + SWEEP_GRACE}
    return bool(invalidate(change, org_id, events, is_in_sync, **due))
