"""``make crash-matrix``: every operation, killed at every point, started again, compared with one that was not.

    python -m tests.crash.matrix [--place embedded|deployed] [--only WORD] [--lanes 4]

Prints a grid for each place: a row a point, a column an operation. ``✓`` all the same, ``✓3`` three times that it comes
by, ``✗`` a difference, ``-`` never there, ``·`` did not come by again, ``=`` as in the first operation
that has it. Exit 1 with the differences where there are any, or where too many points did not come by again.
"""

from __future__ import annotations

import argparse
import queue
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

from core.db.database import Database
from tests.crash.operations import OPERATIONS, CrashOperation
from tests.crash.outcome import difference
from tests.crash.points import Point
from tests.crash.runner import CrashRunner, Recorded, RunTimeoutError, Zygote
from tests.crash.targets import SQLITE_FILES, CrashTarget, DeployedTarget, EmbeddedTarget, first_database
from tests.support import servers

TARGETS = ("embedded", "deployed")
# A point that depends on which of two things comes first may be missed; it is tried for again.
TRIES = 3
MOST_TIMES = 3
MISSED_AT_MOST = 0.05
# What a process does of itself as it starts and every few seconds, whatever it was told: tried in the first operation,
# and, once more often than what finds nothing, where a day that has come makes the sweep work.
OF_ITSELF = (
    "billing.sweep",
    "core.reconcile.account_guard:",
    "core.db.job_locks:",
    "core.reconcile.due_links:",
    "core.emails.sender:",
    "providers.lago.provider:LagoProvider.fetch_account",
    "providers.stripe.provider:StripeProvider.fetch_account",
    "tasks.emails:",
    "tasks.sweep:",
)

Say = Callable[[str], None]
Work = TypeVar("Work")
# Of all the points that the operations pass, by operation: those that are tried.
Choice = Callable[[list[tuple[str, Point]]], list[tuple[str, Point]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """``problem`` None: what was left is what the undisturbed run left. ``reached`` False: nothing was killed."""

    operation: str
    point: Point
    reached: bool
    points: list[Point] = field(default_factory=list)
    problem: str | None = None


@dataclass(kw_only=True)
class Matrix:
    target: str
    operations: list[CrashOperation]
    recorded: dict[str, Recorded] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def problems(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.problem is not None]

    @property
    def missed(self) -> list[Cell]:
        return [cell for cell in self.cells if not cell.reached]


class CrashRunnerPool:
    """Lanes of one place that share the moments they can be set back to. A context."""

    def __init__(self, target: str, count: int) -> None:
        self._stack = ExitStack()
        self._target = target
        self._count = count
        self.runners: list[CrashRunner] = []

    def __enter__(self) -> Self:
        try:
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="crash-")))
            snapshots = folder / "kept"
            snapshots.mkdir()
            zygote = self._stack.enter_context(Zygote())
            self.runners = [
                self._stack.enter_context(CrashRunner(target, snapshots, zygote))
                for target in self._targets(folder, snapshots)
            ]
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _targets(self, folder: Path, snapshots: Path) -> list[CrashTarget]:
        numbers = range(1, self._count + 1)
        if self._target == "embedded":
            (snapshots / "empty").mkdir()
            first = Database(f"sqlite:///{snapshots / 'empty' / SQLITE_FILES[0]}")
            first.upgrade()
            first.close()
            return [EmbeddedTarget(folder / f"lane-{number}", snapshots) for number in numbers]
        postgres, redis = self._stack.enter_context(servers.postgres()), self._stack.enter_context(servers.redis())
        self._stack.enter_context(first_database(postgres))
        return [DeployedTarget(folder / f"lane-{number}", postgres, redis, number) for number in numbers]


def record(runners: Sequence[CrashRunner], operations: Sequence[CrashOperation], say: Say) -> dict[str, Recorded]:
    """One undisturbed run each; those that build on each other one after the other, in one lane."""
    recorded: dict[str, Recorded] = {}

    def follow(runner: CrashRunner, line: list[CrashOperation]) -> None:
        for operation in line:
            started = time.monotonic()
            made = runner.record(operation)
            recorded[operation.name] = made
            say(f"  {operation.name}: {len(made.points)} points, {time.monotonic() - started:.1f} s undisturbed")

    _share(runners, _lines(operations), follow)
    return {operation.name: recorded[operation.name] for operation in operations}


def _lines(operations: Sequence[CrashOperation]) -> list[list[CrashOperation]]:
    lines: dict[str, list[CrashOperation]] = {}
    first: dict[str, str] = {}
    for operation in operations:
        first[operation.name] = first[operation.after] if operation.after else operation.name
        lines.setdefault(first[operation.name], []).append(operation)
    return list(lines.values())


def _share(runners: Sequence[CrashRunner], work: Sequence[Work], do: Callable[[CrashRunner, Work], None]) -> None:
    """Each lane takes the next; when one raises, the others stop after theirs, and it is raised here."""
    todo: queue.SimpleQueue[Work] = queue.SimpleQueue()
    for each in work:
        todo.put(each)
    finished = threading.Event()

    def take(runner: CrashRunner) -> None:
        try:
            while not (finished.is_set() or todo.empty()):
                do(runner, todo.get_nowait())
        except queue.Empty:
            return  # another was faster
        finally:
            # Whether nothing is left or this one raised: nobody begins another.
            finished.set()

    with ThreadPoolExecutor(len(runners)) as threads:
        try:
            for ended in [threads.submit(take, runner) for runner in runners]:
                ended.result()
        finally:
            finished.set()


