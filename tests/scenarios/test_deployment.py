"""Worker, relay and beat as processes: what is committed reaches both billers, whatever the broker does."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import redis as redis_client
from celery import Celery
from sqlalchemy import select, text

from core.catalog import publishing
from core.catalog.plans import Catalog
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.events import outbox
from core.org_manager import OrgManager
from core.reconcile.backoff import COOLDOWN_AFTER_CONCURRENT_CHANGE
from providers.lago.provider import LagoProvider
from sandbox.client import ProviderCallCounts, SandboxClient
from sandbox.server import Sandbox
from tests.support.closed_database import closed_to_all
from tests.support.deployment import ROOT, Deployment, deployment, in_sync
from tests.support.waiting import PATIENCE_SECONDS, until

NAME, EMAIL = "Zebra Confidential", "zelda@confidential.test"


pytestmark = pytest.mark.processes


@pytest.fixture
def plans_on_sale(sandbox: SandboxClient, sandbox_server: Sandbox, plans: Catalog) -> SandboxClient:
    lago = LagoProvider(sandbox_server.url, "key", payment_provider_code=None, ending=plans.ending)
    publishing.publish(plans, [lago])
    lago.close()
    sandbox.reset_calls()
    return sandbox


@pytest.fixture(params=["redis", "rabbit"])
def broker_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def deployed(
    database: Database, broker_url: str, plans_on_sale: SandboxClient, sandbox_server: Sandbox, tmp_path: Path
) -> Iterator[Deployment]:
    """Nothing runs yet."""
    assert plans_on_sale
    url = database.url.render_as_string(hide_password=False)
    with deployment(url, broker_url, sandbox_server.url, tmp_path) as ready:
        yield ready


@pytest.fixture
def manager(database: Database) -> Iterator[OrgManager]:
    opened = OrgManager(database_url=database.url.render_as_string(hide_password=False))
    yield opened
    opened.close()


# Each process asks once, at its start, whose key it has.
WHOSE_KEY = {"GET /v1/account", "GET /api/v1/organizations"}


def at_stripe(sandbox: SandboxClient) -> dict[str, int]:
    return _asked(sandbox.counters().stripe)


def at_lago(sandbox: SandboxClient) -> dict[str, int]:
    return _asked(sandbox.counters().lago)


def _asked(counts: ProviderCallCounts) -> dict[str, int]:
    return {operation: many for operation, many in counts.operations.items() if operation not in WHOSE_KEY}


def start_all(deployed: Deployment, workers: int = 1) -> None:
    for _ in range(workers):
        deployed.start("worker")
    deployed.start("relay")
    deployed.start("beat")


def test_a_committed_change_reaches_both_billers(
    deployed: Deployment, manager: OrgManager, database: Database, sandbox: SandboxClient
) -> None:
    start_all(deployed)
    org_id = manager.create_organization(NAME, "starter")
    until(lambda: in_sync(database), "create")
    manager.update_org_plan(org_id, "enterprise")
    until(lambda: in_sync(database), "upgrade")
    organization = manager.get_org(org_id)
    assert organization is not None
    assert organization.stripe_customer_id is not None
    assert organization.lago_customer_id is not None
    assert at_stripe(sandbox) == {"POST /v1/customers": 1}
    assert at_lago(sandbox) == {
        "POST /api/v1/customers": 1,
        "POST /api/v1/subscriptions": 2,
        "GET /api/v1/subscriptions/{id}": 1,  # before the upgrade
    }


def test_another_service_enqueues_as_its_page_shows(
    deployed: Deployment, manager: OrgManager, database: Database, broker_url: str, tmp_path: Path
) -> None:
    start_all(deployed)
    code = example("docs/how-to/send-events.md").replace("redis://localhost:6379/0", broker_url)
    org_id = code.split('"subject": "')[1].split('"')[0]
    for _ in range(3):
        # -I and an empty folder: nothing of ours can be imported.
        subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True, timeout=60)
    until(lambda: manager.get_org(org_id) is not None, "received")
    until(lambda: in_sync(database), "sync")
    assert manager.get_user_role_in_org(org_id, "user_1") == "owner"
    with database.read() as session:
        assert session.execute(text("SELECT count(*) FROM service_events")).scalar_one() == 1


def example(page: str) -> str:
    text = (ROOT / page).read_text(encoding="utf-8")
    return text.split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
@pytest.mark.parametrize("broker_url", ["redis"], indirect=True)
class TestOnPostgresAndRedis:
    def test_a_wiped_broker_costs_nothing_but_seconds(
        self, deployed: Deployment, manager: OrgManager, database: Database, redis_url: str, sandbox: SandboxClient
    ) -> None:
        sandbox.settings(latency_ms=30)
        start_all(deployed, workers=2)
        for number in range(300):
            manager.create_organization(f"Company {number}")
            if number in {100, 200}:
                with redis_client.Redis.from_url(redis_url) as client:
                    client.flushall()
        until(lambda: in_sync(database), "all in sync", seconds=300)
        assert at_stripe(sandbox) == {"POST /v1/customers": 300}
        assert at_lago(sandbox) == {"POST /api/v1/customers": 300, "POST /api/v1/subscriptions": 300}

    def test_a_worker_told_to_stop_finishes_or_returns_what_it_holds(
        self, deployed: Deployment, manager: OrgManager, database: Database, sandbox: SandboxClient
    ) -> None:
        deployed.start("relay")
        first = deployed.start("worker", "--concurrency", "2")
        sandbox.settings(latency_ms=1500)
        for number in range(6):
            manager.create_organization(f"Company {number}")
        until(lambda: bool(at_stripe(sandbox)), "first call")
        first.send_signal(signal.SIGTERM)
        assert first.wait(PATIENCE_SECONDS) == 0
        with database.read() as session:
            held = select(BillingLink.org_id).where(BillingLink.lease_token.is_not(None))
            assert session.scalars(held).all() == [], "the next worker would wait until a lease has run out"
        sandbox.settings(latency_ms=0)
        deployed.start("worker")
        until(lambda: in_sync(database), "the next worker takes over")
        assert at_stripe(sandbox) == {"POST /v1/customers": 6}

    def test_a_worker_outlives_a_broker_that_is_full(
        self, deployed: Deployment, manager: OrgManager, database: Database, redis_url: str
    ) -> None:
        deployed.start("relay")
        manager.create_organization("Backlog")
        until(lambda: all_published(database), "its messages are in the broker")
        with redis_client.Redis.from_url(redis_url) as server:
            server.config_set("maxmemory", "1")
            try:
                worker = deployed.start("worker")
                until(lambda: "when used memory > 'maxmemory'" in deployed.logs, "the worker is refused")
            finally:
                server.config_set("maxmemory", "0")
        deployed.start("beat")  # a message that the worker had taken is found by the sweep
        until(lambda: in_sync(database), "it works afterwards")
        assert worker.poll() is None

    def test_a_burst_costs_two_rounds_at_each_biller(
        self, deployed: Deployment, manager: OrgManager, database: Database, sandbox: SandboxClient
    ) -> None:
        start_all(deployed, workers=2)
        org_id = manager.create_organization("Burst")
        until(lambda: in_sync(database), "create")
        time.sleep(2.1)
        sandbox.reset_calls()
        began = time.monotonic()
        for number in range(100):
            manager.update_org_plan(org_id, ("enterprise", "founders_friend")[number % 2])
        # On a machine that takes so long over a hundred changes, it is no longer one burst.
        longer = int((time.monotonic() - began) // COOLDOWN_AFTER_CONCURRENT_CHANGE.total_seconds())
        until(lambda: in_sync(database), "burst")
        assert sum(at_lago(sandbox).values()) <= 2 * (2 + longer)
        assert at_stripe(sandbox) == {}

    def test_a_message_that_meets_a_database_that_is_away_comes_again(
        self, deployed: Deployment, manager: OrgManager, database: Database, redis_url: str, postgres_server: str
    ) -> None:
        deployed.start("worker")
        org_ids = [f"org_{uuid4()}" for _ in range(3)]
        send_created(redis_url, org_ids[0])
        until(lambda: manager.get_org(org_ids[0]) is not None, "the worker works")
        with closed_to_all(database, postgres_server):
            for org_id in org_ids[1:]:
                send_created(redis_url, org_id)
            until(lambda: deployed.logs.count("the database is unavailable or busy") >= 3, "tried and tried again")
        until(lambda: None not in map(manager.get_org, org_ids), "all received")

    def test_flower_shows_a_sync_and_its_retry_and_nothing_private(
        self,
        deployed: Deployment,
        manager: OrgManager,
        database: Database,
        sandbox: SandboxClient,
        redis_url: str,
    ) -> None:
        deployed.start_flower()
        start_all(deployed)
        until(lambda: len(deployed.workers_in_flower()) >= 1, "worker in Flower")
        sandbox.add_fault(provider="stripe", operation="POST /v1/customers", kind="500_before", times=2)
        org_id = f"org_{uuid4()}"
        send_created(redis_url, org_id, NAME)
        until(lambda: manager.get_org(org_id) is not None, "received")
        until(lambda: in_sync(database), "sync after two failures")
        until(lambda: _finished(deployed, org_id), "the retried sync in Flower")
        tasks = list(deployed.get_flower("/api/tasks").json().values())
        mine = [task for task in tasks if task["name"] == "customers.sync_to_stripe" and org_id in task["args"]]
        assert any(task["retries"] for task in mine) or any(task["retried"] for task in mine)


def all_published(database: Database) -> bool:
    with database.read() as session:
        return not outbox.has_pending(session)


def send_created(broker_url: str, org_id: str, name: str | None = None) -> None:
    """As another service does it."""
    event = {
        "specversion": "1.0",
        "id": org_id,
        "source": "/signup",
        "type": "organization.created",
        "subject": org_id,
        "data": {"name": name or f"{NAME} {org_id}", "billing_email": EMAIL},
    }
    with Celery("signup", broker=broker_url, set_as_current=False) as signup:
        signup.send_task("events.receive", args=[event], queue="events", ignore_result=True)


def _finished(deployed: Deployment, org_id: str) -> bool:
    tasks = deployed.get_flower("/api/tasks").json().values()
    return any(
        task["name"] == "customers.sync_to_stripe" and org_id in (task["args"] or "") and task["state"] == "SUCCESS"
        for task in tasks
    )
