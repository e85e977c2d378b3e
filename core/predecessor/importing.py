"""Import of the predecessor store's two files: each record once, even if the import is interrupted and repeated.

Each chunk of a file is one short transaction. An import that is run again resumes where it stopped and ends in the same
state. Existing rows are never overwritten, since users may have changed them.

Every organization and member records its event (``organization.created``, ``membership.added``, source ``import``) in
that transaction, but as already published. So the history is complete, and a hundred thousand organizations do not
flood the broker. Their links are due at once instead, and the sweep dispatches them at its own rate.

Service events about an organization that arrived before it was imported wait in the inbox (``core.inbox``). They are
applied once both files are imported.

A customer id of the file is unverified: it is read at the provider before the first write. An id that two organizations
carry is trusted for neither. The files are searched for such ids first, so that no running worker uses one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeAlias, TypeVar

from sqlalchemy.exc import IntegrityError

from core.catalog.plans import Catalog
from core.common.clock import Clock
from core.db.database import Database
from core.events.event_types import Cause, ChangeContext
from core.inbox import service_events
from core.predecessor.files import FileFinding, OldMember, OldOrganization, OnBytes, read_members, read_organizations
from core.predecessor.import_members import MemberImport
from core.predecessor.import_organizations import OrganizationImport, find_conflicting_ids
from core.predecessor.report import ChunkResult, ImportCounts, ImportReport, OnFinding

ORGANIZATIONS_PER_CHUNK = 500
MEMBERS_PER_CHUNK = 10_000
IMPORT_CAUSE = Cause(source="import")
_MAX_CHUNK_ATTEMPTS = 5

ImportedRecordT = TypeVar("ImportedRecordT", OldOrganization, OldMember)
ImportChunk: TypeAlias = Callable[[ChangeContext, list[ImportedRecordT]], ChunkResult]


class ImportInterruptedError(Exception):
    """Other writers kept changing the same records. The message says what to do. Committed chunks stay."""


def import_files(  # noqa: PLR0913 - two files, what the import needs, and two callbacks
    database: Database,
    catalog: Catalog,
    clock: Clock,
    organizations_path: Path,
    members_path: Path,
    *,
    on_bytes: OnBytes | None = None,
    on_finding: OnFinding | None = None,
) -> ImportReport:
    """``on_bytes`` gets the size of each read; they add up to the size of both files. ``on_finding`` gets each finding.

    Raises ``UnreadableFileError``, if possible before anything is written, and ``ImportInterruptedError``.
    """
    report = ImportReport(on_finding=on_finding)
    organizations = read_organizations(organizations_path, on_bytes)
    members = read_members(members_path, on_bytes)
    writer = _ChunkWriter(database, clock, report)
    organization_import = OrganizationImport(catalog, find_conflicting_ids(organizations_path), clock())
    writer.write(organizations, ORGANIZATIONS_PER_CHUNK, organization_import.import_chunk, report.organizations)
    writer.write(members, MEMBERS_PER_CHUNK, MemberImport().import_chunk, report.members)
    service_events.apply_waiting(database, catalog, clock)
    return report


@dataclass(frozen=True, slots=True)
class _ChunkWriter:
    """Imports records chunk by chunk. A chunk is added to the report once it is committed."""

    database: Database
    clock: Clock
    report: ImportReport

    def write(
        self,
        records_and_findings: Iterator[ImportedRecordT | FileFinding],
        chunk_size: int,
        import_chunk: ImportChunk[ImportedRecordT],
        counts: ImportCounts,
    ) -> None:
        records = self._records(records_and_findings)
        while chunk := list(islice(records, chunk_size)):
            self.report.add_chunk(self._commit_chunk(chunk, import_chunk), counts)

    def _records(self, items: Iterator[ImportedRecordT | FileFinding]) -> Iterator[ImportedRecordT]:
        for item in items:
            if isinstance(item, FileFinding):
                self.report.add_finding(item)
            else:
                yield item

    def _commit_chunk(self, chunk: list[ImportedRecordT], import_chunk: ImportChunk[ImportedRecordT]) -> ChunkResult:
        """Commits one chunk. If others create the same organization or member meanwhile, the chunk is tried again."""
        for _ in range(_MAX_CHUNK_ATTEMPTS):
            try:
                with self.database.write() as session:
                    return import_chunk(ChangeContext(session, self.clock(), IMPORT_CAUSE), chunk)
            except IntegrityError:
                continue
        message = (
            f"other writers keep changing the same records (near {chunk[0].position}): run the import again when there "
            "is less traffic; it resumes where it stopped"
        )
        raise ImportInterruptedError(message)