def cell(runner: CrashRunner, operation: CrashOperation, recorded: Recorded, point: Point) -> Cell:
    for _ in range(TRIES):
        try:
            crashed = runner.crash(operation, point)
        except RunTimeoutError as error:
            return Cell(operation=operation.name, point=point, reached=True, problem=f"{error}\n{runner.log[-3000:]}")
        if found := [*difference(recorded.outcome, crashed.outcome), *runner.leaked()]:
            return Cell(operation=operation.name, point=point, reached=crashed.reached, problem="\n".join(found))
        if crashed.reached:
            return Cell(operation=operation.name, point=point, reached=True, points=crashed.points)
    return Cell(operation=operation.name, point=point, reached=False)


def run(target: str, operations: Sequence[CrashOperation], runners: int, say: Say, choose: Choice) -> Matrix:
    started = time.monotonic()
    by_name = {operation.name: operation for operation in operations}
    with CrashRunnerPool(target, runners) as opened:
        matrix = Matrix(target=target, operations=list(operations), recorded=record(opened.runners, operations, say))
        chosen = choose(list(_worth_trying(operations, matrix.recorded)))

        def try_one(runner: CrashRunner, one: tuple[str, Point]) -> None:
            name, point = one
            done = cell(runner, by_name[name], matrix.recorded[name], point)
            matrix.cells.append(done)
            if done.problem is not None:
                say(f"  ✗ {name}, {point.name}, {point.number}.: {done.problem}")
            if len(matrix.cells) % 50 == 0:
                say(f"  {len(matrix.cells)} of {len(chosen)}, {time.monotonic() - started:.0f} s")

        _share(opened.runners, chosen, try_one)
    matrix.seconds = time.monotonic() - started
    return matrix


def _worth_trying(operations: Sequence[CrashOperation], recorded: dict[str, Recorded]) -> Iterator[tuple[str, Point]]:
    tried: set[Point] = set()
    for operation in operations:
        for point in _each_once(recorded[operation.name].points, operation):
            if not _is_of_itself(point) or operation.period_ends or point not in tried:
                tried.add(point)
                yield operation.name, point


def _is_of_itself(point: Point) -> bool:
    return point.site.startswith(OF_ITSELF)


def _each_once(points: list[Point], operation: CrashOperation) -> list[Point]:
    """A point that a run comes by again and again, as the sweep does while it waits, is tried the first times."""

    def times(point: Point) -> int:
        return MOST_TIMES + 1 if operation.period_ends and _is_of_itself(point) else MOST_TIMES

    return [point for point in dict.fromkeys(points) if point.number <= times(point)]


def grid(matrix: Matrix) -> Iterator[str]:
    """Points down, operations across; both in the order of the code's own run."""
    cells: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for each in matrix.cells:
        cells[each.point.name, each.operation].append(each)
    names = list(dict.fromkeys(point.name for made in matrix.recorded.values() for point in made.points))
    names = [name for name in names if any(key[0] == name for key in cells)]
    passed = {(point.name, operation) for operation, made in matrix.recorded.items() for point in made.points}
    width = max(len(name) for name in names)
    for number, operation in enumerate(matrix.operations):
        yield f"{' ' * width} {'  │ ' * number}  ┌ {operation.name}"
    for name in sorted(names):
        marks = [
            _mark(cells.get((name, operation.name), []), is_passed=(name, operation.name) in passed)
            for operation in matrix.operations
        ]
        yield f"{name:<{width}} {''.join(f'{mark:>4}' for mark in marks)}"


def _mark(cells: list[Cell], *, is_passed: bool) -> str:
    if not cells:
        return "=" if is_passed else "-"
    if any(each.problem is not None for each in cells):
        return "✗"
    if not any(each.reached for each in cells):
        return "·"
    reached = sum(each.reached for each in cells)
    return "✓" if reached == 1 else f"✓{reached}"


def totals(matrix: Matrix) -> str:
    killed = sum(each.reached for each in matrix.cells)
    kinds = len({each.point.name for each in matrix.cells})
    return (
        f"{matrix.target}: {killed} processes killed at {kinds} kinds of point in {len(matrix.operations)} operations; "
        f"{len(matrix.problems)} ended differently, {len(matrix.missed)} points did not come by again; "
        f"{matrix.seconds:.0f} s"
    )


@contextmanager
def _chosen(words: Sequence[str]) -> Iterator[list[CrashOperation]]:
    """The operations that a word of the command line names, with those that they start from."""
    chosen = {each.name for each in OPERATIONS if not words or any(word in each.name for word in words)}
    for operation in reversed(OPERATIONS):
        if operation.name in chosen and operation.after is not None:
            chosen.add(operation.after)
    yield [each for each in OPERATIONS if each.name in chosen]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="crash-matrix", description="Kill at every point, start again, compare.")
    parser.add_argument("--place", choices=TARGETS, action="append", help="Where; both if left out.")
    parser.add_argument("--only", action="append", default=[], help="Operations with this word in their name.")
    parser.add_argument("--lanes", type=int, default=6, help="Runs at the same time.")
    options = parser.parse_args(arguments)
    leave_nothing_behind()
    failed = False
    with _chosen(options.only) as operations:
        for target in options.place or TARGETS:
            _print(f"{target}: {len(operations)} operations")
            matrix = run(target, operations, options.lanes, _print, list)
            for line in grid(matrix):
                _print(line)
            _print(totals(matrix))
            too_few = len(matrix.missed) > MISSED_AT_MOST * len(matrix.cells)
            if too_few:
                _print("too many points did not come by again: what was not killed proves nothing")
            failed = failed or too_few or bool(matrix.problems)
    return int(failed)


def leave_nothing_behind() -> None:
    """Told to stop, a program of ours stops its servers first, as at its own end."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
