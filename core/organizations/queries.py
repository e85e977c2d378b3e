"""Who belongs where: an organization as its members and the services see it, page by page, and the seats of a person.

Reads only. A page begins after the last row of the one before, so what comes or goes meanwhile neither repeats nor
hides another row, at any size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, func, literal, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.common.validation import one_of
from core.db.base import UtcDateTime
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import ROLES, Membership, Organization, Role
from core.organizations.validation import name_key

# More than anybody belongs to; whoever does reaches the others by their id.
SEATS_AT_MOST: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An organization, and what the one who asked is in it; ``role`` None: a service asked."""

    organization: Organization
    role: Role | None
    joined_at: datetime | None
    team_size: int
    lago_customer_id: str | None
    stripe_customer_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """The last row of a page."""

    created_at: datetime
    org_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """``user_id``: only those that this person belongs to. ``search``: a part of the name, letter case aside."""

    user_id: str | None = None
    search: str | None = None
    plan: str | None = None
    after: Cursor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    user_id: str
    role: Role
    joined_at: datetime


def page(session: Session, wanted: Wanted, limit: int) -> list[Entry]:
    """Organizations that are not deleted, oldest first."""
    return _found(session, wanted.user_id, _conditions(wanted), Organization.created_at, limit)


def seats(session: Session, user_id: str) -> list[Entry]:
    """Where a person belongs, the longest first; deleted organizations aside."""
    return _found(session, user_id, [Organization.status != "deleted"], Membership.joined_at, SEATS_AT_MOST)


def entry(session: Session, org_id: str, user_id: str | None = None) -> Entry | None:
    """One organization, deleted or not; ``None``: there is none, or the person named is not in it."""
    found = _found(session, user_id, [Organization.id == org_id], Organization.created_at, 1)
    return found[0] if found else None


def members(session: Session, org_id: str, limit: int, offset: int = 0) -> tuple[list[Member], int]:
    """In the order in which they joined, and how many there are beyond the page too."""
    here = Membership.org_id == org_id
    rows = session.scalars(
        select(Membership).where(here).order_by(Membership.joined_at, Membership.user_id).limit(limit).offset(offset)
    )
    found = [Member(user_id=row.user_id, role=one_of("role", row.role, ROLES), joined_at=row.joined_at) for row in rows]
    return found, session.scalar(select(func.count()).select_from(Membership).where(here)) or 0


def roles(session: Session, org_id: str) -> dict[Role, int]:
    """How many members have each role."""
    rows = session.execute(
        select(Membership.role, func.count()).where(Membership.org_id == org_id).group_by(Membership.role)
    )
    counts = {row[0]: row[1] for row in rows}
    return {role: counts.get(role, 0) for role in ROLES}


def _conditions(wanted: Wanted) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [Organization.status != "deleted"]
    if wanted.search is not None:
        conditions.append(Organization.name_key.contains(name_key(wanted.search), autoescape=True))
    if wanted.plan is not None:
        conditions.append(Organization.plan_tier == wanted.plan)
    if (after := wanted.after) is not None:
        place = tuple_(literal(after.created_at, UtcDateTime), literal(after.org_id))
        conditions.append(tuple_(Organization.created_at, Organization.id) > place)
    return conditions


def _entries(session: Session, found: Iterable[tuple[Organization, Membership | None]]) -> list[Entry]:
    rows = list(found)
    ids = [organization.id for organization, _ in rows]
    sizes = {
        row[0]: row[1]
        for row in session.execute(
            select(Membership.org_id, func.count()).where(Membership.org_id.in_(ids)).group_by(Membership.org_id)
        )
    }
    links = select(BillingLink.org_id, BillingLink.provider, BillingLink.customer_id)
    customers = {(row[0], row[1]): row[2] for row in session.execute(links.where(BillingLink.org_id.in_(ids)))}
    return [
        Entry(
            organization=organization,
            role=one_of("role", membership.role, ROLES) if membership else None,
            joined_at=membership.joined_at if membership else None,
            team_size=sizes.get(organization.id, 0),
            lago_customer_id=customers.get((organization.id, "lago")),
            stripe_customer_id=customers.get((organization.id, "stripe")),
        )
        for organization, membership in rows
    ]


def _found(
    session: Session,
    user_id: str | None,
    conditions: Sequence[ColumnElement[bool]],
    order: InstrumentedAttribute[datetime],
    limit: int,
) -> list[Entry]:
    """Of all organizations, or of this person's."""
    if user_id is None:
        everything = select(Organization).where(*conditions).order_by(order, Organization.id).limit(limit)
        return _entries(session, [(organization, None) for organization in session.scalars(everything)])
    mine = (
        select(Organization, Membership)
        .join(Membership, Membership.org_id == Organization.id)
        .where(Membership.user_id == user_id, *conditions)
        .order_by(order, Organization.id)
        .limit(limit)
    )
    return _entries(session, [(row[0], row[1]) for row in session.execute(mine)])
