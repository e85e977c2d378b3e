"""The command `billing-sync doctor`: what is set up wrong, why it matters, and what to type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from core.common.clock import utc_now
from worker.cli import descriptions, output, resources
from worker.cli.deployment import installed_version
from worker.config import api as api_settings
from worker.config.api import ApiSettings
from worker.config.settings import SettingsError
from worker.doctor import registry
from worker.doctor import settings as settings_check
from worker.doctor.findings import LEVELS, DoctorFinding, FindingLevel
from worker.doctor.inputs import DoctorInputs
from worker.doctor.registry import SubjectReport

EXIT_WARNINGS = 1
EXIT_ERRORS = 2
LEVEL_TEXTS: Final[dict[FindingLevel, tuple[str, str]]] = {
    "ok": ("ok", "green"),
    "not_set": ("not set", "dim"),
    "not_checked": ("unknown", "dim"),
    "warning": ("warning", "yellow"),
    "error": ("error", "bold red"),
}
# Everything else follows in the order of the checks.
_SHOWN_FIRST: Final[dict[FindingLevel, int]] = {"error": 0, "warning": 1}


def doctor(*, as_json: output.JsonOption = False) -> None:
    """Check settings, database, processes, providers and servers; each problem with what to type. Writes nothing.

    Exit code 0: nothing to do; 1: only warnings; 2: at least one error. What is not configured, and what could not be
    checked, counts as neither.

    JSON: {"version", "level": the worst, "counts": {level: number}, "subjects": [{"subject", "findings": [{"code",
    "level", "message", "consequence", "advice"}]}]}. Levels: ok, not_set, not_checked, warning, error.
    """
    version = installed_version()
    reports = _examine(version)
    findings = [finding for report in reports for finding in report.findings]
    counts = {level: sum(each.level == level for each in findings) for level in LEVELS}
    if as_json:
        worst = next((level for level in reversed(LEVELS) if counts[level]), "ok")
        subjects = [asdict(report) for report in reports]
        output.show_json({"version": version, "level": worst, "counts": counts, "subjects": subjects})
    else:
        output.show(f"billing-sync {version}, {output.utc_time(utc_now())}", "", _report_table(reports))
        output.show("", _summary(counts))
    raise typer.Exit(EXIT_ERRORS if counts["error"] else EXIT_WARNINGS if counts["warning"] else 0)


def _examine(version: str) -> list[SubjectReport]:
    """Without valid settings nothing else can be examined: their findings are then the only ones."""
    try:
        settings = resources.settings_with_providers()
    except SettingsError as invalid:
        return [SubjectReport(subject="settings", findings=settings_check.invalid(str(invalid)))]
    api, invalid_api = _read_api_settings()
    reports = registry.run(DoctorInputs(settings=settings, api_settings=api, version=version))
    if invalid_api is not None:
        reports.insert(0, SubjectReport(subject="API settings", findings=settings_check.invalid(invalid_api)))
    return reports


def _read_api_settings() -> tuple[ApiSettings | None, str | None]:
    """The settings of the API, or why they are not valid."""
    try:
        return api_settings.read(), None
    except SettingsError as invalid:
        return None, str(invalid)


def _report_table(reports: Sequence[SubjectReport]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    found = [(report.subject, finding) for report in reports for finding in report.findings]
    previous = ""
    for subject, finding in sorted(found, key=lambda each: _SHOWN_FIRST.get(each[1].level, len(_SHOWN_FIRST))):
        for row in _rows("" if subject == previous else subject, finding):
            grid.add_row(*row)
        previous = subject
    return grid


def _rows(subject: str, finding: DoctorFinding) -> list[tuple[RenderableType, RenderableType, RenderableType]]:
    text, style = LEVEL_TEXTS[finding.level]
    rows: list[tuple[RenderableType, RenderableType, RenderableType]] = [
        (Text(subject), Text(text, style), Text(finding.message))
    ]
    if finding.consequence:
        rows.append(("", Text("why", "dim"), Text(finding.consequence)))
    if finding.advice and finding.level in {"warning", "error"}:
        rows.append(("", Text("do", "dim"), Text(finding.advice)))
    return rows


def _summary(counts: dict[FindingLevel, int]) -> str:
    done = f"{counts['ok']} fine, {counts['not_set']} not set, {counts['not_checked']} not checked"
    if not (counts["error"] or counts["warning"]):
        return f"Nothing to do: {done}."
    problems = [
        descriptions.plural(number, word)
        for word, number in (("error", counts["error"]), ("warning", counts["warning"]))
        if number
    ]
    return f"{', '.join(problems)}; {done}."
