"""A process says that it runs, whatever its database does, and that it ended."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from core.common.clock import utc_now
from core.db.database import Database
from core.reporting import heartbeats
from tests.support.closed_database import closed_to_all
from tests.support.waiting import until
from worker.processes.heartbeat import heartbeat
from worker.processes.loop_watch import LoopWatch


def kinds(database: Database) -> list[str]:
    with database.read() as session:
        return [each.kind for each in heartbeats.running(session, utc_now())]


def last(database: Database) -> object:
    with database.read() as session:
        return [each.last_heartbeat_at for each in heartbeats.running(session, utc_now())]


def test_a_process_is_listed_while_it_runs_and_not_after_it(database: Database) -> None:
    with heartbeat(database, "relay", seconds=60):
        until(lambda: kinds(database) == ["relay"], "the first heartbeat")
    assert kinds(database) == []


def test_each_heartbeat_is_later_than_the_one_before(database: Database) -> None:
    with heartbeat(database, "worker", seconds=0.05):
        until(lambda: last(database) != [], "the first heartbeat")
        first = last(database)
        until(lambda: last(database) != first, "another heartbeat")


def test_a_loop_that_stands_still_gets_no_heartbeat_until_it_goes_on(database: Database) -> None:
    loop = LoopWatch(max_standstill=0.5)
    with capture_logs() as logs, heartbeat(database, "worker", seconds=0.05, loop=loop):
        until(lambda: kinds(database) == ["worker"], "the first heartbeat")
        until(lambda: logs != [], "it stands still")
        stalled = last(database)
        time.sleep(0.3)
        assert last(database) == stalled
        loop.mark()
        until(lambda: last(database) != stalled, "the heartbeat after that")
    assert [each["event"] for each in logs] == ["process_stalled", "process_ended"]
    assert kinds(database) == []


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """Beat may be started where no database is."""
    file = tmp_path / "none.db"
    with capture_logs() as logs, heartbeat(Database(f"sqlite:///{file}"), "beat", seconds=0.01):
        until(lambda: logs != [], "the warning")
    assert [each["event"] for each in logs] == ["heartbeat_not_stored", "process_ended"]
    assert not file.exists()


@pytest.mark.parametrize("url", ["sqlite_url", "postgres_url"])
def test_an_older_schema_does_not_end_the_process(request: pytest.FixtureRequest, url: str) -> None:
    opened = Database(request.getfixturevalue(url))
    with opened.engine.connect():  # SQLite makes the file
        pass
    with capture_logs() as logs, heartbeat(opened, "beat", seconds=0.01):
        until(lambda: logs != [], "the warning")
    opened.close()
    assert [each["event"] for each in logs] == ["heartbeat_not_stored", "process_ended"]


@pytest.mark.slow
def test_a_database_that_was_away_gets_the_next_heartbeat(postgres_server: str, postgres_url: str) -> None:
    opened = Database(postgres_url)
    opened.upgrade()
    with capture_logs() as logs, heartbeat(opened, "worker", seconds=0.05):
        until(lambda: kinds(opened) == ["worker"], "the first heartbeat")
        with closed_to_all(opened, postgres_server):
            until(lambda: logs != [], "the warning")
        until(lambda: kinds(opened) == ["worker"], "the heartbeat after that")
    assert kinds(opened) == []
    opened.close()
