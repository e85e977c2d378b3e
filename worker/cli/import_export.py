"""Import and export of the predecessor's two files. Every lost or repaired record is reported with its position."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from core.common.clock import utc_now
from core.predecessor.exporting import export_files
from core.predecessor.files import FileFinding, OnBytes
from core.predecessor.importing import import_files
from core.predecessor.report import ImportReport
from worker.cli import exit_codes, output, resources
from worker.cli.exit_codes import UsageError
from worker.cli.output import Column
from worker.config import settings as settings_of
from worker.wiring import catalog as catalog_wiring

FINDINGS_SHOWN = 20

OrganizationsFile = Annotated[Path, typer.Argument(metavar="ORGS", help="The predecessor's organizations.json.")]
MembersFile = Annotated[Path, typer.Argument(metavar="USERS", help="The predecessor's org_users.json.")]


def import_command(
    *,
    orgs: OrganizationsFile,
    users: MembersFile,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every finding.")] = False,
) -> None:
    """Import the predecessor's files, damaged or not; exit code 1 if anything was lost.

    It can be interrupted and run again; existing data is never changed. Organizations with a customer id are observed
    until they are adopted.

    JSON: {"findings": [{"kind", "reason", "file", "line", "byte", "subject"}], "lost", "repaired", "conflicts",
    "organizations": {"new", "unchanged", "rejected"}, "members": {"new", "unchanged", "rejected"}}
    """
    settings = settings_of.read()
    catalog = catalog_wiring.load(settings)
    with resources.open_database(settings, may_create=True) as database, _progress(orgs, users) as on_bytes:
        json_writer = _JsonFindingWriter() if as_json else None
        report = import_files(
            database,
            catalog,
            utc_now,
            orgs,
            users,
            on_bytes=on_bytes,
            on_finding=json_writer.add if json_writer else None,
        )
    if json_writer is not None:
        json_writer.end(report)
    else:
        _show_report(report)
        if report.organizations.new:
            output.show(
                "",
                "Organizations that have a customer at a provider are observed: nothing is written to it before you "
                "adopt it. `billing-sync adopt discover --out customers.csv` lists them; `billing-sync management "
                "report` says what would be written.",
            )
        if settings.is_embedded and report.organizations.new:
            output.show(
                "No broker is configured: the sweep of a running `billing-sync up` picks them up within a minute."
            )
    raise typer.Exit(0 if report.ok else exit_codes.EXIT_FAILED)


def export_command(
    *,
    orgs: OrganizationsFile,
    users: MembersFile,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite existing files.")] = False,
    as_json: output.JsonOption = False,
) -> None:
    """Export everything in the predecessor's format.

    JSON: {"organizations", "members"}: how many were written
    """
    if orgs.resolve() == users.resolve():
        message = f"ORGS and USERS are the same file, {orgs}: give two different files"
        raise UsageError(message)
    existing = [str(path) for path in (orgs, users) if path.exists()]
    if existing and not replace:
        message = f"{' and '.join(existing)} would be overwritten: choose other files, or use --replace"
        raise UsageError(message)
    with resources.open_database() as database:
        written = export_files(database, orgs, users)
    if as_json:
        output.show_json(asdict(written))
    else:
        output.show(f"{written.organizations} organizations to {orgs}, {written.members} members to {users}.")


class _JsonFindingWriter:
    """One JSON document. Each finding is printed at once, because all of them may not fit into memory."""

    def __init__(self) -> None:
        self._separator = "\n"
        typer.echo('{"findings": [', nl=False)

    def add(self, finding: FileFinding) -> None:
        fields = {
            "kind": finding.kind,
            "reason": finding.reason,
            "file": finding.position.file,
            "line": finding.position.line,
            "byte": finding.position.byte,
            "subject": finding.subject,
        }
        typer.echo(f"{self._separator}  {output.json_text(fields)}", nl=False)
        self._separator = ",\n"

    def end(self, report: ImportReport) -> None:
        counts = {
            "lost": report.lost,
            "repaired": report.repaired,
            "conflicts": report.conflicts,
            "organizations": asdict(report.organizations),
            "members": asdict(report.members),
        }
        typer.echo("],\n" + json.dumps(counts)[1:])


@contextmanager
def _progress(*paths: Path) -> Iterator[OnBytes]:
    """A progress bar over the bytes of all files, on standard error if that is a terminal."""
    total = sum(path.stat().st_size for path in paths if path.is_file())
    console = output.stderr_console()
    progress = Progress(
        TextColumn("importing"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        task = progress.add_task("importing", total=total)
        yield lambda count: progress.advance(task, count)


def _show_report(report: ImportReport) -> None:
    for label, counted in (("organizations", report.organizations), ("members", report.members)):
        parts = [f"{counted.new} new", f"{counted.unchanged} unchanged"]
        parts += [f"{counted.rejected} rejected"] if counted.rejected else []
        output.show(f"{label}: {', '.join(parts)}")
    _show_findings("lost", report.lost, report.losses)
    _show_findings("repaired, or existing data kept", report.repaired, report.repairs)
    if report.ok:
        output.show("", "Nothing was lost.")


def _show_findings(title: str, count: int, findings: list[FileFinding]) -> None:
    if not count:
        return
    shown = findings[:FINDINGS_SHOWN]
    output.show("", f"{count} {title}:", output.table(shown, _FINDING_COLUMNS))
    if count > len(shown):
        output.show(f"and {count - len(shown)} more; --json lists all")


_FINDING_COLUMNS: list[Column[FileFinding]] = [
    Column("position", lambda row: str(row.position), kind="fold", max_width=34),
    Column("record", lambda row: row.subject, kind="id"),
    Column("reason", lambda row: row.reason, kind="fold"),
]
