"""Webhook endpoints of other services, and the deliveries to them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from sqlalchemy import (
    ForeignKey,
    Index,
    Integer,
    String,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base, Counter
from core.db.leases import Leased

DeliveryState = Literal["pending", "delivered", "failed"]


class WebhookEndpoint(Base):
    """A subscriber's URL that receives webhooks. Its secret is derived for each use, never stored."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    url: Mapped[str] = mapped_column(String(2000))
    events: Mapped[str] = mapped_column(String(1000))
    """Names separated by spaces; empty: all events."""
    description: Mapped[str | None] = mapped_column(String(200))
    secret_generation: Mapped[int] = mapped_column(Integer)
    """Each rotation of the secret raises it."""
    rotated_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]
    """NULL: it is enabled."""
    disabled_reason: Mapped[str | None] = mapped_column(String(200))
    consecutive_failures: Mapped[int] = mapped_column(Integer)
    """Failures in a row, of any event."""
    backoff_until: Mapped[datetime | None]
    """Nothing is sent to it before this time."""
    account_id: Mapped[str | None] = mapped_column(String(16))
    """The service account that owns it. NULL: operators do."""


class WebhookDelivery(Leased, Base):
    """One event for one endpoint, under the event's public name."""

    __tablename__ = "webhook_deliveries"

    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id"), primary_key=True)
    event_seq: Mapped[int] = mapped_column(Counter, ForeignKey("events.seq"), primary_key=True)
    type: Mapped[str] = mapped_column(String(64))
    state: Mapped[DeliveryState] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(Integer)
    next_attempt_at: Mapped[datetime]
    created_at: Mapped[datetime]
    last_attempt_at: Mapped[datetime | None]
    last_status: Mapped[int | None] = mapped_column(Integer)
    """NULL: there was no response, see ``last_error``."""
    last_error: Mapped[str | None] = mapped_column(String(32))
    delivered_at: Mapped[datetime | None]

    __table_args__ = (
        Index(
            "ix_webhook_deliveries_due",
            "endpoint_id",
            "next_attempt_at",
            sqlite_where=text("state = 'pending'"),
            postgresql_where=text("state = 'pending'"),
        ),
        Index("ix_webhook_deliveries_event_seq", "event_seq"),
        Index(
            "ix_webhook_deliveries_leased",
            "endpoint_id",
            sqlite_where=text("lease_token IS NOT NULL"),
            postgresql_where=text("lease_token IS NOT NULL"),
        ),
        Index(
            "ix_webhook_deliveries_failed",
            "last_attempt_at",
            sqlite_where=text("state = 'failed'"),
            postgresql_where=text("state = 'failed'"),
        ),
    )
