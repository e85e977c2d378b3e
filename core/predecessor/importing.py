"""The old store's two files brought into the database: each record once, however often and wherever it was interrupted.

A part of a file is one short transaction with everything that belongs to it; whoever runs the import again goes on
where it stopped and ends in the same state. What is here already is never overwritten: people have worked with it.

Every organization and member records its event (``organization.created``, ``membership.added``, source ``import``) in
that transaction, but as already published: the audit is whole, and a hundred thousand organizations do not flood the
broker. Their links are due at once instead, and the sweep hands them over at its own pace.

What other services said of an organization before it was here waits in the database (``core.inbox``); it is taken
once both files are in.

A billing id of the file is unverified: it is read at the biller before the first write. One that stands on two
organizations is believed of neither; the files are looked through for those first, so that no worker that runs
meanwhile meets one of the two alone.
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
    """Others kept writing the same records; the message says what to do. What was committed stays."""


def import_files(  # noqa: PLR0913 - where from, where to, and two who listen
    database: Database,
    catalog: Catalog,
    clock: Clock,
    organizations_path: Path,
    members_path: Path,
    *,
    on_bytes: OnBytes | None = None,
    on_finding: OnFinding | None = None,
) -> ImportReport:
    """``on_bytes`` hears the bytes read as they add up to the size of both files; ``on_finding`` each finding in turn.

    Raises ``UnreadableFileError`` before anything is written if it can, and ``ImportInterruptedError``.
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
    """Records in, part by part; the report hears of a part once it is committed."""

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
        """Others may create the same organization or member meanwhile: then this part is looked at anew."""
        for _ in range(_MAX_CHUNK_ATTEMPTS):
            try:
                with self.database.write() as session:
                    return import_chunk(ChangeContext(session, self.clock(), IMPORT_CAUSE), chunk)
            except IntegrityError:
                continue
        message = (
            f"others keep changing the same records (around {chunk[0].position}): "
            "run the import again when it is quieter; it goes on where it stopped"
        )
        raise ImportInterruptedError(message)
