"""Users, service accounts, API keys, invitations and idempotency records."""

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

from core.db.base import Base, Counter

InvitationState = Literal["pending", "accepted", "revoked", "declined"]


class User(Base):
    """A user who has signed in or changed something. Later sign-ins create no organization."""

    __tablename__ = "users"

    user_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    name: Mapped[str | None] = mapped_column(String(200))
    email: Mapped[str | None] = mapped_column(String(512))
    """Only an address that the sign-in service has verified."""
    signed_in_at: Mapped[datetime | None]
    """The first sign-in by browser. NULL: there was none, only requests."""
    first_seen_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]


class ServiceAccount(Base):
    """Another program that calls us. It may have several API keys, and it owns event sources and webhook endpoints."""

    __tablename__ = "service_accounts"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    """Of an account that an upgrade made: the id of its first key."""
    name: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[datetime]


class ApiKey(Base):
    """A key of a service account. The key itself is not stored; it was shown once, when it was created."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    secret_hash: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[str] = mapped_column(String(500))
    """Separated by spaces, as in OAuth."""
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    account_id: Mapped[str] = mapped_column(String(16), default="", server_default="")
    """Always the id of a service account. SQLite can add no column without a default."""
    expires_at: Mapped[datetime | None]
    """NULL: it does not expire."""


class IdempotencyRecord(Base):
    """Stored response of a request with an Idempotency-Key, saved in the transaction of its change."""

    __tablename__ = "idempotency_records"

    caller: Mapped[str] = mapped_column(String(300), primary_key=True)
    idempotency_key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    """Digest of the request. The same key with another request is rejected."""
    status: Mapped[int] = mapped_column(Integer)
    body: Mapped[str] = mapped_column(Text)
    """As sent, byte for byte."""
    expires_at: Mapped[datetime]

    __table_args__ = (Index("ix_idempotency_records_expires_at", "expires_at"),)


class Invitation(Base):
    """An invitation to join: to an email address, with tokens in ``invitation_tokens``, or to a user who signs in."""

    __tablename__ = "invitations"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    org_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    email: Mapped[str] = mapped_column(String(512))
    """Empty: it is to ``user_id``. SQLite cannot make a column nullable later."""
    user_id: Mapped[str | None] = mapped_column(String(255))
    recipient_key: Mapped[str] = mapped_column(String(1024))
    """Two invitations with the same key are to the same address or user."""
    role: Mapped[str] = mapped_column(String(16))
    invited_by: Mapped[str | None] = mapped_column(String(255))
    """User id; NULL: a service."""
    state: Mapped[InvitationState] = mapped_column(String(16))
    emails_sent: Mapped[int] = mapped_column(Integer)
    """Number of emails created for it."""
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]

    __table_args__ = (
        Index(
            "uq_invitations_pending",
            "org_id",
            "recipient_key",
            unique=True,
            sqlite_where=text("state = 'pending'"),
            postgresql_where=text("state = 'pending'"),
        ),
        Index(
            "ix_invitations_recipient_key",
            "recipient_key",
            sqlite_where=text("state = 'pending'"),
            postgresql_where=text("state = 'pending'"),
        ),
    )


class SentInvitation(Base):
    """One use of the right to invite, kept for a day. The limits count these rows."""

    __tablename__ = "sent_invitations"

    id: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=True)
    org_id: Mapped[str] = mapped_column(String(64))
    recipient_key: Mapped[str] = mapped_column(String(1024))
    invited_by: Mapped[str | None] = mapped_column(String(255))
    sent_at: Mapped[datetime]

    __table_args__ = (
        Index("ix_sent_invitations_org_id", "org_id", "sent_at"),
        Index("ix_sent_invitations_recipient_key", "recipient_key", "sent_at"),
        Index("ix_sent_invitations_invited_by", "invited_by", "sent_at"),
        Index("ix_sent_invitations_sent_at", "sent_at"),
    )


class InvitationToken(Base):
    """The token in one email for one invitation. The token itself is only in that email."""

    __tablename__ = "invitation_tokens"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    invitation_id: Mapped[str] = mapped_column(ForeignKey("invitations.id"))
    expires_at: Mapped[datetime]
