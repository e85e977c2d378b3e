"""Changes of what organizations pay, as the payment brake counts them, and those that an operator expected."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from sqlalchemy import Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base, Counter

PaymentScope = Literal["plan", "payer"]
"""plan: also an end. An organization's change of its plan and of its payer are two changes."""
PaymentPlace = Literal["counted", "expected", "released", "returned"]
"""counted: a place in its hour. expected: a place of an expectation. released: an operator let it go. returned: none; a
deleted organization came back, so what was sent before is no place for what follows."""


class PaymentChangeRecord(Base):
    """The place of one change of what an organization pays. The newest of each scope says what may be sent."""

    __tablename__ = "payment_changes"

    seq: Mapped[int] = mapped_column(Counter, primary_key=True, autoincrement=True)
    org_id: Mapped[str] = mapped_column(String(64))
    scope: Mapped[PaymentScope] = mapped_column(String(8))
    goal: Mapped[str] = mapped_column(String(64))
    """Digest of what is to be paid, so that an attempt that repeats the change takes no second place."""
    place: Mapped[PaymentPlace] = mapped_column(String(12))
    at: Mapped[datetime]
    reason: Mapped[str | None] = mapped_column(Text)
    """Why an operator let it go."""

    __table_args__ = (
        Index("ix_payment_changes_org_id", "org_id", "scope", "seq"),
        Index("ix_payment_changes_at", "at"),
    )


class ExpectedPaymentChanges(Base):
    """A number of changes that an operator expects until a time, beyond those of each hour."""

    __tablename__ = "expected_payment_changes"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    changes: Mapped[int] = mapped_column(Integer)
    used: Mapped[int] = mapped_column(Integer, default=0)
    until: Mapped[datetime]
    reason: Mapped[str] = mapped_column(Text)
    actor: Mapped[str | None] = mapped_column(String(255))
    created_at: Mapped[datetime]
