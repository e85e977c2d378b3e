"""What was sent to the providers, and what operators did with a billing link."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import BigInteger, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base, Counter

HistoryKind = Literal[
    "attempt",
    "retried",
    "resolved",
    "customer_id_set",
    "drift_repaired",
    "adopted",
    "payer_given",
    "released",
    "payment_released",
    "charging_moved",
    "payment_dropped",
    "usage_plan_set",
    "price_move_started",
]
AttemptOutcome = Literal["synced", "waiting", "retry", "parked", "on_hold", "lease_lost"]


class LinkHistory(Base):
    """One sync attempt that sent a write or changed the link's state, or one action of an operator at a link.

    The row of an attempt is stored before its first write is sent, and stored again before each further one. So a
    request that a killed process sent is in it, too, then without ``outcome`` and without the provider's request id.
    """

    __tablename__ = "link_history"

    seq: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=True)
    org_id: Mapped[str] = mapped_column(String(64))
    provider: Mapped[str] = mapped_column(String(16))
    kind: Mapped[HistoryKind] = mapped_column(String(20))
    at: Mapped[datetime]
    """When the first write was about to be sent, or when the operator acted."""
    version: Mapped[int | None] = mapped_column(BigInteger)
    """The organization's version that an attempt applied; NULL for an operator's action."""
    ended_at: Mapped[datetime | None]
    outcome: Mapped[AttemptOutcome | None] = mapped_column(String(12))
    """NULL: the attempt has not ended, or its process died."""
    actor: Mapped[str | None] = mapped_column(String(255))
    source: Mapped[str | None] = mapped_column(String(255))
    key_id: Mapped[str | None] = mapped_column(String(16))
    """The API key, if a service acted."""
    data: Mapped[dict[str, Any]]
    """Ids, codes and plans only. Of an attempt: ``requests``, ``error`` and ``link``, the link afterwards."""

    __table_args__ = (
        Index("ix_link_history_org_id", "org_id", "seq"),
        Index("ix_link_history_at", "at"),
        {"sqlite_autoincrement": True},
    )
