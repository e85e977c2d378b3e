"""Transactions on Postgres, directly and through a real PgBouncer in transaction mode.

With one server connection and several clients, what a session keeps from one transaction to the next would be seen.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError

from core.db.database import Database, DatabaseError, UnusableDatabaseError, acquire_advisory_locks
from tests.support import pgbouncer, silent_pooler, standby
from tests.support.pgbouncer import Pooler
from tests.support.waiting import PATIENCE_SECONDS, until

LIMITS = {
    "lock_timeout": "10s",
    "statement_timeout": "30s",
    "idle_in_transaction_session_timeout": "1min",
    "TimeZone": "UTC",
}


@pytest.fixture
def pooler(postgres_url: str) -> Iterator[Pooler]:
    with pgbouncer.in_front_of(postgres_url) as running:
        yield running


@pytest.fixture(params=["direct", "pooled"])
def address(request: pytest.FixtureRequest) -> str:
    if request.param == "direct":
        return str(request.getfixturevalue("postgres_url"))
    pooled: Pooler = request.getfixturevalue("pooler")
    return pooled.url


@pytest.fixture
def opened(address: str) -> Iterator[Database]:
    database = Database(address)
    database.upgrade()
    yield database
    database.close()


def limits(database: Database) -> dict[str, str]:
    with database.read() as session:
        return {name: str(session.scalar(text(f"SHOW {name}"))) for name in LIMITS}


def test_each_transaction_has_our_limits_and_leaves_none(opened: Database, address: str) -> None:
    name = Identifier(str(make_url(address).database))
    with psycopg.connect(address, autocommit=True, prepare_threshold=None) as other:
        before = [other.execute(f"SHOW {each}".encode()).fetchone() for each in LIMITS]
        assert limits(opened) == LIMITS
        with opened.write() as session:
            session.execute(text("CREATE TABLE used (id int)"))
        assert [other.execute(f"SHOW {each}".encode()).fetchone() for each in LIMITS] == before
        other.execute(SQL("ALTER DATABASE {} SET timezone = 'Asia/Tokyo'").format(name))
        other.execute(SQL("ALTER DATABASE {} SET statement_timeout = '2h'").format(name))
    again = Database(address)
    assert limits(again) == LIMITS
    again.close()


@pytest.mark.slow
def test_a_lock_that_somebody_has_is_not_waited_for_endlessly(opened: Database) -> None:
    with opened.write() as holder:
        acquire_advisory_locks(holder, "a name")
        begun = time.monotonic()
        with pytest.raises(DBAPIError, match="lock timeout"), opened.write() as waiting:
            acquire_advisory_locks(waiting, "a name")
    assert 9 < time.monotonic() - begun < PATIENCE_SECONDS


def test_many_threads_repeat_their_statements(opened: Database) -> None:
    """A statement that psycopg had prepared in one session would be unknown, or known already, in the next."""
    failed: list[Exception] = []

    def work(number: int) -> None:
        try:
            for repeat in range(30):
                with opened.write() as session:
                    session.execute(text("INSERT INTO job_locks (name) VALUES (:name)"), {"name": f"{number}-{repeat}"})
        except DBAPIError as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert failed == []
    with opened.read() as session:
        assert session.scalar(text("SELECT count(*) FROM job_locks")) == 12 * 30


def test_only_a_server_itself_is_listened_to(pooler: Pooler) -> None:
    for url, direct_url, is_direct in (
        (pooler.direct_url, None, True),
        (pooler.url, None, False),
        (pooler.url, pooler.direct_url, True),
    ):
        database = Database(url, direct_url=direct_url)
        with database.session_of_server() as server:
            assert (server is not None) == is_direct
        database.close()


def test_a_transaction_takes_no_more_round_trips_than_its_statements_and_three(
    opened: Database, tmp_path: Path
) -> None:
    """One each for the check that the connection lives, BEGIN with our limits, and COMMIT."""
    with opened.engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
    with (tmp_path / "trace").open("w+b") as file:
        driver.pgconn.trace(file.fileno())
        with opened.read() as session:
            session.execute(text("SELECT 1"))
        driver.pgconn.untrace()
        file.seek(0)
        answers = re.findall(rb"\tReadyForQuery", file.read())
    assert len(answers) == 4


def test_the_users_own_options_hold_beside_ours(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute("CREATE SCHEMA billing")
    url = make_url(postgres_url).update_query_dict({"options": "-csearch_path=billing -cstatement_timeout=2h"})
    database = Database(url.render_as_string(hide_password=False))
    database.upgrade()
    database.ensure_schema()
    assert limits(database) == LIMITS
    with database.read() as session:
        schemas = session.scalars(
            text(
                "SELECT DISTINCT schemaname FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
            )
        ).all()
    database.close()
    assert schemas == ["billing"]


def test_the_session_of_the_server_reads_the_address_as_the_pool_does(postgres_url: str) -> None:
    """A space is written as %20 or as +, and libpq itself takes a + for one."""
    server = make_url(postgres_url)
    host, port = server.query.get("host", server.host), server.port or 5432
    for address in (f"host={host}&port={port}", f"host=127.0.0.1:1&host={host}:{port}"):
        words = "options=-c%20search_path%3Dbilling%20-c%20application_name%3Dours"
        name = f"{server.username}:{server.password or 'x'}@"
        with (
            closing(Database(f"postgresql://{name}/{server.database}?{address}&{words}")) as database,
            database.read() as session,
            database.session_of_server() as direct,
        ):
            assert direct is not None
            for setting, value in (("search_path", "billing"), ("application_name", "ours")):
                assert session.scalar(text(f"SHOW {setting}")) == value
                assert direct.execute(f"SHOW {setting}".encode()).fetchone() == (value,)


def test_a_pooler_that_refuses_options_is_named_with_the_way_out(pooler: Pooler) -> None:
    url = make_url(pooler.url).update_query_dict({"options": "-csearch_path=billing"})
    database = Database(url.render_as_string(hide_password=False))
    with pytest.raises(DatabaseError, match=r"pooler .* `ALTER ROLE … SET search_path = …`") as refused:
        database.ensure_schema()
    database.close()
    assert "\n" not in str(refused.value)


def test_another_encoding_is_seen_through_a_pooler(postgres_server: str) -> None:
    name = "latin1_behind_a_pooler"
    with psycopg.connect(postgres_server, autocommit=True) as owner:
        owner.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0".encode())
        try:
            direct = make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
            with pgbouncer.in_front_of(direct) as pooler, closing(Database(pooler.url)) as database:
                for refuses in (database.ensure_schema, database.upgrade):
                    with pytest.raises(UnusableDatabaseError, match="the database's encoding is LATIN1, not UTF8: "):
                        refuses()
        finally:
            owner.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.mark.slow
def test_a_pooler_that_does_not_say_the_encoding_is_asked(postgres_server: str, postgres_url: str) -> None:
    name = "latin1_behind_a_silent_pooler"
    with silent_pooler.without_status(postgres_url, "server_encoding") as url, closing(Database(url)) as database:
        with psycopg.connect(url) as connection:
            assert connection.info.parameter_status("server_encoding") is None
        database.upgrade()
    with psycopg.connect(postgres_server, autocommit=True) as owner:
        owner.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0".encode())
        try:
            other = make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
            with (
                silent_pooler.without_status(other, "server_encoding") as url,
                closing(Database(url)) as database,
                pytest.raises(UnusableDatabaseError, match="the database's encoding is LATIN1, not UTF8: "),
            ):
                database.ensure_schema()
        finally:
            owner.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def test_a_pooler_that_connects_anew_is_not_noticed(pooler: Pooler) -> None:
    """As after a restart of the server, or ``RECONNECT`` in PgBouncer's console."""
    database, name = Database(pooler.url), str(make_url(pooler.url).database)
    assert limits(database) == LIMITS
    with psycopg.connect(pooler.direct_url, autocommit=True) as owner:
        owner.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
            [name],
        )
    until(lambda: not pooled_sessions(pooler), "PgBouncer has noticed")
    assert limits(database) == LIMITS
    database.close()


