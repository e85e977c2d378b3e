"""A discovery of what is at the providers, while it runs: what was listed, and the rows that are proposed."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Boolean, ForeignKey, Index, Integer, String, false
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base


class DiscoveryRecord(Base):
    """One run of a discovery, which can be resumed. It is deleted when its table is written."""

    __tablename__ = "discoveries"

    run_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    lease_token: Mapped[str] = mapped_column(String(36))
    """Replaced by each process that resumes the run, so that the previous one stops."""
    stage: Mapped[str] = mapped_column(String(32))
    cursor: Mapped[str | None] = mapped_column(String(255))
    processed: Mapped[int] = mapped_column(Integer)
    """In this stage: objects listed, or customers matched."""
    managed: Mapped[int] = mapped_column(Integer)
    """Organizations whose customers are ours or adopted already, so that no row is proposed."""
    started_at: Mapped[datetime]


class DiscoveryListing(Base):
    """A customer, a subscription or a discount as a provider listed it, or an organization of ours.

    The columns beside ``observed`` are what matching looks up. ``provider`` is "ours" for an organization.
    """

    __tablename__ = "discovery_listings"

    run_id: Mapped[str] = mapped_column(ForeignKey("discoveries.run_id", ondelete="CASCADE"), primary_key=True)
    provider: Mapped[str] = mapped_column(String(16), primary_key=True)
    object_type: Mapped[str] = mapped_column(String(16), primary_key=True)
    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    external_id: Mapped[str | None] = mapped_column(String(255))
    customer_id: Mapped[str | None] = mapped_column(String(255))
    """Of a subscription or a discount."""
    org_id: Mapped[str | None] = mapped_column(String(64))
    """In our complete marks, if it has the form of our ids."""
    payer_id: Mapped[str | None] = mapped_column(String(255))
    name_key: Mapped[str | None] = mapped_column(String(1000))
    email_key: Mapped[str | None] = mapped_column(String(1024))
    is_matched: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    observed: Mapped[dict[str, Any] | None]

    __table_args__ = (
        Index("ix_discovery_listings_matched", "run_id", "object_type", "is_matched", "provider", "id"),
        Index("ix_discovery_listings_customer_id", "run_id", "provider", "object_type", "customer_id"),
        Index("ix_discovery_listings_external_id", "run_id", "external_id"),
        Index("ix_discovery_listings_org_id", "run_id", "org_id"),
        Index("ix_discovery_listings_payer_id", "run_id", "payer_id"),
        Index("ix_discovery_listings_name_key", "run_id", "name_key"),
        Index("ix_discovery_listings_email_key", "run_id", "email_key"),
    )


class DiscoveryProposal(Base):
    """A row of the adoption table, before it is written."""

    __tablename__ = "discovery_proposals"

    run_id: Mapped[str] = mapped_column(ForeignKey("discoveries.run_id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(Integer, primary_key=True)
    org_id: Mapped[str | None] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(32))
    body: Mapped[dict[str, Any]]

    __table_args__ = (
        Index("ix_discovery_proposals_org_id", "run_id", "org_id"),
        Index("ix_discovery_proposals_action", "run_id", "action", "seq"),
    )
