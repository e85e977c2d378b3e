"""Database engine: SQLite or Postgres, with short transactions and clear errors.

``write()`` commits everything or nothing. On SQLite it begins IMMEDIATE: a read transaction that starts to write would
be refused at once, whatever the busy timeout (celery.md 8.1). ``read()`` takes no write lock.

There is a limit to each wait: for a lock, for a statement, for a connection and for a host that is gone. There is none
for a server that is up but frozen: its kernel still responds, so it cannot be distinguished from a slow one.

A pooler such as PgBouncer may be between: no transaction relies on what an earlier one left in its session
(``core.db.postgres_sessions``).

An error says what went wrong and where, never what was in a row. Postgres repeats row values after the first line of
its message, so only that line is used.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    ExceptionContext,
    Executable,
    create_engine,
    event,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionError
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.pool import ConnectionPoolEntry
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from core.common import tls_failures
from core.db import after_commit, database_url, postgres_sessions, postgres_tls, schema
from core.db.problems import DatabaseProblem
from core.db.schema import SchemaState

MIGRATIONS_FOLDER = Path(__file__).resolve().parents[2] / "migrations"

DEFAULT_POOL_SIZE = 20
SQLITE_BUSY_TIMEOUT_SECONDS = 30
POSTGRES_CONNECT_TIMEOUT_SECONDS = 5
# Detects a host that is gone: it acknowledges nothing that was sent, or it does not respond to keepalive probes.
TCP_KEEPALIVE_OPTIONS: dict[str, int] = {
    "tcp_user_timeout": 20_000,  # milliseconds
    "keepalives_idle": 10,  # seconds
    "keepalives_interval": 5,  # seconds
    "keepalives_count": 2,
}
# SQLSTATE class 22: a value that does not fit. Here the first line of the message repeats the value, too.
_SQLSTATE_DATA_EXCEPTION = "22"
_SQLSTATE_READ_ONLY = "25006"
_READ_ONLY_PARAMETERS = ("default_transaction_read_only", "in_hot_standby")
READ_ONLY_CODE = "read_only"
_UNIQUE_NAMES = "unique_names"
_IS_POOLED = "is_pooled"
_NO_TRANSACTION = "AUTOCOMMIT"
SQLITE_FILE_MODE = 0o600
_SCHEMA_LOCK_ID = 0x62696C6C  # any constant: one upgrade at a time
# Alembic's environment is global to the process: two upgrades at once would run in each other's database.
# One lock per process: a lock that a thread of the parent held at a fork is never released in the child.
_upgrade_locks: dict[int, threading.Lock] = {}
# Two connections that open a new file at the same moment would deadlock, so SQLite refuses one at once, whatever the
# busy timeout; that one tries again. An error that comes only after that timeout has another cause and is not retried.
_RETRY_WHILE_BUSY = Retrying(
    retry=retry_if_exception(lambda error: isinstance(error, sqlite3.OperationalError) and _is_busy(error)),
    wait=wait_random(0.01, 0.1),
    stop=stop_after_delay(5.0),
    reraise=True,
)


class DatabaseError(Exception):
    """The database cannot be used as it is. The message says why and what to do."""


class UnusableDatabaseError(DatabaseError):
    """The same, with a problem that `doctor` finds, too."""

    def __init__(self, problem: DatabaseProblem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class UnreachableDatabaseError(UnusableDatabaseError):
    """No connection could be made, for another reason than that the server is starting."""


# Errors that pass automatically, or once an operator has repaired the database: unreachable, restarting, full,
# read-only, deadlock.
DATABASE_UNAVAILABLE_ERRORS = (OperationalError, InterfaceError, InternalError, NoConnectionError, DatabaseError)


def is_read_only_error(error: BaseException) -> bool:
    """Whether the database refused a write because it accepts none: nothing was changed."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF == sqlite3.SQLITE_READONLY
    return getattr(cause, "sqlstate", None) == _SQLSTATE_READ_ONLY


