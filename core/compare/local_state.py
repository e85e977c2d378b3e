"""Our side of a comparison: an organization with both its links, whether it stands still, and who last changed it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.compare.findings import Kind, OurWrite
from core.db.models.billing_links import BillingLink
from core.db.models.events import Event
from core.db.models.organizations import Organization
from core.ports.spec import PROVIDERS, Provider

_EVENTS_READ = 100
# Which of our events wrote what a finding is about; the creation wrote everything.
_WRITTEN_BY: dict[Kind, str] = {
    "renamed": "organization.renamed",
    "email": "organization.billing_details_changed",
    "currency": "organization.billing_details_changed",
    "wrong_plan": "organization.plan_changed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    organization: Organization
    links: Mapping[Provider, BillingLink]

    @property
    def basis(self) -> str:
        """Changes with everything that the comparison rests on here."""
        parts = [
            f"{provider}:{link.state}:{link.generation}:{link.applied_version}:{link.customer_id}:{link.subscription_id}"
            for provider, link in sorted(self.links.items())
        ]
        return "|".join([str(self.organization.billing_version), *parts])

    def other(self, provider: Provider) -> BillingLink:
        return self.links["lago" if provider == "stripe" else "stripe"]

    def moves(self, now: datetime) -> bool:
        """Whether it is behind, being worked on, or about to be looked at: what differs then is not drift."""
        organization = self.organization
        its_day_came = organization.plan_effective_at is not None and organization.plan_effective_at <= now
        if organization.pending_plan_tier is not None and its_day_came:
            return True
        return any(
            (link.lease_until is not None and link.lease_until > now)
            or (link.state == "open" and (link.applied_version < link.wanted_version or link.intent is not None))
            for link in self.links.values()
        )

    @property
    def waits_for_a_person(self) -> bool:
        return any(link.state != "open" for link in self.links.values())


def load(session: Session, org_id: str) -> Ours | None:
    return next(
        iter(_with_links(session, session.scalars(select(Organization).where(Organization.id == org_id)))), None
    )


def after(session: Session, org_id: str, limit: int) -> list[Ours]:
    """The next organizations by rising id, deleted ones too: nothing may charge them."""
    rows = session.scalars(select(Organization).where(Organization.id > org_id).order_by(Organization.id).limit(limit))
    return _with_links(session, rows)


def last_writes(session: Session, org_id: str) -> dict[Kind, OurWrite]:
    """Who changed what last, by kind of finding; from the last events alone."""
    rows = session.scalars(select(Event).where(Event.org_id == org_id).order_by(Event.seq.desc()).limit(_EVENTS_READ))
    found: dict[Kind, OurWrite] = {}
    for row in rows:
        for kind, event_type in _WRITTEN_BY.items():
            if row.type in {event_type, "organization.created"}:
                found.setdefault(kind, OurWrite(actor=row.actor, source=row.source, at=row.occurred_at))
    return found


def _with_links(session: Session, rows: Iterable[Organization]) -> list[Ours]:
    organizations = list(rows)
    links: dict[str, dict[Provider, BillingLink]] = {each.id: {} for each in organizations}
    for link in session.scalars(select(BillingLink).where(BillingLink.org_id.in_(links))):
        for provider in PROVIDERS:
            if link.provider == provider:
                links[link.org_id][provider] = link
    return [Ours(organization=each, links=links[each.id]) for each in organizations]
