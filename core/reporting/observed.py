"""What is observed: organizations with what one reconcile would do at each provider."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Management, Organization
from core.organizations import management
from core.ports.spec import PROVIDERS, Provider
from core.reconcile import observation
from core.reconcile.observation import Observation

ORGANIZATIONS_PER_PAGE: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedOrganization:
    """``mode``: its own; None: the installation's. ``observations`` None: not read since it is observed.

    ``theirs``: the providers whose customer and subscription must be adopted first.
    ``without_answer``: those to which a request was sent that has no answer yet; it is not sent again.
    """

    org_id: str
    name: str
    mode: Management | None
    observations: dict[Provider, Observation | None]
    theirs: tuple[Provider, ...]
    without_answer: tuple[Provider, ...]


def observed_organizations(
    session: Session, installation: Management, org_ids: Sequence[str] = ()
) -> Iterator[ObservedOrganization]:
    """Those that are observed, of ``org_ids`` or of all, by id. It reads page by page."""
    after = ""
    while True:
        query = (
            select(Organization).where(Organization.id > after).order_by(Organization.id).limit(ORGANIZATIONS_PER_PAGE)
        )
        organizations = session.scalars(query.where(Organization.id.in_(org_ids)) if org_ids else query).all()
        if not organizations:
            return
        after = organizations[-1].id
        links: dict[str, dict[Provider, BillingLink]] = {each.id: {} for each in organizations}
        for link in session.scalars(select(BillingLink).where(BillingLink.org_id.in_(list(links)))):
            links[link.org_id]["stripe" if link.provider == "stripe" else "lago"] = link
        for organization in organizations:
            its_links = links[organization.id]
            if management.is_observed(organization, its_links.values(), installation):
                yield _report(organization, its_links)
        session.expunge_all()


def _report(organization: Organization, its_links: dict[Provider, BillingLink]) -> ObservedOrganization:
    return ObservedOrganization(
        org_id=organization.id,
        name=organization.name,
        mode=organization.management,
        observations={
            each: observation.from_json(its_links[each].observation) if its_links[each].state == "observed" else None
            for each in PROVIDERS
            if each in its_links
        },
        theirs=tuple(each for each in PROVIDERS if each in its_links and its_links[each].ownership == "theirs"),
        without_answer=tuple(each for each in PROVIDERS if each in its_links and its_links[each].intent is not None),
    )
