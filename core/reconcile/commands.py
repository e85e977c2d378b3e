"""Commands that make a link reconcile again although its organization did not change: retry, end a conflict, repair.

What an operator asked for is recorded as an event, so the relay requests the attempts as soon as the command commits.

A retry leaves a link that is on hold for a conflict as it is: it would overwrite what somebody changed at the provider,
although nobody decided that. ``end_conflict`` ends the hold; so do the deletion of the organization and another
customer id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, and_, case, false, func, or_, select, update
from sqlalchemy.orm import Session

from core.db import leases
from core.db.models.billing_links import IS_CONFLICT, IS_NO_CONFLICT, IS_NOT_BRAKED, NO_ERROR, BillingLink
from core.db.models.organizations import Organization
from core.events import link_history, outbox
from core.events.event_types import ChangeContext
from core.organizations import link_states
from core.organizations import links as organization_links
from core.organizations.link_states import LinkEvent
from core.organizations.links import SWEEP_GRACE, FreedBy
from core.ports.spec import ARRANGED_AT_PROVIDER, CUSTOMER_DELETED, OTHER_TERMS, PAYER_CHANGED, PROVIDERS, Provider

# Lago may have a subscription whose create was never answered. The customer stays ours, so that it can be ended.
_MAY_HAVE_UNKNOWN_SUBSCRIPTION = and_(
    BillingLink.provider == "lago",
    BillingLink.subscription_id.is_(None),
    BillingLink.customer_state.in_(("unknown", "applied")),
)
_DECIDES_PAYER = and_(BillingLink.provider == "lago", BillingLink.error_code == PAYER_CHANGED)
# An unconfirmed customer in Stripe lets a changed setting end its subscription: only a retry may do that (money.md 23).
_DECISION_KEEPS_CUSTOMER = or_(
    _MAY_HAVE_UNKNOWN_SUBSCRIPTION,
    # A customer with a subscription on other terms is read again, so that Lago charges nobody who pays in Stripe.
    and_(BillingLink.provider == "stripe", BillingLink.error_code.not_in((CUSTOMER_DELETED, OTHER_TERMS))),
)
_Choice = tuple[ColumnElement[bool], LinkEvent]
_NO_WAIT: Final[dict[str, Any]] = {"not_before": None, "not_before_reason": None}


def retry(change: ChangeContext, organization: Organization) -> None:
    """An operator's retry: both links are tried now, also if they are parked, waiting, or on hold since an import.

    Everything is read or written again. What a webhook has reported is compared first: a plan that is applied is not
    written before the check. A link that is on hold for a conflict or by the payment brake stays as it is.
    """
    values = _choose([(_MAY_HAVE_UNKNOWN_SUBSCRIPTION, "retried_keeping_customer")], "retried")
    keeps_plan = and_(BillingLink.plan_state == "applied", organization_links.IS_CHECK_DUE)
    values["plan_state"] = case((keeps_plan, BillingLink.plan_state), else_=values["plan_state"])
    values["applied_plan"] = case((keeps_plan, BillingLink.applied_plan), else_=None)
    # No provider can be asked whether a payer is still rejected; the operator has seen that it was.
    is_payer_rejected = BillingLink.payment_status == "payer_rejected"
    values["payment_status"] = case((is_payer_rejected, None), else_=BillingLink.payment_status)
    freed = organization_links.lock_inactive(change, organization.id, IS_NO_CONFLICT, IS_NOT_BRAKED)
    retried = _discard(change, organization.id, {**values, **_NO_WAIT}, IS_NO_CONFLICT, IS_NOT_BRAKED)
    link_history.record_actions(change, organization.id, retried, "retried")
    organization_links.log_freed(change, organization.id, freed, "retry")
    _request_sync(change, organization, "retry")


def conflicting_providers(session: Session, org_id: str) -> list[Provider]:
    """The providers at which the organization's link is on hold for a conflict."""
    found = set(session.scalars(select(BillingLink.provider).where(BillingLink.org_id == org_id, IS_CONFLICT)))
    return [provider for provider in PROVIDERS if provider in found]


