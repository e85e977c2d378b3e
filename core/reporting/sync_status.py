"""Whether a version of an organization has reached both providers, and if not, why and what happens next.

The number of a change is the organization's ``version`` after it. A version is synced at a provider once a sync attempt
with that version or a later one has succeeded. An unfinished attempt, or an unknown outcome, does not count.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.flow_control import circuit_breaker
from core.ports.spec import PROVIDERS, Provider
from core.reconcile import link_status
from core.reconcile.link_status import LinkReport, is_synced

_NEWER_THAN_ANY: Final = 2**62


class OrganizationVersion(NamedTuple):
    org_id: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkVersionStatus:
    """One provider. ``is_synced``: it has the requested version."""

    is_synced: bool
    link: LinkReport


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionStatus:
    """``latest_version``: the newest change. ``version``: the requested one."""

    latest_version: int
    version: int
    providers: Mapping[Provider, LinkVersionStatus]

    @property
    def in_sync(self) -> bool:
        return all(provider in self.providers and self.providers[provider].is_synced for provider in PROVIDERS)

    @property
    def is_final(self) -> bool:
        """Whether nothing more comes by itself: both providers have the version, or are only observed."""
        return all(
            provider in self.providers
            and (self.providers[provider].is_synced or self.providers[provider].link.status == "observed")
            for provider in PROVIDERS
        )


def version_status(session: Session, org_id: str, now: datetime, version: int | None = None) -> VersionStatus | None:
    """Status of ``version``, by default the newest one; ``None``: there is no such organization."""
    return _version_statuses(session, [org_id], now, version).get(org_id)


def version_statuses(session: Session, org_ids: Collection[str], now: datetime) -> dict[str, VersionStatus]:
    """Status of the newest version of several organizations."""
    return _version_statuses(session, org_ids, now, None)


def final_versions(session: Session, versions: Collection[OrganizationVersion]) -> set[OrganizationVersion]:
    """Those of the versions that both providers have, or will not get because the organization is only observed.

    Cheap, for a poll: only columns of few rows are read.
    """
    version = case((BillingLink.state == "observed", _NEWER_THAN_ANY), else_=BillingLink.applied_version)
    applied = select(BillingLink.org_id, func.min(version)).where(
        BillingLink.org_id.in_({each.org_id for each in versions})
    )
    applied_versions: dict[str, int] = {row[0]: row[1] for row in session.execute(applied.group_by(BillingLink.org_id))}
    possible = [each for each in versions if applied_versions.get(each.org_id, 0) >= each.version]
    if not possible:
        return set()
    links: dict[str, list[BillingLink]] = {each.org_id: [] for each in possible}
    for link in session.scalars(select(BillingLink).where(BillingLink.org_id.in_(list(links)))):
        links[link.org_id].append(link)
    return {
        each
        for each in possible
        if {link.provider for link in links[each.org_id] if link.state == "observed" or is_synced(link, each.version)}
        >= set(PROVIDERS)
    }


def latest_versions(session: Session, org_ids: Collection[str]) -> dict[str, int]:
    """The newest version of each organization."""
    versions = select(Organization.id, Organization.version).where(Organization.id.in_(org_ids))
    return {row[0]: row[1] for row in session.execute(versions)}


def _version_statuses(
    session: Session, org_ids: Collection[str], now: datetime, requested_version: int | None
) -> dict[str, VersionStatus]:
    versions = latest_versions(session, org_ids)
    requested = {
        org_id: version if requested_version is None else requested_version for org_id, version in versions.items()
    }
    link_statuses: dict[str, dict[Provider, LinkVersionStatus]] = {org_id: {} for org_id in versions}
    links = select(BillingLink).where(BillingLink.org_id.in_(list(versions))).order_by(BillingLink.provider.desc())
    open_breakers = circuit_breaker.open_breakers(session)
    for link in session.scalars(links):
        report = link_status.link_report(link, now, open_breakers)
        link_statuses[link.org_id][report.provider] = LinkVersionStatus(
            is_synced=is_synced(link, requested[link.org_id]), link=report
        )
    return {
        org_id: VersionStatus(latest_version=version, version=requested[org_id], providers=link_statuses[org_id])
        for org_id, version in versions.items()
    }
