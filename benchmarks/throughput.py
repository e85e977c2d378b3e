"""How many changes a second are applied at both providers, compared with a plain task and with the bare calls.

    python -m benchmarks.throughput [--changes 600] [--workers 2] [--runs 3]

A change is a rename: one call to each provider. Worker processes and a relay run as an operator runs them, on Postgres
and Redis, against a stub that responds at once (``benchmarks.stub``), with rate limits too high to matter. The time is
measured from the first commit until every id and version is written back.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import psycopg
from celery import Celery
from sqlalchemy import make_url, update

from benchmarks.comparison import Comparison, print_results, run_interleaved
from core.catalog import plans as plan_catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.organizations.commands import NewOrganization
from tests.support import servers
from tests.support.deployment import Deployment, deployment, free_port, in_sync
from tests.support.waiting import until

CHANGE_BATCH_SIZE = 50
SYNC_TIMEOUT_SECONDS = 300.0
RATE_LIMIT_SETTINGS = ("STRIPE_RATE_LIMIT", "STRIPE_OPERATION_RATE_LIMIT", "LAGO_RATE_LIMIT")


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputSize:
    changes: int = 600
    workers: int = 2
    runs: int = 3


@contextmanager
def stub() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.stub", str(port)])
    try:
        until(lambda: _listens(port), "the stub", seconds=20)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class RunningSystem:
    """Our processes with organizations that both providers have; ``rate`` renames them all and waits."""

    def __init__(self, database: Database, org_ids: list[str]) -> None:
        self._database = database
        self.org_ids = org_ids

    def rate(self) -> float:
        self.end_cooldowns()
        started = time.monotonic()
        for start in range(0, len(self.org_ids), CHANGE_BATCH_SIZE):
            with self._database.write() as session:
                change = ChangeContext(session, utc_now())
                for org_id in self.org_ids[start : start + CHANGE_BATCH_SIZE]:
                    organization = commands.lock(session, org_id)
                    if organization is not None:
                        commands.rename(change, organization, f"Renamed {uuid4()}")
        until(lambda: in_sync(self._database), "all in sync", seconds=SYNC_TIMEOUT_SECONDS)
        return len(self.org_ids) / (time.monotonic() - started)

    def end_cooldowns(self) -> None:
        """As if each link's last change were a while ago: otherwise the next attempts would wait for the cooldown."""
        with self._database.write() as session:
            session.execute(update(BillingLink).values(not_before=None, not_before_reason=None))


@contextmanager
def running_system(
    url: str, redis_url: str, stub_url: str, folder: Path, size: ThroughputSize
) -> Iterator[RunningSystem]:
    with deployment(url, redis_url, stub_url, folder) as deployed:
        deployed.environment |= dict.fromkeys(RATE_LIMIT_SETTINGS, "100000")
        deployed.environment["LOG_LEVEL"] = "WARNING"
        database = Database(url)
        database.upgrade()
        try:
            org_ids = _create_organizations(database, size.changes)
            _start(deployed, size.workers)
            until(lambda: in_sync(database), "the organizations in sync", seconds=SYNC_TIMEOUT_SECONDS)
            yield RunningSystem(database, org_ids)
        finally:
            database.close()


def _start(deployed: Deployment, workers: int) -> None:
    for process in (*["worker"] * workers, "relay", "beat"):
        deployed.start(process)


def _create_organizations(database: Database, count: int) -> list[str]:
    plans = plan_catalog.load()
    org_ids: list[str] = []
    for start in range(0, count, CHANGE_BATCH_SIZE):
        with database.write() as session:
            change = ChangeContext(session, utc_now())
            org_ids += [
                commands.create(change, NewOrganization(name=f"{uuid4()}", plan_tier="starter"), plans).id
                for _ in range(start, min(start + CHANGE_BATCH_SIZE, count))
            ]
    return org_ids


class PlainTasks:
    """The same number of organizations, each renamed by an UPDATE and a ``send_task``."""

    def __init__(self, database_url: str, broker_url: str, many: int) -> None:
        self._url = database_url
        self._app = Celery("plain", broker=broker_url)
        self._org_ids = [f"org_{uuid4()}" for _ in range(many)]
        with psycopg.connect(self._url) as connection:
            connection.execute(
                "CREATE TABLE plain "
                "(id text PRIMARY KEY, name text, stripe_id text, lago_id text, synced_at timestamptz)"
            )
            with connection.cursor() as cursor:
                cursor.executemany(
                    "INSERT INTO plain (id, name, stripe_id) VALUES (%s, %s, %s)",
                    [(org_id, org_id, f"cus_{org_id[4:].replace('-', '')}") for org_id in self._org_ids],
                )

    def rate(self) -> float:
        started, since = time.monotonic(), datetime.now(UTC)
        with psycopg.connect(self._url, autocommit=True) as connection:
            for org_id in self._org_ids:
                connection.execute("UPDATE plain SET name = %s WHERE id = %s", (f"Renamed {uuid4()}", org_id))
                self._app.send_task("plain.sync", args=[org_id])
            until(lambda: self._done(connection, since), "the plain tasks", seconds=SYNC_TIMEOUT_SECONDS)
        return len(self._org_ids) / (time.monotonic() - started)

    def _done(self, connection: psycopg.Connection[tuple[object, ...]], since: datetime) -> bool:
        late = connection.execute("SELECT 1 FROM plain WHERE synced_at IS NULL OR synced_at < %s LIMIT 1", (since,))
        return late.fetchone() is None


