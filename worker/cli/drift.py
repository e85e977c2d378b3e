"""Drift check, which writes nothing to the providers, and drift repair, which sends only what the report lists."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text
from sqlalchemy import func, select

from core.common.clock import utc_now
from core.compare.findings import DriftItem, Finding
from core.db.database import Database
from core.db.models.organizations import Organization
from core.drift import report_store
from core.drift.detector import DriftDetector
from core.drift.repairer import OBSERVED_REASON, ChangedSinceReportError, DriftRepairer, NotRepaired, RepairResult
from core.drift.report_store import DriftReport, DriftRunTakenOverError, DriftStage
from core.ports.spec import PROVIDER_NAMES
from core.reconcile.account_guard import WrongAccountError
from worker.cli import descriptions, exit_codes, output
from worker.cli.exit_codes import CommandFailedError, UsageError
from worker.cli.output import Column
from worker.cli.progress import OnProgress, progress_bar
from worker.cli.worker_runtime import open_worker_runtime

EXIT_DRIFT_FOUND = 2
DRIFT_ITEMS_SHOWN = 20
MIN_REPORT_ID_LENGTH = 6
REPORT_ID_LENGTH_SHOWN = 12

_STAGE_LABELS: dict[DriftStage, str] = {
    "stripe_customers": "customers at Stripe",
    "stripe_subscriptions": "subscriptions at Stripe",
    "lago_customers": "customers at Lago",
    "lago_subscriptions": "subscriptions at Lago",
    "organizations": "organizations checked",
    "orphans": "orphaned customers",
}
# Stages with about as many objects as there are organizations. The total of the other stages is unknown.
_STAGES_WITH_TOTAL: tuple[DriftStage, ...] = (
    "stripe_customers",
    "lago_customers",
    "lago_subscriptions",
    "organizations",
)


def check(*, as_json: output.JsonOption = False) -> None:
    """Compare both providers with the desired state; writes nothing to them.

    Exit code 0: no drift; 2: drift found; 1: the check could not be completed, run it again to resume.

    JSON: {"id", "counts": {"compared", "in_flux", "parked_or_on_hold", "drifted", "repairable", "kinds": {kind:
    count}, "excluded_providers": [provider]}, "started_at", "finished_at", "items": [{"org_id", "name", "row_versions",
    "inspected_customer_ids", "findings": [{"kind", "provider", "object_id", "field", "ours", "theirs", "repairable",
    "advice", "our_write", "their_write"}], "repairs": [{"provider", "customer", "subscription", "calls"}]}]}
    """
    with open_worker_runtime() as runtime:
        with progress_bar() as on_progress, _failures_as_messages():
            report = DriftDetector.for_reconciler(runtime.reconciler).check(
                _check_progress(runtime.database, on_progress)
            )
        items = report_store.read_drifts(runtime.database, report)
        if as_json:
            output.show_json({**_report_json(report), "items": list(items)})
        else:
            _show_report(report, items)
    raise typer.Exit(EXIT_DRIFT_FOUND if report.counts.drifted else 0)


def repair(
    *,
    report_id: Annotated[str, typer.Argument(metavar="ID", help="Id of a drift report, or its first characters.")],
    as_json: output.JsonOption = False,
) -> None:
    """Repair what a drift report lists as repairable, with exactly the requests it lists.

    Refused if anything has changed since the report.

    Exit code 0: everything is repaired; 1: nothing was done or something was not repaired, see the output.

    JSON: {"id", "organizations", "needs_operator", "not_repaired": [{"org_id", "provider", "parked",
    "reason"}]}
    """
    with open_worker_runtime() as runtime:
        report = _find_report(runtime.database, report_id)
        with progress_bar() as on_progress, _failures_as_messages():
            runtime.reconciler.account_guard.confirm()
            on_inspected = _repair_progress(on_progress, "inspecting again", report)
            on_repaired = _repair_progress(on_progress, "repairing", report)
            result = DriftRepairer.for_reconciler(runtime.reconciler).repair(report, on_inspected, on_repaired)
    needs_operator = report.counts.drifted - report.counts.repairable
    if as_json:
        output.show_json(
            {
                "id": report.id,
                "organizations": result.organizations,
                "needs_operator": needs_operator,
                "not_repaired": result.not_repaired,
            }
        )
    else:
        _show_result(result, needs_operator)
    raise typer.Exit(exit_codes.EXIT_FAILED if result.not_repaired else 0)


@contextmanager
def _failures_as_messages() -> Iterator[None]:
    try:
        yield
    except (DriftRunTakenOverError, ChangedSinceReportError, WrongAccountError) as error:
        raise CommandFailedError(str(error)) from error


def _find_report(database: Database, id_prefix: str) -> DriftReport:
    if len(id_prefix) < MIN_REPORT_ID_LENGTH:
        message = f"{id_prefix!r} is too short for a report id; give at least {MIN_REPORT_ID_LENGTH} characters"
        raise UsageError(message)
    with database.read() as session:
        found = report_store.find_by_prefix(session, id_prefix)
    if len(found) != 1:
        problem = f"more than one report id begins with {id_prefix!r}" if found else f"there is no report {id_prefix!r}"
        message = f"{problem}; `billing-sync drift check` creates one and prints its id"
        raise UsageError(message)
    return found[0]


def _check_progress(database: Database, on_progress: OnProgress) -> Callable[[DriftStage, int], None]:
    with database.read() as session:
        organizations = session.scalar(select(func.count(Organization.id))) or 0

    def on_step(stage: DriftStage, done: int) -> None:
        on_progress(_STAGE_LABELS[stage], done, max(organizations, done) if stage in _STAGES_WITH_TOTAL else None)

    return on_step


def _repair_progress(on_progress: OnProgress, activity: str, report: DriftReport) -> Callable[[str], None]:
    done = 0

    def on_organization(_org_id: str) -> None:
        nonlocal done
        done += 1
        on_progress(activity, done, report.counts.repairable)

    return on_organization


def _report_json(report: DriftReport) -> dict[str, object]:
    return {
        "id": report.id,
        "counts": asdict(report.counts),
        "started_at": report.started_at,
        "finished_at": report.finished_at,
    }


def _show_report(report: DriftReport, items: Iterator[DriftItem]) -> None:
    counts = report.counts
    for item in itertools.islice(items, DRIFT_ITEMS_SHOWN):
        output.show(*_item_lines(item, utc_now()), "")
    if counts.drifted > DRIFT_ITEMS_SHOWN:
        output.show(f"and {counts.drifted - DRIFT_ITEMS_SHOWN} more; --json lists all", "")
    output.show(f"{counts.compared} organizations checked, {counts.drifted or 'none'} with drift.")
    if counts.in_flux:
        output.show(f"{counts.in_flux} are behind or syncing now; that is not drift, so they were not checked.")
    if counts.parked_or_on_hold:
        output.show(f"{counts.parked_or_on_hold} are already parked or on hold; `billing-sync parked` shows why.")
    if counts.repairable:
        short_id = report.id[:REPORT_ID_LENGTH_SHOWN]
        output.show(
            f"`billing-sync drift repair {short_id}` repairs {descriptions.plural(counts.repairable, 'organization')} "
            "with the requests listed."
        )
    if needs_operator := counts.drifted - counts.repairable:
        output.show(f"{_unrepairable_text(needs_operator)}: do what each → says.")


def _item_lines(item: DriftItem, now: datetime) -> list[RenderableType]:
    name = item.name or ("an unknown organization" if item.org_id else "the whole provider")
    waits = ", on hold until you decide" if any(each.is_on_hold for each in item.findings) else ""
    lines: list[RenderableType] = [Text.assemble((name, "bold"), f"  {item.org_id or ''}{waits}")]
    for finding in item.findings:
        lines += [
            _indented(_difference_text(finding), 2),
            _indented(f"written {_last_writers(finding, now)}", 4) if finding.our_write or finding.their_write else "",
            _indented(f"→ {finding.advice}", 4),
        ]
    calls = [call for repair in item.repairs for call in repair.calls]
    lines += [_indented(f"repair sends: {', '.join(calls)}", 2)] if calls else []
    return [line for line in lines if line != ""]


def _difference_text(finding: Finding) -> Text:
    head = f"{PROVIDER_NAMES[finding.provider]}, {finding.kind.replace('_', ' ')}: {finding.field} "
    object_suffix = f" ({finding.object_id})" if finding.object_id and finding.object_id != finding.theirs else ""
    return Text.assemble(
        head,
        "desired ",
        (finding.ours or output.EMPTY_CELL, "bold"),
        ", observed ",
        (finding.theirs or output.EMPTY_CELL, "bold"),
        object_suffix,
    )


def _last_writers(finding: Finding, now: datetime) -> str:
    parts = []
    if (ours := finding.our_write) is not None:
        parts.append(f"locally {output.relative_time(ours.at, now)} by {ours.actor} through {ours.source}")
    if (theirs := finding.their_write) is not None:
        evidence = f" ({theirs.evidence})" if theirs.evidence else ""
        who = {"us": "by us", "not us": "not by us", "unknown": "by an unknown writer"}[theirs.by]
        parts.append(f"at the provider {output.relative_time(theirs.at, now)} {who}{evidence}")
    return ", ".join(parts)


def _indented(text: str | Text, by: int) -> Padding:
    return Padding(text if isinstance(text, Text) else Text(text), (0, 0, 0, by), expand=False)


def _show_result(result: RepairResult, needs_operator: int) -> None:
    repaired = result.organizations - len({each.org_id for each in result.not_repaired})
    output.show(f"{repaired or 'No'} organizations repaired." if repaired != 1 else "1 organization repaired.")
    if result.not_repaired:
        output.show("", output.table(result.not_repaired, _NOT_REPAIRED_COLUMNS))
    if needs_operator:
        output.show(f"{_unrepairable_text(needs_operator)}; `billing-sync drift check` shows what to do.")


def _unrepairable_text(count: int) -> str:
    have = "has" if count == 1 else "have"
    return f"{descriptions.plural(count, 'organization')} {have} only differences that you must resolve yourself"


def _not_repaired_status(row: NotRepaired) -> str:
    if row.reason == OBSERVED_REASON:
        return "observed"
    return "parked" if row.parked else "retried automatically"


_NOT_REPAIRED_COLUMNS: list[Column[NotRepaired]] = [
    Column("organization", lambda row: row.org_id, kind="id"),
    Column("provider", lambda row: PROVIDER_NAMES[row.provider]),
    Column("status", _not_repaired_status),
    Column("reason", lambda row: row.reason, kind="fold"),
]
