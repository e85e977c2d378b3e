"""The old store's two files, in and out. Whatever was lost or read differently is named with its place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from core.catalog import plans as plan_catalog
from core.common.clock import utc_now
from core.predecessor.exporting import export_files
from core.predecessor.files import Finding, OnBytes
from core.predecessor.importing import import_files
from core.predecessor.report import Report
from worker.cli import descriptions, exit_codes, output, resources
from worker.cli.exit_codes import UsageError
from worker.cli.output import Column
from worker.config import settings as settings_of

SHOWN = 20

Organizations = Annotated[Path, typer.Argument(metavar="ORGS", help="The organizations.json of the old store.")]
Members = Annotated[Path, typer.Argument(metavar="USERS", help="Its org_users.json.")]


def bring_in(
    *,
    orgs: Organizations,
    users: Members,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every finding.")] = False,
) -> None:
    """Import the old store's files, in whatever state they are; exit code 1 if anything was lost.

    It may be broken off and run again: what is here already is never changed.

    JSON: {"findings": [{"kind", "reason", "file", "line", "byte", "subject"}], "lost", "repaired", "kept_ours",
    "organizations": {"new", "unchanged", "refused"}, "members": {"new", "unchanged", "refused"}}
    """
    settings = settings_of.read()
    plans = plan_catalog.load(settings.plans_file, settings.charged_by)
    with resources.store(settings) as database, _progress(orgs, users) as on_bytes:
        lister = _JsonFindings() if as_json else None
        report = import_files(
            database, plans, utc_now, orgs, users, on_bytes=on_bytes, on_finding=lister.add if lister else None
        )
    if lister is not None:
        lister.end(report)
    else:
        _show(report)
        if settings.is_embedded and report.organizations.new:
            output.show(descriptions.EMBEDDED)
    raise typer.Exit(0 if report.ok else exit_codes.FAILED)


def take_out(
    *,
    orgs: Organizations,
    users: Members,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite files that are there.")] = False,
    as_json: output.AsJson = False,
) -> None:
    """Export everything in the old store's format.

    JSON: {"organizations", "members"}: how many were written
    """
    present = [str(path) for path in (orgs, users) if path.exists()]
    if present and not replace:
        message = f"{' and '.join(present)} would be overwritten: name other files, or say --replace"
        raise UsageError(message)
    with resources.store() as database:
        written = export_files(database, orgs, users)
    if as_json:
        output.show_json(asdict(written))
    else:
        output.show(f"{written.organizations} organizations to {orgs}, {written.members} members to {users}.")


class _JsonFindings:
    """One JSON document, its findings printed as they are made: a file can hold more of them than memory does."""

    def __init__(self) -> None:
        self._mark = "\n"
        typer.echo('{"findings": [', nl=False)

    def add(self, finding: Finding) -> None:
        fields = {
            "kind": finding.kind,
            "reason": finding.reason,
            "file": finding.place.file,
            "line": finding.place.line,
            "byte": finding.place.byte,
            "subject": finding.subject,
        }
        typer.echo(f"{self._mark}  {json.dumps(fields, ensure_ascii=False)}", nl=False)
        self._mark = ",\n"

    def end(self, report: Report) -> None:
        counts = {
            "lost": report.lost,
            "repaired": report.repaired,
            "kept_ours": report.kept_ours,
            "organizations": asdict(report.organizations),
            "members": asdict(report.members),
        }
        typer.echo("],\n" + json.dumps(counts)[1:])


@contextmanager
def _progress(*paths: Path) -> Iterator[OnBytes]:
    """One bar over the bytes of all files, on standard error; none where nobody watches."""
    total = sum(path.stat().st_size for path in paths if path.is_file())
    console = output.notes()
    bar = Progress(
        TextColumn("importing"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("importing", total=total)
        yield lambda count: bar.advance(task, count)


def _show(report: Report) -> None:
    for noun, counted in (("organizations", report.organizations), ("members", report.members)):
        parts = [f"{counted.new} new", f"{counted.unchanged} here already"]
        parts += [f"{counted.refused} refused"] if counted.refused else []
        output.show(f"{noun}: {', '.join(parts)}")
    _list("lost", report.lost, report.losses)
    _list("read differently or kept as it is here", report.repaired, report.repairs)
    if report.ok:
        output.show("", "Nothing was lost.")


def _list(what: str, count: int, findings: list[Finding]) -> None:
    if not count:
        return
    shown = findings[:SHOWN]
    output.show("", f"{count} {what}:", output.table(shown, _COLUMNS))
    if count > len(shown):
        output.show(f"and {count - len(shown)} more; --json lists all")


_COLUMNS: list[Column[Finding]] = [
    Column("where", lambda row: str(row.place), kind="fold", most=34),
    Column("whose", lambda row: row.subject, kind="id"),
    Column("why", lambda row: row.reason, kind="fold"),
]
