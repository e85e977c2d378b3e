"""Which processes run is what their heartbeats say."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import func, select

from core.db.database import Database
from core.db.models.processes import ProcessHeartbeat
from core.reporting import heartbeats
from core.reporting.heartbeats import LISTED_FOR, STORED_FOR, ProcessKind, ProcessStart
from tests.support.clocks import SetClock


def start(name: str, kind: ProcessKind, clock: SetClock) -> ProcessStart:
    return ProcessStart(instance_id=name, kind=kind, host="host-1", version="1.0", started_at=clock())


def test_a_process_is_listed_once_until_a_minute_after_its_last_heartbeat(database: Database, clock: SetClock) -> None:
    worker, began_at = start("a", "worker", clock), clock()
    with database.write() as session:
        heartbeats.record(session, worker, clock())
    clock.advance(seconds=20)
    with database.write() as session:
        heartbeats.record(session, worker, clock())
    with database.read() as session:
        (listed,) = heartbeats.running(session, clock() + LISTED_FOR)
        assert heartbeats.running(session, clock() + LISTED_FOR + timedelta(seconds=1)) == []
    assert (listed.started_at, listed.last_heartbeat_at) == (began_at, clock())


def test_a_process_that_ends_is_not_listed_any_more(database: Database, clock: SetClock) -> None:
    with database.write() as session:
        for name in ("a", "b"):
            heartbeats.record(session, start(name, "relay", clock), clock())
        heartbeats.remove(session, "a")
    with database.read() as session:
        assert heartbeats.count_by_kind(heartbeats.running(session, clock())) == {"relay": 1}


def test_rows_of_killed_processes_are_deleted_after_an_hour(database: Database, clock: SetClock) -> None:
    with database.write() as session:
        heartbeats.record(session, start("killed", "worker", clock), clock())
    clock.advance(seconds=STORED_FOR.total_seconds() + 1)
    with database.write() as session:
        heartbeats.record(session, start("new", "worker", clock), clock())
        heartbeats.delete_old(session, clock())
        assert session.scalar(select(func.count()).select_from(ProcessHeartbeat)) == 1
