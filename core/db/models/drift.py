"""Drift checks: a run, what it listed, and what it found."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    Boolean,
    ForeignKey,
    Index,
    Integer,
    String,
)
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base


class DriftPlan(Base):
    """One comparison of ours with what the billers hold: a run that can be taken up again, then a plan under its id."""

    __tablename__ = "drift_plans"

    run_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    plan_id: Mapped[str | None] = mapped_column(String(64), unique=True)
    """SHA-256 of the findings; NULL until the run has ended."""
    token: Mapped[str] = mapped_column(String(36))
    """Whoever goes on with the run replaces it, so that whoever had it before stops."""
    stage: Mapped[str] = mapped_column(String(32))
    cursor: Mapped[str | None] = mapped_column(String(255))
    done: Mapped[int] = mapped_column(Integer)
    """Of this stage: rows listed, or organizations compared."""
    counts: Mapped[dict[str, Any]]
    started_at: Mapped[datetime]
    touched_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    applied_at: Mapped[datetime | None]

    __table_args__ = (Index("ix_drift_plans_started_at", "started_at"),)


class DriftSighting(Base):
    """A customer or subscription as a biller listed it; gone when its run has ended."""

    __tablename__ = "drift_sightings"

    run_id: Mapped[str] = mapped_column(ForeignKey("drift_plans.run_id", ondelete="CASCADE"), primary_key=True)
    provider: Mapped[str] = mapped_column(String(16), primary_key=True)
    noun: Mapped[str] = mapped_column(String(16), primary_key=True)
    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    org_id: Mapped[str | None] = mapped_column(String(64))
    """The organization that it belongs to by what the biller says; NULL: it names none of our form."""
    customer_id: Mapped[str | None] = mapped_column(String(255))
    seen: Mapped[dict[str, Any]]

    __table_args__ = (
        Index("ix_drift_sightings_org_id", "run_id", "provider", "noun", "org_id"),
        Index("ix_drift_sightings_customer_id", "run_id", "provider", "noun", "customer_id"),
    )


class DriftFinding(Base):
    """What was found about one organization, or about a stranger that names itself one."""

    __tablename__ = "drift_findings"

    run_id: Mapped[str] = mapped_column(ForeignKey("drift_plans.run_id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(Integer, primary_key=True)
    org_id: Mapped[str | None] = mapped_column(String(64))
    repairable: Mapped[bool] = mapped_column(Boolean)
    found: Mapped[dict[str, Any]]
