"""Organizations and memberships: the source of truth."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from sqlalchemy import (
    BigInteger,
    Boolean,
    ForeignKey,
    Index,
    String,
    false,
    text,
    true,
)
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base

OrganizationStatus = Literal["active", "suspended", "deleted"]
MembershipRole = Literal["owner", "billing_admin", "member"]
Management = Literal["observe", "manage"]
"""observe: everything is read and compared, and nothing is written at a provider. manage: the providers are made to
match."""

ORGANIZATION_STATUSES: tuple[OrganizationStatus, ...] = ("active", "suspended", "deleted")
MEMBERSHIP_ROLES: tuple[MembershipRole, ...] = ("owner", "billing_admin", "member")
_HAS_ITS_NAME_ALONE = "status <> 'deleted' AND NOT may_share_name"


class Organization(Base):
    __tablename__ = "organizations"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    name_key: Mapped[str] = mapped_column(String(1000))
    """What names are compared by, see ``core.common.names``. It is never shown."""
    may_share_name: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    """Whether the database accepts the same name for other organizations, too.

    It was stored while ``UNIQUE_ORGANIZATION_NAMES`` was false, or an import or upgrade found the name in use already.
    """
    plan_tier: Mapped[str] = mapped_column(String(200))
    pending_plan_tier: Mapped[str | None] = mapped_column(String(200))
    plan_effective_at: Mapped[datetime | None]
    """When the pending plan takes effect, as the charging provider reported it. It passes before the plan is active."""
    downgrade_recheck_at: Mapped[datetime | None]
    """When to read the provider next, to see whether the pending plan is active. NULL: its day is not known."""
    status: Mapped[str] = mapped_column(String(16))
    billing_email: Mapped[str | None] = mapped_column(String(512))
    currency: Mapped[str | None] = mapped_column(String(3))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    version: Mapped[int] = mapped_column(BigInteger)
    management: Mapped[Management | None] = mapped_column(String(8))
    """Its own mode. NULL: that of the installation (``MANAGEMENT``)."""

    def is_downgrade_due(self, now: datetime) -> bool:
        """Whether the pending plan may be active, and the provider is to be read for that now."""
        if self.pending_plan_tier is None or self.downgrade_recheck_at is None:
            return False
        return self.downgrade_recheck_at <= now

    __table_args__ = (
        Index(
            "uq_organizations_name_key",
            "name_key",
            unique=True,
            sqlite_where=text(_HAS_ITS_NAME_ALONE),
            postgresql_where=text(_HAS_ITS_NAME_ALONE),
        ),
        Index("ix_organizations_name_key", "name_key"),
        Index("ix_organizations_plan_tier", "plan_tier"),
        Index("ix_organizations_created_at", "created_at", "id"),
        Index(
            "ix_organizations_downgrade_recheck_at",
            "downgrade_recheck_at",
            sqlite_where=text("pending_plan_tier IS NOT NULL"),
            postgresql_where=text("pending_plan_tier IS NOT NULL"),
        ),
    )


class Membership(Base):
    __tablename__ = "memberships"

    org_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    joined_at: Mapped[datetime]
    is_chosen: Mapped[bool] = mapped_column(Boolean, server_default=true())
    """The user created the organization or accepted an invitation to it. False: a service put the user into it."""

    __table_args__ = (Index("ix_memberships_user_id", "user_id"),)
