"""Cost for the sweep of finding 100 due links among a million, compared with ten thousand.

python -m benchmarks.sweeping [--many 1000000]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import timedelta

from sqlalchemy import update

from benchmarks import population
from benchmarks.comparison import Comparison, print_results, run_interleaved
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.reconcile import due_links
from tests.support import servers

SMALL_STORE_LINKS = 10_000
DUE_LINKS = 100
RUNS = 5
REPEATS = 40
MAX_COST_RATIO = 1.5


def measured_dispatch(database: Database, organizations: int) -> Callable[[], float]:
    """Milliseconds of one query that dispatches all due links; they are made due again before each."""
    org_ids = [population.org_id(number * (organizations // DUE_LINKS)) for number in range(DUE_LINKS)]

    def make_due() -> None:
        with database.write() as session:
            session.execute(
                update(BillingLink)
                .where(BillingLink.org_id.in_(org_ids), BillingLink.provider == "stripe")
                .values(desired_version=2, next_sweep_at=utc_now() - timedelta(minutes=1))
                .execution_options(synchronize_session=False)
            )

    def cost() -> float:
        spent = 0.0
        for _ in range(REPEATS):
            make_due()
            started = time.perf_counter()
            with database.write() as session:
                found = due_links.dispatch(session, "stripe", DUE_LINKS, utc_now())
            spent += time.perf_counter() - started
            if len(found) != DUE_LINKS:
                message = f"{len(found)} links were found, not {DUE_LINKS}"
                raise AssertionError(message)
        return 1000 * spent / REPEATS

    return cost


def measure(large_url: str, many: int, small_url: str, few: int) -> Comparison:
    """Needs two populated databases."""
    with closing(Database(large_url)) as large, closing(Database(small_url)) as small:
        figures, baseline = run_interleaved(RUNS, measured_dispatch(large, many), measured_dispatch(small, few))
    return Comparison(
        name=f"{DUE_LINKS} due links among {many:,}",
        unit="ms",
        figures=figures,
        baseline=baseline,
        against=f"among {few:,}",
        target=MAX_COST_RATIO,
        smaller_is_better=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures how long finding the due links takes, at two sizes.")
    parser.add_argument("--many", type=int, default=1_000_000)
    options = parser.parse_args()
    with servers.postgres() as postgres, ExitStack() as stack:
        small = stack.enter_context(population.populated(postgres, SMALL_STORE_LINKS, 1))
        large = stack.enter_context(population.populated(postgres, options.many, 1))
        return print_results([measure(large, options.many, small, SMALL_STORE_LINKS)])


if __name__ == "__main__":
    sys.exit(main())
