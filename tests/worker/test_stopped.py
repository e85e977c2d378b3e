"""A biller that is down, or refuses our key, in running processes: it costs a few calls, and the other one goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from core.catalog import publishing
from core.catalog.plans import Catalog
from core.db.database import Database
from core.flow_control.circuit_breaker import OpenBreaker
from core.org_manager import OrgManager
from core.ports.spec import Provider
from core.reporting import overview as status_overview
from core.reporting.overview import Overview
from providers.lago.provider import LagoProvider
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.worker.deployment import STRIPE_KEY, Deployment, deployment, until

MANY = 50
THREADS = 8  # of one worker process
CREATE = "POST /v1/customers"


@dataclass
class Place:
    """All parts run; ``workers`` processes do the work."""

    deployed: Deployment
    database: Database
    sandbox: SandboxClient
    manager: OrgManager
    workers: int

    def create(self, count: int) -> None:
        for number in range(count):
            self.manager.create_organization(f"Organization {number}", "starter")

    def overview(self) -> Overview:
        with self.database.read() as session:
            return status_overview.summarize(session)

    def stop(self) -> OpenBreaker | None:
        return self.overview().providers["stripe"].open_breaker

    def in_sync(self, biller: Provider, count: int, seconds: float) -> None:
        until(lambda: self.overview().providers[biller].in_sync == count, seconds, f"{count} in sync at {biller}")

    def stripe_calls(self) -> dict[str, int]:
        return dict(self.sandbox.counters().stripe.operations)


@pytest.fixture(params=["embedded", "deployed"])
def place(
    request: pytest.FixtureRequest, sandbox: SandboxClient, sandbox_server: Sandbox, plans: Catalog, tmp_path: Path
) -> Iterator[Place]:
    lago = LagoProvider(sandbox_server.url, "key", payment_provider_code=None, ending=plans.ending)
    publishing.publish(plans, [lago])
    lago.close()
    embedded = request.param == "embedded"
    url = str(request.getfixturevalue("sqlite_url" if embedded else "postgres_url"))
    broker = "" if embedded else str(request.getfixturevalue("redis_url"))
    database = Database(url)
    database.upgrade()
    manager = OrgManager(database_url=url)
    with deployment(url, broker, sandbox_server.url, tmp_path) as deployed:
        for part in ["up"] if embedded else ["worker", "worker", "relay", "beat"]:
            deployed.start(part)
        asked = 1 if embedded else 2
        until(lambda: sandbox.counters().lago.operations.get("GET /api/v1/organizations") == asked, 60, "started")
        sandbox.reset_calls()
        yield Place(deployed, database, sandbox, manager, asked)
    manager.close()
    database.close()


def test_a_refused_key_costs_the_calls_that_are_under_way_and_not_one_for_each_organization(place: Place) -> None:
    place.sandbox.settings(revoked_keys=[STRIPE_KEY])
    place.create(MANY)
    place.in_sync("lago", MANY, 60)
    stop = place.stop()
    assert stop is not None
    assert stop.reason == "misconfigured"
    calls = place.sandbox.counters().stripe.total
    assert 1 <= calls <= THREADS * place.workers, calls
    place.sandbox.settings(revoked_keys=[])
    place.sandbox.reset_calls()
    assert place.deployed.run("retry", "--all").returncode == 0
    place.in_sync("stripe", MANY, 60)
    assert place.stripe_calls() == {CREATE: MANY}


def test_while_one_biller_is_down_the_other_goes_on_and_afterwards_each_waiting_one_costs_one_call(
    place: Place,
) -> None:
    place.sandbox.add_fault("stripe", "*", "500_before", times=0)
    place.create(MANY)
    place.in_sync("lago", MANY, 60)
    stop = place.stop()
    assert stop is not None
    assert stop.reason == "unavailable"
    calls = place.sandbox.counters().stripe.total
    assert calls <= THREADS * place.workers + 6, calls  # probes after 2, 4, 8, 16, 32 and 60 s
    place.sandbox.clear_faults()
    place.sandbox.reset_calls()
    place.in_sync("stripe", MANY, 90)
    assert place.stripe_calls() == {CREATE: MANY}
    assert len(place.sandbox.state()["stripe"]["customers"]) == MANY
    assert place.stop() is None


def test_a_worker_with_a_key_of_another_account_does_not_start_and_names_both(place: Place) -> None:
    place.create(1)
    place.in_sync("stripe", 1, 60)
    place.sandbox.settings(stripe_account="acct_other")
    command = "plans", "push"
    for words in (command, ("worker",)) if place.workers > 1 else (command,):
        refused = place.deployed.run(*words)
        assert refused.returncode == 2
        (sentence,) = refused.stderr.strip().splitlines()[-1:]
        assert "acct_sandbox in test mode" in sentence
        assert "acct_other" in sentence
        assert f"…{STRIPE_KEY[-4:]} " in sentence
        assert STRIPE_KEY not in refused.stderr + refused.stdout
    assert place.stop() is None
