"""The database: SQLite or Postgres behind one door, with transactions that are short and say what they do.

``write()`` commits or leaves nothing. On SQLite it begins IMMEDIATE: a read that turns into a write would be refused
at once, whatever the busy timeout (celery.md 8.1). ``read()`` takes no write lock. No wait is without an end.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.orm import Session

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"

BUSY_TIMEOUT_SECONDS = 30
CONNECT_TIMEOUT_SECONDS = 5
# Lets the organizations' rows be fought for, never for ever; a lease is renewed well within this.
LOCK_TIMEOUT = "10s"
STATEMENT_TIMEOUT = "30s"
_SCHEMA_LOCK = 0x62696C6C  # any constant: one upgrade at a time


class DatabaseError(Exception):
    """The database cannot be used as it is; the message says why and what to do."""


class Database:
    """One engine per process. ``close()`` gives its connections back."""

    def __init__(self, url: str, *, pool_size: int = 20) -> None:
        self.url = _understood(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = _sqlite_engine(self.url, pool_size) if self.is_sqlite else _postgres_engine(self.url, pool_size)
        self._reading = self.engine.execution_options(read_only=True)

    def __repr__(self) -> str:
        return f"Database({self.url.render_as_string(hide_password=True)})"

    @contextmanager
    def write(self) -> Iterator[Session]:
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        with Session(self._reading, expire_on_commit=False) as session, session.begin():
            yield session

    def upgrade(self) -> None:
        """Bring the schema to this version's; safe when many processes do it at once."""
        with self.engine.begin() as connection:
            if not self.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SCHEMA_LOCK})
            config = _alembic()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def prepare(self) -> None:
        """Make sure that the schema is this version's. An embedded file is brought there; a server must be already.

        Raises ``DatabaseError``: a deployed schema changes when its owner says so.
        """
        head = ScriptDirectory.from_config(_alembic()).get_current_head()
        try:
            with self._reading.connect() as connection:
                current = MigrationContext.configure(connection).get_current_revision()
        except OperationalError as error:
            message = f"the database does not answer ({_first_line(error)}); check DATABASE_URL and that it is running"
            raise DatabaseError(message) from error
        if current == head:
            return
        if not self.is_sqlite:
            present = f"schema {current}" if current else "no schema yet"
            message = f"the database has {present}, this version needs {head}: run `billing-sync db upgrade`"
            raise DatabaseError(message)
        self.upgrade()

    def close(self) -> None:
        self.engine.dispose()


def one_at_a_time(session: Session, word: str) -> None:
    """Whoever says the same word waits here until this transaction ends; on SQLite every writer does so anyway.

    For what has no row yet to lock: a name, a billing id, an organization that a message is about.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:word, 0))"), {"word": word})


def _understood(url: str) -> URL:
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
        connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:  # noqa: ANN401 - the DBAPI's own connection
        connection.isolation_level = None  # BEGIN is ours to write
        cursor: sqlite3.Cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # a power cut must not lose a committed change
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _postgres_engine(url: URL, pool_size: int) -> Engine:
    return create_engine(
        url,
        pool_size=pool_size,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "options": f"-c timezone=UTC -c lock_timeout={LOCK_TIMEOUT} -c statement_timeout={STATEMENT_TIMEOUT}"
            " -c idle_in_transaction_session_timeout=60s",
        },
    )


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
