"""The database: reachable, in this version's schema, UTF-8, writable, new enough, and with the same time as we have."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo
from sqlalchemy import Row, text
from sqlalchemy.exc import DBAPIError

from core.common.clock import utc_now
from core.db.database import POSTGRES_CONNECT_TIMEOUT_SECONDS, Database, DatabaseError
from worker.doctor.findings import DoctorFinding, error, not_set, ok, warning
from worker.doctor.inputs import DoctorInputs

MIN_POSTGRES_VERSION: Final = 140_000  # older ones get no security fixes
MAX_DATABASE_CLOCK_DIFFERENCE: Final = timedelta(seconds=5)

_POSTGRES_STATE = text(
    "SELECT current_setting('server_version_num')::int AS number, "
    "current_setting('server_version') AS version, "
    "pg_is_in_recovery() AS is_standby, current_setting('transaction_read_only') = 'on' AS is_read_only, "
    "current_database() AS name, clock_timestamp() AS now"
)


def check(inputs: DoctorInputs) -> list[DoctorFinding]:
    file = inputs.sqlite_file
    if file is not None and not file.is_file():
        return [not_set("database_absent", f"{file} is not there yet", "`billing-sync up` makes it, as does `status`")]
    try:
        with inputs.open_database() as database:
            return list(_findings(database))
    except DatabaseError as invalid:
        return [error("database_url_invalid", str(invalid), "no process starts", "correct DATABASE_URL")]
    except DBAPIError as failed:
        return [_unreachable(failed.orig, is_sqlite=file is not None)]
    except psycopg.Error as failed:
        return [_unreachable(failed, is_sqlite=False)]


def _unreachable(failed: BaseException | None, *, is_sqlite: bool) -> DoctorFinding:
    reason = next(iter(str(failed).splitlines()), type(failed).__name__)
    message = f"the database cannot be read: {reason}"
    advice = (
        "check DATABASE_URL and DATA_DIR, and that this user may write the file"
        if is_sqlite
        else "start the server or correct DATABASE_URL, then `python -m worker.health database`"
    )
    return error("database_unreachable", message, "no change is accepted and none is synced", advice)


def _findings(database: Database) -> Iterator[DoctorFinding]:
    if not database.is_sqlite and (encoding := _server_encoding(database)) != "UTF8":
        yield error(
            "encoding",
            f"the database's encoding is {encoding}",
            "a name with a character that it lacks is refused",
            "create a database with `createdb --encoding=UTF8 --template=template0 NAME`, and move the rows",
        )
        return  # with SQL_ASCII, SQLAlchemy cannot even connect
    current, needed = database.schema_revisions()
    if database.is_sqlite:
        with database.read() as session:
            version = session.scalar(text("SELECT sqlite_version()"))
        found = list(_schema_findings(current, needed, is_sqlite=True))
        yield from found or [ok("database", f"SQLite {version}, schema {current}, {database.url.database}")]
        return
    before = utc_now()
    with database.read() as session:
        state = session.execute(_POSTGRES_STATE).one()
    clock_difference = abs(_halfway(before, utc_now()) - state.now)
    found = [*_schema_findings(current, needed, is_sqlite=False), *_server_findings(state, clock_difference)]
    place = f"{database.url.database} at {database.url.host or 'the local socket'}"
    yield from found or [ok("database", f"Postgres {state.version}, schema {current}, {place}")]


def _server_encoding(database: Database) -> str | None:
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(make_conninfo(url, connect_timeout=POSTGRES_CONNECT_TIMEOUT_SECONDS)) as connection:
        return connection.info.parameter_status("server_encoding")


def _schema_findings(current: str | None, needed: str, *, is_sqlite: bool) -> Iterator[DoctorFinding]:
    if current == needed:
        return
    if current is not None and current.isdigit() and not current.startswith("0") and int(current) > int(needed):
        yield error(
            "schema_newer",
            f"the schema is {current}, and this version knows {needed}",
            "this version must not write it",
            "install the newer version here: `pip install --upgrade billing-sync`",
        )
        return
    message = f"the schema is {current}" if current else "the database is empty"
    consequence = "the next command upgrades it" if is_sqlite else "no process of this version starts"
    finding = warning if is_sqlite else error
    yield finding("schema_older", f"{message}, this version needs {needed}", consequence, "`billing-sync db upgrade`")


def _server_findings(state: Row[Any], clock_difference: timedelta) -> Iterator[DoctorFinding]:
    if state.is_standby:
        consequence = "no change is accepted and none is synced"
        advice = "set DATABASE_URL to the primary server"
        yield error("read_only", "the database is read-only: it is a standby", consequence, advice)
    elif state.is_read_only:
        yield error(
            "read_only",
            "the database is read-only: default_transaction_read_only is on",
            "no change is accepted and none is synced",
            f"if its disk is full, free space; then `ALTER DATABASE {state.name} RESET default_transaction_read_only`, "
            "or the same with `ALTER ROLE` or `ALTER SYSTEM`, where it was set; the processes go on by themselves",
        )
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
