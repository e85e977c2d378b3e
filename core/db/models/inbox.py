"""The inbox: service events and provider webhooks."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import (
    Boolean,
    ForeignKey,
    Index,
    String,
    Text,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base

ServiceEventStatus = Literal["applied", "rejected", "waiting", "superseded"]
WebhookEffect = Literal[
    "check", "started", "ended", "payment_failed", "payer_reported", "payer_rejected", "payer_accepted"
]
ProviderWebhookState = Literal["stored", "handled", "ignored", "rejected"]


class EventSource(Base):
    """The service account that a source belongs to. Only this account may send messages from it over HTTP."""

    __tablename__ = "event_sources"

    source: Mapped[str] = mapped_column(String(255), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("service_accounts.id"))
    bound_at: Mapped[datetime]


class ServiceEvent(Base):
    """A message of another service, stored once and permanently, with its status.

    There is no retention, since ``source`` and ``id`` identify a message permanently.
    """

    __tablename__ = "service_events"

    source: Mapped[str] = mapped_column(String(255), primary_key=True)
    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    type: Mapped[str | None] = mapped_column(String(255))
    subject: Mapped[str | None] = mapped_column(String(255))
    occurred_at: Mapped[datetime | None]
    """As it orders: five minutes after ``received_at`` at most. Of a rejected message: as it was sent."""
    received_at: Mapped[datetime]
    status: Mapped[str] = mapped_column(String(16))
    rejected_at: Mapped[datetime | None]
    """A message may wait for days before it is rejected."""
    reason: Mapped[str | None] = mapped_column(Text)
    org_id: Mapped[str | None] = mapped_column(String(64))
    data: Mapped[dict[str, Any] | None]
    sent_id: Mapped[str | None] = mapped_column(String(255))
    """The id that was sent, if the message could not be stored under it. ``id`` is then a digest."""
    key_id: Mapped[str | None] = mapped_column(String(16))
    """The API key of its sender. NULL: it was on the queue."""

    __table_args__ = (
        Index("ix_service_events_subject", "subject", "type", "status"),
        Index("ix_service_events_status", "status", "received_at"),
        Index("ix_service_events_org_id", "org_id"),
        Index(
            "ix_service_events_rejected_at",
            "rejected_at",
            sqlite_where=text("status = 'rejected'"),
            postgresql_where=text("status = 'rejected'"),
        ),
    )


class ProviderWebhook(Base):
    """A provider webhook, stored once. It requests a remote check."""

    __tablename__ = "provider_webhooks"

    provider: Mapped[str] = mapped_column(String(16), primary_key=True)
    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    """The provider's own: Stripe's event id, Lago's unique key."""
    type: Mapped[str] = mapped_column(String(255))
    effect: Mapped[WebhookEffect | None] = mapped_column(String(16))
    object_id: Mapped[str | None] = mapped_column(String(255))
    customer_id: Mapped[str | None] = mapped_column(String(255))
    org_id: Mapped[str | None] = mapped_column(String(64))
    code: Mapped[str | None] = mapped_column(String(255))
    """The provider's code for the reason of a failure."""
    account_id: Mapped[str | None] = mapped_column(String(255))
    livemode: Mapped[bool | None] = mapped_column(Boolean)
    received_at: Mapped[datetime]
    state: Mapped[ProviderWebhookState] = mapped_column(String(8))
    reason: Mapped[str | None] = mapped_column(Text)
    """While it is stored: why the last try failed."""
    due_at: Mapped[datetime]
    """When it is dispatched next, while it is stored."""

    __table_args__ = (
        Index(
            "ix_provider_webhooks_stored",
            "due_at",
            sqlite_where=text("state = 'stored'"),
            postgresql_where=text("state = 'stored'"),
        ),
        Index("ix_provider_webhooks_received_at", "received_at"),
        Index("ix_provider_webhooks_org_id", "org_id"),
        Index("ix_provider_webhooks_customer_id", "provider", "customer_id"),
    )
