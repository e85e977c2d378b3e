"""A Postgres database that accepts no write: what an error says, and that no connection stays so afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from sqlalchemy import delete
from sqlalchemy.exc import InternalError

from api import problems
from core.db.database import Database, cause_name, is_read_only, is_read_only_error
from core.db.models.jobs import JobLock
from worker.cli import error_messages

pytestmark = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)


@contextmanager
def read_only(database: Database, server: str) -> Iterator[None]:
    """New sessions are read-only, and those of before are closed. Afterwards, none is closed."""
    name = str(database.url.database)
    with psycopg.connect(server, autocommit=True) as owner:
        owner.execute(SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(Identifier(name)))
        owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        try:
            yield
        finally:
            owner.execute(SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(Identifier(name)))


def write(database: Database) -> None:
    with database.write() as session:
        session.execute(delete(JobLock))


def is_now_read_only(database: Database) -> bool:
    with database.read() as session:
        return is_read_only(session)


def test_a_write_is_refused_with_one_sentence(database: Database, postgres_server: str) -> None:
    with read_only(database, postgres_server), pytest.raises(InternalError) as refused:
        write(database)
    error = refused.value
    assert (is_read_only_error(error), cause_name(error)) == (True, "ReadOnlySqlTransaction")
    assert problems._to_problem(error, is_read=False).detail == problems.READ_ONLY_DETAIL  # noqa: SLF001 - no server
    message, code = error_messages.message_and_code(error, "billing-sync set") or ("", 0)
    assert (code, "the database is read-only" in message) == (1, True)


def test_no_connection_stays_read_only(database: Database, postgres_server: str) -> None:
    assert not is_now_read_only(database)
    with read_only(database, postgres_server):
        assert is_now_read_only(database)
        with pytest.raises(InternalError):
            write(database)
    assert not is_now_read_only(database)
    write(database)
