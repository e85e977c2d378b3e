"""What one worker process holds after its first thousand tasks, and after a hundred thousand.

    python -m benchmarks.memory [--tasks 100000]

The tasks are those of messages that come for nothing, as repeats do: asked for a turn, found in sync, done.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from redis import Redis

from benchmarks import population
from benchmarks.comparison import Comparison, shown
from benchmarks.throughput import QUOTAS_ASIDE, stub
from core.db.database import Database
from tasks import queue
from tasks.base import BillingApp
from tasks.routing import SYNC_TO_LAGO, SYNC_TO_STRIPE, SyncRequest
from tests import servers
from tests.worker.deployment import deployment, until
from worker.config.settings import Settings
from worker.wiring import celery_app

FIRST = 1000
AT_ONCE = 500
ORGANIZATIONS = 1000
GROWS_AT_MOST = 1.1
MEGABYTES = 150.0
PATIENCE = 900.0  # seconds


def measure(postgres: str, redis_url: str, tasks: int) -> list[Comparison]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memory-")))
        url = stack.enter_context(servers.database(postgres))
        deployed = stack.enter_context(deployment(url, redis_url, stack.enter_context(stub()), folder))
        deployed.environment |= dict.fromkeys(QUOTAS_ASIDE, "100000") | {"LOG_LEVEL": "WARNING"}
        database = Database(url)
        stack.callback(database.close)
        database.upgrade()
        population.fill(database, ORGANIZATIONS, 1)
        process = deployed.start("worker")
        environment = {name.lower(): value for name, value in deployed.environment.items()}
        app = celery_app.build(Settings.model_validate({**environment, "data_dir": folder}))
        stack.callback(app.close_runtime)
        redis = stack.enter_context(Redis.from_url(redis_url))
        _do(app, redis, FIRST)
        before = _megabytes(process.pid)
        _do(app, redis, tasks - FIRST)
        after = _megabytes(process.pid)
    return [
        Comparison(
            name=f"a worker's memory after {tasks:,} tasks",
            unit="MB",
            figures=[after],
            baseline=[before],
            against=f"after {FIRST:,}",
            wanted=GROWS_AT_MOST,
            smaller=True,
        ),
        Comparison(
            name="and in all",
            unit="MB",
            figures=[after],
            baseline=[MEGABYTES],
            against="asked for",
            wanted=1.0,
            smaller=True,
        ),
    ]


def _do(app: BillingApp, redis: Redis, tasks: int) -> None:
    """Handed over in portions, so that what is measured is the worker and not a long queue."""
    for start in range(0, tasks, AT_ONCE):
        rings = [
            SyncRequest((SYNC_TO_STRIPE, SYNC_TO_LAGO)[number % 2], population.org_id(number % ORGANIZATIONS))
            for number in range(start, min(start + AT_ONCE, tasks))
        ]
        queue.publish(app, rings)
        until(lambda: not _waiting(redis), PATIENCE, "the tasks")


def _waiting(redis: Redis) -> bool:
    return any(redis.exists(name) for name in ("stripe", "lago"))


def _megabytes(process: int) -> float:
    """Resident, as the system counts it."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description="A worker's memory, early and late.")
    parser.add_argument("--tasks", type=int, default=100_000)
    asked = parser.parse_args()
    with servers.postgres() as postgres, servers.redis() as redis_url:
        return shown(measure(postgres, redis_url, asked.tasks))


if __name__ == "__main__":
    sys.exit(main())
