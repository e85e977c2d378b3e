"""How far a change has come: whether both billers hold it, and where one does not, why and what happens next.

The number of a change is the organization's ``billing_version`` after it. A biller holds it once a whole round with
that version or a later one came back; what was begun, or cannot be proved, does not count.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.flow_control import circuit_breaker
from core.ports.spec import PROVIDERS, Provider
from core.reconcile import link_status
from core.reconcile.link_status import LinkReport, holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One biller. ``holds``: everything up to the change that was asked about."""

    holds: bool
    link: LinkReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """``sequence`` is the newest change, ``through`` the one that was asked about."""

    sequence: int
    through: int
    billers: Mapping[Provider, Standing]

    @property
    def in_sync(self) -> bool:
        return all(provider in self.billers and self.billers[provider].holds for provider in PROVIDERS)


def receipt(session: Session, org_id: str, now: datetime, through: int | None = None) -> Receipt | None:
    """Up to ``through``, else up to the newest change; ``None``: there is no such organization."""
    return _receipts(session, [org_id], now, through).get(org_id)


def receipts(session: Session, org_ids: Collection[str], now: datetime) -> dict[str, Receipt]:
    """Of several organizations, each up to its newest change."""
    return _receipts(session, org_ids, now, None)


def newest(session: Session, org_ids: Collection[str]) -> dict[str, int]:
    """The number of each organization's newest change."""
    versions = select(Organization.id, Organization.billing_version).where(Organization.id.in_(org_ids))
    return {row[0]: row[1] for row in session.execute(versions)}


def _receipts(session: Session, org_ids: Collection[str], now: datetime, through: int | None) -> dict[str, Receipt]:
    versions = newest(session, org_ids)
    asked = {org_id: version if through is None else through for org_id, version in versions.items()}
    found: dict[str, dict[Provider, Standing]] = {org_id: {} for org_id in versions}
    links = select(BillingLink).where(BillingLink.org_id.in_(list(versions))).order_by(BillingLink.provider.desc())
    stops = circuit_breaker.stops(session)
    for link in session.scalars(links):
        report = link_status.link_report(link, now, stops)
        found[link.org_id][report.provider] = Standing(holds=holds(link, asked[link.org_id]), link=report)
    return {
        org_id: Receipt(sequence=version, through=asked[org_id], billers=found[org_id])
        for org_id, version in versions.items()
    }
