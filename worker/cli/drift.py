"""What drifted at the billers, and putting it right: ``plan`` writes nothing there, ``apply`` only what it lists."""

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
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from sqlalchemy import func, select

from core.catalog.plans import CatalogError
from core.common.clock import utc_now
from core.compare.findings import Drift, Finding
from core.db.database import Database, DatabaseError
from core.db.models.organizations import Organization
from core.drift import report_store
from core.drift.detector import Planner
from core.drift.repairer import Applied, Applier, Left, MovedError
from core.drift.report_store import Plan, RunTakenOverError, Stage
from core.reconcile.account_guard import WrongAccountError
from tasks.base import Runtime
from worker.cli import descriptions, exit_codes, output, resources
from worker.cli.exit_codes import FailedError, UsageError
from worker.cli.output import Column
from worker.config import settings as settings_of
from worker.config.settings import SettingsError
from worker.wiring.runtime import open_runtime

DRIFTED = 2
SHOWN = 20
SHORTEST_ID = 6
ID_SHOWN = 12

_DOING: dict[Stage, str] = {
    "stripe_customers": "customers at Stripe",
    "stripe_subscriptions": "subscriptions at Stripe",
    "lago_customers": "customers at Lago",
    "lago_subscriptions": "subscriptions at Lago",
    "organizations": "organizations compared",
    "strangers": "customers that nobody knows",
}
# As many as there are organizations, about; nobody knows of the others how many there are.
_COUNTED: tuple[Stage, ...] = ("stripe_customers", "lago_customers", "lago_subscriptions", "organizations")

OnDone = Callable[[str, int, int | None], None]


def plan(*, as_json: output.AsJson = False) -> None:
    """Compare what Stripe and Lago hold with what they should hold; writes nothing there.

    Exit code 0: nothing drifted; 2: something did; 1: it could not be told, run it again and it goes on where it was.

    JSON: {"id", "counts": {"compared", "behind", "parked", "drifted", "repairable", "kinds": {kind: count},
    "left_out": [provider]}, "started_at", "finished_at", "drift": [{"org_id", "name", "basis", "looked", "findings":
    [{"kind", "provider", "object_id", "field", "ours", "theirs", "repaired", "to_do", "our_write", "their_write"}],
    "rounds": [{"provider", "customer", "subscription", "calls"}]}]}
    """
    with _runtime() as runtime:
        with _progress() as on_done, _told():
            made = Planner.beside(runtime.sync).plan(_watched(runtime.database, on_done))
        drifts = report_store.found_by(runtime.database, made)
        if as_json:
            output.show_json({**_fields(made), "drift": list(drifts)})
        else:
            _show(made, drifts)
    raise typer.Exit(DRIFTED if made.counts.drifted else 0)


def apply(
    *,
    plan_id: Annotated[str, typer.Argument(metavar="ID", help="Of a plan, or how it begins.")],
    as_json: output.AsJson = False,
) -> None:
    """Repair what a plan says can be repaired, with exactly the calls that it lists; refused if anything moved since.

    Exit code 0: all of it is right now; 1: nothing was done, or something was left, and the output says what.

    JSON: {"id", "organizations", "for_a_person", "left": [{"org_id", "provider", "parked", "why"}]}
    """
    with _runtime() as runtime:
        chosen = _named(runtime.database, plan_id)
        with _progress() as on_done, _told():
            runtime.sync.accounts.confirm()
            looked = _counted(on_done, "looked at again", chosen)
            repaired = _counted(on_done, "repaired", chosen)
            applied = Applier.beside(runtime.sync).apply(chosen, looked, repaired)
    for_a_person = chosen.counts.drifted - chosen.counts.repairable
    if as_json:
        output.show_json(
            {
                "id": chosen.id,
                "organizations": applied.organizations,
                "for_a_person": for_a_person,
                "left": applied.left,
            }
        )
    else:
        _show_applied(applied, for_a_person)
    raise typer.Exit(exit_codes.FAILED if applied.left else 0)


@contextmanager
def _runtime() -> Iterator[Runtime]:
    """A wrong setting means here that nothing could be told; 2 has a meaning of its own."""
    try:
        settings = settings_of.read()
        resources.make_folder(settings)
        runtime = open_runtime(settings)
    except (SettingsError, CatalogError, DatabaseError) as error:
        raise FailedError(str(error)) from error
    try:
        yield runtime
    finally:
        runtime.close()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (RunTakenOverError, MovedError, WrongAccountError) as error:
        raise FailedError(str(error)) from error


def _named(database: Database, beginning: str) -> Plan:
    if len(beginning) < SHORTEST_ID:
        message = f"{beginning!r} is too short to name a plan; give {SHORTEST_ID} characters of its id or more"
        raise UsageError(message)
    with database.read() as session:
        found = report_store.named(session, beginning)
    if len(found) != 1:
        many = "begins more than one plan's id" if found else "is no plan's id"
        message = f"{beginning!r} {many}; `billing-sync plan` makes one and names it"
        raise UsageError(message)
    return found[0]


