"""``make bench`` and ``make bench-quick``: run all benchmarks one after the other.

    python -m benchmarks.run [--quick]

The full run writes ``benchmarks/results.md`` and the charts next to it; the quick run only prints.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import psycopg
from redis import Redis
from sqlalchemy import make_url

from benchmarks import (
    chart,
    importing,
    latency,
    memory,
    population,
    processors,
    rate_limits,
    relaying,
    store,
    sweeping,
    throughput,
)
from benchmarks.comparison import Comparison
from tests.support import servers

BENCHMARKS_FOLDER = Path(__file__).parent
DECISION_LINK = "../docs/decisions/0017-what-a-change-costs.md"
PACKAGES = ("celery", "kombu", "redis", "sqlalchemy", "psycopg", "stripe", "lago-python-client", "httpx", "pydantic")
WORKER_COUNTS = (1, 2, 3, 4)
STORE_SIZES = (1_000, 10_000, 100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSizes:
    throughput: throughput.ThroughputSize
    samples: int
    organizations: int
    larger: bool
    relayed: int
    imported: int
    tasks: int
    creates: int
    """0: the measurement is left out."""


ALL = BenchmarkSizes(
    throughput=throughput.ThroughputSize(),
    samples=100,
    organizations=10_000,
    larger=True,
    relayed=2000,
    imported=100_000,
    tasks=100_000,
    creates=2000,
)
QUICK = BenchmarkSizes(
    throughput=throughput.ThroughputSize(changes=150, runs=1),
    samples=15,
    organizations=1000,
    larger=False,
    relayed=500,
    imported=5000,
    tasks=3000,
    creates=0,
)


def compared(postgres: str, redis_url: str, sizes: BenchmarkSizes) -> Iterator[Comparison]:
    yield from throughput.measure(postgres, redis_url, sizes.throughput)
    if sizes.creates:
        yield _rate_limits(postgres, redis_url, sizes.creates)
    yield from latency.measure(postgres, redis_url, sizes.samples)
    few, many = sizes.organizations, sizes.organizations * store.LARGER_TIMES
    with (
        servers.database(postgres) as large,
        ThreadPoolExecutor(1) as aside,
        population.populated(postgres, few, store.MEMBERS_PER_ORGANIZATION) as small,
    ):
        filling = aside.submit(population.populate, large, many, store.MEMBERS_PER_ORGANIZATION if sizes.larger else 1)
        # It measures megabytes, so it may share the processors.
        yield from memory.measure(postgres, redis_url, sizes.tasks)
        filling.result()
        yield sweeping.measure(large, many, small, few)
        if sizes.larger:
            yield from store.measure_larger(large, small, few)
        yield from store.measure(small, few, store.TOUCHED_ORGANIZATIONS)
    yield relaying.measure(postgres, redis_url, sizes.relayed)
    yield from importing.measure(sizes.imported)


def _rate_limits(postgres: str, redis_url: str, creates: int) -> Comparison:
    with servers.database(postgres) as url, tempfile.TemporaryDirectory(prefix="rate-limits-") as folder:
        figures = rate_limits.measure(url, redis_url, Path(folder), rate_limits.BurstOptions(creates=creates))
    throttled = sum(figures.throttled.values())
    return Comparison(
        name=f"rate limit used by {creates:,} creates during interactive changes, {throttled} responses with 429",
        unit="/s",
        figures=[figures.limit_used * rate_limits.CREATES_PER_SECOND_LIMIT],
        baseline=[rate_limits.CREATES_PER_SECOND_LIMIT],
        against="the rate limit",
        target=rate_limits.MIN_LIMIT_USED,
    )


def charts(postgres: str, redis_url: str, folder: Path) -> None:
    """Throughput by number of processes, and the cost of an operation by the size of the store."""
    rates = []
    for workers in WORKER_COUNTS:
        size = throughput.ThroughputSize(changes=300, workers=workers, runs=2)
        rates.append((float(workers), throughput.rate(postgres, redis_url, size)))
    text = chart.line_chart(
        "Changes a second that reach both providers",
        "worker processes",
        "changes/s",
        {"billing-sync": rates},
        {float(workers): str(workers) for workers in WORKER_COUNTS},
    )
    (folder / "throughput.svg").write_text(text, encoding="utf-8")
    costs = store.costs(postgres, STORE_SIZES)
    text = chart.line_chart(
        "Cost of one operation in the store, Postgres",
        "organizations, ten members each",
        "ms",
        costs,
        {float(size): f"{size:,}" for size in STORE_SIZES},
    )
    (folder / "store.svg").write_text(text, encoding="utf-8")


def page(results: list[Comparison], costs: dict[str, float], seconds: float, about: str) -> str:
    lines = [
        "# Benchmark results",
        "",
        f"Measured by `make bench` on {datetime.now(UTC):%Y-%m-%d}, in {seconds / 60:.0f} minutes. {about}",
        "",
        "Each figure is shown with a baseline of the same minutes, in interleaved runs: minimum / median / maximum.",
        "",
        "| | what | ours | | baseline | ratio | target |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_row(each) for each in results]
    lines += [
        "",
        f"What limits those that miss their target, and what was tried: [decision 0017]({DECISION_LINK}).",
        "",
    ]
    lines += [*processors.table(costs), "", "![Throughput](throughput.svg)", "", "![Cost against size](store.svg)"]
    return "\n".join([*lines, ""])


def _row(result: Comparison) -> str:
    mark = "✓" if result.reached else "✗"
    sign = "≤" if result.smaller_is_better else "≥"
    return (
        f"| {mark} | {result.name} | {result.figures_text} {result.unit} | {result.against} | {result.baseline_text} | "
        f"**{median(result.ratios):,.3g}** | {sign} {result.target:g} |"
    )


def machine(postgres: str, redis_url: str) -> str:
    with psycopg.connect(
        make_url(postgres).set(drivername="postgresql").render_as_string(hide_password=False)
    ) as connection:
        server = connection.info.server_version // 10_000
    with Redis.from_url(redis_url) as redis:
        info = redis.info("server")
    memory_ = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"Machine: {os.cpu_count()} cores ({platform.machine()}), {memory_} GiB, shared with everything else that ran, "
        f"including all servers, workers and stubs. Python {platform.python_version()}, Postgres {server}, "
        f"{info.get('server_name', 'redis')} {info.get('valkey_version', info.get('redis_version'))}, {versions}."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs all benchmarks, each with its baseline.")
    parser.add_argument("--quick", action="store_true", help="Use small sizes and write no file; takes two minutes.")
    options = parser.parse_args()
    started = time.monotonic()
    results: list[Comparison] = []
    with servers.postgres() as postgres, servers.redis() as redis_url:
        about = machine(postgres, redis_url)
        print(about, flush=True)
        for each in compared(postgres, redis_url, QUICK if options.quick else ALL):
            results.append(each)
            print(each.line(), flush=True)
        if not options.quick:
            costs = processors.measure(postgres, redis_url, throughput.ThroughputSize(runs=2))
            charts(postgres, redis_url, BENCHMARKS_FOLDER)
            text = page(results, costs, time.monotonic() - started, about)
            (BENCHMARKS_FOLDER / "results.md").write_text(text, encoding="utf-8")
    reached = sum(each.reached for each in results)
    print(f"{reached} of {len(results)} targets reached, {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
