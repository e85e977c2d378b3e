"""What is observed: organizations with what one reconcile would do at each provider."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Management, Organization
from core.organizations import management
from core.ports.spec import PROVIDERS, Provider
from core.reconcile import link_status, observation
from core.reconcile.link_status import SyncStatus
from core.reconcile.observation import Observation

ORGANIZATIONS_PER_PAGE: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedLink:
    """``status`` observed: nothing is left to read. ``observed_at``: when its observation was read."""

    status: SyncStatus
    observed_at: datetime | None
    error_code: str | None
    error_message: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedOrganization:
    """``mode``: its own; None: the installation's. ``observations`` None: not read since it is observed.

    ``links``: the state of each now. It may be read again, or be on hold, beside what was read before.
    ``theirs``: the providers whose customer and subscription must be adopted first; a deleted one cannot be.
    ``managed``: those that are not observed, because what is ours of a deleted organization is ended.
    ``without_answer``: those to which a request was sent that has no answer yet; it is not sent again.
    """

    org_id: str
    name: str
    mode: Management | None
    status: str
    links: dict[Provider, ObservedLink]
    observations: dict[Provider, Observation | None]
    theirs: tuple[Provider, ...]
    managed: tuple[Provider, ...]
    without_answer: tuple[Provider, ...]

    @property
    def is_to_be_adopted(self) -> bool:
        return bool(self.theirs) and self.status != "deleted"


def observed_organizations(
    database: Database,
    installation: Management,
    now: datetime,
    org_ids: Sequence[str] = (),
    *,
    per_page: int = ORGANIZATIONS_PER_PAGE,
) -> Iterator[ObservedOrganization]:
    """Those that are observed, of ``org_ids`` or of all, by id.

    It has one page in memory, and no transaction is open while the caller writes what it got. Of all, without those
    that are deleted and at which nothing is left to do.
    """
    after = ""
    while True:
        query = select(Organization).where(Organization.id > after).order_by(Organization.id).limit(per_page)
        with database.read() as session:
            page = session.scalars(query.where(Organization.id.in_(org_ids)) if org_ids else query).all()
            found = _observed_of(session, page, installation, now, lists_each=bool(org_ids))
        yield from found
        if len(page) < per_page:
            return
        after = page[-1].id


def _observed_of(
    session: Session,
    organizations: Sequence[Organization],
    installation: Management,
    now: datetime,
    *,
    lists_each: bool,
) -> list[ObservedOrganization]:
    links: dict[str, dict[Provider, BillingLink]] = {each.id: {} for each in organizations}
    for link in session.scalars(select(BillingLink).where(BillingLink.org_id.in_(list(links)))):
        links[link.org_id]["stripe" if link.provider == "stripe" else "lago"] = link
    found = []
    for organization in organizations:
        its_links = links[organization.id]
        is_listed = lists_each or organization.status != "deleted" or any(map(_has_work, its_links.values()))
        if is_listed and management.is_observed(organization, its_links.values(), installation):
            found.append(_report(organization, its_links, installation, now))
    return found


def _has_work(link: BillingLink) -> bool:
    found = observation.from_json(link.observation)
    if found is None:
        return not link_status.is_synced(link, link.desired_version)
    return bool(found.steps) or found.problem is not None or link.intent is not None


def _report(
    organization: Organization, its_links: dict[Provider, BillingLink], installation: Management, now: datetime
) -> ObservedOrganization:
    reports = {each: link_status.link_report(its_links[each], now) for each in PROVIDERS if each in its_links}
    return ObservedOrganization(
        org_id=organization.id,
        name=organization.name,
        mode=organization.management,
        status=organization.status,
        links={
            each: ObservedLink(
                status=report.status,
                observed_at=report.observed_at,
                error_code=report.error_code,
                error_message=report.error_message,
            )
            for each, report in reports.items()
        },
        observations={each: report.observation for each, report in reports.items()},
        theirs=tuple(each for each, report in reports.items() if report.is_theirs),
        managed=tuple(
            each
            for each, link in its_links.items()
            if not management.is_link_observed(organization, link, its_links.values(), installation)
        ),
        without_answer=tuple(each for each in reports if its_links[each].intent is not None),
    )
