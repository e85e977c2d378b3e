"""Changes to organizations. Each uses the caller's session, checks its values, and records the event it causes.

A change that a provider must see raises ``version`` and each link's ``desired_version`` in the same transaction.
A change without effect records nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import bindparam, insert, select
from sqlalchemy.orm import Session

from core.catalog.plans import Catalog
from core.common.json_types import Json
from core.common.names import name_key
from core.common.validation import InvalidChangeError, one_of
from core.db.database import acquire_advisory_locks, has_unique_names
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import ORGANIZATION_STATUSES, Organization
from core.events import outbox
from core.events.event_types import ChangeContext
from core.flow_control import payment_brake
from core.flow_control.payment_brake import RequestedChange
from core.organizations.links import mark_for_sync, new_link, release_deleted
from core.organizations.validation import (
    ORGANIZATION_ID_PATTERN,
    checked_currency,
    checked_email,
    checked_name,
    checked_offered,
    checked_plan_currency,
)
from core.ports.spec import PROVIDERS

# Built once, because building a statement costs more than sending it.
_LOCK_ORGANIZATION = select(Organization).where(Organization.id == bindparam("org_id")).with_for_update()
_SELECT_NAME_OWNER = select(Organization.id).where(
    Organization.name_key == bindparam("key"), Organization.status != "deleted"
)
_INSERT_LINKS = insert(BillingLink)


class NameTakenError(InvalidChangeError):
    """``owner_id``: the organization that has the name."""

    def __init__(self, field: str, message: str, owner_id: str) -> None:
        super().__init__(field, message)
        self.owner_id = owner_id


@dataclass(frozen=True, slots=True, kw_only=True)
class NewOrganization:
    name: str
    plan_tier: str
    org_id: str | None = None
    billing_email: str | None = None
    currency: str | None = None
    has_plan_already: bool = False
    """A provider charges it for the plan already, so the plan may be one that is sold no longer."""


def create(change: ChangeContext, new: NewOrganization, catalog: Catalog) -> Organization:
    """A new active organization with one link per provider, both due at once. Raises ``InvalidChangeError``."""
    if new.org_id is not None and not ORGANIZATION_ID_PATTERN.fullmatch(new.org_id):
        raise InvalidChangeError("org_id", "org_id must be org_ followed by at most 60 letters, digits, _ or -")
    name = checked_name(new.name)
    one_of("plan_tier", new.plan_tier, catalog.tiers())
    if not new.has_plan_already:
        checked_offered("plan_tier", new.plan_tier, catalog)
    currency = checked_currency(new.currency) if new.currency else None
    checked_plan_currency("currency", new.plan_tier, currency, catalog)
    may_share_name = _check_name_is_free(change.session, name)
    organization = Organization(
        id=new.org_id or f"org_{uuid4()}",
        name=name,
        name_key=name_key(name),
        may_share_name=may_share_name,
        plan_tier=new.plan_tier,
        status="active",
        billing_email=checked_email(new.billing_email) if new.billing_email else None,
        currency=currency,
        created_at=change.now,
        updated_at=change.now,
        version=1,
    )
    change.session.add(organization)
    change.session.flush()
    links = [
        new_link(organization.id, provider, change.now, maybe_older=new.org_id is not None) for provider in PROVIDERS
    ]
    change.session.connection().execute(_INSERT_LINKS, links)
    outbox.record(change, "organization.created", organization.id, {"plan_tier": new.plan_tier})
    return organization


def lock(session: Session, org_id: str) -> Organization | None:
    """The organization, with its row locked until the transaction ends. ``None``: it does not exist."""
    return session.scalars(_LOCK_ORGANIZATION, {"org_id": org_id}).one_or_none()


def rename(change: ChangeContext, organization: Organization, name: str) -> None:
    if name.strip() == organization.name:
        return  # also where it has a character that is refused today
    name = checked_name(name)
    if name_key(name) != organization.name_key:
        organization.may_share_name = _check_name_is_free(change.session, name)
    organization.name, organization.name_key = name, name_key(name)
    mark_for_sync(change, organization)
    outbox.record(change, "organization.renamed", organization.id, {})


def change_status(change: ChangeContext, organization: Organization, status: str) -> None:
    """``suspended`` blocks use and does not affect billing; ``deleted`` ends subscriptions and keeps both customers."""
    new_status = one_of("status", status, ORGANIZATION_STATUSES)
    before = organization.status
    if new_status == before:
        return
    if before == "deleted":
        organization.may_share_name = _check_name_is_free(change.session, organization.name)
        organization.name_key = name_key(organization.name)
        # Its next end is another one, which takes a place of its own at the payment brake.
        returned = RequestedChange(org_id=organization.id, scope="plan", goal="")
        payment_brake.record(change.session, returned, "returned", change.now)
    organization.status = new_status
    organization.updated_at = change.now
    if "deleted" in {before, new_status}:
        organization.pending_plan_tier = organization.plan_effective_at = organization.downgrade_recheck_at = None
        if new_status == "deleted":
            # Whatever was changed at a provider, billing ends; this undoes no such change.
            release_deleted(change, organization)
        mark_for_sync(change, organization, "deletion" if new_status == "deleted" else "change")
    outbox.record(change, "organization.status_changed", organization.id, {"from": before, "to": new_status})


def change_billing_details(
    change: ChangeContext,
    organization: Organization,
    catalog: Catalog,
    *,
    billing_email: str | None = None,
    currency: str | None = None,
) -> None:
    """Replace the given fields. ``None`` leaves a field as it is."""
    new_email = organization.billing_email
    if billing_email is not None and billing_email != organization.billing_email:
        new_email = checked_email(billing_email)
    new_currency = checked_currency(currency) if currency is not None else organization.currency
    if new_currency != organization.currency:
        for tier in filter(None, (organization.plan_tier, organization.pending_plan_tier)):
            checked_plan_currency("currency", tier, new_currency, catalog)
    changed: list[Json] = []
    if new_email != organization.billing_email:
        organization.billing_email = new_email
        changed.append("billing_email")
    if new_currency != organization.currency:
        organization.currency = new_currency
        changed.append("currency")
    if not changed:
        return
    mark_for_sync(change, organization)
    outbox.record(change, "organization.billing_details_changed", organization.id, {"fields": changed})


def _check_name_is_free(session: Session, name: str) -> bool:
    """Whether others may get this name, too: only if names need not be unique. Raises ``NameTakenError``.

    It also finds the names that were stored while names did not have to be unique.
    """
    if not has_unique_names(session):
        return True
    comparison_key = name_key(name)
    acquire_advisory_locks(session, f"name:{comparison_key}")
    # This query does not flush the session. It need not: each change of a name is flushed when it is made.
    owner_id = session.connection().scalar(_SELECT_NAME_OWNER, {"key": comparison_key})
    if owner_id is not None:
        raise NameTakenError("name", f"Organization '{name}' already exists", owner_id)
    return False
