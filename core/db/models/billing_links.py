"""Billing links: one organization at one provider, and what is left to do there.

A link is in sync when ``applied_version == desired_version`` and it has no intent. ``desired_version`` repeats the
organization's version and is written in the same transaction (decision 0002), so one partial index on the link alone
answers "what is due" at any size.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import (
    BigInteger,
    Boolean,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base

LinkState = Literal["active", "parked", "on_hold"]
PaymentStatus = Literal["failed", "payer_rejected"]

LINK_IS_BEHIND = "applied_version < desired_version OR intent IS NOT NULL"
LINK_HAS_WORK = f"{LINK_IS_BEHIND} OR checks_done < checks_requested"


class BillingLink(Base):
    """One organization at one biller: the ids, what is applied, what is left to do, and who works on it now."""

    __tablename__ = "billing_links"

    org_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    provider: Mapped[str] = mapped_column(String(16), primary_key=True)

    customer_id: Mapped[str | None] = mapped_column(String(255))
    subscription_id: Mapped[str | None] = mapped_column(String(255))
    account_id: Mapped[str | None] = mapped_column(String(255))
    livemode: Mapped[bool | None] = mapped_column(Boolean)

    created_at: Mapped[datetime | None]
    """NULL: before this column was."""
    desired_version: Mapped[int] = mapped_column(BigInteger)
    applied_version: Mapped[int] = mapped_column(BigInteger)
    customer_fingerprint: Mapped[str | None] = mapped_column(String(64))
    """Digest of the customer as last made there; NULL: not known, so it is read or made again."""
    applied_plan: Mapped[str | None] = mapped_column(String(255))
    applied_next_plan: Mapped[str | None] = mapped_column(String(255))
    payer_id: Mapped[str | None] = mapped_column(String(255))
    """Lago only: the Stripe customer it was told to charge. While it is set, nothing else may charge."""
    synced_at: Mapped[datetime | None]

    state: Mapped[str] = mapped_column(String(8))
    """open; parked (leaves when its data changes or a person retries); held (leaves only through a person)."""
    attempts: Mapped[int] = mapped_column(Integer)
    not_before: Mapped[datetime | None]
    """No claim before this time; NULL: now."""
    cooldown_until: Mapped[datetime | None]
    """No round before this time either: what changes meanwhile is taken along by the next one."""
    next_sweep_at: Mapped[datetime]
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

    checks_requested: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """How many hints came that something changed there."""
    checks_done: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """How many of them a look has answered; fewer: one is due."""
    payment_status: Mapped[PaymentStatus | None] = mapped_column(String(16))
    """What is wrong with paying there: ``failed``, an invoice was not paid; ``refused``, the payer is not taken."""
    payment_since: Mapped[datetime | None]
    payment_code: Mapped[str | None] = mapped_column(String(255))
    """The biller's own word for it, as it was last told."""

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
            "next_sweep_at",
            sqlite_where=text(f"state = 'active' AND ({LINK_HAS_WORK})"),
            postgresql_where=text(f"state = 'active' AND ({LINK_HAS_WORK})"),
        ),
        Index(
            "ix_billing_links_parked",
            "provider",
            sqlite_where=text("state <> 'active'"),
            postgresql_where=text("state <> 'active'"),
        ),
    )


# Written out, not bound: SQLite uses a partial index only where it reads the index's own condition.
LINK_IS_ACTIVE_AND_BEHIND = f"state = 'active' AND ({LINK_HAS_WORK})"
