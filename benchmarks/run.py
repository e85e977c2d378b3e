"""``make bench`` and ``make bench-quick``: all of them, one after the other, and what came out as a page with charts.

    python -m benchmarks.run [--quick]

The whole run writes ``benchmarks/results.md`` and the charts beside it; the quick one only prints.
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
    quota,
    relaying,
    store,
    sweeping,
    throughput,
)
from benchmarks.comparison import Comparison
from tests import servers

HERE = Path(__file__).parent
WHY = "../docs/decisions/0017-what-a-change-costs.md"
PACKAGES = ("celery", "kombu", "redis", "sqlalchemy", "psycopg", "stripe", "lago-python-client", "httpx", "pydantic")
PROCESSES = (1, 2, 3, 4)
SIZES = (1_000, 10_000, 100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    throughput: throughput.Size
    samples: int
    organizations: int
    larger: bool
    relayed: int
    imported: int
    tasks: int
    creates: int
    """0: left out."""


ALL = Sizes(
    throughput=throughput.Size(),
    samples=100,
    organizations=10_000,
    larger=True,
    relayed=2000,
    imported=100_000,
    tasks=100_000,
    creates=2000,
)
QUICK = Sizes(
    throughput=throughput.Size(changes=150, runs=1),
    samples=15,
    organizations=1000,
    larger=False,
    relayed=500,
    imported=5000,
    tasks=3000,
    creates=0,
)


def compared(postgres: str, redis_url: str, sizes: Sizes) -> Iterator[Comparison]:
    yield from throughput.measure(postgres, redis_url, sizes.throughput)
    if sizes.creates:
        yield _quota(postgres, redis_url, sizes.creates)
    yield from latency.measure(postgres, redis_url, sizes.samples)
    few, many = sizes.organizations, sizes.organizations * store.LARGER
    with (
        servers.database(postgres) as large,
        ThreadPoolExecutor(1) as aside,
        population.populated(postgres, few, store.SEATS) as small,
    ):
        filling = aside.submit(population.populate, large, many, store.SEATS if sizes.larger else 1)
        # Counts megabytes, so it may share the processors.
        yield from memory.measure(postgres, redis_url, sizes.tasks)
        filling.result()
        yield sweeping.measure(large, many, small, few)
        if sizes.larger:
            yield from store.measure_larger(large, small, few)
        yield from store.measure(small, few, store.TOUCHED)
    yield relaying.measure(postgres, redis_url, sizes.relayed)
    yield from importing.measure(sizes.imported)


def _quota(postgres: str, redis_url: str, creates: int) -> Comparison:
    with servers.database(postgres) as url, tempfile.TemporaryDirectory(prefix="quota-") as folder:
        figures = quota.measure(url, redis_url, Path(folder), quota.Crowd(creates=creates))
    throttled = sum(figures.throttled.values())
    return Comparison(
        name=f"quota used by {creates:,} creates and fresh changes beside them, {throttled} answers of 429",
        unit="/s",
        figures=[figures.used * quota.QUOTA],
        baseline=[quota.QUOTA],
        against="the quota",
        wanted=quota.USED_AT_LEAST,
    )


def charts(postgres: str, redis_url: str, folder: Path) -> None:
    """Throughput against processes, and the cost of a change against the size of the store."""
    rates = []
    for workers in PROCESSES:
        size = throughput.Size(changes=300, workers=workers, runs=2)
        rates.append((float(workers), throughput.rate(postgres, redis_url, size)))
    text = chart.lines(
        "Changes a second that reach both billers",
        "worker processes",
        "changes/s",
        {"billing-sync": rates},
        {float(workers): str(workers) for workers in PROCESSES},
    )
    (folder / "throughput.svg").write_text(text, encoding="utf-8")
    costs = store.costs(postgres, SIZES)
    text = chart.lines(
        "What one operation costs in the store, Postgres",
        "organizations, ten members each",
        "ms",
        costs,
        {float(size): f"{size:,}" for size in SIZES},
    )
    (folder / "store.svg").write_text(text, encoding="utf-8")


def page(results: list[Comparison], costs: dict[str, float], seconds: float, about: str) -> str:
    lines = [
        "# What was measured",
        "",
        f"By `make bench` on {datetime.now(UTC):%Y-%m-%d}, in {seconds / 60:.0f} minutes. {about}",
        "",
        "Each figure stands beside its baseline from the same minutes, runs interleaved: minimum / median / maximum.",
        "",
        "| | what | ours | | baseline | ratio | wanted |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_row(each) for each in results]
    lines += ["", f"What bounds those that miss, and what was tried: [decision 0017]({WHY}).", ""]
    lines += [*processors.table(costs), "", "![Throughput](throughput.svg)", "", "![Cost against size](store.svg)"]
    return "\n".join([*lines, ""])


def _row(result: Comparison) -> str:
    mark = "✓" if result.reached else "✗"
    sign = "≤" if result.smaller else "≥"
    return (
        f"| {mark} | {result.name} | {result.ours} {result.unit} | {result.against} | {result.theirs} | "
        f"**{median(result.ratios):,.3g}** | {sign} {result.wanted:g} |"
    )


def machine(postgres: str, redis_url: str) -> str:
    with psycopg.connect(
        make_url(postgres).set(drivername="postgresql").render_as_string(hide_password=False)
    ) as there:
        server = there.info.server_version // 10_000
    with Redis.from_url(redis_url) as redis:
        told = redis.info("server")
    memory_ = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"Machine: {os.cpu_count()} cores ({platform.machine()}), {memory_} GiB, shared with everything else that ran; "
        f"all servers, workers and stand-ins on it. Python {platform.python_version()}, Postgres {server}, "
        f"{told.get('server_name', 'redis')} {told.get('valkey_version', told.get('redis_version'))}, {versions}."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="All benchmarks, each beside its baseline.")
    parser.add_argument("--quick", action="store_true", help="Small sizes, nothing written; two minutes.")
    asked = parser.parse_args()
    started = time.monotonic()
    results: list[Comparison] = []
    with servers.postgres() as postgres, servers.redis() as redis_url:
        about = machine(postgres, redis_url)
        print(about, flush=True)
        for each in compared(postgres, redis_url, QUICK if asked.quick else ALL):
            results.append(each)
            print(each.line(), flush=True)
        if not asked.quick:
            costs = processors.measure(postgres, redis_url, throughput.Size(runs=2))
            charts(postgres, redis_url, HERE)
            text = page(results, costs, time.monotonic() - started, about)
            (HERE / "results.md").write_text(text, encoding="utf-8")
    reached = sum(each.reached for each in results)
    print(f"{reached} of {len(results)} reached, {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