def cause_name(error: BaseException) -> str:
    """The class of the driver's own error, which says more than that of SQLAlchemy or kombu. It is fit for a log.

    If TLS was the cause, the reason follows.
    """
    cause = error.orig if isinstance(error, DBAPIError) else error.__cause__
    name, why = type(cause or error).__name__, tls_failures.reason(error)
    return name if why is None else f"{name}: {why}"


class Database:
    """One engine per process. ``close()`` closes its connections.

    ``unique_names``: whether a write refuses the name of another organization (``UNIQUE_ORGANIZATION_NAMES``). It does
    not change the schema. ``direct_url``: the same database without the pooler that is in front of ``url``.
    """

    def __init__(
        self,
        url: str,
        *,
        direct_url: str | None = None,
        pool_size: int = DEFAULT_POOL_SIZE,
        unique_names: bool = True,
    ) -> None:
        self.url = _parse_url(url)
        self.direct_url = self.url if direct_url is None else _parse_direct_url(direct_url)
        self._session_info = {_UNIQUE_NAMES: unique_names}
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = _sqlite_engine(self.url, pool_size) if self.is_sqlite else _postgres_engine(self.url, pool_size)
        self._read_engine = self.engine.execution_options(read_only=True)

    def __repr__(self) -> str:
        return f"Database({self.url.render_as_string(hide_password=True)})"

    @contextmanager
    def write(self) -> Iterator[Session]:
        with Session(self.engine, expire_on_commit=False, info=self._session_info) as session:
            with session.begin():
                yield session
            after_commit.run(session)

    @contextmanager
    def read(self) -> Iterator[Session]:
        with Session(self._read_engine, expire_on_commit=False) as session, session.begin():
            yield session

    def upgrade(self) -> None:
        """Upgrade the schema to this version's. Safe when many processes or threads do it at once.

        A schema that a newer version made, and on which this one may run, stays as it is. Raises ``DatabaseError`` if
        another version made the schema.
        """
        with _upgrade_locks.setdefault(os.getpid(), threading.Lock()), self.engine.begin() as connection:
            if not self.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SCHEMA_LOCK_ID})
            state = schema.read(connection, _head_revision())
            if state.is_newer:
                self._refuse(state)
                return
            from core.db import upgrade  # noqa: PLC0415 - Alembic is slow to import, and rarely needed

            try:
                upgrade.to_head(connection, MIGRATIONS_FOLDER)
            except upgrade.UnknownSchemaError as error:
                message = (
                    "the database has a schema that this version cannot upgrade: upgrade it to schema 0009 with the "
                    "version that wrote it, or restore a backup of this version"
                )
                raise DatabaseError(message) from error

    def ensure_schema(self) -> None:
        """Make sure that this version may run on the schema. A SQLite file is upgraded; a server must be already.

        Raises ``DatabaseError``: the schema of a server changes only when its operator upgrades it.
        """
        try:
            state = self.schema_state()
        except OperationalError as error:
            raise _unreachable(error) from error
        if self.is_sqlite and not state.is_newer:
            if not state.is_usable:
                self.upgrade()
            return
        self._refuse(state)

    def schema_state(self) -> SchemaState:
        """Raises one of ``DATABASE_UNAVAILABLE_ERRORS`` if it cannot be read."""
        with self._read_engine.connect() as connection:
            return schema.read(connection, _head_revision())

    def accepts_schema(self) -> bool:
        """Whether this version may run on the schema. Raises as ``schema_state`` does."""
        return self.schema_state().is_usable

    def obstacle(self) -> DatabaseProblem | None:
        """What a process has to wait for: a server that is starting, or that accepts no write.

        Raises ``DatabaseError`` if it cannot be reached at all.
        """
        if self.is_sqlite:
            return None
        try:
            with self.read() as session:
                return read_only_problem(session)
        except OperationalError as error:
            problem = postgres_sessions.connection_problem(error.orig)
            if problem is None or problem.code != postgres_sessions.NOT_READY_CODE:
                raise _unreachable(error) from error
            return problem

    def needs_direct_url(self) -> bool:
        """Whether a pooler is in front, and no address without it is known. Not for SQLite."""
        with self.read() as session:
            return bool(session.connection().info.get(_IS_POOLED)) and self.direct_url == self.url

    def direct_url_problem(self) -> DatabaseProblem | None:
        """What is wrong with the address without a pooler, if there is one."""
        if self.direct_url == self.url:
            return None
        if self.is_sqlite:
            return postgres_sessions.DIRECT_URL_OF_SQLITE
        try:
            with self._direct_connection() as connection:
                direct, is_pooled = postgres_sessions.identity(connection), postgres_sessions.is_pooled(connection)
        except psycopg.Error as error:
            return postgres_sessions.direct_url_unreachable(first_line(error))
        with self.read() as session:
            pooled = session.connection().connection.driver_connection
            if not isinstance(pooled, psycopg.Connection) or postgres_sessions.identity(pooled) != direct:
                return postgres_sessions.DIRECT_URL_DIFFERS
        return postgres_sessions.DIRECT_URL_POOLED if is_pooled else None

    @contextmanager
    def session_of_server(self) -> Iterator[psycopg.Connection[tuple[object, ...]] | None]:
        """A session of the server itself, outside of the pool; ``None`` if a pooler is in front of it.

        Raises ``psycopg.Error`` if it cannot be reached.
        """
        with self._direct_connection() as connection:
            yield None if postgres_sessions.is_pooled(connection) else connection

    @contextmanager
    def _direct_connection(self) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
        """With the arguments that the pool uses: libpq reads the ``+`` of a rendered URL as itself, not as a space."""
        positional, arguments = self.engine.dialect.create_connect_args(self.direct_url)
        try:
            connection = psycopg.connect(*positional, **{**arguments, **_connect_arguments()})
        except psycopg.OperationalError as error:
            error.args = (postgres_tls.explained(self.direct_url, first_line(error)),)
            raise
        with closing(connection):
            yield connection

    def _refuse(self, state: SchemaState) -> None:
        """Raises ``UnusableDatabaseError`` if this version may not run on the schema."""
        if (problem := state.problem(is_sqlite=self.is_sqlite)) is not None:
            raise UnusableDatabaseError(problem)

    def close(self) -> None:
        self.engine.dispose()


