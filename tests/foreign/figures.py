"""What the story shows, for a terminal: the steps, what a provider cannot do, and the figures of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from tests.foreign.differences import AccountDifference
from tests.foreign.stage import Telling
from tests.foreign.story import StepResult
from tests.foreign.table import StandIn

MARKS: Final = {"done": "done", "reduced": "in part", "cannot": "cannot", "failed": "FAILED"}
HEAD: Final = (
    "provider",
    "charges",
    "done",
    "in part",
    "cannot",
    "failed",
    "sent",
    "refused",
    "differences",
    "seconds",
)


def step_lines(telling: Telling) -> Iterator[str]:
    for each in telling.steps:
        yield step_line(each)
    yield from reason_lines(telling)


def step_line(step: StepResult) -> str:
    problem = f"\n           {step.problem}" if step.problem else ""
    return f"  {MARKS[step.status]:8} {step.title}{problem}"


def reason_lines(telling: Telling) -> Iterator[str]:
    """Each reason for which steps were left out or reduced, once."""
    for reason in dict.fromkeys(reason for each in telling.steps for reason in each.reasons):
        yield f"  * {reason}"


def table_lines(stand_ins: Iterable[StandIn]) -> Iterator[str]:
    """The table of what each stand-in cannot do, and what is done in its place."""
    for each in stand_ins:
        state = "installed" if each.is_installed else "NOT INSTALLED"
        yield f"{each.name} ({each.origin}); needs {each.needs}; {state}"
        for ability, reason in each.lacks.items():
            yield f"  cannot {ability}: {reason}"
        for operation in each.adapted:
            yield f"  {operation} is answered for it"
        for name, reason in each.left_out.items():
            yield f"  does not get {name}: {reason}"
        if "stripe" not in each.charges:
            yield "  the story runs only where Lago charges"


def figures_row(name: str, charged_by: str, telling: Telling, found: list[AccountDifference] | None) -> list[str]:
    """One line of the table whose head is ``HEAD``."""
    sent = telling.stripe
    return [
        name,
        charged_by,
        *(str(_count(telling.steps, status)) for status in MARKS),
        str(len(sent)),
        str(sum(each.is_refused for each in sent)),
        "-" if found is None else str(len(found)),
        f"{telling.seconds:.0f}",
    ]


def aligned(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _count(steps: list[StepResult], status: str) -> int:
    return sum(each.status == status for each in steps)
