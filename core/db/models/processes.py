"""Heartbeats of the running processes."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    String,
)
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base


class ProcessHeartbeat(Base):
    """One start of one process. The process updates its row and deletes it when it ends."""

    __tablename__ = "process_heartbeats"

    instance_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    """New at each start: containers share process ids, and may share host names."""
    kind: Mapped[str] = mapped_column(String(16))
    host: Mapped[str] = mapped_column(String(255))
    version: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[datetime]
    last_heartbeat_at: Mapped[datetime]