@contextmanager
def plain_tasks(url: str, redis_url: str, stub_url: str, folder: Path, size: ThroughputSize) -> Iterator[PlainTasks]:
    database_url = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    environment = {
        **os.environ,
        "PLAIN_BROKER": redis_url,
        "PLAIN_DATABASE": database_url,
        "STRIPE_SECRET_KEY": "sk_test_plain",
        "STRIPE_API_BASE": stub_url,
        "LAGO_API_KEY": "plain",
        "LAGO_API_URL": stub_url,
    }
    arguments = ["--app", "benchmarks.plain", "worker", "--concurrency", str(size.workers), "--loglevel", "WARNING"]
    with (folder / "plain.log").open("wb") as log:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "celery", *arguments], env=environment, stdout=log, stderr=log
        )
    try:
        yield PlainTasks(database_url, redis_url, size.changes)
    finally:
        process.terminate()
        process.wait(30)


def floor(stub_url: str, size: ThroughputSize) -> float:
    """Changes a second by as many processes that make the same pooled calls in a loop, without queue or database."""
    share = size.changes // size.workers
    command = [sys.executable, "-m", "benchmarks.floor", stub_url, str(share)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(size.workers)
    ]
    for process in processes:
        _wait_for_line(process)
    started = time.monotonic()
    for process in processes:
        _send_line(process)
    for process in processes:
        _wait_for_line(process)
    seconds = time.monotonic() - started
    for process in processes:
        process.communicate(timeout=30)
    return share * size.workers / seconds


def _wait_for_line(process: subprocess.Popen[str]) -> None:
    if process.stdout is None or not process.stdout.readline():
        message = "a process of benchmarks.floor ended early"
        raise RuntimeError(message)


def _send_line(process: subprocess.Popen[str]) -> None:
    if process.stdin is not None:
        process.stdin.write("go\n")
        process.stdin.flush()


def measure(url: str, redis_url: str, size: ThroughputSize) -> list[Comparison]:
    with (
        tempfile.TemporaryDirectory(prefix="throughput-") as folder,
        stub() as stub_url,
        servers.database(url) as database_url,
        running_system(database_url, redis_url, stub_url, Path(folder), size) as system,
    ):
        system.rate()
        against_plain = _beside_plain(system, url, redis_url, stub_url, size)
        bare = run_interleaved(size.runs, system.rate, lambda: floor(stub_url, size))
    name = f"changes with {size.workers} workers"
    return [
        Comparison(
            name=name, unit="/s", figures=against_plain[0], baseline=against_plain[1], against="a plain task", target=10
        ),
        Comparison(name=name, unit="/s", figures=bare[0], baseline=bare[1], against="the bare calls", target=0.5),
    ]


def rate(url: str, redis_url: str, size: ThroughputSize) -> float:
    """The best rate of several runs, without a comparison."""
    with (
        tempfile.TemporaryDirectory(prefix="throughput-") as folder,
        stub() as stub_url,
        servers.database(url) as database_url,
        running_system(database_url, redis_url, stub_url, Path(folder), size) as system,
    ):
        system.rate()
        return max(system.rate() for _ in range(size.runs))


def _beside_plain(
    system: RunningSystem, url: str, redis_url: str, stub_url: str, size: ThroughputSize
) -> tuple[list[float], list[float]]:
    with (
        tempfile.TemporaryDirectory(prefix="plain-") as folder,
        servers.database(url) as database_url,
        plain_tasks(database_url, redis_url, stub_url, Path(folder), size) as plain,
    ):
        plain.rate()
        return run_interleaved(size.runs, system.rate, plain.rate)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Measures changes a second, compared with a plain task and the bare calls."
    )
    parser.add_argument("--changes", type=int, default=600)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    size = ThroughputSize(**vars(parser.parse_args()))
    with servers.postgres() as postgres, servers.redis() as redis_url:
        return print_results(measure(postgres, redis_url, size))


if __name__ == "__main__":
    sys.exit(main())
