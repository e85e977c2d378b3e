"""Memory of one worker process after its first thousand tasks, and after a hundred thousand.

    python -m benchmarks.memory [--tasks 100000]

The tasks find their link in sync and end, as those of repeated messages do.
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
from benchmarks.comparison import Comparison, print_results
from benchmarks.throughput import RATE_LIMIT_SETTINGS, stub
from core.db.database import Database
from tasks import queue
from tasks.base import BillingApp
from tasks.routing import SYNC_TO_LAGO, SYNC_TO_STRIPE, SyncRequest
from tests.support import servers
from tests.support.deployment import deployment
from tests.support.waiting import until
from worker.config.settings import Settings
from worker.wiring import celery_app

WARM_UP_TASKS = 1000
TASK_BATCH_SIZE = 500
ORGANIZATIONS = 1000
MAX_GROWTH_RATIO = 1.1
MAX_MEGABYTES = 150.0
TASKS_TIMEOUT_SECONDS = 900.0


def measure(postgres: str, redis_url: str, tasks: int) -> list[Comparison]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memory-")))
        url = stack.enter_context(servers.database(postgres))
        deployed = stack.enter_context(deployment(url, redis_url, stack.enter_context(stub()), folder))
        deployed.environment |= dict.fromkeys(RATE_LIMIT_SETTINGS, "100000") | {"LOG_LEVEL": "WARNING"}
        database = Database(url)
        stack.callback(database.close)
        database.upgrade()
        population.fill(database, ORGANIZATIONS, 1)
        process = deployed.start("worker")
        environment = {name.lower(): value for name, value in deployed.environment.items()}
        app = celery_app.build(Settings.model_validate({**environment, "data_dir": folder}))
        stack.callback(app.close_runtime)
        redis = stack.enter_context(Redis.from_url(redis_url))
        _run_tasks(app, redis, WARM_UP_TASKS)
        before = _megabytes(process.pid)
        _run_tasks(app, redis, tasks - WARM_UP_TASKS)
        after = _megabytes(process.pid)
    return [
        Comparison(
            name=f"a worker's memory after {tasks:,} tasks",
            unit="MB",
            figures=[after],
            baseline=[before],
            against=f"after {WARM_UP_TASKS:,}",
            target=MAX_GROWTH_RATIO,
            smaller_is_better=True,
        ),
        Comparison(
            name="and in total",
            unit="MB",
            figures=[after],
            baseline=[MAX_MEGABYTES],
            against="required",
            target=1.0,
            smaller_is_better=True,
        ),
    ]


def _run_tasks(app: BillingApp, redis: Redis, tasks: int) -> None:
    """Publish the tasks in batches, so that the worker is measured and not a long queue."""
    for start in range(0, tasks, TASK_BATCH_SIZE):
        sync_requests = [
            SyncRequest((SYNC_TO_STRIPE, SYNC_TO_LAGO)[number % 2], population.org_id(number % ORGANIZATIONS))
            for number in range(start, min(start + TASK_BATCH_SIZE, tasks))
        ]
        queue.publish(app, sync_requests)
        until(lambda: not _has_queued_tasks(redis), "the tasks", seconds=TASKS_TIMEOUT_SECONDS)


def _has_queued_tasks(redis: Redis) -> bool:
    return any(redis.exists(name) for name in ("stripe", "lago"))


def _megabytes(process: int) -> float:
    """Resident memory, as the system counts it."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures a worker's memory, early and late.")
    parser.add_argument("--tasks", type=int, default=100_000)
    options = parser.parse_args()
    with servers.postgres() as postgres, servers.redis() as redis_url:
        return print_results(measure(postgres, redis_url, options.tasks))


if __name__ == "__main__":
    sys.exit(main())
