"""Export to the predecessor store's two files, in its format.

Healthy files that were imported are exported byte for byte. The predecessor kept records in the order in which they
were added; the order of the events reproduces it. Both files show the same moment. Each file is replaced only when it
is complete; otherwise it stays as it was. Memory grows with the longest list of members, not with the number of
organizations.

Data without a field in that format is left out: a scheduled plan change, the billing email, the currency.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import ColumnElement, ScalarSelect, func, select, text
from sqlalchemy.orm import Session

from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.events import Event
from core.db.models.organizations import Membership, Organization
from core.ports.spec import Provider
from core.predecessor.files import FilePosition, OldMember, OldOrganization, write_members, write_organizations

_EXPORT_BATCH_SIZE = 500
_AFTER_EVERY_EVENT = 2**62  # greater than the number of any event
_DATABASE_POSITION = FilePosition("the database", 0, 0)


@dataclass(slots=True)
class ExportCounts:
    organizations: int = 0
    members: int = 0


def export_files(database: Database, organizations_path: Path, members_path: Path) -> ExportCounts:
    """Raises ``UnwritableFileError``."""
    counts = ExportCounts()
    with _snapshot(database) as session:
        write_organizations(organizations_path, _read_organizations(session, counts))
        write_members(members_path, _read_member_lists(session, counts))
    return counts


@contextmanager
def _snapshot(database: Database) -> Iterator[Session]:
    """A session that sees no later writes. In SQLite every read transaction is a snapshot anyway."""
    with database.read() as session:
        if not database.is_sqlite:
            session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        yield session


def _first_event_seq() -> ColumnElement[int]:
    """The number of the event that created the organization. An organization without events comes last."""
    first = select(func.min(Event.seq)).where(Event.org_id == Organization.id).scalar_subquery()
    return func.coalesce(first, _AFTER_EVERY_EVENT)


def _read_organizations(session: Session, counts: ExportCounts) -> Iterator[OldOrganization]:
    rows = session.execute(
        select(
            Organization.id,
            Organization.name,
            Organization.created_at,
            Organization.plan_tier,
            _customer_id("lago"),
            _customer_id("stripe"),
            Organization.status,
        )
        .order_by(_first_event_seq(), Organization.created_at, Organization.id)
        .execution_options(yield_per=_EXPORT_BATCH_SIZE)
    )
    for row in rows:
        counts.organizations += 1
        yield OldOrganization(*row, position=_DATABASE_POSITION)


def _customer_id(provider: Provider) -> ScalarSelect[str | None]:
    return (
        select(BillingLink.customer_id)
        .where(BillingLink.org_id == Organization.id, BillingLink.provider == provider)
        .scalar_subquery()
    )


def _read_member_lists(session: Session, counts: ExportCounts) -> Iterator[tuple[str, list[OldMember]]]:
    ids = session.scalars(
        select(Organization.id)
        .order_by(_first_event_seq(), Organization.created_at, Organization.id)
        .execution_options(yield_per=_EXPORT_BATCH_SIZE)
    )
    for batch in ids.partitions(_EXPORT_BATCH_SIZE):
        members = _load_members(session, list(batch))
        for org_id in batch:
            counts.members += len(members[org_id])
            yield org_id, members[org_id]


def _load_members(session: Session, org_ids: list[str]) -> dict[str, list[OldMember]]:
    """Members by organization, in the order in which they were added last. The events only give the order."""
    added_events = session.execute(
        select(Event.org_id, Event.data, Event.seq)
        .where(Event.org_id.in_(org_ids), Event.type == "membership.added")
        .order_by(Event.seq)
    )
    added_seqs = {(org_id, data["user_id"]): seq for org_id, data, seq in added_events}
    rows = session.execute(
        select(Membership.org_id, Membership.user_id, Membership.role, Membership.joined_at)
        .where(Membership.org_id.in_(org_ids))
        .order_by(Membership.joined_at, Membership.user_id)
    )
    members_by_org: dict[str, list[OldMember]] = {org_id: [] for org_id in org_ids}
    for row in rows:
        members_by_org[row.org_id].append(OldMember(*row, position=_DATABASE_POSITION))
    for members in members_by_org.values():
        members.sort(key=lambda member: added_seqs.get((member.org_id, member.user_id), _AFTER_EVERY_EVENT))
    return members_by_org
