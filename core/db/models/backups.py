"""The newest backup, so that every process knows its age, wherever its folder is."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base


class BackupRecord(Base):
    """The newest backup that was checked; a newer one replaces its row. A backup has the row of the one before it."""

    __tablename__ = "backups"

    file: Mapped[str] = mapped_column(String(64), primary_key=True)
    taken_at: Mapped[datetime]
    """When it was begun: what was committed later is not in it."""
    size: Mapped[int] = mapped_column(BigInteger)
    """In bytes."""
