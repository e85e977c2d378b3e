"""Health check of a process: ``python -m worker.health worker|beat|relay|database|URL``.

``worker`` and ``beat`` must have a heartbeat of the last minute from this host. They store none while their loop stands
still, so a process that runs without receiving or scheduling is unhealthy. One that waits for its broker is healthy: it
tries to connect, and a restart would not help. For ``relay`` no committed event may be unpublished for longer than a
minute. ``database`` must respond to a query, and a URL with 200.

Exit code 0 means healthy, 1 unhealthy with a reason. While Postgres is away or read-only, no process can store its
heartbeat. A restart of all of them would not help, so the health of ``worker``, ``beat`` and ``relay`` is not known
then: exit code 0 with a line that says why.
"""

from __future__ import annotations

import socket
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

import httpx
from sqlalchemy import literal, select
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import Session

from core.common.clock import utc_now
from core.db.database import DatabaseError, cause_name, read_only_problem
from core.db.models.events import Event
from core.reporting import heartbeats
from core.reporting.heartbeats import ProcessKind
from worker.config.settings import SettingsError, read
from worker.wiring.database import connect

HEALTH_CHECK_SECONDS: Final = 4.0
# A batch or a short outage of the broker takes seconds. An event that is older is not being relayed.
MAX_RELAY_LAG: Final = timedelta(seconds=60)


class UnhealthyError(Exception):
    """The process is not healthy; the message has the reason."""


class UnknownHealthError(Exception):
    """The database does not say whether the process is healthy; the message has the reason."""


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        return _report_unhealthy("give one of worker, beat, relay, database or an http:// URL")
    try:
        check(arguments[0])
    except UnknownHealthError as error:
        sys.stderr.write(f"health not known: {error}\n")
    except (UnhealthyError, SettingsError, DatabaseError) as error:
        return _report_unhealthy(str(error))
    except OperationalError as error:
        return _report_unhealthy(f"the database does not respond: {_first_line(error)}")
    except DBAPIError as error:
        return _report_unhealthy(f"the database cannot be read ({cause_name(error)})")
    except httpx.HTTPError as error:
        return _report_unhealthy(f"{arguments[0]} does not respond ({type(error).__name__})")
    return 0


def check(target: str) -> None:
    """Raises ``UnhealthyError``, ``UnknownHealthError``, or the error of the database or httpx."""
    match target:
        case "worker" | "beat":
            _check_heartbeat(target)
        case "relay":
            _check_relay()
        case "database":
            with _session() as session:
                session.scalar(select(literal(1)))
        case _:
            _check_url(target)


def _check_heartbeat(kind: ProcessKind) -> None:
    host = socket.gethostname()
    with _session_of_processes() as session:
        if session.scalar(heartbeats.last_of(kind, host, utc_now())) is None:
            _raise_if_read_only(session)
            message = f"no {kind} of {host} has a heartbeat of the last minute"
            raise UnhealthyError(message)


def _check_relay() -> None:
    oldest = select(Event.occurred_at).where(Event.published_at.is_(None)).order_by(Event.seq).limit(1)
    with _session_of_processes() as session:
        waiting_since = session.scalar(oldest)
        if waiting_since is not None and utc_now() - waiting_since > MAX_RELAY_LAG:
            _raise_if_read_only(session)
            message = f"a committed event has been unpublished since {waiting_since:%H:%M:%S} UTC"
            raise UnhealthyError(message)


def _raise_if_read_only(session: Session) -> None:
    if (problem := read_only_problem(session)) is not None:
        raise UnknownHealthError(problem.message)


@contextmanager
def _session_of_processes() -> Iterator[Session]:
    """Raises ``UnknownHealthError`` if the server is away."""
    try:
        with _session() as session:
            yield session
    except (OperationalError, InterfaceError) as error:
        if isinstance(error.orig, sqlite3.Error):
            raise
        message = f"the database does not respond: {_first_line(error)}"
        raise UnknownHealthError(message) from error


@contextmanager
def _session() -> Iterator[Session]:
    database = connect(read(), pool_size=1)
    try:
        if database.is_sqlite and not Path(str(database.url.database)).exists():
            message = "no process has made the database file yet"  # only connecting would make an empty one
            raise UnhealthyError(message)
        with database.read() as session:
            yield session
    finally:
        database.close()


def _first_line(error: DBAPIError) -> str:
    return next(iter(str(error.orig).splitlines()), "")


def _check_url(url: str) -> None:
    response = httpx.get(url, timeout=HEALTH_CHECK_SECONDS, trust_env=False)
    if response.status_code != httpx.codes.OK:
        message = f"{url} returns {response.status_code}"
        raise UnhealthyError(message)


def _report_unhealthy(problem: str) -> int:
    sys.stderr.write(f"not healthy: {problem}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
