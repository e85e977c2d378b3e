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
from tests.support.deployment import STRIPE_KEY, Deployment, deployment
from tests.support.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.processes

MANY = 50
THREADS = 8  # of one worker process
CREATE = "POST /v1/customers"


@dataclass
class SystemInOutage:
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

    def open_breaker(self) -> OpenBreaker | None:
        return self.overview().providers["stripe"].open_breaker

    def in_sync(self, provider: Provider, count: int, seconds: float = PATIENCE_SECONDS) -> None:
        def are_in_sync() -> bool:
            return self.overview().providers[provider].in_sync == count

        until(are_in_sync, f"{count} in sync at {provider}", seconds=seconds)

    def stripe_calls(self) -> dict[str, int]:
        return dict(self.sandbox.counters().stripe.operations)


@pytest.fixture(params=["embedded", "deployed"])
def system(
    request: pytest.FixtureRequest, sandbox: SandboxClient, sandbox_server: Sandbox, plans: Catalog, tmp_path: Path
) -> Iterator[SystemInOutage]:
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
        until(lambda: sandbox.counters().lago.operations.get("GET /api/v1/organizations") == asked, "started")
        sandbox.reset_calls()
        yield SystemInOutage(deployed, database, sandbox, manager, asked)
    manager.close()
    database.close()


def test_a_refused_key_costs_the_calls_that_are_under_way_and_not_one_for_each_organization(
    system: SystemInOutage,
) -> None:
    system.sandbox.settings(revoked_keys=[STRIPE_KEY])
    system.create(MANY)
    system.in_sync("lago", MANY)
    breaker = system.open_breaker()
    assert breaker is not None
    assert breaker.reason == "misconfigured"
    calls = system.sandbox.counters().stripe.total
    assert 1 <= calls <= THREADS * system.workers, calls
    system.sandbox.settings(revoked_keys=[])
    system.sandbox.reset_calls()
    assert system.deployed.run("retry", "--all").returncode == 0
    system.in_sync("stripe", MANY)
    assert system.stripe_calls() == {CREATE: MANY}


def test_while_one_biller_is_down_the_other_goes_on_and_afterwards_each_waiting_one_costs_one_call(
    system: SystemInOutage,
) -> None:
    system.sandbox.add_fault("stripe", "*", "500_before", times=0)
    system.create(MANY)
    system.in_sync("lago", MANY)
    breaker = system.open_breaker()
    assert breaker is not None
    assert breaker.reason == "unavailable"
    calls = system.sandbox.counters().stripe.total
    assert calls <= THREADS * system.workers + 6, calls  # probes after 2, 4, 8, 16, 32 and 60 s
    system.sandbox.clear_faults()
    system.sandbox.reset_calls()
    system.in_sync("stripe", MANY, seconds=120)
    assert system.stripe_calls() == {CREATE: MANY}
    assert len(system.sandbox.state()["stripe"]["customers"]) == MANY
    assert system.open_breaker() is None


def test_a_worker_with_a_key_of_another_account_does_not_start_and_names_both(system: SystemInOutage) -> None:
    system.create(1)
    system.in_sync("stripe", 1)
    system.sandbox.settings(stripe_account="acct_other")
    command = "plans", "push"
    for words in (command, ("worker",)) if system.workers > 1 else (command,):
        refused = system.deployed.run(*words)
        assert refused.returncode == 2
        (sentence,) = refused.stderr.strip().splitlines()[-1:]
        assert "acct_sandbox in test mode" in sentence
        assert "acct_other" in sentence
        assert f"…{STRIPE_KEY[-4:]} " in sentence
        assert STRIPE_KEY not in refused.stderr + refused.stdout
    assert system.open_breaker() is None
