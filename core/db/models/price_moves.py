"""Moves of organizations to another price of their plan, each with its day and its notice."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from sqlalchemy import BigInteger, Boolean, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base, Counter

PriceMoveState = Literal["scheduled", "noticed", "started", "done", "withdrawn", "ended"]
"""scheduled: nothing of it happened yet. noticed: its notice was recorded. started: the link has its code as the
target. done: the provider has it. withdrawn: by an operator, before it started. ended: it cannot happen any more."""


class PriceMove(Base):
    """One organization that is moved to another code of its plan, as a file listed it. At most one is open."""

    __tablename__ = "price_moves"

    seq: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=True)
    org_id: Mapped[str] = mapped_column(String(64))
    provider: Mapped[str] = mapped_column(String(16))
    tier: Mapped[str] = mapped_column(String(255))
    from_code: Mapped[str] = mapped_column(String(255))
    to_code: Mapped[str] = mapped_column(String(255))
    amount_before: Mapped[int] = mapped_column(BigInteger)
    amount_after: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(String(3))
    interval: Mapped[str] = mapped_column(String(16))
    """Of both prices, such as ``1 month``."""
    at_period_end: Mapped[bool] = mapped_column(Boolean)
    listed_for: Mapped[datetime]
    """The day in the file, which tells two files apart."""
    effective_at: Mapped[datetime]
    """The day in the notice. It is later than ``listed_for`` if the notice was late."""
    notice_days: Mapped[int] = mapped_column(Integer)
    is_expected: Mapped[bool] = mapped_column(Boolean)
    """It takes no place of the payment brake's hour."""
    state: Mapped[PriceMoveState] = mapped_column(String(12))
    due_at: Mapped[datetime]
    """When the sweep takes the next step."""
    noticed_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    """NULL: it is open."""
    problem: Mapped[str | None] = mapped_column(Text)
    """Why it waits, or why it ended."""
    actor: Mapped[str | None] = mapped_column(String(255))
    created_at: Mapped[datetime]

    __table_args__ = (
        Index(
            "uq_price_moves_open",
            "org_id",
            unique=True,
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
        Index(
            "ix_price_moves_due",
            "due_at",
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
        Index("ix_price_moves_org_id", "org_id", "seq"),
    )
