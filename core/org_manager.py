"""Drop-in replacement for the predecessor's OrgManager: same names, results and errors.

The data is in the database: many threads and processes may write at once, nothing is lost, and every change reaches
the providers through the events it records. Importing this module does nothing; the first call connects.

A plan change to a lower tier waits for the end of the period (``pending_plan_tier``), as at both providers. A deleted
organization can still be read by its id, but it is in no list and accepts no new members.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import URL, ColumnElement, ScalarSelect, select
from sqlalchemy.orm import Session

from core.catalog import plans as plan_catalog
from core.catalog.plans import Catalog
from core.common import given_text
from core.common.clock import utc_now
from core.common.names import name_key
from core.common.validation import one_of
from core.db.database import Database
from core.db.models import billing_links, organizations
from core.events.event_types import ChangeContext
from core.inbox import service_events
from core.organizations import commands, memberships, plan_changes, provider_ids
from core.organizations.commands import NewOrganization
from core.organizations.memberships import LastOwnerError

DATABASE_FILE = "billing-sync.db"
DEFAULT_DATA_DIR = Path("data")


@dataclass(frozen=True, slots=True, kw_only=True)
class Organization:
    """``lago_customer_id`` is Lago's ``lago_id``; ``created_at`` is UTC."""

    id: str
    name: str
    created_at: datetime
    plan_tier: str
    lago_customer_id: str | None
    stripe_customer_id: str | None
    status: str
    pending_plan_tier: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OrgUser:
    org_id: str
    user_id: str
    role: str
    joined_at: datetime


_Condition = ColumnElement[bool]
_NOT_DELETED: _Condition = organizations.Organization.status != "deleted"


