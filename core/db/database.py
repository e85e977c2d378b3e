"""The database: SQLite or Postgres behind one door, with transactions that are short and say what they do.

``write()`` commits or leaves nothing. On SQLite it begins IMMEDIATE: a read that turns into a write would be refused
at once, whatever the busy timeout (celery.md 8.1). ``read()`` takes no write lock.

A wait for a lock, for a statement, for a server to accept or for a host that is gone has an end. A server that is
there and frozen is waited for until it goes on: its kernel answers for it, so nothing tells it from a slow one.

An error tells what went wrong and where, never what was in a row: Postgres repeats that behind its first line.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, ExceptionContext, Executable, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionError
from sqlalchemy.orm import DeclarativeBase, Session
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

MIGRATIONS_FOLDER = Path(__file__).resolve().parents[2] / "migrations"

SQLITE_BUSY_TIMEOUT_SECONDS = 30
POSTGRES_CONNECT_TIMEOUT_SECONDS = 5
# Lets the organizations' rows be fought for, never for ever; a lease is renewed well within this.
POSTGRES_LOCK_TIMEOUT = "10s"
POSTGRES_STATEMENT_TIMEOUT = "30s"
# A host that is gone: what was sent to it is not acknowledged, or its silence is asked about and stays silence.
TCP_KEEPALIVE_OPTIONS: dict[str, int] = {
    "tcp_user_timeout": 20_000,  # milliseconds
    "keepalives_idle": 10,  # seconds
    "keepalives_interval": 5,  # seconds
    "keepalives_count": 2,
}
# Of SQLSTATE: a value that does not fit. Its first line repeats the value, too.
_SQLSTATE_DATA_EXCEPTION = "22"
_SCHEMA_LOCK_ID = 0x62696C6C  # any constant: one upgrade at a time
# Alembic's environment is one for the whole process: two upgrades at once would run in each other's database.
# One for each process: a lock that a thread of the parent held at a fork is never given back in the child.
_upgrade_locks: dict[int, threading.Lock] = {}
# Two that open a new file at the same moment would wait for each other; SQLite refuses one at once, whatever the busy
# timeout. What comes only after that is no such refusal.
_RETRY_WHILE_BUSY = Retrying(
    retry=retry_if_exception(lambda error: isinstance(error, sqlite3.OperationalError) and _is_busy(error)),
    wait=wait_random(0.01, 0.1),
    stop=stop_after_delay(5.0),
    reraise=True,
)


class DatabaseError(Exception):
    """The database cannot be used as it is; the message says why and what to do."""


# What passes by itself or once a person has mended the database: away, restarting, full, read-only, a deadlock.
DATABASE_UNAVAILABLE_ERRORS = (OperationalError, InterfaceError, InternalError, NoConnectionError, DatabaseError)


class Database:
    """One engine per process. ``close()`` gives its connections back."""

    def __init__(self, url: str, *, pool_size: int = 20) -> None:
        self.url = _parse_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = _sqlite_engine(self.url, pool_size) if self.is_sqlite else _postgres_engine(self.url, pool_size)
        self._read_engine = self.engine.execution_options(read_only=True)

    def __repr__(self) -> str:
        return f"Database({self.url.render_as_string(hide_password=True)})"

    @contextmanager
    def write(self) -> Iterator[Session]:
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        with Session(self._read_engine, expire_on_commit=False) as session, session.begin():
            yield session

    def upgrade(self) -> None:
        """Bring the schema to this version's; safe when many processes or threads do it at once."""
        with _upgrade_locks.setdefault(os.getpid(), threading.Lock()), self.engine.begin() as connection:
            if not self.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SCHEMA_LOCK_ID})
            config = _alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def ensure_schema(self) -> None:
        """Make sure that the schema is this version's. An embedded file is brought there; a server must be already.

        Raises ``DatabaseError``: a deployed schema changes when its owner says so.
        """
        head = _head_revision()
        try:
            current = self._current_revision()
        except OperationalError as error:
            reason = _first_line(error.orig)
            message = f"the database does not answer ({reason}); check DATABASE_URL and that it is running"
            raise DatabaseError(message) from error
        if current == head:
            return
        if not self.is_sqlite:
            present = f"schema {current}" if current else "no schema yet"
            message = f"the database has {present}, this version needs {head}: run `billing-sync db upgrade`"
            raise DatabaseError(message)
        self.upgrade()

    def is_schema_current(self) -> bool:
        """Whether it is this version's; a database that does not answer raises one of
        ``DATABASE_UNAVAILABLE_ERRORS``.
        """
        return self._current_revision() == _head_revision()

    def close(self) -> None:
        self.engine.dispose()

    def _current_revision(self) -> str | None:
        with self._read_engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()


