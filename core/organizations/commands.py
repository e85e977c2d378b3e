"""Changes to organizations. Each takes the caller's session, checks its words, and records the event it causes.

A change that a biller must see raises ``billing_version`` and every link's ``wanted_version`` in the same transaction;
a change that changes nothing records nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import bindparam, insert, select
from sqlalchemy.orm import Session

from core.catalog.plans import Catalog
from core.common.json_types import Json
from core.common.validation import InvalidChangeError, one_of
from core.db.database import one_at_a_time
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import STATUSES, Organization
from core.events import outbox
from core.events.event_types import Change
from core.organizations.links import bump, new_link
from core.organizations.validation import ID_PATTERN, checked_currency, checked_email, checked_name, name_key
from core.ports.spec import PROVIDERS

# Written once: to build a statement costs more than to send it.
_LOCKED = select(Organization).where(Organization.id == bindparam("org_id")).with_for_update()
_TAKEN = select(Organization.id).where(Organization.name_key == bindparam("key"), Organization.status != "deleted")
_LINKED = insert(BillingLink)


class NameTakenError(InvalidChangeError):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class NewOrganization:
    name: str
    plan_tier: str
    org_id: str | None = None
    billing_email: str | None = None
    currency: str | None = None


def create(change: Change, new: NewOrganization, catalog: Catalog) -> Organization:
    """A new active organization with one link a biller, both due at once. Raises ``InvalidChangeError``."""
    if new.org_id is not None and not ID_PATTERN.fullmatch(new.org_id):
        raise InvalidChangeError("org_id", "org_id must be org_ and then at most 60 letters, digits, _ or -")
    name = checked_name(new.name)
    one_of("plan_tier", new.plan_tier, catalog.tiers())
    _refuse_taken(change.session, name)
    organization = Organization(
        id=new.org_id or f"org_{uuid4()}",
        name=name,
        name_key=name_key(name),
        plan_tier=new.plan_tier,
        status="active",
        billing_email=checked_email(new.billing_email) if new.billing_email else None,
        currency=checked_currency(new.currency) if new.currency else None,
        created_at=change.now,
        updated_at=change.now,
        billing_version=1,
    )
    change.session.add(organization)
    change.session.flush()
    rows = [new_link(organization.id, provider, change.now) for provider in PROVIDERS]
    change.session.connection().execute(_LINKED, rows)
    outbox.record(change, "organization.created", organization.id, {"plan_tier": new.plan_tier})
    return organization


def lock(session: Session, org_id: str) -> Organization | None:
    """The organization, its row held until the transaction ends; ``None``: there is no such organization."""
    return session.scalars(_LOCKED, {"org_id": org_id}).one_or_none()


def rename(change: Change, organization: Organization, name: str) -> None:
    name = checked_name(name)
    if name == organization.name:
        return
    if name_key(name) != organization.name_key:
        _refuse_taken(change.session, name)
    organization.name, organization.name_key = name, name_key(name)
    bump(change, organization)
    outbox.record(change, "organization.renamed", organization.id, {})


def change_status(change: Change, organization: Organization, status: str) -> None:
    """``suspended`` blocks use and leaves billing alone; ``deleted`` ends subscriptions and keeps both customers."""
    wanted = one_of("status", status, STATUSES)
    before = organization.status
    if wanted == before:
        return
    if before == "deleted":
        _refuse_taken(change.session, organization.name)
        organization.name_key = name_key(organization.name)
    organization.status = wanted
    organization.updated_at = change.now
    if "deleted" in {before, wanted}:
        organization.pending_plan_tier = organization.plan_effective_at = None
        bump(change, organization)
    outbox.record(change, "organization.status_changed", organization.id, {"from": before, "to": wanted})


def change_billing_details(
    change: Change, organization: Organization, *, billing_email: str | None = None, currency: str | None = None
) -> None:
    """Replace what is given; ``None`` leaves a field as it is."""
    email = checked_email(billing_email) if billing_email is not None else organization.billing_email
    money = checked_currency(currency) if currency is not None else organization.currency
    changed: list[Json] = []
    if email != organization.billing_email:
        organization.billing_email = email
        changed.append("billing_email")
    if money != organization.currency:
        organization.currency = money
        changed.append("currency")
    if not changed:
        return
    bump(change, organization)
    outbox.record(change, "organization.billing_details_changed", organization.id, {"fields": changed})


def _refuse_taken(session: Session, name: str) -> None:
    key = name_key(name)
    one_at_a_time(session, f"name:{key}")
    # Whoever gives a name flushes it, so the unit of work knows of none that the database does not.
    if session.connection().scalar(_TAKEN, {"key": key}) is not None:
        raise NameTakenError("name", f"Organization '{name}' already exists")
