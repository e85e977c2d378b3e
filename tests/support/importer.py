"""An import in a test: its files, the import itself, and the resulting rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from core.catalog.plans import Catalog
from core.common.clock import Clock
from core.db.base import Base
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Membership, Organization
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.predecessor.importing import import_files
from core.predecessor.report import ImportReport
from tests.support.predecessor_files import Text, members_text, organizations_text

Tables = dict[str, list[dict[str, object]]]


@dataclass(frozen=True, slots=True)
class Importer:
    database: Database
    plans: Catalog
    clock: Clock
    folder: Path

    def bring(self, organizations: Iterable[Text], lists: dict[str, list[Text]] | None = None) -> ImportReport:
        """Import files with these records in them."""
        (self.folder / "organizations.json").write_bytes(organizations_text(organizations))
        (self.folder / "org_users.json").write_bytes(members_text(lists or {}))
        return self.run(self.folder)

    def run(self, folder: Path) -> ImportReport:
        return import_files(
            self.database, self.plans, self.clock, folder / "organizations.json", folder / "org_users.json"
        )

    @contextmanager
    def change(self, org_id: str) -> Iterator[tuple[ChangeContext, Organization]]:
        """Change an organization, as a user does between two imports."""
        with self.database.write() as session:
            organization = commands.lock(session, org_id)
            assert organization is not None
            yield ChangeContext(session, self.clock()), organization

    def organization(self, org_id: str) -> Organization:
        with self.database.read() as session:
            return session.get_one(Organization, org_id)

    def link(self, org_id: str, provider: str) -> BillingLink:
        with self.database.read() as session:
            return session.get_one(BillingLink, (org_id, provider))

    def members(self) -> dict[tuple[str, str], Membership]:
        with self.database.read() as session:
            return {(m.org_id, m.user_id): m for m in session.scalars(select(Membership))}

    def tables(self) -> Tables:
        """Every row of every table, in order."""
        with self.database.read() as session:
            return {
                table.name: [
                    dict(row) for row in session.execute(select(table).order_by(*table.primary_key)).mappings()
                ]
                for table in Base.metadata.sorted_tables
            }


def without_chance(tables: Tables) -> Tables:
    """What must be equal after two imports of the same files: all but the ids of events and of the database."""
    for event in tables["events"]:
        del event["id"], event["seq"]
    for status in tables["provider_status"]:
        del status["database_id"]
    return tables


def said(report: ImportReport) -> list[tuple[str, str, str | None]]:
    """All findings, losses first."""
    return [(finding.kind, finding.reason, finding.subject) for finding in [*report.losses, *report.repairs]]