def acquire_advisory_locks(session: Session, *names: str) -> None:
    """Whoever says one of these words waits here until this transaction ends; on SQLite every writer does so anyway.

    For what has no row yet to lock: a name, a billing id, an organization that a message is about. Several are taken
    in their order, so that two who want the same ones do not wait for each other; at most some hundreds, since each
    takes a place in the server's table of locks.
    """
    if session.get_bind().dialect.name == "postgresql":
        in_order = "(SELECT DISTINCT unnest(CAST(:words AS text[])) AS word ORDER BY word)"
        statement = f"SELECT pg_advisory_xact_lock(hashtextextended(word, 0)) FROM {in_order} AS said"  # noqa: S608 - constants
        session.execute(text(statement), {"words": list(names)})


def insert_once(session: Session, table: type[DeclarativeBase], row: dict[str, Any]) -> bool:
    """Put the row in; False: one with its key is there. Waits for a transaction that is putting one in."""
    session.flush()
    connection = session.connection()
    statement = _insert_once_statement(table, connection.dialect.name)
    return connection.execute(statement, row).one_or_none() is not None


@cache
def _insert_once_statement(table: type[DeclarativeBase], dialect_name: str) -> Executable:
    """Written once: to build a statement costs more than to send it."""
    dialect = postgresql if dialect_name == "postgresql" else sqlite
    statement: Executable = dialect.insert(table).on_conflict_do_nothing().returning(*table.__table__.primary_key)
    return statement


def _parse_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        message = "DATABASE_URL is not an address; write sqlite:///path/to/file.db or postgresql://user@host/name"
        raise DatabaseError(message) from None
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in {"postgresql+psycopg", "sqlite", "sqlite+pysqlite"}:
        message = f"DATABASE_URL names {parsed.drivername}; only sqlite:// and postgresql:// are supported"
        raise DatabaseError(message)
    if parsed.get_backend_name() == "sqlite" and parsed.database in {None, "", ":memory:"}:
        message = (
            "DATABASE_URL names an in-memory SQLite, which a crash would lose; name a file: sqlite:///data/billing.db"
        )
        raise DatabaseError(message)
    return parsed


def _sqlite_engine(url: URL, pool_size: int) -> Engine:
    engine = create_engine(
        url,
        pool_size=pool_size,
        hide_parameters=True,  # an error must not carry a name or an email
        connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:  # noqa: ANN401 - the DBAPI's own connection
        connection.isolation_level = None  # BEGIN is ours to write
        cursor: sqlite3.Cursor = connection.cursor()
        _RETRY_WHILE_BUSY(cursor.execute, "PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # a power cut must not lose a committed change
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # the rest says in what


def _postgres_engine(url: URL, pool_size: int) -> Engine:
    engine = create_engine(
        url,
        pool_size=pool_size,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "connect_timeout": POSTGRES_CONNECT_TIMEOUT_SECONDS,
            **TCP_KEEPALIVE_OPTIONS,
            "options": (
                f"-c timezone=UTC -c lock_timeout={POSTGRES_LOCK_TIMEOUT} "
                f"-c statement_timeout={POSTGRES_STATEMENT_TIMEOUT} "
                "-c idle_in_transaction_session_timeout=60s"
            ),
        },
    )
    event.listen(engine, "handle_error", _redact_values)
    return engine


def _redact_values(context: ExceptionContext) -> None:
    """hide_parameters hides what we sent; this, what Postgres answers behind DETAIL, CONTEXT and LINE."""
    cause = context.original_exception
    state = str(getattr(cause, "sqlstate", None) or "")
    for error in (cause, context.sqlalchemy_exception):
        if error is not None and error.args:
            reason = (
                f"({type(cause).__name__})"
                if state.startswith(_SQLSTATE_DATA_EXCEPTION)
                else _first_line(error.args[0])
            )
            error.args = (reason, *error.args[1:])


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS_FOLDER))
    return config


@cache
def _head_revision() -> str | None:
    return ScriptDirectory.from_config(_alembic_config()).get_current_head()


def _first_line(error: object) -> str:
    return next(iter(str(error).splitlines()), "")