def end_conflict(
    change: ChangeContext, organization: Organization, provider: Provider, decision: Literal["ours", "theirs"]
) -> bool:
    """End the hold of a conflict: the next attempt makes the provider match the organization as it is now.

    The caller has locked the organization. Returns False, and changes nothing, if there is no conflict.
    """
    choices: list[_Choice] = [
        (_DECIDES_PAYER, "payer_decided"),
        (_DECISION_KEEPS_CUSTOMER, "conflict_ended_keeping_customer"),
    ]
    values = _choose(choices, "conflict_ended")
    is_this_conflict = and_(BillingLink.provider == provider, IS_CONFLICT)
    # The plan that is applied shows that the organization moves to Lago by a change of its plan, not by a lost setting.
    keeps_plan = and_(
        BillingLink.provider == "stripe",
        BillingLink.error_code == ARRANGED_AT_PROVIDER,
        BillingLink.plan_state == "applied",
    )
    values["plan_state"] = case((keeps_plan, BillingLink.plan_state), else_=values["plan_state"])
    values["applied_plan"] = case((keeps_plan, BillingLink.applied_plan), else_=values["applied_plan"])
    # An operator has seen the customer that is older than our link, and the payer may be sent again.
    values["maybe_older"] = case((_DECIDES_PAYER, false()), else_=BillingLink.maybe_older)
    values["payer_confirmed"] = case((_DECIDES_PAYER, false()), else_=BillingLink.payer_confirmed)
    if provider == "lago" and decision == "ours":
        # The price of its own that Lago has forgotten: an operator has seen what the plan costs now.
        is_about_price = BillingLink.error_code == OTHER_TERMS
        values["sold_price_id"] = case((is_about_price, None), else_=BillingLink.sold_price_id)
    if not _discard(change, organization.id, {**values, **_NO_WAIT, **NO_ERROR}, is_this_conflict):
        return False
    link_history.record_actions(change, organization.id, [provider], "resolved", decision=decision)
    # If it is scheduled again, the provider names its day anew.
    organization.plan_effective_at = organization.downgrade_recheck_at = None
    organization_links.log_freed(change, organization.id, [provider], "resolve")
    _request_sync(change, organization, "resolve")
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
    if not invalidate(change, org_id, events, is_in_sync, **due):
        return False
    link_history.record_actions(change, org_id, [provider], "drift_repaired", events=[*events])
    if "plan_repaired" in events:
        # If the scheduled plan is scheduled again, the provider names its day anew.
        change.session.execute(
            update(Organization)
            .where(Organization.id == org_id)
            .values(plan_effective_at=None, downgrade_recheck_at=None)
            .execution_options(synchronize_session=False)
        )
    return True


def invalidate(
    change: ChangeContext, org_id: str, events: Sequence[LinkEvent], *conditions: ColumnElement[bool], **values: object
) -> bool:
    """Discard what is known of the providers, as the events say in ``TRANSITIONS``. Returns whether a link met the
    conditions.

    For ``repair``, a downgrade that is due, and an attempt that lost its lease. ``retry`` and ``end_conflict`` choose
    one of two events for each link. ``set_customer_ids`` discards what was known of another customer.
    """
    new_states = {name: value for event in events for name, value in link_states.values_after(event).items()}
    return bool(_discard(change, org_id, {**new_states, **values}, *conditions))


def _request_sync(change: ChangeContext, organization: Organization, by: FreedBy) -> None:
    """Without the event only the sweep would find the links, after ``SWEEP_GRACE``."""
    organization_links.mark_for_sync(change, organization, by)
    outbox.record(change, "organization.sync_requested", organization.id, {})


def _choose(choices: Sequence[_Choice], otherwise: LinkEvent) -> dict[str, Any]:
    """The values of the first event whose condition a link meets; of ``otherwise`` for the rest."""
    chosen = [(func.coalesce(condition, false()), link_states.values_after(event)) for condition, event in choices]
    return {
        name: None if value is None else case(*((is_met, values[name]) for is_met, values in chosen), else_=value)
        for name, value in link_states.values_after(otherwise).items()
    }


def _discard(
    change: ChangeContext, org_id: str, values: Mapping[str, object], *conditions: ColumnElement[bool]
) -> list[str]:
    """Returns the providers of the links that met the conditions."""
    rows = change.session.scalars(
        update(BillingLink)
        .where(BillingLink.org_id == org_id, *conditions)
        .values(values)
        .returning(BillingLink.provider)
        .execution_options(synchronize_session=False)
    )
    return list(rows.all())
