"""Users, API keys, invitations, and stored responses of repeated requests."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from sqlalchemy import (
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base

InvitationState = Literal["pending", "accepted", "revoked"]


class User(Base):
    """Somebody who has signed in, or changed something: from then on no sign-in makes an organization any more."""

    __tablename__ = "users"

    user_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    name: Mapped[str | None] = mapped_column(String(200))
    email: Mapped[str | None] = mapped_column(String(512))
    """Only one that the sign-in service has verified."""
    first_seen_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]


class ApiKey(Base):
    """A service account. The key itself is nowhere; whoever made it was shown it once."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    secret_hash: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[str] = mapped_column(String(500))
    """With blanks between, as OAuth writes them."""
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class IdempotencyRecord(Base):
    """What a request under an Idempotency-Key was answered, stored in the transaction of its change."""

    __tablename__ = "idempotency_records"

    caller: Mapped[str] = mapped_column(String(300), primary_key=True)
    idempotency_key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    """Digest of what was asked: the same key for something else is refused."""
    status: Mapped[int] = mapped_column(Integer)
    body: Mapped[str] = mapped_column(Text)
    """As sent, byte for byte."""
    expires_at: Mapped[datetime]

    __table_args__ = (Index("ix_idempotency_records_expires_at", "expires_at"),)


class Invitation(Base):
    """Somebody is asked to join by mail. The tokens that were mailed lie in ``invitation_tokens``, hashed."""

    __tablename__ = "invitations"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    org_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    email: Mapped[str] = mapped_column(String(512))
    email_key: Mapped[str] = mapped_column(String(1024))
    role: Mapped[str] = mapped_column(String(16))
    invited_by: Mapped[str | None] = mapped_column(String(255))
    """The user id; NULL: a service."""
    state: Mapped[InvitationState] = mapped_column(String(16))
    emails_sent: Mapped[int] = mapped_column(Integer)
    """How many mails it was given."""
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]

    __table_args__ = (
        Index(
            "uq_invitations_pending",
            "org_id",
            "email_key",
            unique=True,
            sqlite_where=text("state = 'pending'"),
            postgresql_where=text("state = 'pending'"),
        ),
    )


class InvitationToken(Base):
    """One mail's token for one invitation. The token itself is in that mail and nowhere else."""

    __tablename__ = "invitation_tokens"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    invitation_id: Mapped[str] = mapped_column(ForeignKey("invitations.id"))
    expires_at: Mapped[datetime]
