"""The command ``billing-sync demo-adopt``: its steps go to standard error, what it shows to standard output."""

from __future__ import annotations

import re
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from core.adoption.row import AdoptionRow
from core.ports.minor_units import amount_text
from worker import adoption_demo
from worker.adoption_demo import AdoptionDemoResult, DemoCommandError
from worker.cli import descriptions, output
from worker.cli.exit_codes import CommandFailedError
from worker.cli.output import Column
from worker.config.settings import Settings
from worker.wiring import logging

ROWS_SHOWN: Final = 8
REASONS_SHOWN: Final = 20
_LEFT: Final = ("conflict", "skip")
# What differs between two rows with the same reason.
_IDS: Final = re.compile(r"\b(?:cus|sub|org|price|prod|acct-|sub-|c\d)[\w.-]*|\b\d[\d.,-]*")


def demo_adopt(
    *,
    keep: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Make this folder for trying the commands yourself, and adopt nothing."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the logs as well.")] = False,
) -> None:
    """Discover and adopt some hundred messy customers in a sandbox, then manage them, and show what was left and why.

    It needs no server and no key. Everything is in a temporary folder, which is removed at the end. With --keep it only
    makes a folder with the same customers, and shows which commands to type in it.
    """
    if verbose:
        logging.configure(Settings.model_construct(log_level="INFO"))
    started = time.monotonic()
    stderr = output.stderr_console()

    def write_line(line: str) -> None:
        stderr.print(f"· {line}", markup=False, soft_wrap=True)

    try:
        if keep is not None:
            adoption_demo.make_folder(keep, write_line)
            output.show(*_folder_lines(keep))
            return
        result = adoption_demo.run(write_line, output.show, _show_table)
    except DemoCommandError as error:
        raise CommandFailedError(str(error)) from error
    _show_result(result)
    if result.problem is not None:
        raise CommandFailedError(result.problem)
    output.show(
        f"Nothing else was written to what was there: no amount, name, payer or invoice. "
        f"It took {time.monotonic() - started:.0f} s.",
        "Next: docs/how-to/begin-with-an-existing-business.md does the same with your own accounts.",
    )


def _folder_lines(folder: Path) -> Iterable[str]:
    """The state is named as it is found from the folder, where the settings and the database are."""
    program = descriptions.program_path()
    yield f"{folder} has the customers, the settings, the plans and the database. Start its sandbox in one terminal:"
    yield ""
    yield f"  cd {shlex.quote(str(folder))}"
    yield (f"  {program} sandbox --port {adoption_demo.SANDBOX_PORT} --no-limits --state {adoption_demo.STATE_FILE}")
    yield ""
    yield "Then type in another one:"
    yield ""
    yield f"  cd {shlex.quote(str(folder))}"
    for command in ("discover --out customers.csv", "apply customers.csv --dry-run", "apply customers.csv --limit 10"):
        yield f"  {program} adopt {command}"


def _show_table(rows: list[AdoptionRow]) -> None:
    """One row of each kind, because the others look alike."""
    examples: dict[str, AdoptionRow] = {}
    for row in rows:
        examples.setdefault(_reason_kind(row), row)
    shown = sorted(examples.values(), key=lambda row: row.action)[:ROWS_SHOWN]
    output.show("", output.table(shown, _COLUMNS), f"… {len(shown)} of {len(rows)} rows", "")


def _show_result(result: AdoptionDemoResult) -> None:
    left = [row for row in result.rows if row.action in _LEFT]
    kinds = Counter(map(_reason_kind, left))
    examples = {_reason_kind(row): row for row in reversed(left)}
    output.show("", f"What was left, and why: {len(left)} rows, for {len(kinds)} reasons", "")
    for kind, count in kinds.most_common(REASONS_SHOWN):
        example = "for example: " if count > 1 else ""
        output.show(f"{count:>4}  {example}{examples[kind].reason}")
    if len(kinds) > REASONS_SHOWN:
        output.show(f"      and {len(kinds) - REASONS_SHOWN} more reasons")
    output.show(
        "",
        f"Of {result.customers} customers, {result.adopted} are adopted. The table has {len(result.rows)} rows, "
        "because a customer whose sides nothing joins is two. What managing them changed:",
        *_count_lines("got our metadata", result.marked),
        *_count_lines("new, as the table said", result.started),
        "",
    )


def _count_lines(what: str, counts: Mapping[str, int]) -> Iterable[str]:
    return (f"  {count:>4} {kind} {what}" for kind, count in counts.items())


def _reason_kind(row: AdoptionRow) -> str:
    return f"{row.action} {_IDS.sub('…', row.reason)}"


def _customer(row: AdoptionRow) -> str:
    return "\n".join(side.external_customer_id or side.customer_id for side in row.sides.values())


def _paid(row: AdoptionRow) -> str:
    paid = [side for side in row.sides.values() if side.amount is not None and side.currency is not None]
    return "\n".join(amount_text(side.amount or 0, side.currency or "") for side in paid) or "-"


_COLUMNS: Final[list[Column[AdoptionRow]]] = [
    Column("customer", _customer, kind="id"),
    Column("plan", lambda row: row.plan_tier, kind="fold", max_width=12),
    Column("pays", _paid, justify="right"),
    Column("action", lambda row: row.action, kind="fold", max_width=10),
    Column("reason", lambda row: row.reason, kind="fold"),
]
