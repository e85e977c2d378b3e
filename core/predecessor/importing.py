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
from core.events.event_types import Cause, Change
from core.inbox import service_events
from core.predecessor.files import Finding, OldMember, OldOrganization, OnBytes, read_members, read_organizations
from core.predecessor.import_members import MemberImport
from core.predecessor.import_organizations import OrganizationImport, ids_in_doubt
from core.predecessor.report import Chunk, Counted, OnFinding, Report

ORGANIZATIONS_AT_ONCE = 500
MEMBERS_AT_ONCE = 10_000
BY_IMPORT = Cause(source="import")
_TRIES = 5

Record = TypeVar("Record", OldOrganization, OldMember)
Run: TypeAlias = Callable[[Change, list[Record]], Chunk]


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
) -> Report:
    """``on_bytes`` hears the bytes read as they add up to the size of both files; ``on_finding`` each finding in turn.

    Raises ``UnreadableFileError`` before anything is written if it can, and ``ImportInterruptedError``.
    """
    report = Report(on_finding=on_finding)
    organizations = read_organizations(organizations_path, on_bytes)
    members = read_members(members_path, on_bytes)
    writer = _Writer(database, clock, report)
    bringing = OrganizationImport(catalog, ids_in_doubt(organizations_path), clock())
    writer.write(organizations, ORGANIZATIONS_AT_ONCE, bringing.run, report.organizations)
    writer.write(members, MEMBERS_AT_ONCE, MemberImport().run, report.members)
    service_events.take_those_that_waited(database, catalog, clock)
    return report


@dataclass(frozen=True, slots=True)
class _Writer:
    """Records in, part by part; the report hears of a part once it is committed."""

    database: Database
    clock: Clock
    report: Report

    def write(self, items: Iterator[Record | Finding], size: int, run: Run[Record], counted: Counted) -> None:
        records = self._records(items)
        while part := list(islice(records, size)):
            self.report.take(self._committed(part, run), counted)

    def _records(self, items: Iterator[Record | Finding]) -> Iterator[Record]:
        for item in items:
            if isinstance(item, Finding):
                self.report.add(item)
            else:
                yield item

    def _committed(self, part: list[Record], run: Run[Record]) -> Chunk:
        """Others may create the same organization or member meanwhile: then this part is looked at anew."""
        for _ in range(_TRIES):
            try:
                with self.database.write() as session:
                    return run(Change(session, self.clock(), BY_IMPORT), part)
            except IntegrityError:
                continue
        message = (
            f"others keep changing the same records (around {part[0].place}): "
            "run the import again when it is quieter; it goes on where it stopped"
        )
        raise ImportInterruptedError(message)
