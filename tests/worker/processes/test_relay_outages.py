"""The relay outlives what a broker and a database say when they cannot work, and then hands over what waited."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import redis as redis_client
from psycopg.sql import SQL, Identifier
from sqlalchemy import select

from core.catalog.plans import DEFAULT_PLANS_FILE, Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.events import Event
from core.events import outbox
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.organizations.commands import NewOrganization
from tests.support.waiting import PATIENCE_SECONDS, until
from worker.config.settings import Settings
from worker.processes.relay import Relay
from worker.wiring.celery_app import build

pytestmark = pytest.mark.slow

Redis = redis_client.Redis


def refuse_logins(server: Redis) -> None:
    server.config_set("requirepass", "another")
    server.client_kill_filter(_type="normal", skipme=True)


TROUBLES: dict[str, tuple[Callable[[Redis], object], Callable[[Redis], object]]] = {
    "full": (lambda server: server.config_set("maxmemory", "1"), lambda server: server.config_set("maxmemory", "0")),
    "a replica": (
        lambda server: server.replicaof("127.0.0.1", "1"),
        lambda server: server.replicaof("NO", "ONE"),
    ),
    "of another password": (refuse_logins, lambda server: server.config_set("requirepass", "")),
}


@pytest.fixture
def work(database: Database, plans: Catalog) -> Callable[[], None]:
    """Commits one more event for the relay."""
    names = iter(range(100))

    def commit() -> None:
        new = NewOrganization(name=f"Acme {next(names)}", plan_tier="starter")
        with database.write() as session:
            commands.create(ChangeContext(session, utc_now()), new, plans)

    return commit


@contextmanager
def relaying(database: Database, broker_url: str, folder: Path) -> Iterator[threading.Thread]:
    settings = Settings.model_validate(
        {
            "data_dir": folder,
            "database_url": database.url.render_as_string(hide_password=False),
            "celery_broker_url": broker_url,
            "plans_file": DEFAULT_PLANS_FILE,
            "stripe_secret_key": "sk_test_nobody",
            "stripe_api_base": "http://127.0.0.1:1",
            "lago_api_key": "nobody",
            "lago_api_url": "http://127.0.0.1:1",
            "lago_stripe_provider_code": "stripe_main",
        }
    )
    app = build(settings)
    relay = Relay(app, database)
    thread = threading.Thread(target=relay.run)
    thread.start()
    try:
        yield thread
    finally:
        relay.stop()
        thread.join(PATIENCE_SECONDS)
        app.close_runtime()
        app.close()


def all_published(database: Database) -> bool:
    with database.read() as session:
        return not outbox.has_pending(session)


def given_back(database: Database) -> bool:
    """Nothing that is pending waits for a lease to run out."""
    with database.read() as session:
        return session.scalar(select(Event.seq).where(Event.lease_until.is_not(None))) is None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_broker_that_cannot_take_events_gets_them_later(
    database: Database, redis_url: str, tmp_path: Path, work: Callable[[], None], trouble: str
) -> None:
    begin, end = TROUBLES[trouble]
    with Redis.from_url(redis_url) as server, relaying(database, redis_url, tmp_path) as thread:
        work()
        until(lambda: all_published(database), "the relay works")
        begin(server)
        try:
            work()
            thread.join(3)
            assert thread.is_alive()
            assert not all_published(database)
            until(lambda: given_back(database), "no lease is kept")
        finally:
            end(server)
        until(lambda: all_published(database), "published afterwards")


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_database_that_takes_no_writes_is_outlasted(
    database: Database, postgres_server: str, redis_url: str, tmp_path: Path, work: Callable[[], None]
) -> None:
    work()
    with read_only(database, postgres_server) as end, relaying(database, redis_url, tmp_path) as thread:
        thread.join(3)
        assert thread.is_alive()
        assert not all_published(database)
        end()
        until(lambda: all_published(database), "published afterwards")


@contextmanager
def read_only(database: Database, server: str) -> Iterator[Callable[[], None]]:
    """Until what is yielded is called, as where a standby answers in the place of its primary."""
    name = str(database.url.database)

    with psycopg.connect(server, autocommit=True) as owner:
        database_is = SQL("ALTER DATABASE {} SET default_transaction_read_only = {}")
        out = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"

        def switch(state: str) -> None:
            owner.execute(database_is.format(Identifier(name), state))
            owner.execute(out, [name])

        switch("on")
        yield lambda: switch("off")
