"""``make crash-matrix``: kill every operation at every point, start it again, and compare with an undisturbed run.

    python -m tests.crash.matrix [--target embedded|deployed] [--only WORD] [--runners 4]

It prints a grid for each target, with a row for each point and a column for each operation. ``✓`` means the same
result, ``✓3`` the same for each of the three times that the point is passed, and ``✗`` a difference. ``-`` means that
the operation does not pass the point, ``·`` that it did not pass it again, and ``=`` that the first operation with this
point covers it.
Exit code 1 if there are differences, or if too many points were not passed again.
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
# A point that depends on the order of two events may be missed; it is tried again.
TRIES = 3
MOST_TIMES = 3
MISSED_AT_MOST = 0.05
# What each process does at its start and every few seconds: tried in the first operation only. In an operation where a
# scheduled downgrade is due, it is tried too, and once more than usual, since the first time may find nothing.
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
# Selects the points to try from all points that the operations pass.
Choice = Callable[[list[tuple[str, Point]]], list[tuple[str, Point]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """``problem`` is None if the result equals that of the undisturbed run. ``reached`` False: nothing was killed."""

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
    """Runners of one target, which share their snapshots. A context manager."""

    def __init__(self, target: str, count: int) -> None:
        self._stack = ExitStack()
        self._target = target
        self._count = count
        self.runners: list[CrashRunner] = []

    def __enter__(self) -> Self:
        try:
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="crash-")))
            snapshots = folder / "snapshots"
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
            return [EmbeddedTarget(folder / f"runner-{number}", snapshots) for number in numbers]
        postgres, redis = self._stack.enter_context(servers.postgres()), self._stack.enter_context(servers.redis())
        self._stack.enter_context(first_database(postgres))
        return [DeployedTarget(folder / f"runner-{number}", postgres, redis, number) for number in numbers]


def record(runners: Sequence[CrashRunner], operations: Sequence[CrashOperation], say: Say) -> dict[str, Recorded]:
    """Run each operation once undisturbed; those that build on each other run in order, by one runner."""
    recorded: dict[str, Recorded] = {}

    def follow(runner: CrashRunner, line: list[CrashOperation]) -> None:
        for operation in line:
            started = time.monotonic()
            recorded[operation.name] = runner.record(operation)
            points = len(recorded[operation.name].points)
            say(f"  {operation.name}: {points} points, {time.monotonic() - started:.1f} s undisturbed")

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
    """Each runner takes the next item. If one raises, the others finish theirs and the error is raised here."""
    todo: queue.SimpleQueue[Work] = queue.SimpleQueue()
    for each in work:
        todo.put(each)
    finished = threading.Event()

    def take(runner: CrashRunner) -> None:
        try:
            while not (finished.is_set() or todo.empty()):
                do(runner, todo.get_nowait())
        except queue.Empty:
            return  # another runner took the last one
        finally:
            # Nothing is left, or this one raised: in both cases no runner starts another item.
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
    """Limit the tries of a point that a run passes again and again, such as the sweep while it waits."""

    def times(point: Point) -> int:
        return MOST_TIMES + 1 if operation.period_ends and _is_of_itself(point) else MOST_TIMES

    return [point for point in dict.fromkeys(points) if point.number <= times(point)]


def grid(matrix: Matrix) -> Iterator[str]:
    """The lines of the grid: a row for each point, sorted by name, and a column for each operation in its order."""
    cells: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for each in matrix.cells:
        cells[each.point.name, each.operation].append(each)
    names = list(dict.fromkeys(point.name for each in matrix.recorded.values() for point in each.points))
    names = [name for name in names if any(key[0] == name for key in cells)]
    passed = {(point.name, operation) for operation, each in matrix.recorded.items() for point in each.points}
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
        f"{len(matrix.problems)} ended differently, {len(matrix.missed)} points were not passed again; "
        f"{matrix.seconds:.0f} s"
    )


@contextmanager
def _chosen(words: Sequence[str]) -> Iterator[list[CrashOperation]]:
    """The operations whose name contains one of ``words``, with those that they start from."""
    chosen = {each.name for each in OPERATIONS if not words or any(word in each.name for word in words)}
    for operation in reversed(OPERATIONS):
        if operation.name in chosen and operation.after is not None:
            chosen.add(operation.after)
    yield [each for each in OPERATIONS if each.name in chosen]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="crash-matrix", description="Kills at every point, starts again and compares."
    )
    parser.add_argument("--target", choices=TARGETS, action="append", help="What to run; both if omitted.")
    parser.add_argument("--only", action="append", default=[], help="Only operations with this word in their name.")
    parser.add_argument("--runners", type=int, default=6, help="How many runs at the same time.")
    options = parser.parse_args(arguments)
    leave_nothing_behind()
    failed = False
    with _chosen(options.only) as operations:
        for target in options.target or TARGETS:
            _print(f"{target}: {len(operations)} operations")
            matrix = run(target, operations, options.runners, _print, list)
            for line in grid(matrix):
                _print(line)
            _print(totals(matrix))
            too_few = len(matrix.missed) > MISSED_AT_MOST * len(matrix.cells)
            if too_few:
                _print("too many points were not passed again: nothing was killed there, so nothing is proven")
            failed = failed or too_few or bool(matrix.problems)
    return int(failed)


def leave_nothing_behind() -> None:
    """On SIGTERM, exit in the usual way, so that all servers are stopped first."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
