"""Heartbeats: which processes run. Each writes one small row every ``HEARTBEAT_SECONDS``.

A process whose loop stands still writes none. A process that was killed is no longer listed after ``LISTED_FOR``, and
its row is deleted after ``STORED_FOR``. So the table has at most one row for each start within that time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, get_args

from sqlalchemy import Select, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core.db.models.processes import ProcessHeartbeat

ProcessKind = Literal["up", "worker", "relay", "beat", "api"]

PROCESS_KINDS: Final[tuple[ProcessKind, ...]] = get_args(ProcessKind)
HEARTBEAT_SECONDS: Final = 20.0
LISTED_FOR: Final = timedelta(minutes=1)
STORED_FOR: Final = timedelta(hours=1)
MAX_LISTED_PROCESSES: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStart:
    """One start of one process. ``kind`` ``up`` is everything in one process."""

    instance_id: str
    kind: ProcessKind
    host: str
    version: str
    started_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningProcess:
    kind: str
    host: str
    version: str
    started_at: datetime
    last_heartbeat_at: datetime


def record(session: Session, process: ProcessStart, now: datetime) -> None:
    """Store that the process runs now."""
    values = {
        "instance_id": process.instance_id,
        "kind": process.kind,
        "host": process.host,
        "version": process.version,
        "started_at": process.started_at,
        "last_heartbeat_at": now,
    }
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(ProcessHeartbeat).values(values)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[ProcessHeartbeat.instance_id],
            set_={"last_heartbeat_at": statement.excluded.last_heartbeat_at},
        )
    )


def delete_old(session: Session, now: datetime) -> None:
    """Delete the rows of processes that ended without deleting their own."""
    session.execute(delete(ProcessHeartbeat).where(ProcessHeartbeat.last_heartbeat_at < now - STORED_FOR))


def remove(session: Session, instance_id: str) -> None:
    """The process ends: it is no longer listed."""
    session.execute(delete(ProcessHeartbeat).where(ProcessHeartbeat.instance_id == instance_id))


def running(session: Session, now: datetime) -> list[RunningProcess]:
    """The processes with a heartbeat in the last minute, by kind and then in the order of their start."""
    rows = session.scalars(
        select(ProcessHeartbeat)
        .where(ProcessHeartbeat.last_heartbeat_at >= now - LISTED_FOR)
        .order_by(ProcessHeartbeat.kind, ProcessHeartbeat.started_at)
        .limit(MAX_LISTED_PROCESSES)
    )
    return [
        RunningProcess(
            kind=row.kind,
            host=row.host,
            version=row.version,
            started_at=row.started_at,
            last_heartbeat_at=row.last_heartbeat_at,
        )
        for row in rows
    ]


def last_of(kind: ProcessKind, host: str, now: datetime) -> Select[str]:
    """The query for a process of this kind on this host with a heartbeat in the last minute: its id, or no row."""
    return (
        select(ProcessHeartbeat.instance_id)
        .where(
            ProcessHeartbeat.kind == kind,
            ProcessHeartbeat.host == host,
            ProcessHeartbeat.last_heartbeat_at >= now - LISTED_FOR,
        )
        .limit(1)
    )


def count_running(session: Session, now: datetime) -> dict[str, int]:
    """The number of processes of each kind with a heartbeat in the last minute."""
    is_running = ProcessHeartbeat.last_heartbeat_at >= now - LISTED_FOR
    rows = session.execute(
        select(ProcessHeartbeat.kind, func.count()).where(is_running).group_by(ProcessHeartbeat.kind)
    )
    return {row[0]: row[1] for row in rows}


def count_by_kind(processes: Iterable[RunningProcess]) -> dict[str, int]:
    """The number of processes of each kind that runs."""
    counts: dict[str, int] = {}
    for process in processes:
        counts[process.kind] = counts.get(process.kind, 0) + 1
    return counts
