"""Changes that the payment brake holds: their list, and an operator's decision to let them go or to drop them.

A link that it stopped stays on hold, also when its organization changes, until somebody decides. An end comes first in
every list: somebody who left must not be billed on unseen.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import uuid4

from sqlalchemy import and_, case, func, select, text, update
from sqlalchemy.orm import Session, aliased

from core.catalog.plans import Catalog
from core.common.validation import InvalidChangeError
from core.db.database import acquire_advisory_locks
from core.db.models.billing_links import IS_BRAKED, NEEDS_OPERATOR, NO_ERROR, BillingLink
from core.db.models.organizations import Organization
from core.db.models.payments import ExpectedPaymentChanges
from core.events import link_history, outbox
from core.events.event_types import ChangeContext
from core.flow_control import payment_brake
from core.flow_control.payment_brake import RequestedChange
from core.organizations import link_states, links
from core.ports.spec import PROVIDERS, Provider
from core.reconcile.payment_goals import DROPPED_CODE, ON_HOLD_CODES, payer_goal, plan_goal

MAX_EXPECTED: Final = 1_000_000
MAX_EXPECTED_FOR: Final = timedelta(days=31)
# The first part is the condition of a partial index.
_IS_ON_HOLD: Final = and_(text(NEEDS_OPERATOR), IS_BRAKED)
_IS_WAITING: Final = and_(_IS_ON_HOLD, BillingLink.error_code != DROPPED_CODE)
ENDS_FIRST: Final = case((BillingLink.error_code == ON_HOLD_CODES["end"], 0), else_=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeOnHold:
    """``before``: the code of what is paid now. ``plan``, ``next_plan``: of the organization, which the change brings.

    ``payer_before``, ``payer_after``: if Lago would get another payer, too. ``target``: the code of the same plan to
    which an operator moves it. ``sold_price_id``: as in ``SoldPrice``. ``is_adopted``: the price or the quantity may be
    one that no catalog has.

    ``code`` says the kind, and whether it was dropped.
    """

    org_id: str
    name: str
    provider: Provider
    code: str
    since: datetime | None
    before: str | None
    sold_price_id: str | None
    is_adopted: bool
    plan: str
    next_plan: str | None
    target: str | None
    payer_before: str | None
    payer_after: str | None
    is_deleted: bool


def list_on_hold(session: Session, limit: int, org_ids: Collection[str] = ()) -> list[ChangeOnHold]:
    """Those that wait and those that were dropped, ends first. ``org_ids`` empty: of all organizations."""
    stripe_link = aliased(BillingLink)
    query = (
        select(BillingLink, Organization, stripe_link.customer_id)
        .join(Organization, Organization.id == BillingLink.org_id)
        .join(stripe_link, and_(stripe_link.org_id == BillingLink.org_id, stripe_link.provider == "stripe"))
        .where(_IS_ON_HOLD)
        .order_by(ENDS_FIRST, BillingLink.error_at, BillingLink.org_id, BillingLink.provider)
        .limit(limit)
    )
    if org_ids:
        query = query.where(BillingLink.org_id.in_(org_ids))
    return [_change_on_hold(*row) for row in session.execute(query)]


def count_on_hold(session: Session) -> dict[str, int]:
    """The number of links that wait, by code; dropped ones do not count."""
    counted = select(BillingLink.error_code, func.count()).where(_IS_WAITING).group_by(BillingLink.error_code)
    return {str(code): count for code, count in session.execute(counted)}


def waiting_versions(session: Session, *, with_deleted: bool = True) -> dict[str, int]:
    """The organizations with a change that waits, in ascending order, and their versions: what a decision is about."""
    statuses = () if with_deleted else (Organization.status != "deleted",)
    query = (
        select(Organization.id, Organization.version)
        .join(BillingLink, BillingLink.org_id == Organization.id)
        .where(_IS_WAITING, *statuses)
        .distinct()
    )
    return dict(session.execute(query.order_by(Organization.id)).all())


def release(change: ChangeContext, organization: Organization, catalog: Catalog, reason: str) -> list[Provider]:
    """Let go what waits or was dropped: it is sent as the organization is now, and takes no place.

    The caller has locked the organization. Returns the providers; empty, and nothing changes, if nothing waits.
    """
    rows = change.session.execute(
        select(BillingLink).where(BillingLink.org_id == organization.id, IS_BRAKED).with_for_update()
    ).scalars()
    found = list(rows)
    if not found:
        return []
    change.session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == organization.id, IS_BRAKED)
        .values(**link_states.values_after("payment_released"), **NO_ERROR, not_before=None, not_before_reason=None)
        .execution_options(synchronize_session=False)
    )
    of_organization = {
        provider: change.session.get_one(BillingLink, (organization.id, provider)) for provider in PROVIDERS
    }
    goals = {"plan": plan_goal(organization, of_organization.values(), catalog)}
    payer_id = of_organization["stripe"].customer_id
    if any(_brings_payer(link, payer_id) for link in found):  # as the list showed it
        goals["payer"] = payer_goal(payer_id)
    for scope in ("plan", "payer"):
        if scope in goals:
            requested = RequestedChange(org_id=organization.id, scope=scope, goal=goals[scope])
            payment_brake.record(change.session, requested, "released", change.now, reason)
    providers = sorted(_provider(link.provider) for link in found)
    link_history.record_actions(change, organization.id, providers, "payment_released", reason=reason)
    links.log_freed(change, organization.id, providers, "brake")
    links.mark_for_sync(change, organization, "brake")
    outbox.record(change, "organization.sync_requested", organization.id, {})
    return providers


def drop(change: ChangeContext, organization: Organization, reason: str) -> list[Provider]:
    """Leave what waits on hold for good: nothing is sent, and the organization's row stays as it is.

    The caller has locked the organization. Returns the providers at which something waited; none for a deleted one:
    somebody who left must not be billed on unseen.
    """
    if organization.status == "deleted":
        return []
    message = (
        "the change of what is paid was dropped, so nothing is sent: correct the organization with `billing-sync set`, "
        f"then run `billing-sync brake release --only {organization.id} --reason …`, which sends it as it is then"
    )
    rows = change.session.scalars(
        update(BillingLink)
        .where(BillingLink.org_id == organization.id, _IS_WAITING)
        .values(error_code=DROPPED_CODE, error_message=message, error_at=change.now)
        .returning(BillingLink.provider)
        .execution_options(synchronize_session=False)
    )
    providers = sorted(map(_provider, rows))
    link_history.record_actions(change, organization.id, providers, "payment_dropped", reason=reason)
    return providers


def expect(change: ChangeContext, changes: int, lasts: timedelta, reason: str) -> ExpectedPaymentChanges:
    """Expect this number of changes beyond those of each hour. Raises ``InvalidChangeError``."""
    if not 1 <= changes <= MAX_EXPECTED:
        raise InvalidChangeError("changes", f"expect between 1 and {MAX_EXPECTED} changes")
    if not timedelta(0) < lasts <= MAX_EXPECTED_FOR:
        raise InvalidChangeError("lasts", f"an expectation lasts at most {MAX_EXPECTED_FOR.days} days")
    expectation = ExpectedPaymentChanges(
        id=str(uuid4()),
        changes=changes,
        used=0,
        until=change.now + lasts,
        reason=reason,
        actor=change.cause.actor,
        created_at=change.now,
    )
    change.session.add(expectation)
    return expectation


def withdraw(session: Session, expectation_id: str, now: datetime) -> ExpectedPaymentChanges | None:
    """End an expectation before its time. None: no open one has this id."""
    # As ``take_place`` does, so that no change takes a place of it meanwhile.
    acquire_advisory_locks(session, payment_brake.PLACES_LOCK)
    for expectation in payment_brake.open_expectations(session, now):
        if expectation.id == expectation_id:
            expectation.until = now
            return expectation
    return None


def _brings_payer(link: BillingLink, stripe_customer_id: str | None) -> bool:
    return link.provider == "lago" and link.payer_id is not None and stripe_customer_id not in {None, link.payer_id}


def _change_on_hold(link: BillingLink, organization: Organization, stripe_customer_id: str | None) -> ChangeOnHold:
    brings_payer = _brings_payer(link, stripe_customer_id)
    return ChangeOnHold(
        org_id=organization.id,
        name=organization.name,
        provider=_provider(link.provider),
        code=link.error_code or "",
        since=link.error_at,
        before=link.sold_plan or link.applied_plan,
        sold_price_id=link.sold_price_id,
        is_adopted=link.ownership == "adopted",
        plan=organization.plan_tier,
        next_plan=organization.pending_plan_tier,
        target=link.target_plan,
        payer_before=link.payer_id if brings_payer else None,
        payer_after=stripe_customer_id if brings_payer else None,
        is_deleted=organization.status == "deleted",
    )


def _provider(stored: str) -> Provider:
    return "stripe" if stored == "stripe" else "lago"
