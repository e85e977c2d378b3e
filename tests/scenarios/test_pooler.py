"""The main story through a real PgBouncer in transaction mode, with all processes and fewer sessions than they have."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import httpx
import psycopg
import pytest
from sqlalchemy import make_url

from core.catalog import publishing
from core.catalog.plans import Catalog
from core.db.database import Database
from core.events import outbox
from core.org_manager import OrgManager
from providers.lago.provider import LagoProvider
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.support import pgbouncer
from tests.support.deployment import Deployment, answers, deployment, free_port, in_sync
from tests.support.pgbouncer import SERVER_CONNECTIONS, Pooler
from tests.support.waiting import until
from worker.processes.relay import LISTEN_RETRY_SECONDS, POOLER_POLL_SECONDS

pytestmark = pytest.mark.processes
ORGANIZATIONS = 25


@pytest.fixture
def pooler(postgres_url: str) -> Iterator[Pooler]:
    with pgbouncer.in_front_of(postgres_url) as running:
        yield running


@pytest.fixture
def on_sale(sandbox: SandboxClient, sandbox_server: Sandbox, plans: Catalog) -> str:
    """The address of both providers, which have every plan."""
    lago = LagoProvider(sandbox_server.url, "key", payment_provider_code=None, ending=plans.ending)
    publishing.publish(plans, [lago])
    lago.close()
    sandbox.reset_calls()
    return sandbox_server.url


@pytest.fixture
def deployed(pooler: Pooler, redis_url: str, on_sale: str, tmp_path: Path) -> Iterator[Deployment]:
    """The schema is made through the pooler, too. Nothing runs yet."""
    with deployment(pooler.url, redis_url, on_sale, tmp_path) as ready:
        assert ready.run("db", "upgrade").returncode == 0
        yield ready


@pytest.fixture
def database(pooler: Pooler) -> Iterator[Database]:
    opened = Database(pooler.direct_url)
    yield opened
    opened.close()


def start_all(deployed: Deployment) -> str:
    """The address of the API."""
    port = free_port()
    deployed.environment["API_PORT"] = str(port)
    for kind in ("worker", "worker", "relay", "beat", "api"):
        deployed.start(kind)
    api = f"http://127.0.0.1:{port}"
    until(lambda: answers(f"{api}/readyz"), "the API answers", details=lambda: deployed.logs)
    return api


def findings(deployed: Deployment) -> dict[str, str]:
    """What `doctor` says about the database, by its code."""
    subjects = json.loads(deployed.run("doctor", "--json").stdout)["subjects"]
    (about,) = (each["findings"] for each in subjects if each["subject"] == "database")
    return {each["code"]: each["message"] for each in about}


@pytest.mark.parametrize("is_direct_known", [False, True], ids=["polling", "direct url"])
def test_what_is_changed_reaches_both_providers(
    deployed: Deployment,
    pooler: Pooler,
    database: Database,
    sandbox: SandboxClient,
    is_direct_known: bool,  # noqa: FBT001
) -> None:
    if is_direct_known:
        deployed.environment["DATABASE_DIRECT_URL"] = pooler.direct_url
    api = start_all(deployed)
    key = deployed.run("keys", "create", "tests", "--scope", "organizations:write").stdout.split()[-1]
    manager = OrgManager(database_url=pooler.url)
    ids = [manager.create_organization(f"Company {number}", "starter") for number in range(ORGANIZATIONS)]
    until(lambda: in_sync(database), "created", details=lambda: deployed.logs)
    for org_id in ids:
        manager.update_org_plan(org_id, "enterprise")
    manager.close()
    with httpx.Client(base_url=api, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        created = client.post("/api/organizations", json={"name": "Over HTTP"}, headers={"Idempotency-Key": "1"})
    assert created.status_code == httpx.codes.CREATED, created.text
    until(lambda: in_sync(database), "changed", details=lambda: deployed.logs)
    counts = sandbox.counters()
    assert counts.stripe.operations["POST /v1/customers"] == ORGANIZATIONS + 1
    assert counts.lago.operations["POST /api/v1/customers"] == ORGANIZATIONS + 1
    assert len(pooler.enter("SHOW SERVERS")) <= SERVER_CONNECTIONS
    assert is_listening(pooler) == is_direct_known
    assert set(findings(deployed)) == {"database"} | (set() if is_direct_known else {"no_direct_url"})
    assert "Traceback" not in deployed.logs
    assert "prepared statement" not in deployed.logs


def is_listening(pooler: Pooler) -> bool:
    with psycopg.connect(pooler.direct_url, autocommit=True) as owner:
        (number,) = owner.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %'"
        ).fetchone() or (0,)
    return bool(number)


def test_a_direct_url_to_elsewhere_is_refused_at_the_start_and_found_by_doctor(
    deployed: Deployment, postgres_server: str
) -> None:
    elsewhere = make_url(postgres_server).render_as_string(hide_password=False)
    sentence = "DATABASE_DIRECT_URL and DATABASE_URL lead to different databases: "
    deployed.environment["DATABASE_DIRECT_URL"] = elsewhere
    for command in (("relay",), ("db", "upgrade")):
        ended = deployed.run(*command)
        assert (ended.returncode, sentence in ended.stderr) == (2, True), ended.stdout + ended.stderr
    assert sentence.removesuffix(": ") in findings(deployed)["direct_url_differs"]


def test_a_direct_url_that_is_not_reachable_stops_only_the_upgrade(
    deployed: Deployment, pooler: Pooler, database: Database
) -> None:
    sentence = "DATABASE_DIRECT_URL is not reachable ("
    deployed.environment |= {"DATABASE_DIRECT_URL": "postgresql://me@127.0.0.1:1/none", "LOG_FORMAT": "json"}
    ended = deployed.run("db", "upgrade")
    assert (ended.returncode, sentence in ended.stderr) == (2, True), ended.stdout + ended.stderr
    assert sentence in findings(deployed)["direct_url_unreachable"]
    start_all(deployed)
    create_and_sync(pooler, database, deployed)
    for event, reason in (("direct_url_not_used", sentence), ("listen_failed", 'server at "127.0.0.1", port 1 failed')):
        assert all(reason in each for each in logged(deployed, event)), deployed.logs
    assert len(logged(deployed, "listen_failed")) == 1
    assert logged(deployed, "database_away") == []


@pytest.mark.slow
def test_without_the_connection_that_listens_the_relay_is_as_fast_as_without_the_setting(
    deployed: Deployment, pooler: Pooler, database: Database
) -> None:
    """Only the role of DATABASE_DIRECT_URL may not log in for a while."""
    role = f"listener_{uuid4().hex[:8]}"
    url = make_url(pooler.direct_url).set(username=role)
    with psycopg.connect(pooler.direct_url, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {role} LOGIN".encode())
        try:
            deployed.environment |= {
                "DATABASE_DIRECT_URL": url.render_as_string(hide_password=False),
                "LOG_FORMAT": "json",
            }
            for kind in ("relay", "worker"):
                deployed.start(kind)
            until(lambda: is_listening(pooler), "the relay listens", details=lambda: deployed.logs)
            owner.execute(f"ALTER ROLE {role} NOLOGIN".encode())
            owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [role])
            until(lambda: len(logged(deployed, "listen_failed")) == 1, "it says so", details=lambda: deployed.logs)
            assert "connection" in logged(deployed, "listen_failed")[0]
            time.sleep(LISTEN_RETRY_SECONDS + 2)  # it has tried again
            for _ in range(5):
                assert relayed_within(pooler, database) < POOLER_POLL_SECONDS * 10
            owner.execute(f"ALTER ROLE {role} LOGIN".encode())
            until(lambda: is_listening(pooler), "it listens again", details=lambda: deployed.logs)
            create_and_sync(pooler, database, deployed)
            assert len(logged(deployed, "listen_failed")) == 1
            assert logged(deployed, "database_away") == []
        finally:
            deployed.stop()
            owner.execute(f"DROP ROLE {role}".encode())


def create_and_sync(pooler: Pooler, database: Database, deployed: Deployment) -> None:
    with closing(OrgManager(database_url=pooler.url)) as manager:
        manager.create_organization(f"Acme {uuid4()}")
    until(lambda: in_sync(database), "in sync", details=lambda: deployed.logs)


def relayed_within(pooler: Pooler, database: Database) -> float:
    """The seconds from a commit to the moment at which the relay has published it."""
    with closing(OrgManager(database_url=pooler.url)) as manager:
        manager.create_organization(f"Acme {uuid4()}")
    begun = time.monotonic()
    until(lambda: not is_pending(database), "published")
    return time.monotonic() - begun


def is_pending(database: Database) -> bool:
    with database.read() as session:
        return outbox.has_pending(session)


def logged(deployed: Deployment, event: str) -> list[str]:
    """The reasons of the log lines with this name."""
    lines = (json.loads(line) for line in deployed.logs.splitlines() if line.startswith("{"))
    return [line.get("reason", "") for line in lines if line["event"] == event]


def test_a_direct_url_to_another_pooler_is_a_warning_and_the_relay_polls(
    deployed: Deployment, pooler: Pooler, database: Database
) -> None:
    sentence = "DATABASE_DIRECT_URL seems to lead to a pooler, too, so the relay does not listen there"
    deployed.environment["DATABASE_DIRECT_URL"] = pooler.url
    assert sentence in findings(deployed)["direct_url_pooled"]
    deployed.start("relay")
    deployed.start("worker")
    manager = OrgManager(database_url=pooler.url)
    manager.create_organization("Acme")
    manager.close()
    until(lambda: in_sync(database), "in sync", details=lambda: deployed.logs)
    assert sentence in deployed.logs
