"""The tables. One Alembic history serves SQLite and Postgres; what the types promise holds on both.

``billing_links`` says what is left to do: a link is in sync when ``applied_version == wanted_version`` and it has no
intent. ``wanted_version`` repeats ``organizations.billing_version`` and is written by the same statement's transaction
(decision 0002): one partial index on the link alone answers "what is due" at any size.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    TypeDecorator,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from core.gateways import Json

Status = Literal["active", "suspended", "deleted"]
Role = Literal["owner", "billing_admin", "member"]
LinkState = Literal["open", "parked", "held"]
Verdict = Literal["accepted", "refused", "waiting", "superseded"]

STATUSES: tuple[Status, ...] = ("active", "suspended", "deleted")
ROLES: tuple[Role, ...] = ("owner", "billing_admin", "member")

LINK_IS_BEHIND = "applied_version < wanted_version OR intent IS NOT NULL"


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC in Python on both databases; a naive datetime is refused, since nobody can say what it means."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            message = "a naive datetime cannot be stored"
            raise ValueError(message)
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - the base class names it
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# A 64-bit counter on Postgres; SQLite only counts a column up when it is its own INTEGER.
Counter = BigInteger().with_variant(Integer(), "sqlite")
# NULL must be SQL's own: "intent IS NULL" is part of an index.
JsonObject = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class Base(DeclarativeBase):
    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: JsonObject}  # noqa: RUF012 - SQLAlchemy's own form


class Organization(Base):
    __tablename__ = "organizations"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    name_key: Mapped[str] = mapped_column(String(1000))
    plan_tier: Mapped[str] = mapped_column(String(200))
    pending_plan_tier: Mapped[str | None] = mapped_column(String(200))
    plan_effective_at: Mapped[datetime | None]
    status: Mapped[str] = mapped_column(String(16))
    billing_email: Mapped[str | None] = mapped_column(String(512))
    currency: Mapped[str | None] = mapped_column(String(3))
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    billing_version: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (
        Index(
            "uq_organizations_name_key",
            "name_key",
            unique=True,
            sqlite_where=text("status <> 'deleted'"),
            postgresql_where=text("status <> 'deleted'"),
        ),
        Index("ix_organizations_plan_tier", "plan_tier"),
        Index(
            "ix_organizations_plan_effective_at",
            "plan_effective_at",
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

    __table_args__ = (Index("ix_memberships_user_id", "user_id"),)


class Event(Base):
    """The outbox and the audit in one; rows are only ever added, and marked published."""

    __tablename__ = "events"

    seq: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(36), unique=True)
    type: Mapped[str] = mapped_column(String(64))
    org_id: Mapped[str] = mapped_column(String(64))
    actor: Mapped[str] = mapped_column(String(255))
    source: Mapped[str] = mapped_column(String(255))
    caused_by: Mapped[str | None] = mapped_column(String(600))
    data: Mapped[dict[str, Any]]
    occurred_at: Mapped[datetime]
    published_at: Mapped[datetime | None]
    lease_token: Mapped[str | None] = mapped_column(String(36))
    lease_until: Mapped[datetime | None]

    __table_args__ = (
        Index(
            "ix_events_unpublished",
            "seq",
            sqlite_where=text("published_at IS NULL"),
            postgresql_where=text("published_at IS NULL"),
        ),
        Index("ix_events_org_id", "org_id", "seq"),
        {"sqlite_autoincrement": True},
    )


class ReceivedEvent(Base):
    """What another service sent, once each, with what became of it."""

    __tablename__ = "received_events"

    source: Mapped[str] = mapped_column(String(255), primary_key=True)
    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    type: Mapped[str | None] = mapped_column(String(255))
    subject: Mapped[str | None] = mapped_column(String(255))
    occurred_at: Mapped[datetime | None]
    received_at: Mapped[datetime]
    verdict: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    org_id: Mapped[str | None] = mapped_column(String(64))
    data: Mapped[dict[str, Any] | None]

    __table_args__ = (
        Index("ix_received_events_subject", "subject", "type", "verdict"),
        Index("ix_received_events_verdict", "verdict", "received_at"),
    )


class BillingLink(Base):
    """One organization at one biller: the ids, what is applied, what is left to do, and who works on it now."""

    __tablename__ = "billing_links"

    org_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    provider: Mapped[str] = mapped_column(String(16), primary_key=True)

    customer_id: Mapped[str | None] = mapped_column(String(255))
    subscription_id: Mapped[str | None] = mapped_column(String(255))
    account_id: Mapped[str | None] = mapped_column(String(255))
    livemode: Mapped[bool | None] = mapped_column(Boolean)

    wanted_version: Mapped[int] = mapped_column(BigInteger)
    applied_version: Mapped[int] = mapped_column(BigInteger)
    applied_customer: Mapped[str | None] = mapped_column(String(64))
    """Digest of the customer as last made there; NULL: not known, so it is read or made again."""
    applied_plan: Mapped[str | None] = mapped_column(String(255))
    applied_next_plan: Mapped[str | None] = mapped_column(String(255))
    payer_id: Mapped[str | None] = mapped_column(String(255))
    """Lago only: the Stripe customer it was told to charge. While it is set, nothing else may charge."""
    synced_at: Mapped[datetime | None]

    state: Mapped[str] = mapped_column(String(8))
    """open; parked (leaves when its data changes or a person retries); held (leaves only through a person)."""
    attempts: Mapped[int] = mapped_column(Integer)
    next_attempt_at: Mapped[datetime | None]
    """No claim before this time; NULL: now."""
    rest_until: Mapped[datetime | None]
    """No round before this time either: what changes meanwhile is taken along by the next one."""
    sweep_at: Mapped[datetime]
    """When the sweep hands a link that is behind to the broker once more."""
    error_kind: Mapped[str | None] = mapped_column(String(32))
    error_code: Mapped[str | None] = mapped_column(String(255))
    error_message: Mapped[str | None] = mapped_column(Text)
    error_request_id: Mapped[str | None] = mapped_column(String(255))
    error_at: Mapped[datetime | None]

    lease_token: Mapped[str | None] = mapped_column(String(36))
    lease_until: Mapped[datetime | None]
    generation: Mapped[int] = mapped_column(Integer)
    intent: Mapped[dict[str, Any] | None]

    __table_args__ = (
        Index(
            "uq_billing_links_customer_id",
            "provider",
            "customer_id",
            unique=True,
            sqlite_where=text("customer_id IS NOT NULL"),
            postgresql_where=text("customer_id IS NOT NULL"),
        ),
        Index(
            "ix_billing_links_due",
            "provider",
            "sweep_at",
            sqlite_where=text(f"state = 'open' AND ({LINK_IS_BEHIND})"),
            postgresql_where=text(f"state = 'open' AND ({LINK_IS_BEHIND})"),
        ),
        Index(
            "ix_billing_links_parked",
            "provider",
            sqlite_where=text("state <> 'open'"),
            postgresql_where=text("state <> 'open'"),
        ),
    )


class Job(Base):
    """A lease for a periodic job, so that two schedulers do the work once."""

    __tablename__ = "jobs"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    lease_token: Mapped[str | None] = mapped_column(String(36))
    lease_until: Mapped[datetime | None]


EventData = dict[str, Json]
