"""Sessions of Postgres, and what holds if a pooler such as PgBouncer in transaction mode is between.

Such a pooler gives each transaction any of its sessions of the server. So nothing may be set for a session, and a
statement that one session has prepared is unknown in the next. Each transaction begins with its own limits. A pooler
accepts no ``options`` at the start of a connection either, so those in DATABASE_URL are the user's alone.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg

from core.db import postgres_tls
from core.db.problems import DatabaseProblem

# Enough for contention on an organization's row, but not endless. Renewing a lease takes far less than this.
POSTGRES_LOCK_TIMEOUT: Final = "10s"
POSTGRES_STATEMENT_TIMEOUT: Final = "30s"
BEGIN_STATEMENT: Final = (
    f"BEGIN; SET LOCAL lock_timeout = '{POSTGRES_LOCK_TIMEOUT}'; "
    f"SET LOCAL statement_timeout = '{POSTGRES_STATEMENT_TIMEOUT}'; "
    "SET LOCAL idle_in_transaction_session_timeout = '60s'; SET LOCAL timezone = 'UTC'"
)
_NEEDED_ENCODING: Final = "UTF8"
# What passes by itself. libpq gives no code for an error at the start of a connection. A server says that it is
# starting up, is shutting down, is in recovery mode or is not (yet) accepting connections. PgBouncer says that such a
# server has refused it, or that it has waited long enough.
_NOT_READY: Final = ("the database system is ", "server login has been failing", "query_wait_timeout")
# Of PgBouncer.
_OPTIONS_REFUSED: Final = "unsupported startup parameter"
NOT_READY_CODE: Final = "database_starting"


_OR_REMOVE: Final = "or remove it: the relay then asks for new events several times a second"
DIRECT_URL_POOLED_CODE: Final = "direct_url_pooled"
DIRECT_URL_UNREACHABLE_CODE: Final = "direct_url_unreachable"
# A process goes on with these: only the relay and `db upgrade` use that address, and the relay can do without it.
DIRECT_URL_WARNINGS: Final = frozenset({DIRECT_URL_POOLED_CODE, DIRECT_URL_UNREACHABLE_CODE})
DIRECT_URL_OF_SQLITE: Final = DatabaseProblem(
    code="direct_url_unused",
    message="DATABASE_DIRECT_URL is set, but DATABASE_URL is a SQLite file, which has no pooler",
    consequence="nothing uses it",
    advice="remove DATABASE_DIRECT_URL, or set DATABASE_URL to the Postgres",
)
DIRECT_URL_POOLED: Final = DatabaseProblem(
    code=DIRECT_URL_POOLED_CODE,
    message="DATABASE_DIRECT_URL seems to lead to a pooler, too, so the relay does not listen there",
    consequence="the relay asks for new events several times a second",
    advice=f"set it to the server's own address, {_OR_REMOVE}",
)
DIRECT_URL_DIFFERS: Final = DatabaseProblem(
    code="direct_url_differs",
    message="DATABASE_DIRECT_URL and DATABASE_URL lead to different databases",
    consequence="the relay is not notified, and `db upgrade` may run elsewhere",
    advice=f"set it to the same database without the pooler, {_OR_REMOVE}",
)


def direct_url_unreachable(reason: str) -> DatabaseProblem:
    return DatabaseProblem(
        code=DIRECT_URL_UNREACHABLE_CODE,
        message=f"DATABASE_DIRECT_URL is not reachable ({reason})",
        consequence="the relay asks for new events several times a second, and `db upgrade` does not run",
        advice=f"{postgres_tls.way_out(reason, 'DATABASE_DIRECT_URL') or 'correct it'}, {_OR_REMOVE}",
    )


def identity(connection: psycopg.Connection[Any]) -> tuple[object, ...] | None:
    """What only this database of this server has, until the server is restarted."""
    return connection.execute(
        "SELECT oid, pg_postmaster_start_time() FROM pg_database WHERE datname = current_database()"
    ).fetchone()


def is_pooled(connection: psycopg.Connection[Any]) -> bool:
    """Whether a pooler is between: what it gave us at the start is not the id of the server's process."""
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    return row is None or row[0] != connection.info.backend_pid


def connection_problem(error: BaseException | None) -> DatabaseProblem | None:
    """Why a server or a pooler refused a connection, if its reason has a way out of its own."""
    reason = next(iter(str(error).splitlines()), "")
    if any(words in reason for words in _NOT_READY):
        return DatabaseProblem(
            code=NOT_READY_CODE,
            message=f"the database accepts no connection yet ({reason})",
            consequence="no change is accepted and none is synced",
            advice="the processes go on by themselves when it does",
        )
    if _OPTIONS_REFUSED in reason:
        return DatabaseProblem(
            code="options_refused",
            message=f"the pooler in front of the database refuses `options` in DATABASE_URL ({reason})",
            consequence="no process starts",
            advice="remove them, and set the same for the role, such as `ALTER ROLE … SET search_path = …`",
        )
    if (way_out := postgres_tls.way_out(reason, "DATABASE_URL")) is not None:
        return DatabaseProblem(
            code="database_tls",
            message=f"TLS with the database fails: {reason}",
            consequence="no change is accepted and none is synced",
            advice=way_out,
        )
    return None


def encoding_problem(connection: psycopg.Connection[Any]) -> DatabaseProblem | None:
    """Postgres says its encoding when a connection starts. Some poolers do not pass that on, so they are asked."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding is None:
        row = connection.execute("SHOW server_encoding").fetchone()
        encoding = None if row is None else str(row[0])
    if encoding == _NEEDED_ENCODING:
        return None
    return DatabaseProblem(
        code="encoding",
        message=f"the database's encoding is {encoding}, not {_NEEDED_ENCODING}",
        consequence="a name or a message with a character that it lacks could not be stored",
        advice=(
            f"create one with `createdb --encoding={_NEEDED_ENCODING} --template=template0 NAME`, move the rows, and "
            "set DATABASE_URL to it"
        ),
    )
