"""The outbox, which is also the audit trail: every domain event, and whether it was published."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    Index,
    String,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from core.common.json_types import Json
from core.db.base import Base, Counter
from core.db.leases import Leased


class Event(Leased, Base):
    """A domain event. Rows are only added, and later marked as published."""

    __tablename__ = "events"

    seq: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(36), unique=True)
    type: Mapped[str] = mapped_column(String(64))
    org_id: Mapped[str] = mapped_column(String(64))
    actor: Mapped[str] = mapped_column(String(255))
    source: Mapped[str] = mapped_column(String(255))
    caused_by: Mapped[str | None] = mapped_column(String(600))
    key_id: Mapped[str | None] = mapped_column(String(16))
    """The API key of the service that made the change. NULL: no service did, or its message was on the queue."""
    data: Mapped[dict[str, Any]]
    occurred_at: Mapped[datetime]
    published_at: Mapped[datetime | None]

    __table_args__ = (
        Index(
            "ix_events_unpublished",
            "seq",
            sqlite_where=text("published_at IS NULL"),
            postgresql_where=text("published_at IS NULL"),
        ),
        Index("ix_events_org_id", "org_id", "seq"),
        # Bounds how many organizations one user makes.
        Index(
            "ix_events_created_by",
            "actor",
            "occurred_at",
            sqlite_where=text("type = 'organization.created'"),
            postgresql_where=text("type = 'organization.created'"),
        ),
        {"sqlite_autoincrement": True},
    )


EventData = dict[str, Json]
