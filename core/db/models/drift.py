"""Drift reports: one run of a drift check, what it listed and what it found."""

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


class DriftReportRecord(Base):
    """One run of a drift check, which can be resumed, and then its report under ``report_id``."""

    __tablename__ = "drift_reports"

    run_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    report_id: Mapped[str | None] = mapped_column(String(64), unique=True)
    """SHA-256 of the findings; NULL until the run has ended."""
    lease_token: Mapped[str] = mapped_column(String(36))
    """Replaced by each process that resumes the run, so that the previous one stops."""
    stage: Mapped[str] = mapped_column(String(32))
    cursor: Mapped[str | None] = mapped_column(String(255))
    processed: Mapped[int] = mapped_column(Integer)
    """In this stage: rows listed, or organizations compared."""
    counts: Mapped[dict[str, Any]]
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    repair_started_at: Mapped[datetime | None]

    __table_args__ = (Index("ix_drift_reports_started_at", "started_at"),)


class DriftListing(Base):
    """A customer or subscription as a provider listed it; deleted when its run has ended."""

    __tablename__ = "drift_listings"

    run_id: Mapped[str] = mapped_column(ForeignKey("drift_reports.run_id", ondelete="CASCADE"), primary_key=True)
    provider: Mapped[str] = mapped_column(String(16), primary_key=True)
    object_type: Mapped[str] = mapped_column(String(16), primary_key=True)
    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    org_id: Mapped[str | None] = mapped_column(String(64))
    """The organization that the listed object names; NULL: it names none, or not in our form."""
    customer_id: Mapped[str | None] = mapped_column(String(255))
    observed: Mapped[dict[str, Any]]

    __table_args__ = (
        Index("ix_drift_listings_org_id", "run_id", "provider", "object_type", "org_id"),
        Index("ix_drift_listings_customer_id", "run_id", "provider", "object_type", "customer_id"),
    )


class DriftFinding(Base):
    """One finding about an organization, or about an orphan at a provider."""

    __tablename__ = "drift_findings"

    run_id: Mapped[str] = mapped_column(ForeignKey("drift_reports.run_id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(Integer, primary_key=True)
    org_id: Mapped[str | None] = mapped_column(String(64))
    repairable: Mapped[bool] = mapped_column(Boolean)
    body: Mapped[dict[str, Any]]

    __table_args__ = (Index("ix_drift_findings_org_id", "org_id"),)
