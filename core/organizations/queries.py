"""Read side: pages of organizations and members, and the memberships of a user.

A page of organizations begins after the last row of the page before. Rows that are added or removed meanwhile
therefore neither repeat nor hide another row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, SQLColumnExpression, func, literal, or_, select, tuple_
from sqlalchemy.orm import Session

from core.common.names import name_key
from core.common.validation import one_of
from core.db.base import UtcDateTime
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import MEMBERSHIP_ROLES, Membership, MembershipRole, Organization

# More than any user has. Further organizations can still be read by their id.
MAX_MEMBERSHIPS_LISTED: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationRow:
    """An organization, and the user's membership in it. ``role`` is None if no user is given."""

    organization: Organization
    role: MembershipRole | None
    joined_at: datetime | None
    team_size: int
    lago_customer_id: str | None
    stripe_customer_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationCursor:
    """The last row of a page."""

    created_at: datetime
    org_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationFilter:
    """``user_id``: only organizations of this user. ``search``: a part of the name, ignoring case."""

    user_id: str | None = None
    search: str | None = None
    plan: str | None = None
    after: OrganizationCursor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    user_id: str
    role: MembershipRole
    joined_at: datetime


def list_organizations(session: Session, criteria: OrganizationFilter, limit: int) -> list[OrganizationRow]:
    """Organizations that are not deleted, oldest first."""
    return _select_rows(session, criteria.user_id, _conditions(criteria), [Organization.created_at], limit)


def memberships_of_user(session: Session, user_id: str) -> list[OrganizationRow]:
    """The organizations of a user without the deleted ones, the longest membership first of those that the user chose,
    then of the others."""
    order = [Membership.is_chosen.desc(), Membership.joined_at]
    return _select_rows(session, user_id, [Organization.status != "deleted"], order, MAX_MEMBERSHIPS_LISTED)


def find_organization(session: Session, org_id: str, user_id: str | None = None) -> OrganizationRow | None:
    """One organization, deleted or not. ``None``: it does not exist, or the given user is not a member."""
    found = _select_rows(session, user_id, [Organization.id == org_id], [Organization.created_at], 1)
    return found[0] if found else None


def list_members(session: Session, org_id: str, limit: int, offset: int = 0) -> tuple[list[Member], int]:
    """A page of members in the order in which they joined, and the number of all members."""
    in_organization = Membership.org_id == org_id
    rows = session.scalars(
        select(Membership)
        .where(in_organization)
        .order_by(Membership.joined_at, Membership.user_id)
        .limit(limit)
        .offset(offset)
    )
    found = [
        Member(user_id=row.user_id, role=one_of("role", row.role, MEMBERSHIP_ROLES), joined_at=row.joined_at)
        for row in rows
    ]
    return found, session.scalar(select(func.count()).select_from(Membership).where(in_organization)) or 0


def count_roles(session: Session, org_id: str) -> dict[MembershipRole, int]:
    """How many members have each role."""
    rows = session.execute(
        select(Membership.role, func.count()).where(Membership.org_id == org_id).group_by(Membership.role)
    )
    counts = {row[0]: row[1] for row in rows}
    return {role: counts.get(role, 0) for role in MEMBERSHIP_ROLES}


def count_without_billing_email(session: Session, tiers: Collection[str]) -> int:
    """Organizations that are or will be on one of the plans, and have no billing email."""
    on_plan = or_(Organization.plan_tier.in_(tiers), Organization.pending_plan_tier.in_(tiers))
    conditions = (Organization.status != "deleted", Organization.billing_email.is_(None), on_plan)
    return session.scalar(select(func.count()).select_from(Organization).where(*conditions)) or 0


def _conditions(criteria: OrganizationFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [Organization.status != "deleted"]
    if criteria.search is not None:
        conditions.append(Organization.name_key.contains(name_key(criteria.search), autoescape=True))
    if criteria.plan is not None:
        conditions.append(Organization.plan_tier == criteria.plan)
    if (after := criteria.after) is not None:
        position = tuple_(literal(after.created_at, UtcDateTime), literal(after.org_id))
        conditions.append(tuple_(Organization.created_at, Organization.id) > position)
    return conditions


def _to_rows(session: Session, found: Iterable[tuple[Organization, Membership | None]]) -> list[OrganizationRow]:
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
        OrganizationRow(
            organization=organization,
            role=one_of("role", membership.role, MEMBERSHIP_ROLES) if membership else None,
            joined_at=membership.joined_at if membership else None,
            team_size=sizes.get(organization.id, 0),
            lago_customer_id=customers.get((organization.id, "lago")),
            stripe_customer_id=customers.get((organization.id, "stripe")),
        )
        for organization, membership in rows
    ]


def _select_rows(
    session: Session,
    user_id: str | None,
    conditions: Sequence[ColumnElement[bool]],
    order: Sequence[SQLColumnExpression[Any]],
    limit: int,
) -> list[OrganizationRow]:
    """From all organizations, or from this user's."""
    if user_id is None:
        all_organizations = select(Organization).where(*conditions).order_by(*order, Organization.id).limit(limit)
        return _to_rows(session, [(organization, None) for organization in session.scalars(all_organizations)])
    of_user = (
        select(Organization, Membership)
        .join(Membership, Membership.org_id == Organization.id)
        .where(Membership.user_id == user_id, *conditions)
        .order_by(*order, Organization.id)
        .limit(limit)
    )
    return _to_rows(session, [(row[0], row[1]) for row in session.execute(of_user)])
