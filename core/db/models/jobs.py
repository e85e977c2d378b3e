"""Locks of periodic jobs."""

from __future__ import annotations

from sqlalchemy import (
    String,
)
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base
from core.db.leases import Leased


class JobLock(Leased, Base):
    """Lock of a periodic job, so that two schedulers run it once."""

    __tablename__ = "job_locks"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
