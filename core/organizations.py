"""Changes to organizations. Each takes the caller's session, checks its words, and records the event it causes.

A change that a biller must see raises ``billing_version`` and every link's ``wanted_version`` in the same transaction;
a change that changes nothing records nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeVar
from uuid import uuid4

from sqlalchemy import bindparam, case, insert, select, update
from sqlalchemy.orm import Session

from core import outbox
from core.catalog import Catalog
from core.database import one_at_a_time
from core.events import Change
from core.gateways import PROVIDERS, Json
from core.models import STATUSES, BillingLink, EventData, Organization

NAME_LIMIT = 200
ID_PATTERN = re.compile(r"org_[A-Za-z0-9_-]{1,60}")
EMAIL_PATTERN = re.compile(r"[^@\s,]+@[^@\s,]+\.[^@\s,]+")

# The relay rings the broker within moments of the commit; a link still behind after this was not heard.
SWEEP_GRACE = timedelta(seconds=20)

# Written once: to build a statement costs more than to send it.
_LOCKED = select(Organization).where(Organization.id == bindparam("org_id")).with_for_update()
_TAKEN = select(Organization.id).where(Organization.name_key == bindparam("key"), Organization.status != "deleted")
_LINKED = insert(BillingLink)
_BEHIND = (
    update(BillingLink)
    .where(BillingLink.org_id == bindparam("of"))
    .values(
        wanted_version=bindparam("version"),
        state=case((BillingLink.state == "parked", "open"), else_=BillingLink.state),
        attempts=0,
        next_attempt_at=None,
        sweep_at=bindparam("sweep"),
    )
    .execution_options(synchronize_session=False)
)

Word = TypeVar("Word", bound=str)


class InvalidChangeError(ValueError):
    """A value that cannot be accepted; the message names the field and what it may be. ``field`` is its name."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class NameTakenError(InvalidChangeError):
    pass


def name_key(name: str) -> str:
    """What makes two names the same: outer blanks, letter case and Unicode composition do not count."""
    return unicodedata.normalize("NFC", name).strip().casefold()


def one_of(field: str, value: str, allowed: Collection[Word]) -> Word:
    for word in allowed:
        if word == value:
            return word
    raise InvalidChangeError(field, f"{field} must be one of {', '.join(allowed)}; got {value!r}")


def checked_name(name: str) -> str:
    stripped = name.strip()
    if not stripped:
        raise InvalidChangeError("name", "Organization name cannot be empty")
    if len(stripped) > NAME_LIMIT:
        raise InvalidChangeError("name", f"name is {len(stripped)} characters long; at most {NAME_LIMIT} are allowed")
    if any(unicodedata.category(letter) in {"Cc", "Cs"} for letter in stripped):
        raise InvalidChangeError("name", "name holds control characters; write it in one line of plain text")
    return stripped


def checked_email(email: str) -> str:
    if len(email) > 512 or not EMAIL_PATTERN.fullmatch(email):  # noqa: PLR2004 - Stripe's limit (stripe.md 4)
        raise InvalidChangeError("billing_email", "billing_email is not one address of the form name@host.tld")
    return email


def checked_currency(currency: str) -> str:
    if not re.fullmatch(r"[A-Z]{3}", currency):
        raise InvalidChangeError("currency", "currency must be an ISO code of three capital letters, like USD")
    return currency


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


def new_link(org_id: str, provider: str, now: datetime) -> dict[str, object]:
    """A link that has everything left to do."""
    return {
        "org_id": org_id,
        "provider": provider,
        "made_at": now,
        "wanted_version": 1,
        "applied_version": 0,
        "state": "open",
        "attempts": 0,
        "sweep_at": now + SWEEP_GRACE,
        "generation": 0,
    }


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStep:
    """What asking for a plan comes to: these are the plans afterwards."""

    kind: Literal["nothing", "now", "period_end", "taken_back"]
    plan_tier: str
    pending_plan_tier: str | None


def plan_step(organization: Organization, plan_tier: str, catalog: Catalog) -> PlanStep:
    """A higher rank applies now; a lower one waits for the end of the period; the present one takes that back.

    Raises ``InvalidChangeError``.
    """
    one_of("plan_tier", plan_tier, catalog.tiers())
    present, pending = organization.plan_tier, organization.pending_plan_tier
    current = catalog.plans.get(present)
    billed = organization.status != "deleted"
    if billed and current is not None and catalog.plan(plan_tier).rank < current.rank:
        kind: Literal["nothing", "period_end"] = "nothing" if pending == plan_tier else "period_end"
        return PlanStep(kind=kind, plan_tier=present, pending_plan_tier=plan_tier)
    if plan_tier != present:
        return PlanStep(kind="now", plan_tier=plan_tier, pending_plan_tier=None)
    return PlanStep(kind="taken_back" if pending else "nothing", plan_tier=present, pending_plan_tier=None)


def change_plan(change: Change, organization: Organization, plan_tier: str, catalog: Catalog) -> None:
    """As ``plan_step`` says."""
    step = plan_step(organization, plan_tier, catalog)
    if step.kind == "nothing":
        return
    before = organization.plan_tier
    organization.plan_tier, organization.pending_plan_tier = step.plan_tier, step.pending_plan_tier
    organization.plan_effective_at = None
    bump(change, organization)
    at = "period_end" if step.pending_plan_tier else "now"
    data: EventData = {"from": before, "to": plan_tier, "at": at}
    outbox.record(change, "organization.plan_changed", organization.id, data)


def settle_plan(change: Change, organization: Organization, tier: str) -> None:
    """The biller says that a waiting downgrade took effect: ``tier`` is what the organization may use from now on.

    Where another one waits by now, the billers are told of that anew.
    """
    before, organization.plan_tier = organization.plan_tier, tier
    organization.plan_effective_at = None
    organization.updated_at = change.now
    if organization.pending_plan_tier == tier:
        organization.pending_plan_tier = None
    else:
        bump(change, organization)
    data: EventData = {"from": before, "to": tier, "at": "now"}
    outbox.record(change, "organization.plan_changed", organization.id, data)


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


def bump(change: Change, organization: Organization) -> None:
    """A biller must see this: one version up, links due now, and one parked for its old data gets its chance."""
    organization.billing_version += 1
    organization.updated_at = change.now
    change.session.flush()
    sweep_at = change.now + SWEEP_GRACE
    behind = {"of": organization.id, "version": organization.billing_version, "sweep": sweep_at}
    change.session.connection().execute(_BEHIND, behind)


def _refuse_taken(session: Session, name: str) -> None:
    key = name_key(name)
    one_at_a_time(session, f"name:{key}")
    # Whoever gives a name flushes it, so the unit of work knows of none that the database does not.
    if session.connection().scalar(_TAKEN, {"key": key}) is not None:
        raise NameTakenError("name", f"Organization '{name}' already exists")
