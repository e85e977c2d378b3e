"""Cost of reads and writes in the store, compared with two JSON files, and with the store at a hundredth of the size.

python -m benchmarks.store [--organizations 10000] [--larger]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from uuid import uuid4

from benchmarks import population
from benchmarks.comparison import Comparison, print_results, run_interleaved
from benchmarks.json_store import JsonStore
from core.org_manager import OrgManager
from tests.support import servers

MEMBERS_PER_ORGANIZATION = 10
RUNS = 3
REPEATS = 200  # of our operation in one run; a single one would be too noisy
MIN_RATIO_BY_OPERATION = {"create_organization + owner": 1000.0, "get_user_orgs": 500.0, "update_org_plan": 200.0}
LARGER_TIMES = 100
TOUCHED_ORGANIZATIONS = 2 * RUNS * REPEATS
"""How many organizations one comparison of all operations changes."""
MAX_GROWTH_RATIO = 1.5


@dataclass(frozen=True, slots=True)
class StoreOperations:
    """``operations`` by name. Each call does one, for a different organization each time."""

    operations: dict[str, Callable[[], object]]


@contextmanager
def ours(url: str, organizations: int, touched: int = 0) -> Iterator[StoreOperations]:
    """Operations on a populated database. The first ``touched`` organizations already have the new plan."""
    manager = OrgManager(database_url=url)
    # Far apart, as in practice: neighboring rows would be in the same pages.
    numbers = count(touched)

    def somewhere() -> int:
        return next(numbers) * 7919 % organizations

    def create() -> None:
        manager.add_user_to_org(manager.create_organization(f"New {uuid4()}"), "somebody", "owner")

    yield StoreOperations(
        {
            "create_organization + owner": create,
            "get_user_orgs": lambda: manager.get_user_orgs(population.user_id(somewhere())),
            "update_org_plan": lambda: manager.update_org_plan(population.org_id(somewhere()), "enterprise"),
        }
    )
    manager.close()


def theirs(folder: Path, organizations: int) -> StoreOperations:
    store = JsonStore(folder)
    store.fill(organizations, MEMBERS_PER_ORGANIZATION)
    numbers = count(1)

    def create() -> None:
        store.add_user_to_org(store.create_organization(f"New {uuid4()}"), "somebody")

    return StoreOperations(
        {
            "create_organization + owner": create,
            "get_user_orgs": lambda: store.get_user_orgs(f"user_{next(numbers)}_0"),
            "update_org_plan": lambda: store.update_org_plan(f"org_{next(numbers)}", "enterprise"),
        }
    )


def beside_files(name: str, store: StoreOperations, files: StoreOperations) -> Iterator[Comparison]:
    """Operations a second, compared with the JSON files."""
    for operation, target in MIN_RATIO_BY_OPERATION.items():
        figures, baseline = run_interleaved(
            RUNS, _rate(store.operations[operation], REPEATS), _rate(files.operations[operation], 1)
        )
        yield Comparison(
            name=f"{operation}, {name}",
            unit="/s",
            figures=figures,
            baseline=baseline,
            against="JSON files",
            target=target,
        )


def beside_ourselves(large: StoreOperations, small: StoreOperations, times: int) -> Iterator[Comparison]:
    """Milliseconds of each operation, compared with the smaller store."""
    for operation in MIN_RATIO_BY_OPERATION:
        figures, baseline = run_interleaved(
            RUNS, _cost(large.operations[operation]), _cost(small.operations[operation])
        )
        yield Comparison(
            name=f"{operation}, Postgres, {times} times as many organizations",
            unit="ms",
            figures=figures,
            baseline=baseline,
            against="the smaller store",
            target=MAX_GROWTH_RATIO,
            smaller_is_better=True,
        )


def costs(postgres: str, sizes: Sequence[int]) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds of each operation at each size."""
    found: dict[str, list[tuple[float, float]]] = {operation: [] for operation in MIN_RATIO_BY_OPERATION}
    for size in sizes:
        with population.populated(postgres, size, MEMBERS_PER_ORGANIZATION) as url, ours(url, size) as store:
            for operation, points in found.items():
                points.append((float(size), min(_cost(store.operations[operation])() for _ in range(RUNS))))
    return found


def _rate(operation: Callable[[], object], repeats: int) -> Callable[[], float]:
    def run() -> float:
        started = time.perf_counter()
        for _ in range(repeats):
            operation()
        return repeats / (time.perf_counter() - started)

    return run


def _cost(operation: Callable[[], object]) -> Callable[[], float]:
    rate = _rate(operation, REPEATS)
    return lambda: 1000 / rate()


def measure(small_url: str, organizations: int, touched: int = 0) -> Iterator[Comparison]:
    """Needs a populated Postgres; fills a SQLite database in the same way."""
    with tempfile.TemporaryDirectory(prefix="store-") as name:
        folder = Path(name)
        files = theirs(folder, organizations)
        sqlite_url = f"sqlite:///{folder / 'store.db'}"
        population.populate(sqlite_url, organizations, MEMBERS_PER_ORGANIZATION)
        with ours(sqlite_url, organizations) as on_sqlite:
            yield from beside_files("SQLite", on_sqlite, files)
        with ours(small_url, organizations, touched) as on_postgres:
            yield from beside_files("Postgres", on_postgres, files)


def measure_larger(large_url: str, small_url: str, organizations: int, touched: int = 0) -> Iterator[Comparison]:
    """Needs two populated Postgres databases."""
    for url in (large_url, small_url):
        population.read_into_memory(url)
    with (
        ours(large_url, organizations * LARGER_TIMES, touched) as large,
        ours(small_url, organizations, touched) as small,
    ):
        yield from beside_ourselves(large, small, LARGER_TIMES)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Measures the store against JSON files, and against itself at another size."
    )
    parser.add_argument("--organizations", type=int, default=10_000)
    parser.add_argument(
        "--larger", action="store_true", help="Also measure a hundred times as many, on Postgres; takes minutes."
    )
    options = parser.parse_args()
    organizations = options.organizations
    with (
        servers.postgres() as postgres,
        population.populated(postgres, organizations, MEMBERS_PER_ORGANIZATION) as small,
    ):
        missed = print_results(measure(small, organizations))
        if options.larger:
            with population.populated(postgres, organizations * LARGER_TIMES, MEMBERS_PER_ORGANIZATION) as large:
                missed |= print_results(measure_larger(large, small, organizations, TOUCHED_ORGANIZATIONS))
    return missed


if __name__ == "__main__":
    sys.exit(main())