@contextmanager
def _progress() -> Iterator[OnDone]:
    """One line on standard error, of what is being done and how far; none where nobody watches."""
    console = output.notes()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=None)
        yield lambda doing, done, total: bar.update(task, description=doing, completed=done, total=total)


def _watched(database: Database, on_done: OnDone) -> Callable[[Stage, int], None]:
    with database.read() as session:
        organizations = session.scalar(select(func.count(Organization.id))) or 0

    def on_step(stage: Stage, done: int) -> None:
        on_done(_DOING[stage], done, max(organizations, done) if stage in _COUNTED else None)

    return on_step


def _counted(on_done: OnDone, doing: str, plan: Plan) -> Callable[[str], None]:
    done = 0

    def on_one(_org_id: str) -> None:
        nonlocal done
        done += 1
        on_done(doing, done, plan.counts.repairable)

    return on_one


def _fields(made: Plan) -> dict[str, object]:
    return {
        "id": made.id,
        "counts": asdict(made.counts),
        "started_at": made.started_at,
        "finished_at": made.finished_at,
    }


def _show(made: Plan, drifts: Iterator[Drift]) -> None:
    counts = made.counts
    for drift in itertools.islice(drifts, SHOWN):
        output.show(*_lines(drift, utc_now()), "")
    if counts.drifted > SHOWN:
        output.show(f"and {counts.drifted - SHOWN} more; --json lists all", "")
    output.show(f"{counts.compared} organizations compared, {counts.drifted or 'none'} drifted.")
    if counts.behind:
        output.show(
            f"{counts.behind} are behind or being worked on just now, which is not drift: nothing is said of them."
        )
    if counts.parked:
        output.show(f"{counts.parked} wait for a person already; `billing-sync parked` says why.")
    if counts.repairable:
        short = made.id[:ID_SHOWN]
        output.show(
            f"`billing-sync apply {short}` repairs {counts.repairable} with the calls listed; the others are yours."
        )


def _lines(drift: Drift, now: datetime) -> list[RenderableType]:
    named = drift.name or ("an organization that is not here" if drift.org_id else "a whole biller")
    lines: list[RenderableType] = [Text.assemble((named, "bold"), f"  {drift.org_id or ''}")]
    for finding in drift.findings:
        lines += [
            _indented(_difference(finding), 2),
            _indented(f"written {_writers(finding, now)}", 4) if finding.our_write or finding.their_write else "",
            _indented(f"→ {finding.to_do}", 4),
        ]
    calls = [call for each in drift.rounds for call in each.calls]
    lines += [_indented(f"apply sends: {', '.join(calls)}", 2)] if calls else []
    return [line for line in lines if line != ""]


def _difference(finding: Finding) -> Text:
    head = f"{descriptions.NAMES[finding.provider]}, {finding.kind.replace('_', ' ')}: {finding.field} "
    there = f" ({finding.object_id})" if finding.object_id and finding.object_id != finding.theirs else ""
    return Text.assemble(
        head,
        "ours ",
        (finding.ours or output.NOTHING, "bold"),
        ", theirs ",
        (finding.theirs or output.NOTHING, "bold"),
        there,
    )


def _writers(finding: Finding, now: datetime) -> str:
    parts = []
    if (ours := finding.our_write) is not None:
        parts.append(f"here {output.age(ours.at, now)} by {ours.actor} through {ours.source}")
    if (theirs := finding.their_write) is not None:
        evidence = f" ({theirs.evidence})" if theirs.evidence else ""
        who = {"us": "by us", "not us": "not by us", "unknown": "by somebody"}[theirs.by]
        parts.append(f"there {output.age(theirs.at, now)} {who}{evidence}")
    return ", ".join(parts)


def _indented(text: str | Text, by: int) -> Padding:
    return Padding(text if isinstance(text, Text) else Text(text), (0, 0, 0, by), expand=False)


def _show_applied(applied: Applied, for_a_person: int) -> None:
    done = applied.organizations - len({each.org_id for each in applied.left})
    output.show(f"{done or 'No'} organizations repaired." if done != 1 else "1 organization repaired.")
    if applied.left:
        output.show("", output.table(applied.left, _LEFT))
    if for_a_person:
        output.show(f"{for_a_person} of the plan are for a person; `billing-sync plan` says what to do.")


_LEFT: list[Column[Left]] = [
    Column("organization", lambda row: row.org_id, kind="id"),
    Column("at", lambda row: descriptions.NAMES[row.provider]),
    Column("now", lambda row: "parked" if row.parked else "goes on by itself"),
    Column("why", lambda row: row.why, kind="fold"),
]