def test_a_read_only_database_behind_a_pooler_is_named_with_what_the_pooler_needs(pooler: Pooler) -> None:
    """PgBouncer keeps the sessions that it has, and a session keeps the setting that it began with."""
    name = Identifier(str(make_url(pooler.url).database))
    with closing(Database(pooler.url)) as database, psycopg.connect(pooler.direct_url, autocommit=True) as owner:
        assert database.obstacle() is None
        owner.execute(SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
        pooler.enter("RECONNECT")
        until(lambda: database.obstacle() is not None, "new sessions are read-only")
        found = database.obstacle()
        assert found is not None
        assert found.advice.endswith("`RECONNECT` in the pooler's console; the processes go on by themselves")
        owner.execute(SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name))
        assert database.obstacle() == found
        pooler.enter("RECONNECT")
        until(lambda: database.obstacle() is None, "and so on")


@pytest.mark.slow
def test_a_server_in_recovery_behind_a_pooler_is_waited_for() -> None:
    with (
        standby.replicas(is_hot=False) as replicas,
        pgbouncer.in_front_of(replicas.url) as pooler,
        closing(Database(pooler.url)) as database,
    ):
        assert database.obstacle() is None
        for setting in ("query_wait_timeout", "server_login_retry"):  # 120 s and 15 s would take long
            pooler.enter(f"SET {setting} = 1")
        replicas.fail_over()
        for _ in range(3):
            found = database.obstacle()
            assert found is not None
            assert found.message.startswith("the database accepts no connection yet (")
        replicas.promote()
        until(lambda: database.obstacle() is None, "it goes on")


def pooled_sessions(pooler: Pooler) -> list[tuple[object, ...]]:
    return [row for row in pooler.enter("SHOW SERVERS") if row[2] == make_url(pooler.url).database]
