"""The database: reachable, in this version's schema, UTF-8, writable, new enough, and with the same time as we have."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Row, text
from sqlalchemy.exc import DBAPIError

from core.common.clock import utc_now
from core.db import postgres_sessions
from core.db.database import Database, DatabaseError, UnusableDatabaseError, read_only_problem
from core.db.problems import DatabaseProblem
from core.db.schema import SchemaState
from worker.doctor.findings import DoctorFinding, error, not_set, ok, warning
from worker.doctor.inputs import DoctorInputs
from worker.processes.relay import POOLER_POLL_SECONDS

MIN_POSTGRES_VERSION: Final = 140_000  # older ones get no security fixes
MAX_DATABASE_CLOCK_DIFFERENCE: Final = timedelta(seconds=5)

_POSTGRES_STATE = text(
    "SELECT current_setting('server_version_num')::int AS number, "
    "current_setting('server_version') AS version, clock_timestamp() AS now"
)


def check(inputs: DoctorInputs) -> list[DoctorFinding]:
    file = inputs.sqlite_file
    if file is not None and not file.is_file():
        return [not_set("database_absent", f"{file} is not there yet", "`billing-sync up` makes it")]
    try:
        with inputs.open_database() as database:
            return list(_findings(database))
    except UnusableDatabaseError as unusable:
        return [_finding_of(unusable.problem)]
    except DatabaseError as refused:
        consequence = "no process and no other command starts"
        return [error("database_unusable", str(refused), consequence, "correct that setting")]
    except DBAPIError as failed:
        problem = postgres_sessions.connection_problem(failed.orig)
        return [_finding_of(problem) if problem else _unreachable(failed.orig, is_sqlite=file is not None)]


def _unreachable(failed: BaseException | None, *, is_sqlite: bool) -> DoctorFinding:
    reason = next(iter(str(failed).splitlines()), type(failed).__name__)
    message = f"the database cannot be read: {reason}"
    advice = (
        "check DATABASE_URL and DATA_DIR, and that this user may write the file"
        if is_sqlite
        else "start the server or correct DATABASE_URL, then `python -m worker.health database`"
    )
    return error("database_unreachable", message, "no change is accepted and none is synced", advice)


def _finding_of(problem: DatabaseProblem) -> DoctorFinding:
    """As an error that stops the start of a process, or makes it wait."""
    return error(problem.code, problem.message, problem.consequence, problem.advice)


def _findings(database: Database) -> Iterator[DoctorFinding]:
    schema = database.schema_state()
    if database.is_sqlite:
        with database.read() as session:
            version = session.scalar(text("SELECT sqlite_version()"))
        found = [*_schema_findings(schema, is_sqlite=True), *_direct_url_findings(database)]
        yield from found or [ok("database", f"SQLite {version}, {_schema_text(schema)}, {database.url.database}")]
        return
    before = utc_now()
    with database.read() as session:
        state = session.execute(_POSTGRES_STATE).one()
        read_only = read_only_problem(session)
    clock_difference = abs(_halfway(before, utc_now()) - state.now)
    found = [
        *_schema_findings(schema, is_sqlite=False),
        *([] if read_only is None else [_finding_of(read_only)]),
        *_direct_url_findings(database),
        *_server_findings(state, clock_difference),
    ]
    place = f"{database.url.database} at {database.url.host or 'the local socket'}"
    yield from found or [ok("database", f"Postgres {state.version}, {_schema_text(schema)}, {place}")]
    if database.needs_direct_url():
        yield not_set(
            "no_direct_url",
            f"a pooler is in front of the database, so the relay asks for new events every {POOLER_POLL_SECONDS} s",
            "to have it notified: DATABASE_DIRECT_URL, the same database without the pooler",
        )


def _schema_text(schema: SchemaState) -> str:
    newer = f", on which this version ({schema.needed}) may run" if schema.is_newer else ""
    return f"schema {schema.current}{newer}"


def _schema_findings(schema: SchemaState, *, is_sqlite: bool) -> Iterator[DoctorFinding]:
    if (problem := schema.problem(is_sqlite=is_sqlite)) is not None:
        finding = warning if is_sqlite and not schema.is_newer else error
        yield finding(problem.code, problem.message, problem.consequence, problem.advice)


def _direct_url_findings(database: Database) -> Iterator[DoctorFinding]:
    if (problem := database.direct_url_problem()) is not None:
        finding = warning if problem.code in postgres_sessions.DIRECT_URL_WARNINGS else error
        yield finding(problem.code, problem.message, problem.consequence, problem.advice)


def _server_findings(state: Row[Any], clock_difference: timedelta) -> Iterator[DoctorFinding]:
    if state.number < MIN_POSTGRES_VERSION:
        yield warning(
            "server_old",
            f"Postgres {state.version} is old",
            "it gets no security fixes",
            "upgrade the server to Postgres 14 or newer",
        )
    if clock_difference > MAX_DATABASE_CLOCK_DIFFERENCE:
        yield warning(
            "database_clock",
            f"the database's clock differs from this machine's by {clock_difference.total_seconds():.0f} s",
            "if the processes' clocks differ so, two may sync one organization at once",
            "`timedatectl set-ntp true` on both machines",
        )


def _halfway(before: datetime, after: datetime) -> datetime:
    return before + (after - before) / 2
