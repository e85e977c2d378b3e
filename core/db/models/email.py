"""The email queue."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base
from core.db.leases import Leased

EmailState = Literal["pending", "sent", "failed", "stale"]
EmailKind = Literal[
    "welcome",
    "invitation",
    "plan_upgraded",
    "downgrade_scheduled",
    "downgrade_taken_back",
    "downgrade_took_effect",
    "operations_digest",
]


class Email(Leased, Base):
    """One email to one address, because of one event or invitation."""

    __tablename__ = "emails"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    """The Message-ID is derived from it, so it is the same on every attempt."""
    cause: Mapped[str] = mapped_column(String(80))
    """An event's id; an invitation's id and the running number of its email, starting at 1; or, of an operations
    digest, the id of the digest before it."""
    kind: Mapped[EmailKind] = mapped_column(String(32))
    recipient: Mapped[str] = mapped_column(String(512))
    org_id: Mapped[str] = mapped_column(String(64))
    """Empty: it is an operations digest. No foreign key: the relay writes many at once and would wait for every
    organization that is locked."""
    invitation_id: Mapped[str | None] = mapped_column(ForeignKey("invitations.id"))
    after_version: Mapped[int | None] = mapped_column(BigInteger)
    """Not sent before both providers have this version."""
    state: Mapped[EmailState] = mapped_column(String(16))
    """pending; sent; failed (rejected permanently, see ``error``); stale (no longer true when it was due)."""
    attempts: Mapped[int] = mapped_column(Integer)
    next_attempt_at: Mapped[datetime]
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]

    __table_args__ = (
        Index("uq_emails_cause", "cause", "kind", "recipient", unique=True),
        Index(
            "ix_emails_due",
            "next_attempt_at",
            sqlite_where=text("state = 'pending'"),
            postgresql_where=text("state = 'pending'"),
        ),
        Index(
            "ix_emails_failed",
            "created_at",
            sqlite_where=text("state = 'failed'"),
            postgresql_where=text("state = 'failed'"),
        ),
        Index("ix_emails_org_id", "org_id", "kind", "created_at"),
        Index(
            "ix_emails_closed_at",
            "closed_at",
            sqlite_where=text("state <> 'pending'"),
            postgresql_where=text("state <> 'pending'"),
        ),
    )