def is_read_only(session: Session) -> bool:
    """Whether a Postgres database accepts no write: a standby, or ``default_transaction_read_only`` is on.

    A SQLite file is never reported: only a write shows whether the system permits it.
    """
    if session.get_bind().dialect.name != "postgresql":
        return False
    return bool(session.scalar(text("SELECT current_setting('transaction_read_only') = 'on'")))


def read_only_problem(session: Session) -> DatabaseProblem | None:
    """Why the database accepts no write."""
    if not is_read_only(session):
        return None
    consequence = "no change is accepted and none is synced"
    if session.scalar(text("SELECT pg_is_in_recovery()")):
        return DatabaseProblem(
            code=READ_ONLY_CODE,
            message="the database is read-only, because it is a standby",
            consequence=consequence,
            advice="set DATABASE_URL to the primary server, or promote this one; the processes go on by themselves",
        )
    name = session.scalar(text("SELECT current_database()"))
    pooler = "; then `RECONNECT` in the pooler's console" if session.connection().info.get(_IS_POOLED) else ""
    return DatabaseProblem(
        code=READ_ONLY_CODE,
        message="the database is read-only, because default_transaction_read_only is on",
        consequence=consequence,
        advice=(
            f"if its disk is full, free space; then `ALTER DATABASE {name} RESET default_transaction_read_only`, "
            f"or the same with `ALTER ROLE` or `ALTER SYSTEM`, where it was set{pooler}; the processes go on by "
            "themselves"
        ),
    )


