"""Our side of a comparison: an organization with both links, whether it is in flux, and who last changed it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.compare.desired_state import external_ids
from core.compare.findings import FindingKind, OurWrite
from core.db.models.billing_links import BillingLink
from core.db.models.events import Event
from core.db.models.organizations import Organization
from core.ports.external_ids import ExternalIds
from core.ports.spec import PROVIDERS, Provider

_MAX_EVENTS_READ = 100
# The event type that changes what a finding is about. ``organization.created`` counts for all of them.
_EVENT_TYPE_BY_KIND: dict[FindingKind, str] = {
    "renamed": "organization.renamed",
    "email": "organization.billing_details_changed",
    "currency": "organization.billing_details_changed",
    "wrong_plan": "organization.plan_changed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalState:
    organization: Organization
    links: Mapping[Provider, BillingLink]

    @property
    def row_versions(self) -> str:
        """Changes with everything in our rows that the comparison depends on."""
        parts = [
            f"{provider}:{link.state}:{link.generation}:{link.applied_version}:{link.customer_id}:{link.subscription_id}"
            for provider, link in sorted(self.links.items())
        ]
        return "|".join([str(self.organization.version), *parts])

    def external_ids(self, provider: Provider) -> ExternalIds:
        return external_ids(self.links[provider])

    def other_link(self, provider: Provider) -> BillingLink:
        return self.links["lago" if provider == "stripe" else "stripe"]

    def is_in_flux(self, now: datetime) -> bool:
        """Whether it is behind, being synced, or its scheduled plan is due. A difference then is not drift."""
        if self.organization.is_downgrade_due(now):
            return True
        return any(
            (link.lease_until is not None and link.lease_until > now)
            or (link.state == "active" and (link.applied_version < link.desired_version or link.intent is not None))
            for link in self.links.values()
        )

    @property
    def needs_operator(self) -> bool:
        return any(link.state in {"parked", "on_hold"} for link in self.links.values())


def load(session: Session, org_id: str) -> LocalState | None:
    return next(
        iter(_with_links(session, session.scalars(select(Organization).where(Organization.id == org_id)))), None
    )


def load_after(session: Session, org_id: str, limit: int) -> list[LocalState]:
    """The next organizations by rising id, also deleted ones, since nothing may charge them."""
    rows = session.scalars(select(Organization).where(Organization.id > org_id).order_by(Organization.id).limit(limit))
    return _with_links(session, rows)


def last_writes(session: Session, org_id: str) -> dict[FindingKind, OurWrite]:
    """Who changed what last, by kind of finding, from the last events only."""
    rows = session.scalars(
        select(Event).where(Event.org_id == org_id).order_by(Event.seq.desc()).limit(_MAX_EVENTS_READ)
    )
    writes: dict[FindingKind, OurWrite] = {}
    for row in rows:
        for kind, event_type in _EVENT_TYPE_BY_KIND.items():
            if row.type in {event_type, "organization.created"}:
                writes.setdefault(kind, OurWrite(actor=row.actor, source=row.source, at=row.occurred_at))
    return writes


def _with_links(session: Session, rows: Iterable[Organization]) -> list[LocalState]:
    organizations = list(rows)
    links: dict[str, dict[Provider, BillingLink]] = {each.id: {} for each in organizations}
    for link in session.scalars(select(BillingLink).where(BillingLink.org_id.in_(links))):
        for provider in PROVIDERS:
            if link.provider == provider:
                links[link.org_id][provider] = link
    return [LocalState(organization=each, links=links[each.id]) for each in organizations]
