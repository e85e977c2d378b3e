"""One row per provider: its pinned account and its circuit breaker."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from sqlalchemy import (
    Boolean,
    Integer,
    String,
    Text,
)
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base

BreakerReason = Literal["unavailable", "misconfigured", "wrong_account"]


class ProviderStatus(Base):
    """One provider as all processes see it: pinned account and circuit breaker. Its row always exists."""

    __tablename__ = "provider_status"

    provider: Mapped[str] = mapped_column(String(16), primary_key=True)
    account_id: Mapped[str | None] = mapped_column(String(255))
    """Stored on first use and never replaced, because the links' ids are meaningless in another account."""
    livemode: Mapped[bool | None] = mapped_column(Boolean)
    consecutive_failures: Mapped[int] = mapped_column(Integer)
    """Times in a row that the provider was unavailable, over all workers."""
    breaker_reason: Mapped[BreakerReason | None] = mapped_column(String(16))
    """NULL: the circuit breaker is closed."""
    breaker_message: Mapped[str | None] = mapped_column(Text)
    open_since: Mapped[datetime | None]
    probe_at: Mapped[datetime | None]
    """While the breaker is open: no sync attempt before this time, then one probe."""
    events_read_until: Mapped[datetime | None]
    """Stripe only: events until then were compared with the webhooks that came. NULL: none were read yet."""
    webhooks_refused_since: Mapped[datetime | None]
    """Since when no signature of its webhooks was valid. NULL: that of the last one was, or none came."""
    database_id: Mapped[str] = mapped_column(String(36), default="", server_default="")
    """Of this database and its backups, the same in each row. What we write in Stripe carries it."""
    updated_at: Mapped[datetime | None]