class OrgManager:
    """Stores its data in ``database_url``, or in a SQLite file in ``data_dir``.

    Without either it uses ``DATABASE_URL`` of the environment, then the folder ``data``. A server's schema must be
    this version's (``billing-sync db upgrade``); a SQLite file is upgraded automatically. Raises ``DatabaseError``.

    ``unique_names`` says whether an organization may get the name of another one. Without it
    ``UNIQUE_ORGANIZATION_NAMES`` of the environment does; the default is that it may not.

    ``plans`` is the file of the plan catalog. Without it the file is ``PLANS_FILE`` of the environment, then
    ``plans.toml`` of the working folder, then the default catalog of this package. Raises ``CatalogError``.
    """

    def __init__(
        self,
        database_url: str | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        plans: str | os.PathLike[str] | None = None,
        *,
        unique_names: bool | None = None,
    ) -> None:
        if database_url is not None and data_dir is not None:
            message = "pass OrgManager a database_url or a data_dir, not both"
            raise ValueError(message)
        self._url = database_url
        self._data_dir = Path(data_dir) if data_dir is not None else None
        self._plans_file = Path(plans) if plans is not None else None
        self._unique_names = unique_names
        self._opened: dict[int, tuple[Database, Catalog]] = {}
        self._opening_locks: dict[int, threading.Lock] = {}

    def create_organization(self, name: str, plan_tier: str = "founders_friend") -> str:
        """Return the new id, ``org_<uuid4>``. ValueError: empty name, name in use (ignoring case), unknown plan.

        A name that others have is accepted if names need not be unique.
        """
        with self._change() as (change, plans):
            new = NewOrganization(name=name, plan_tier=plan_tier)
            return commands.create(change, new, plans).id

    def get_org(self, org_id: str) -> Organization | None:
        found = self._select(organizations.Organization.id == org_id)
        return found[0] if found else None

    def update_org_billing_ids(self, org_id: str, lago_id: str | None = None, stripe_id: str | None = None) -> bool:
        """Set the given ids. An id is checked at the provider before it is used.

        ValueError: an empty id, or one that belongs to another organization.
        """
        with self._change() as (change, _):
            organization = commands.lock(change.session, org_id)
            if organization is None:
                return False
            provider_ids.set_customer_ids(change, organization, {"lago": lago_id, "stripe": stripe_id})
            return True

    def update_org_plan(self, org_id: str, plan_tier: str) -> bool:
        """A higher tier applies now, a lower one at the end of the period. ValueError: unknown plan."""
        with self._change() as (change, plans):
            one_of("plan_tier", plan_tier, plans.tiers())
            organization = commands.lock(change.session, org_id)
            if organization is not None:
                plan_changes.change_plan(change, organization, plan_tier, plans)
            return organization is not None

    def update_org_status(self, org_id: str, status: str) -> bool:
        """ValueError: unknown status, or a deleted organization whose name is in use by now."""
        with self._change() as (change, _):
            one_of("status", status, organizations.ORGANIZATION_STATUSES)
            organization = commands.lock(change.session, org_id)
            if organization is not None:
                commands.change_status(change, organization, status)
            return organization is not None

    def add_user_to_org(self, org_id: str, user_id: str, role: str = "member") -> bool:
        """ValueError: unknown role, or the user is a member already."""
        with self._change() as (change, plans):
            one_of("role", role, organizations.MEMBERSHIP_ROLES)
            organization = commands.lock(change.session, org_id)
            if organization is None or organization.status == "deleted":
                return False
            memberships.add(change, organization, user_id, role)
            if role == "owner":
                service_events.apply_waiting_for_owner(change, plans, organization, user_id)
            return True

    def remove_user_from_org(self, org_id: str, user_id: str) -> bool:
        """False if the user was not a member, or is the last owner, who stays."""
        with self._change() as (change, _):
            organization = commands.lock(change.session, org_id)
            membership = memberships.lock(change.session, org_id, user_id)
            if organization is None or membership is None:
                return False
            try:
                memberships.remove(change, membership)
            except LastOwnerError:
                return False
            return True

    def update_user_role(self, org_id: str, user_id: str, role: str) -> bool:
        """False if the user is not a member, or is the last owner, who stays one. ValueError: unknown role."""
        with self._change() as (change, plans):
            one_of("role", role, organizations.MEMBERSHIP_ROLES)
            organization = commands.lock(change.session, org_id)
            membership = memberships.lock(change.session, org_id, user_id)
            if organization is None or membership is None:
                return False
            try:
                memberships.change_role(change, membership, role)
            except LastOwnerError:
                return False
            if role == "owner":
                service_events.apply_waiting_for_owner(change, plans, organization, user_id)
            return True

    def get_user_orgs(self, user_id: str) -> list[Organization]:
        of_user = select(organizations.Membership.org_id).where(organizations.Membership.user_id == user_id)
        return self._select(organizations.Organization.id.in_(of_user), _NOT_DELETED)

    def get_org_users(self, org_id: str) -> list[OrgUser]:
        with self._read() as session:
            rows = session.scalars(
                select(organizations.Membership)
                .where(organizations.Membership.org_id == org_id)
                .order_by(organizations.Membership.joined_at, organizations.Membership.user_id)
            )
            return [OrgUser(org_id=m.org_id, user_id=m.user_id, role=m.role, joined_at=m.joined_at) for m in rows]

    def get_user_role_in_org(self, org_id: str, user_id: str) -> str | None:
        with self._read() as session:
            membership = session.get(organizations.Membership, (org_id, user_id))
            return membership.role if membership is not None else None

    def list_all_organizations(self) -> list[Organization]:
        return self._select(_NOT_DELETED)

    def search_organizations(self, query: str) -> list[Organization]:
        """Organizations whose name contains ``query``, ignoring case."""
        return self._select(
            organizations.Organization.name_key.contains(name_key(query), autoescape=True), _NOT_DELETED
        )

    def get_organizations_by_plan(self, plan_tier: str) -> list[Organization]:
        return self._select(organizations.Organization.plan_tier == plan_tier, _NOT_DELETED)

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        with self._opening_lock():
            if (opened := self._opened.pop(os.getpid(), None)) is not None:
                opened[0].close()

    def _select(self, *conditions: _Condition) -> list[Organization]:
        lago, stripe = (_customer_id(provider) for provider in ("lago", "stripe"))
        with self._read() as session:
            rows = session.execute(
                select(organizations.Organization, lago, stripe)
                .where(*conditions)
                .order_by(organizations.Organization.created_at, organizations.Organization.id)
            )
            return [_to_public(organization, lago_id, stripe_id) for organization, lago_id, stripe_id in rows]

    @contextmanager
    def _change(self) -> Iterator[tuple[ChangeContext, Catalog]]:
        database, plans = self._open()
        with database.write() as session:
            yield ChangeContext(session, utc_now()), plans

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with self._open()[0].read() as session:
            yield session

    def _open(self) -> tuple[Database, Catalog]:
        # A connection inherited by a fork would be used by two processes at once. The parent's is kept but not used:
        # closing it here would end it in the parent.
        with self._opening_lock():
            opened = self._opened.get(os.getpid())
            if opened is None:
                opened = self._opened[os.getpid()] = self._connect()
            return opened

    def _connect(self) -> tuple[Database, Catalog]:
        plans = plan_catalog.load(self._plans_file or _plans_file_of_environment())
        unique_names = _unique_names_of_environment() if self._unique_names is None else self._unique_names
        database = Database(self._database_url(), unique_names=unique_names)
        with ExitStack() as undo:
            undo.callback(database.close)
            database.ensure_schema()
            undo.pop_all()
        return database, plans

    def _opening_lock(self) -> threading.Lock:
        # One lock per process: a lock that a thread of the parent held at the fork is never released here.
        return self._opening_locks.setdefault(os.getpid(), threading.Lock())

    def _database_url(self) -> str:
        if self._url is not None:
            return self._url
        if self._data_dir is None and (url := given_text.trimmed(os.environ.get("DATABASE_URL", ""))):
            return url
        folder = self._data_dir or DEFAULT_DATA_DIR
        folder.mkdir(parents=True, exist_ok=True)
        return URL.create("sqlite", database=str(folder / DATABASE_FILE)).render_as_string()


def _unique_names_of_environment() -> bool:
    """The words are those of the settings. An empty value counts as not set. Raises ``ValueError``."""
    word = given_text.trimmed(os.environ.get("UNIQUE_ORGANIZATION_NAMES", "")) or "true"
    try:
        return TypeAdapter(bool).validate_python(word)
    except ValidationError:
        message = "UNIQUE_ORGANIZATION_NAMES must be true or false"
        raise ValueError(message) from None


def _plans_file_of_environment() -> Path | None:
    name = given_text.trimmed(os.environ.get("PLANS_FILE", ""))
    return Path(name) if name else None


def _customer_id(provider: str) -> ScalarSelect[str | None]:
    return (
        select(billing_links.BillingLink.customer_id)
        .where(
            billing_links.BillingLink.org_id == organizations.Organization.id,
            billing_links.BillingLink.provider == provider,
        )
        .scalar_subquery()
    )


def _to_public(organization: organizations.Organization, lago_id: str | None, stripe_id: str | None) -> Organization:
    return Organization(
        id=organization.id,
        name=organization.name,
        created_at=organization.created_at,
        plan_tier=organization.plan_tier,
        lago_customer_id=lago_id,
        stripe_customer_id=stripe_id,
        status=organization.status,
        pending_plan_tier=organization.pending_plan_tier,
    )


org_manager = OrgManager()
