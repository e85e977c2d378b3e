"""The health check of a process, as Compose runs it: by the heartbeats of this host, and in one sentence."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from core.common.clock import utc_now
from core.db.database import Database
from core.reporting import heartbeats
from core.reporting.heartbeats import ProcessKind, ProcessStart
from sandbox.server import Sandbox
from tests.support.closed_database import closed_to_all
from tests.support.console import environment
from tests.support.deployment import ROOT, deployment, free_port
from tests.support.waiting import PATIENCE_SECONDS, until

HOST = socket.gethostname()


def check(target: str, settings: dict[str, str]) -> tuple[int, str]:
    ended = subprocess.run(
        [sys.executable, "-m", "worker.health", target],
        cwd=ROOT,
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stderr


def is_healthy(target: str, settings: dict[str, str]) -> bool:
    return check(target, settings)[0] == 0


def store(database: Database, kind: ProcessKind, host: str, seconds_ago: float) -> None:
    at = utc_now() - timedelta(seconds=seconds_ago)
    process = ProcessStart(instance_id=f"{kind}{host}{seconds_ago}", kind=kind, host=host, version="1", started_at=at)
    with database.write() as session:
        heartbeats.record(session, process, at)


@pytest.mark.parametrize("kind", ["worker", "beat"])
def test_a_process_is_healthy_by_its_own_heartbeat_of_the_last_minute(
    database: Database, kind: ProcessKind, tmp_path: Path
) -> None:
    settings = {"DATABASE_URL": database.url.render_as_string(hide_password=False), "DATA_DIR": str(tmp_path)}
    unhealthy = (1, f"not healthy: no {kind} of {HOST} has a heartbeat of the last minute\n")
    store(database, kind, "another-host", 1)
    store(database, "relay", HOST, 1)
    store(database, kind, HOST, 70)
    assert check(kind, settings) == unhealthy
    store(database, kind, HOST, 10)
    assert check(kind, settings) == (0, "")


def test_a_look_makes_no_database(tmp_path: Path) -> None:
    file = tmp_path / "none.db"
    sentence = "not healthy: no process has made the database file yet\n"
    assert check("worker", {"DATABASE_URL": f"sqlite:///{file}"}) == (1, sentence)
    assert not file.exists()


@pytest.mark.slow
def test_a_database_that_cannot_be_read_is_told_in_one_sentence(sqlite_url: str, postgres_url: str) -> None:
    with Database(sqlite_url).engine.connect():  # makes an empty file
        pass
    no_table = "not healthy: the database does not respond: no such table: process_heartbeats\n"
    assert check("beat", {"DATABASE_URL": sqlite_url}) == (1, no_table)
    assert check("beat", {"DATABASE_URL": postgres_url}) == (
        1,
        "not healthy: the database cannot be read (UndefinedTable)\n",
    )
    code, sentence = check("beat", {"DATABASE_URL": "mysql://h/x"})
    assert (code, "DATABASE_URL: names mysql" in sentence) == (1, True)


@pytest.mark.slow
def test_while_the_database_is_away_no_process_is_unhealthy(postgres_url: str, postgres_server: str) -> None:
    nobody = f"postgresql://u@127.0.0.1:{free_port()}/x"
    for kind in ("worker", "beat", "relay"):
        code, line = check(kind, {"DATABASE_URL": nobody})
        assert (code, line.startswith("health not known: the database does not respond: connection failed")) == (
            0,
            True,
        )
    with closing(Database(postgres_url)) as database, closed_to_all(database, postgres_server):
        code, line = check("worker", {"DATABASE_URL": postgres_url})
    assert (code, line.startswith("health not known: the database does not respond: connection failed")) == (0, True)
    assert check("database", {"DATABASE_URL": nobody})[0] == 1


@pytest.mark.slow
def test_while_the_database_is_read_only_no_process_is_unhealthy(postgres_url: str) -> None:
    settings = {"DATABASE_URL": postgres_url}
    with closing(Database(postgres_url)) as database:
        database.upgrade()
    assert check("worker", settings)[0] == 1
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        name = Identifier(str(database.url.database))
        owner.execute(SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
    reason = "the database is read-only, because default_transaction_read_only is on"
    assert check("worker", settings) == (0, f"health not known: {reason}\n")


@pytest.mark.processes
@pytest.mark.parametrize("broker", ["redis", "rabbit"])
def test_worker_and_beat_are_healthy_while_they_run(
    request: pytest.FixtureRequest, broker: str, sqlite_url: str, sandbox_server: Sandbox, tmp_path: Path
) -> None:
    Database(sqlite_url).upgrade()
    url = request.getfixturevalue(f"{broker}_url")
    with deployment(sqlite_url, url, sandbox_server.url, tmp_path) as deployed:
        for kind in ("worker", "beat"):
            process = deployed.start(kind)
            until(partial(is_healthy, kind, deployed.environment), kind, details=lambda: deployed.logs)
            process.terminate()
            assert process.wait(PATIENCE_SECONDS) == 0
            assert not is_healthy(kind, deployed.environment)
