"""Processor time by kind of process while changes are synced: milliseconds for one change.

    python -m benchmarks.processors [--changes 600] [--workers 2]

It is read from Linux' accounting of all processes, before and after, so only servers on this machine are included.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from benchmarks.throughput import ThroughputSize, running_system, stub
from tests.support import servers

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# By a part of the command line; the first match counts.
KIND_BY_COMMAND_WORD = {
    "billing-sync worker": "workers: Celery, sync attempts, provider calls",
    "billing-sync relay": "relay",
    "billing-sync beat": "beat",
    "benchmarks.stub": "the stub of both providers",
    "postgres": "Postgres",
    "valkey-server": "Redis",
    "redis-server": "Redis",
}
DRIVER_KIND = "the benchmark itself, which commits the changes and waits for them"


def seconds_by_kind() -> dict[str, float]:
    """Processor seconds used so far, by kind of process."""
    seconds: dict[str, float] = defaultdict(float)
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError):  # the process ended meanwhile
            kind = _kind(folder)
            if kind is not None:
                # The name may contain anything, so count from its end: utime and stime are the 12th and 13th field.
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                seconds[kind] += (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND
    return seconds


def _kind(folder: Path) -> str | None:
    if int(folder.name) == os.getpid():
        return DRIVER_KIND
    words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return next((kind for word, kind in KIND_BY_COMMAND_WORD.items() if word in words), None)


def measure(url: str, redis_url: str, size: ThroughputSize) -> dict[str, float]:
    """Milliseconds for one change by kind of process, largest first."""
    with (
        tempfile.TemporaryDirectory(prefix="processors-") as folder,
        stub() as stub_url,
        servers.database(url) as database_url,
        running_system(database_url, redis_url, stub_url, Path(folder), size) as system,
    ):
        system.rate()
        before = seconds_by_kind()
        for _ in range(size.runs):
            system.rate()
        used = {kind: seconds - before.get(kind, 0.0) for kind, seconds in seconds_by_kind().items()}
    changes = size.runs * size.changes
    return {kind: 1000 * used[kind] / changes for kind in sorted(used, key=used.__getitem__, reverse=True)}


def table(costs: dict[str, float]) -> list[str]:
    return [
        "| processor time of one change | ms |",
        "|---|---|",
        *(f"| {kind} | {cost:.1f} |" for kind, cost in costs.items()),
        f"| total | **{sum(costs.values()):.1f}** |",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures processor time by kind of process while changes are synced.")
    parser.add_argument("--changes", type=int, default=600)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with servers.postgres() as postgres, servers.redis() as redis_url:
        costs = measure(postgres, redis_url, ThroughputSize(changes=options.changes, workers=options.workers))
    for line in table(costs):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
