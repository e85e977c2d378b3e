"""One row a provider: whose account it is, and its circuit breaker."""

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
    """One biller as all processes see it: whose account it is, and whether it is stopped. Its row is always there."""

    __tablename__ = "provider_status"

    provider: Mapped[str] = mapped_column(String(16), primary_key=True)
    account_id: Mapped[str | None] = mapped_column(String(255))
    """Stored at first use and never replaced: the links' ids mean nothing in another account."""
    livemode: Mapped[bool | None] = mapped_column(Boolean)
    consecutive_failures: Mapped[int] = mapped_column(Integer)
    """Unavailable answers in a row, over all workers."""
    breaker_reason: Mapped[BreakerReason | None] = mapped_column(String(16))
    """NULL: it is not stopped."""
    breaker_message: Mapped[str | None] = mapped_column(Text)
    open_since: Mapped[datetime | None]
    probe_at: Mapped[datetime | None]
    """While stopped: no turn before this time, and one then."""
    updated_at: Mapped[datetime | None]