def has_unique_names(session: Session) -> bool:
    """Whether a change made in this transaction must refuse the name of another organization."""
    return bool(session.info.get(_UNIQUE_NAMES, True))


def acquire_advisory_locks(session: Session, *names: str, shared: bool = False) -> None:
    """Lock these names until the transaction ends; other callers with one of them wait. SQLite has one writer anyway.

    ``shared``: callers that share it do not wait for each other. Unlike locks of rows these are granted in order, so
    many that share one do not overtake a caller that waits for it alone.

    For things that have no row to lock yet: a name, a customer id, an organization that a message is about. The locks
    are acquired in sorted order, so that two callers with the same names do not deadlock. Pass at most some hundreds,
    because each takes an entry in the server's lock table.
    """
    if session.get_bind().dialect.name == "postgresql":
        in_order = "(SELECT DISTINCT unnest(CAST(:words AS text[])) AS word ORDER BY word)"
        lock = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
        statement = f"SELECT {lock}(hashtextextended(word, 0)) FROM {in_order} AS said"  # noqa: S608 - constants
        session.execute(text(statement), {"words": list(names)})


def insert_once(session: Session, table: type[DeclarativeBase], row: dict[str, Any]) -> bool:
    """Insert the row. False: a row with its key exists. Waits for a transaction that is inserting one."""
    session.flush()
    connection = session.connection()
    statement = _insert_once_statement(table, connection.dialect.name)
    return connection.execute(statement, row).one_or_none() is not None


@cache
def _insert_once_statement(table: type[DeclarativeBase], dialect_name: str) -> Executable:
    """Cached, because building a statement costs more than sending it."""
    dialect = postgresql if dialect_name == "postgresql" else sqlite
    statement: Executable = dialect.insert(table).on_conflict_do_nothing().returning(*table.__table__.primary_key)
    return statement


def _parse_url(text: str) -> URL:
    try:
        return database_url.parse(text)
    except ValueError as error:
        message = f"DATABASE_URL {error}"
        raise DatabaseError(message) from None


def _parse_direct_url(url: str) -> URL:
    try:
        return database_url.parse_direct(url)
    except ValueError as error:
        message = f"DATABASE_DIRECT_URL {error}"
        raise DatabaseError(message) from None


def _sqlite_engine(url: URL, pool_size: int) -> Engine:
    engine = create_engine(
        url,
        pool_size=pool_size,
        hide_parameters=True,  # an error must not carry a name or an email
        connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
    )

    @event.listens_for(engine, "do_connect")
    def _create(*_: object) -> None:
        _create_private_file(url)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:  # noqa: ANN401 - the DBAPI's own connection
        connection.isolation_level = None  # we send BEGIN ourselves
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


def _create_private_file(url: URL) -> None:
    """A new file is for this user only: it holds names, addresses and ids. SQLite gives its other files the same mode.

    A file that exists keeps its mode, because somebody may share it on purpose; ``billing-sync doctor`` names it.
    """
    file = Path(url.database or "")
    if str(file).startswith("file:") or not file.parent.is_dir():
        return
    with suppress(OSError):  # it exists, or SQLite says why it cannot be opened
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, SQLITE_FILE_MODE))


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # the other bits say what is busy


def _postgres_engine(url: URL, pool_size: int) -> Engine:
    engine = create_engine(
        url,
        pool_size=pool_size,
        pool_pre_ping=True,
        hide_parameters=True,
        isolation_level=_NO_TRANSACTION,  # we send BEGIN ourselves
        connect_args=_connect_arguments(),
    )
    event.listen(engine, "do_connect", _connect_to_postgres)
    event.listen(engine, "begin", _begin_on_postgres)
    event.listen(engine, "handle_error", _redact_values)

    @event.listens_for(engine, "handle_error")
    def _explain(context: ExceptionContext) -> None:
        cause = context.original_exception
        if postgres_tls.LIBPQ_REFUSAL in str(cause):
            explained = postgres_tls.explained(url, first_line(cause))
            for error in (cause, context.sqlalchemy_exception):
                if error is not None:
                    error.args = (explained, *error.args[1:])

    event.listen(engine, "checkin", _drop_if_read_only)
    return engine


