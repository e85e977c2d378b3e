"""Links and scheduled downgrades that are due.

The sweep needs only these rows. With the broker wiped, workers killed or the database restored, it still brings every
link in sync. A dispatched link is not dispatched again for a while, so that a long queue is not filled with repeats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from sqlalchemy import UnaryExpression, and_, func, not_, or_, select, text, update
from sqlalchemy.orm import Session, aliased

from core.db import leases
from core.db.database import Database
from core.db.models.billing_links import (
    HAS_ROUTINE_CHECKS,
    LINK_HAS_WORK,
    LINK_IS_ACTIVE_WITH_WORK,
    LINK_IS_OBSERVED,
    BillingLink,
)
from core.db.models.organizations import Management, Organization
from core.events.event_types import ChangeContext
from core.organizations import commands, link_states, management
from core.organizations import links as organization_links
from core.ports.spec import PROVIDERS, Provider
from core.reconcile.backoff import next_downgrade_check
from core.reconcile.commands import invalidate

# Longer than the rate limiter needs for the links of one sweep, with room for an attempt and a reservation.
REDISPATCH_LINK_AFTER = timedelta(seconds=30)
# One in so many dispatched links is a new one. An import fills the queue for hours, and new changes must not wait.
NEWEST_SHARE_DIVISOR = 4
MAX_LINKS_WALKED: Final = 20_000
"""By one call that looks for links of which no index knows."""


def dispatch(session: Session, provider: Provider, limit: int, now: datetime) -> list[str]:
    """Up to ``limit`` organizations whose link is due, marked as dispatched.

    Those that have been due longest come first. If there are more than ``limit``, up to a quarter of the result, but at
    least one of two or more, are those that became due last.
    """
    newest_limit = max(1, limit // NEWEST_SHARE_DIVISOR) if limit > 1 else 0
    oldest = _dispatch_in_order(session, provider, BillingLink.next_sweep_at.asc(), limit - newest_limit, now)
    if len(oldest) < limit - newest_limit:
        return oldest
    return oldest + _dispatch_in_order(session, provider, BillingLink.next_sweep_at.desc(), newest_limit, now)


def _dispatch_in_order(
    session: Session, provider: Provider, order: UnaryExpression[datetime], limit: int, now: datetime
) -> list[str]:
    if not limit:
        return []
    due = (
        select(BillingLink.org_id)
        .where(
            BillingLink.provider == provider,
            text(LINK_IS_ACTIVE_WITH_WORK),
            BillingLink.next_sweep_at <= now,
            leases.is_free(BillingLink, now),
        )
        .order_by(order)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    org_ids = list(session.scalars(due))
    if not org_ids:
        return []
    session.execute(
        update(BillingLink)
        .where(BillingLink.provider == provider, BillingLink.org_id.in_(org_ids))
        .values(next_sweep_at=now + REDISPATCH_LINK_AFTER)
        .execution_options(synchronize_session=False)
    )
    return org_ids


def count_in_flight(session: Session, provider: Provider, limit: int, now: datetime) -> int:
    """Links that are behind and in flight: in a message, an attempt or a short wait. Counts up to ``limit``."""
    in_flight = (
        select(BillingLink.org_id)
        .where(
            BillingLink.provider == provider,
            text(LINK_IS_ACTIVE_WITH_WORK),
            BillingLink.next_sweep_at > now,
            BillingLink.next_sweep_at <= now + REDISPATCH_LINK_AFTER,
        )
        .limit(limit)
    )
    return session.scalar(select(func.count()).select_from(in_flight.subquery())) or 0


def recheck_due_downgrades(database: Database, limit: int, now: datetime, installation: Management) -> int:
    """Request a read of the subscriptions whose scheduled downgrade may be active. Returns how many organizations.

    An observed organization gets no new version: a read changes nothing of it, so each version would follow another.
    """
    with database.write() as session:
        org_ids = session.scalars(
            select(Organization.id)
            .where(
                Organization.pending_plan_tier.is_not(None),
                Organization.downgrade_recheck_at <= now,
            )
            .order_by(Organization.downgrade_recheck_at)
            .limit(limit)
        ).all()
        for org_id in org_ids:
            organization = commands.lock(session, org_id)
            if organization is None or not organization.is_downgrade_due(now):
                continue
            effective_at = organization.plan_effective_at
            link, other_link, provider = _charging_link(session, org_id)
            organization.downgrade_recheck_at = next_downgrade_check(org_id, provider, effective_at, now)
            if management.is_observed(organization, (link, other_link), installation):
                if link.checks_done == link.checks_requested:
                    _request_checks(session, [(org_id, provider)], link_states.values_after("check_requested"), now)
                continue
            if link.state != "active" and effective_at is not None and effective_at > now:
                continue  # An early check is no reason to try again what is parked.
            # A parked link keeps its last-known plan. Otherwise this would create again a subscription that somebody
            # ended at the provider.
            change = ChangeContext(session, now)
            # What a webhook has reported is compared before it is written.
            invalidate(
                change,
                organization.id,
                ["downgrade_due"],
                BillingLink.state == "active",
                not_(organization_links.IS_CHECK_DUE),
            )
            organization_links.mark_for_sync(change, organization, "due_downgrade")
    return len(org_ids)


def request_routine_checks(  # noqa: PLR0913 - the last one is a choice
    session: Session,
    provider: Provider,
    every: timedelta,
    limit: int,
    now: datetime,
    *,
    only_observed: bool = False,
) -> int:
    """Request a remote check of up to ``limit`` links whose last routine check is older than ``every``, oldest first.

    A webhook may get lost, and Lago lists none that it sent. So each link is read once within that time.
    """
    due = (
        select(BillingLink.org_id)
        .where(
            BillingLink.provider == provider,
            text(HAS_ROUTINE_CHECKS),
            *((text(LINK_IS_OBSERVED),) if only_observed else ()),
            # What is active and has work is read soon, or waits for a reason. An observed link keeps its work.
            text(f"(state = 'observed' OR NOT ({LINK_HAS_WORK}))"),
            BillingLink.routine_check_at < now - every,
            leases.is_free(BillingLink, now),
        )
        .order_by(BillingLink.routine_check_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    org_ids = list(session.scalars(due))
    session.execute(
        update(BillingLink)
        .where(BillingLink.provider == provider, BillingLink.org_id.in_(org_ids))
        .values(
            **link_states.values_after("check_requested"),
            checks_requested=BillingLink.checks_requested + 1,
            next_sweep_at=now,
            routine_check_at=now,
        )
        .execution_options(synchronize_session=False)
    )
    return len(org_ids)


def resume_managed(session: Session, limit: int, now: datetime) -> int:
    """Make up to ``limit`` observed links due that the installation manages: its mode was observe before.

    Not those of an organization whose own mode is observe, or that has something which must be adopted first, or is
    given back at the other provider. Of a deleted one whatever is not theirs is ended (``is_link_observed``).
    """
    other = aliased(BillingLink)
    of_organization = select(other.org_id).where(other.org_id == BillingLink.org_id)
    is_given_back = and_(other.provider != BillingLink.provider, other.ownership == "adopted", other.marks == "removal")
    not_ours = of_organization.where(or_(other.ownership == "theirs", is_given_back))
    given_back = of_organization.where(is_given_back)
    observed = (
        select(Organization.id)
        .where(Organization.id == BillingLink.org_id, Organization.management == "observe")
        .correlate(BillingLink)
    )
    due = (
        select(BillingLink.org_id, BillingLink.provider)
        .where(text(LINK_IS_OBSERVED), not_(observed.exists()))
        .order_by(BillingLink.org_id)
        .limit(limit)
        .with_for_update(of=BillingLink, skip_locked=True)
    )
    deleted = due.join(Organization, Organization.id == BillingLink.org_id).where(
        Organization.status == "deleted", BillingLink.ownership != "theirs", not_(given_back.exists())
    )
    resumed = 0
    for query in (due.where(not_(not_ours.exists())), deleted):
        rows = session.execute(query).all()
        _request_checks(session, rows, link_states.values_after("mode_of_installation_changed"), now)
        resumed += len(rows)
    return resumed


class FirstObservations(NamedTuple):
    """``next_org_id``: where the next call goes on; "" at the end of the links."""

    requested: int
    next_org_id: str


def request_first_observations(
    session: Session, limit: int, now: datetime, org_id: str = "", *, max_reads: int = MAX_LINKS_WALKED
) -> FirstObservations:
    """Request a read of up to ``limit`` links that are in sync and that the installation observes: its mode was manage.

    Whatever else is active has work, and is observed when that is due. No index has these links, so each call walks a
    part of all links, by id from ``org_id`` on. It costs the same however many there are.
    """
    part = select(BillingLink.org_id).where(BillingLink.org_id >= org_id).order_by(BillingLink.org_id)
    end = session.scalar(part.offset(max_reads).limit(1))
    managed = select(Organization.id).where(Organization.id == BillingLink.org_id, Organization.management == "manage")
    due = (
        select(BillingLink.org_id, BillingLink.provider)
        .where(
            BillingLink.org_id >= org_id,
            *(() if end is None else (BillingLink.org_id <= end,)),
            BillingLink.state == "active",
            text(f"NOT ({LINK_HAS_WORK})"),
            not_(managed.exists()),
            leases.is_free(BillingLink, now),
        )
        .order_by(BillingLink.org_id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = session.execute(due).all()
    _request_checks(session, rows, link_states.values_after("check_requested"), now)
    return FirstObservations(len(rows), rows[-1][0] if len(rows) == limit else end or "")


def _request_checks(
    session: Session, rows: Sequence[tuple[str, str]], values: Mapping[str, object], now: datetime
) -> None:
    """Make these links due with a remote check. ``rows``: the organization and the provider of each."""
    for provider in PROVIDERS:
        org_ids = [org_id for org_id, of in rows if of == provider]
        if org_ids:
            session.execute(
                update(BillingLink)
                .where(BillingLink.provider == provider, BillingLink.org_id.in_(org_ids))
                .values(**values, checks_requested=BillingLink.checks_requested + 1, next_sweep_at=now)
                .execution_options(synchronize_session=False)
            )


def _charging_link(session: Session, org_id: str) -> tuple[BillingLink, BillingLink, Provider]:
    """The link that charges, the other one, and the provider: Stripe where it has a subscription of ours, else Lago."""
    at_stripe = session.get_one(BillingLink, (org_id, "stripe"))
    at_lago = session.get_one(BillingLink, (org_id, "lago"))
    if at_stripe.subscription_id is not None:
        return at_stripe, at_lago, "stripe"
    return at_lago, at_stripe, "lago"


def count_behind(session: Session) -> dict[str, int]:
    """The number of links that are behind and active, by provider."""
    rows = session.execute(
        select(BillingLink.provider, func.count()).where(text(LINK_IS_ACTIVE_WITH_WORK)).group_by(BillingLink.provider)
    )
    return {row[0]: row[1] for row in rows}
