"""An old store of a thousand organizations comes home: in sync at both billers, with exactly the calls it takes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis as redis_client
from sqlalchemy import text

from core.catalog import publishing
from core.catalog.plans import Catalog
from core.db.database import Database
from core.reporting import overview
from providers.lago.provider import LagoProvider
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.support.deployment import Deployment, deployment, in_sync
from tests.support.waiting import until

ORGANIZATIONS, MEMBERS = 1000, 10
pytestmark = pytest.mark.processes

CREATED = "2025-03-01 10:00:07.123456"


@dataclass(frozen=True)
class PredecessorStore:
    """The two files, and what of it the billers know already."""

    organizations: Path
    members: Path
    with_stripe_id: dict[str, str]
    with_lago_id: dict[str, str]


@pytest.fixture
def predecessor_store(
    tmp_path: Path, sandbox: SandboxClient, sandbox_server: Sandbox, plans: Catalog
) -> PredecessorStore:
    ids = [f"org_{uuid.UUID(int=number + 1, version=4)}" for number in range(ORGANIZATIONS)]
    stripe = {org: f"cus_{number:014d}" for number, org in enumerate(ids) if number % 7 == 6}
    lago = {org: str(uuid.UUID(int=number, version=4)) for number, org in enumerate(ids) if number % 11 == 10}
    tiers = plans.tiers()
    organizations = {
        org: {
            "id": org,
            "name": f"Überwald {number}",
            "created_at": CREATED,
            "plan_tier": tiers[number % len(tiers)],
            "lago_customer_id": lago.get(org),
            "stripe_customer_id": stripe.get(org),
            "status": "suspended" if number % 50 == 49 else "active",
        }
        for number, org in enumerate(ids)
    }
    members = {
        org: [
            {"org_id": org, "user_id": f"user_{n}", "role": "member" if n else "owner", "joined_at": CREATED}
            for n in range(MEMBERS)
        ]
        for org in ids
    }
    files = tmp_path / "organizations.json", tmp_path / "org_users.json"
    for file, content in zip(files, (organizations, members), strict=True):
        file.write_text(json.dumps(content, indent=2))
    sandbox.preload_stripe_customers(
        [{"id": customer, "name": organizations[org]["name"]} for org, customer in stripe.items()]
    )
    sandbox.preload_lago_customers([{"external_id": org, "lago_id": customer} for org, customer in lago.items()])
    provider = LagoProvider(sandbox_server.url, "key", payment_provider_code=None, ending=plans.ending)
    publishing.publish(plans, [provider])
    provider.close()
    sandbox.reset_calls()
    return PredecessorStore(*files, stripe, lago)


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[Database]:
    opened = Database(postgres_url)
    opened.upgrade()
    yield opened
    opened.close()


def import_all(deployed: Deployment, predecessor_store: PredecessorStore) -> None:
    done = deployed.run("import", str(predecessor_store.organizations), str(predecessor_store.members), timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def is_idle(database: Database) -> bool:
    """Nothing is behind or parked. What is observed waits for its adoption."""
    with database.read() as session:
        found = overview.summarize(session)
    links = found.providers.values()
    return (
        found.organizations == ORGANIZATIONS
        and not found.unpublished
        and not any(each.behind or each.parked for each in links)
    )


def adopt_all(deployed: Deployment, folder: Path) -> None:
    table = folder / "customers.csv"
    for words in (("discover", "--out", str(table)), ("apply", str(table), "--yes")):
        done = deployed.run("adopt", *words, timeout=300, shows_names=True)
        assert done.returncode == 0, done.stdout + done.stderr


def assert_nothing_was_written_to_theirs(sandbox: SandboxClient, predecessor_store: PredecessorStore) -> None:
    """Nobody has adopted them yet."""
    theirs = {*predecessor_store.with_stripe_id.values(), *predecessor_store.with_lago_id}
    sent = [call for call in sandbox.calls() if call.method != "GET"]
    assert not [call for call in sent if any(each in f"{call.path} {call.body}" for each in theirs)]


def assert_one_of_each(sandbox: SandboxClient, predecessor_store: PredecessorStore) -> None:
    """One create each where there was none, and in Stripe one write of our metadata where there was one."""
    stripe, lago = sandbox.counters().stripe.operations, sandbox.counters().lago.operations
    known = len(predecessor_store.with_stripe_id)
    assert stripe["POST /v1/customers"] == ORGANIZATIONS - known
    assert stripe["POST /v1/customers/{id}"] == known
    assert lago["POST /api/v1/subscriptions"] == ORGANIZATIONS
    state = sandbox.state()
    assert len(state["stripe"]["customers"]) == ORGANIZATIONS
    assert len(state["lago"]["customers"]) == ORGANIZATIONS
    assert len(state["lago"]["subscriptions"]) == ORGANIZATIONS


def assert_ids_unchanged(database: Database, predecessor_store: PredecessorStore) -> None:
    with database.read() as session:
        rows = session.execute(text("SELECT org_id, provider, customer_id FROM billing_links")).all()
        members = session.execute(text("SELECT count(*) FROM memberships")).scalar_one()
    ids = {(org, provider): customer for org, provider, customer in rows}
    assert all(ids[org, "stripe"] == customer for org, customer in predecessor_store.with_stripe_id.items())
    assert all(ids[org, "lago"] == customer for org, customer in predecessor_store.with_lago_id.items())
    assert None not in ids.values()
    assert members == ORGANIZATIONS * MEMBERS


@pytest.mark.timeout(900)
def test_a_thousand_come_home_in_the_embedded_mode(
    sqlite_url: str,
    predecessor_store: PredecessorStore,
    sandbox: SandboxClient,
    sandbox_server: Sandbox,
    tmp_path: Path,
) -> None:
    database = Database(sqlite_url)
    with deployment(sqlite_url, "memory://", sandbox_server.url, tmp_path) as deployed:
        deployed.start("up")
        until(lambda: deployed.run("status", "--json").returncode == 0, "up")
        import_all(deployed, predecessor_store)
        until(lambda: is_idle(database), "all in sync or observed", seconds=400)
        assert_nothing_was_written_to_theirs(sandbox, predecessor_store)
        adopt_all(deployed, tmp_path)
        until(lambda: in_sync(database), "all in sync", seconds=400)
    assert_one_of_each(sandbox, predecessor_store)
    assert_ids_unchanged(database, predecessor_store)
    database.close()


@pytest.mark.timeout(900)
def test_a_thousand_come_home_through_two_workers_and_a_wiped_redis(  # noqa: PLR0913, PLR0917 - the whole house is under test
    postgres_database: Database,
    redis_url: str,
    predecessor_store: PredecessorStore,
    sandbox: SandboxClient,
    sandbox_server: Sandbox,
    tmp_path: Path,
) -> None:
    url = postgres_database.url.render_as_string(hide_password=False)
    with deployment(url, redis_url, sandbox_server.url, tmp_path) as deployed:
        for process in ("worker", "worker", "relay", "beat"):
            deployed.start(process)
        import_all(deployed, predecessor_store)
        until(lambda: sandbox.counters().stripe.total > ORGANIZATIONS // 4, "a quarter done")
        with redis_client.Redis.from_url(redis_url) as client:
            client.flushall()
        until(lambda: is_idle(postgres_database), "all in sync or observed", seconds=400)
        assert_nothing_was_written_to_theirs(sandbox, predecessor_store)
        adopt_all(deployed, tmp_path)
        until(lambda: in_sync(postgres_database), "all in sync", seconds=400)
    assert_one_of_each(sandbox, predecessor_store)
    assert_ids_unchanged(postgres_database, predecessor_store)
