"""The database does what its docstring promises, on SQLite and Postgres."""

from __future__ import annotations

import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from core.access import api_keys
from core.db.base import Base
from core.db.database import MIGRATIONS_FOLDER, TCP_KEEPALIVE_OPTIONS, Database, DatabaseError
from core.db.models.providers import ProviderStatus
from tests.support.waiting import PATIENCE_SECONDS

EMAIL = "a@secret.test"


def test_the_migrations_make_exactly_the_models_tables(database: Database) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_each_database_has_an_id_of_its_own(database: Database, tmp_path: Path) -> None:
    other = Database(f"sqlite:///{tmp_path}/other.db")
    other.upgrade()
    ids = []
    for each in (database, other):
        with each.read() as session:
            ids.append(set(session.scalars(select(ProviderStatus.database_id))))
    other.close()
    assert [len(each) for each in ids] == [1, 1]
    assert ids[0] != ids[1]


def test_an_upgrade_gives_each_key_an_account_with_its_id(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/old.db")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS_FOLDER))
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "14")
        connection.execute(
            text(
                "INSERT INTO api_keys (id, name, secret_hash, scopes, created_at, revoked_at) "
                "VALUES (:id, :name, 'x', 'events:write', :at, :revoked_at)"
            ),
            [
                {"id": "a" * 16, "name": "signup", "at": "2026-11-22 12:00:00", "revoked_at": None},
                {"id": "b" * 16, "name": "shop", "at": "2026-11-22 12:00:00", "revoked_at": "2026-11-23 12:00:00"},
            ],
        )
    database.upgrade()
    with database.read() as session:
        keys = api_keys.list_all(session)
    database.close()
    assert [(key.id, key.account_id, key.account_name, key.expires_at) for key in keys] == [
        ("a" * 16, "a" * 16, "signup", None),
        ("b" * 16, "b" * 16, "shop", None),
    ]


def test_many_may_upgrade_at_once(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(4)]
    threads = [threading.Thread(target=database.upgrade) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for database in databases:
        database.ensure_schema()
        database.close()


def test_upgrades_of_several_databases_at_once_do_not_meet(tmp_path: Path) -> None:
    databases = [Database(f"sqlite:///{tmp_path}/{number}.db") for number in range(6)]
    at_once = threading.Barrier(len(databases))

    def upgraded(database: Database) -> bool:
        at_once.wait(timeout=PATIENCE_SECONDS)
        database.upgrade()
        return database.accepts_schema()

    with ThreadPoolExecutor(len(databases)) as pool:
        assert list(pool.map(upgraded, databases)) == [True] * len(databases)
    for database in databases:
        database.close()


def test_many_may_open_a_new_file_at_the_same_moment(tmp_path: Path) -> None:
    for repeat in range(40):
        databases = [Database(f"sqlite:///{tmp_path}/{repeat}.db") for _ in range(8)]
        at_once = threading.Barrier(len(databases))

        def opened(database: Database, at_once: threading.Barrier = at_once) -> int:
            at_once.wait(timeout=PATIENCE_SECONDS)
            with database.engine.connect() as connection:
                return int(connection.exec_driver_sql("SELECT 1").scalar_one())

        with ThreadPoolExecutor(len(databases)) as pool:
            assert list(pool.map(opened, databases)) == [1] * len(databases)
        for database in databases:
            database.close()


def test_a_server_without_the_schema_is_refused_with_the_way_out(postgres_url: str) -> None:
    database = Database(postgres_url)
    with pytest.raises(DatabaseError, match="billing-sync db upgrade"):
        database.ensure_schema()
    database.close()


def test_a_file_is_brought_to_the_schema_by_itself(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    database.ensure_schema()
    with database.read() as session:
        assert session.execute(text("SELECT count(*) FROM organizations")).scalar_one() == 0
    database.close()


def test_a_server_that_is_away_is_named_as_that() -> None:
    database = Database("postgresql://nobody:hunter2@127.0.0.1:1/none")
    with pytest.raises(DatabaseError, match=r"is not reachable \(connection failed: ") as caught:
        database.ensure_schema()
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(database)
    database.close()


@pytest.mark.parametrize("url", ["nonsense", "mysql://h/d", "sqlite://", "sqlite:///:memory:"])
def test_an_address_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(DatabaseError, match="DATABASE_URL"):
        Database(url)


def test_a_change_that_fails_leaves_nothing(database: Database) -> None:
    def fail() -> None:
        with database.write() as session:
            session.execute(text("INSERT INTO job_locks (name) VALUES ('x')"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with database.read() as session:
        assert session.execute(text("SELECT count(*) FROM job_locks")).scalar_one() == 0


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("INSERT INTO persons VALUES (:email, 1), (:email, 2)", "UniqueViolation"),
        ("INSERT INTO persons VALUES (:email, NULL)", "NotNullViolation"),
        ("SELECT CAST(CAST(:email AS text) AS integer)", "InvalidTextRepresentation"),
    ],
)
def test_an_error_of_postgres_carries_no_values_of_rows(
    postgres_url: str, statement: str, kind: str, request: pytest.FixtureRequest
) -> None:
    database = Database(postgres_url)
    request.addfinalizer(database.close)
    with database.write() as session:
        session.execute(text("CREATE TABLE persons (email text PRIMARY KEY, age integer NOT NULL)"))
    with pytest.raises(DBAPIError, match=kind) as caught, database.read() as session:
        session.execute(text(statement), {"email": EMAIL})
    # As a log shows it: with the driver's own error, which caused it.
    assert EMAIL not in "".join(traceback.format_exception(caught.value))


def test_a_connection_gives_up_a_host_that_is_gone(postgres_url: str) -> None:
    database = Database(postgres_url)
    with database.read() as session:
        driver = session.connection().connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        known = driver.info.get_parameters()
    database.close()
    assert {name: int(known[name]) for name in TCP_KEEPALIVE_OPTIONS} == TCP_KEEPALIVE_OPTIONS


def test_an_error_carries_no_parameters(sqlite_url: str, tmp_path: Path) -> None:
    database = Database(sqlite_url)
    with pytest.raises(Exception, match="no such table") as caught, database.write() as session:
        session.execute(text("INSERT INTO nowhere VALUES (:email)"), {"email": "a@secret.test"})
    assert "secret" not in str(caught.value)
    database.close()
    assert tmp_path.exists()


def test_a_new_sqlite_file_is_for_this_user_only_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    for name, mode in (("new.db", None), ("shared.db", 0o660)):
        file = tmp_path / name
        if mode is not None:
            file.touch()
            file.chmod(mode)
        database = Database(f"sqlite:///{file}")
        database.upgrade()
        modes = {each.stat().st_mode & 0o777 for each in tmp_path.glob(f"{name}*")}
        assert modes == {mode or 0o600}
        database.close()
