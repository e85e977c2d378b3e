"""From the commit of a change to the start of its task, idle, beside a bare ``apply_async`` to the start of its task.

    python -m benchmarks.latency [--samples 100]

Both starts are told by the worker's own event. Ours goes by the database: committed, found by the relay, handed to the
broker, taken by the worker.
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

from benchmarks.comparison import Comparison, shown
from benchmarks.throughput import Ours, Size, ours, stub
from core.common.clock import utc_now
from core.db.database import Database
from core.events.event_types import ChangeContext
from core.organizations import commands
from tests import servers
from tests.worker.deployment import until

BETWEEN = 0.05  # seconds: everything is idle again
WANTED = 2.0
RUNS = 3

# Begins something; returns what its task is shown as, and since when it counts.
Doing = Callable[[], tuple[str, float]]


class Starts:
    """When tasks started, by what their first argument was shown as."""

    def __init__(self, broker_url: str) -> None:
        self._app = Celery(broker=broker_url)
        self._at: dict[str, float] = {}
        self._received: dict[str, str] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(10)

    def wait(self, shown: str) -> float:
        until(lambda: shown in self._at, 20, "the task's start")
        return self._at.pop(shown)

    def _listen(self) -> None:
        with self._app.connection() as connection:
            receiver = self._app.events.Receiver(
                connection, handlers={"task-received": self._note, "task-started": self._start}
            )
            while not self._stopping.is_set():
                with suppress(TimeoutError):
                    receiver.capture(limit=None, timeout=0.5, wakeup=False)

    def _note(self, told: dict[str, str]) -> None:
        self._received[told["uuid"]] = told["args"].strip("()[],' ")

    def _start(self, told: dict[str, float | str]) -> None:
        shown = self._received.pop(str(told["uuid"]), None)
        if shown is not None:
            self._at.setdefault(shown, float(told["timestamp"]))


@contextmanager
def _bare(redis_url: str, folder: Path) -> Iterator[Celery]:
    """A worker of the plain app, its events on, with a task that does nothing."""
    environment = {**os.environ, "PLAIN_BROKER": redis_url}
    words = ["--app", "benchmarks.plain", "worker", "--pool", "threads", "--concurrency", "8", "-E"]
    with (folder / "bare.log").open("wb") as log:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "celery", *words], env=environment, stdout=log, stderr=log
        )
    try:
        yield Celery("plain", broker=redis_url)
    finally:
        process.terminate()
        process.wait(30)


def _times(samples: int, doing: Doing, starts: Starts) -> list[float]:
    """Milliseconds of each, in order."""
    taken: list[float] = []
    for _ in range(samples):
        shown, since = doing()
        taken.append(1000 * (starts.wait(shown) - since))
        time.sleep(BETWEEN)
    return sorted(taken)


def _commit(database: Database, we: Ours) -> Doing:
    org_ids = iter(we.org_ids)

    def doing() -> tuple[str, float]:
        org_id = next(org_ids)
        with database.write() as session:
            organization = commands.lock(session, org_id)
            if organization is not None:
                commands.rename(ChangeContext(session, utc_now()), organization, f"Renamed {uuid4()}")
        return org_id, time.time()

    return doing


def _apply(app: Celery) -> Doing:
    def doing() -> tuple[str, float]:
        shown, since = str(uuid4()), time.time()
        app.send_task("plain.nothing", args=[shown])
        return shown, since

    return doing


def measure(postgres: str, redis_url: str, samples: int) -> list[Comparison]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="latency-")))
        url = stack.enter_context(servers.database(postgres))
        stub_url = stack.enter_context(stub())
        # Each of its own: a second round would wait for the rest after the first.
        we = stack.enter_context(ours(url, redis_url, stub_url, folder, Size(changes=RUNS * samples, workers=1)))
        starts = stack.enter_context(Starts(redis_url))
        database = Database(url)
        stack.callback(database.close)
        app = stack.enter_context(_bare(redis_url, folder))
        bare, commit = _apply(app), _commit(database, we)
        starts.wait(bare()[0])
        we.rest()
        both = [(_times(samples, commit, starts), _times(samples, bare, starts)) for _ in range(RUNS)]
    return [_compared(name, pick, both) for name, pick in (("p50", median), ("p99", _p99))]


def _compared(
    name: str, pick: Callable[[list[float]], float], both: list[tuple[list[float], list[float]]]
) -> Comparison:
    return Comparison(
        name=f"commit → task starts, {name}",
        unit="ms",
        figures=[pick(first) for first, _ in both],
        baseline=[pick(second) for _, second in both],
        against="apply_async → task starts",
        wanted=WANTED,
        smaller=True,
    )


def _p99(times: list[float]) -> float:
    return quantiles(times, n=100, method="inclusive")[98]


def main() -> int:
    parser = argparse.ArgumentParser(description="From the commit to the task's start.")
    parser.add_argument("--samples", type=int, default=100)
    asked = parser.parse_args()
    with servers.postgres() as postgres, servers.redis() as redis_url:
        return shown(measure(postgres, redis_url, asked.samples))


if __name__ == "__main__":
    sys.exit(main())