def _connect_arguments() -> dict[str, Any]:
    return {
        "connect_timeout": POSTGRES_CONNECT_TIMEOUT_SECONDS,
        **TCP_KEEPALIVE_OPTIONS,
        "client_encoding": "utf8",  # whatever PGCLIENTENCODING says
        "autocommit": True,
    }


def _connect_to_postgres(
    dialect: Dialect, record: ConnectionPoolEntry | None, arguments: list[Any], parameters: dict[str, Any]
) -> DBAPIConnection:
    """Raises ``UnusableDatabaseError`` at the first connection to a database that could not store every text."""
    connection = dialect.connect(*arguments, **parameters)
    driver: Any = connection
    with ExitStack() as undo:
        undo.callback(driver.close)
        if (problem := postgres_sessions.encoding_problem(driver)) is not None:
            raise UnusableDatabaseError(problem)
        is_pooled = postgres_sessions.is_pooled(driver)
        if is_pooled:
            driver.prepare_threshold = None  # the next transaction may be in a session that has not prepared it
        if record is not None:
            record.info[_IS_POOLED] = is_pooled
        undo.pop_all()
    return connection


def _begin_on_postgres(connection: Connection) -> None:
    """In one round trip, as BEGIN alone would take."""
    if connection.get_execution_options().get("isolation_level") != _NO_TRANSACTION:
        connection.exec_driver_sql(postgres_sessions.BEGIN_STATEMENT)


def _drop_if_read_only(connection: Any, record: ConnectionPoolEntry) -> None:  # noqa: ANN401 - the DBAPI's own
    """The pool keeps no read-only connection: it would stay so when the database is not any more.

    The address may also lead to another server by then. Postgres reports both settings, from version 14 on. Of a
    pooler's connections only the pooler knows to which server they lead.
    """
    if connection is None or connection.closed or record.info.get(_IS_POOLED):
        return
    if "on" in {connection.info.parameter_status(name) for name in _READ_ONLY_PARAMETERS}:
        record.invalidate()


def _redact_values(context: ExceptionContext) -> None:
    """``hide_parameters`` hides the values that we sent; this removes those in Postgres's DETAIL, CONTEXT and LINE."""
    cause = context.original_exception
    state = str(getattr(cause, "sqlstate", None) or "")
    for error in (cause, context.sqlalchemy_exception):
        if error is not None and error.args:
            reason = (
                f"({type(cause).__name__})" if state.startswith(_SQLSTATE_DATA_EXCEPTION) else first_line(error.args[0])
            )
            error.args = (reason, *error.args[1:])


def _unreachable(error: OperationalError) -> DatabaseError:
    if (problem := postgres_sessions.connection_problem(error.orig)) is not None:
        return UnusableDatabaseError(problem)
    return UnreachableDatabaseError(
        DatabaseProblem(
            code="database_unreachable",
            message=f"the database is not reachable ({first_line(error.orig)})",
            consequence="no change is accepted and none is synced",
            advice="check DATABASE_URL and that it is running",
        )
    )


@cache
def _head_revision() -> str:
    """The revision of the last file. Alembic would import every migration to find it."""
    *_, last = sorted((MIGRATIONS_FOLDER / "versions").glob("v*.py"))
    found = re.search(r'^revision = "(\w+)"$', last.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise AssertionError(last)
    return found[1]


def first_line(error: object) -> str:
    """What went wrong, without the values of rows that Postgres repeats after it."""
    return next(iter(str(error).splitlines()), "")
