"""Latency of an idle system from the commit of a change to the start of its task, compared with ``apply_async`` alone.

    python -m benchmarks.latency [--samples 100]

The worker's own event reports both starts. Our change goes through the database: it is committed, the relay finds and
publishes it, and the worker receives it from the broker.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median, quantiles
from typing import Self
from uuid import uuid4

from celery import Celery

from benchmarks.comparison import Comparison, print_results
from benchmarks.throughput import RunningSystem, ThroughputSize, running_system, stub
from core.common.clock import utc_now
from core.db.database import Database
from core.events.event_types import ChangeContext
from core.organizations import commands
from tests.support import servers
from tests.support.waiting import until

IDLE_SECONDS = 0.05  # then everything is idle again
MAX_LATENCY_RATIO = 2.0
RUNS = 3

# Starts something; returns the label of its task and the time it was started.
StartTask = Callable[[], tuple[str, float]]


class TaskStarts:
    """When tasks started, by the text of their first argument."""

    def __init__(self, broker_url: str) -> None:
        self._app = Celery(broker=broker_url)
        self._started_at: dict[str, float] = {}
        self._label_by_task_id: dict[str, str] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(10)

    def wait(self, label: str) -> float:
        until(lambda: label in self._started_at, "the task's start", seconds=20)
        return self._started_at.pop(label)

    def _listen(self) -> None:
        with self._app.connection() as connection:
            receiver = self._app.events.Receiver(
                connection, handlers={"task-received": self._on_received, "task-started": self._on_started}
            )
            while not self._stopping.is_set():
                with suppress(TimeoutError):
                    receiver.capture(limit=None, timeout=0.5, wakeup=False)

    def _on_received(self, event: dict[str, str]) -> None:
        self._label_by_task_id[event["uuid"]] = event["args"].strip("()[],' ")

    def _on_started(self, event: dict[str, float | str]) -> None:
        label = self._label_by_task_id.pop(str(event["uuid"]), None)
        if label is not None:
            self._started_at.setdefault(label, float(event["timestamp"]))


@contextmanager
def _bare(redis_url: str, folder: Path) -> Iterator[Celery]:
    """A worker of the plain app that sends events, with a task that does nothing."""
    environment = {**os.environ, "PLAIN_BROKER": redis_url}
    arguments = ["--app", "benchmarks.plain", "worker", "--pool", "threads", "--concurrency", "8", "-E"]
    with (folder / "bare.log").open("wb") as log:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "celery", *arguments], env=environment, stdout=log, stderr=log
        )
    try:
        yield Celery("plain", broker=redis_url)
    finally:
        process.terminate()
        process.wait(30)


def _times(samples: int, start_task: StartTask, starts: TaskStarts) -> list[float]:
    """Milliseconds of each start, sorted."""
    milliseconds: list[float] = []
    for _ in range(samples):
        label, since = start_task()
        milliseconds.append(1000 * (starts.wait(label) - since))
        time.sleep(IDLE_SECONDS)
    return sorted(milliseconds)


def _commit(database: Database, system: RunningSystem) -> StartTask:
    org_ids = iter(system.org_ids)

    def start_task() -> tuple[str, float]:
        org_id = next(org_ids)
        with database.write() as session:
            organization = commands.lock(session, org_id)
            if organization is not None:
                commands.rename(ChangeContext(session, utc_now()), organization, f"Renamed {uuid4()}")
        return org_id, time.time()

    return start_task


def _apply(app: Celery) -> StartTask:
    def start_task() -> tuple[str, float]:
        label, since = str(uuid4()), time.time()
        app.send_task("plain.nothing", args=[label])
        return label, since

    return start_task


def measure(postgres: str, redis_url: str, samples: int) -> list[Comparison]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="latency-")))
        url = stack.enter_context(servers.database(postgres))
        stub_url = stack.enter_context(stub())
        # A different organization for each sample: a second attempt would wait for the cooldown after the first.
        system = stack.enter_context(
            running_system(url, redis_url, stub_url, folder, ThroughputSize(changes=RUNS * samples, workers=1))
        )
        starts = stack.enter_context(TaskStarts(redis_url))
        database = Database(url)
        stack.callback(database.close)
        app = stack.enter_context(_bare(redis_url, folder))
        bare, commit = _apply(app), _commit(database, system)
        starts.wait(bare()[0])
        system.end_cooldowns()
        runs = [(_times(samples, commit, starts), _times(samples, bare, starts)) for _ in range(RUNS)]
    return [_compared(name, pick, runs) for name, pick in (("p50", median), ("p99", _p99))]


def _compared(
    name: str, pick: Callable[[list[float]], float], runs: list[tuple[list[float], list[float]]]
) -> Comparison:
    return Comparison(
        name=f"commit → task starts, {name}",
        unit="ms",
        figures=[pick(first) for first, _ in runs],
        baseline=[pick(second) for _, second in runs],
        against="apply_async → task starts",
        target=MAX_LATENCY_RATIO,
        smaller_is_better=True,
    )


def _p99(times: list[float]) -> float:
    return quantiles(times, n=100, method="inclusive")[98]


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Measures the time from the commit of a change to the start of its task."
    )
    parser.add_argument("--samples", type=int, default=100)
    options = parser.parse_args()
    with servers.postgres() as postgres, servers.redis() as redis_url:
        return print_results(measure(postgres, redis_url, options.samples))


if __name__ == "__main__":
    sys.exit(main())
