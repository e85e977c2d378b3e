"""Several processes together keep within the billers' published limits, and let fresh changes pass a crowd."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.rate_limits import CREATE_CUSTOMER, BurstOptions, measure
from core.catalog import publishing
from core.catalog.plans import Catalog
from core.db.database import Database
from core.org_manager import OrgManager
from providers.lago.provider import LagoProvider
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.support.deployment import deployment
from tests.support.waiting import until

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("how", ["import", "burst"])
def test_two_processes_never_meet_a_429_and_fresh_changes_pass_the_crowd(
    postgres_url: str, redis_url: str, tmp_path: Path, how: str
) -> None:
    """The short form of benchmarks/rate_limits.py, which measures the share on a machine that does nothing else."""
    figures = measure(postgres_url, redis_url, tmp_path, BurstOptions(creates=150, workers=2, how=how))
    assert figures.throttled == {}
    assert figures.customers == figures.requests[CREATE_CUSTOMER] == 150
    for seconds in figures.interactive_seconds.values():
        assert seconds
        assert max(seconds) < 10


def test_a_biller_that_answers_slowly_does_not_keep_the_other_waiting(  # noqa: PLR0913, PLR0917 - the whole house
    postgres_url: str,
    redis_url: str,
    sandbox: SandboxClient,
    sandbox_server: Sandbox,
    plans: Catalog,
    tmp_path: Path,
) -> None:
    database = Database(postgres_url)
    database.upgrade()
    lago = LagoProvider(sandbox_server.url, "key", payment_provider_code=None, ending=plans.ending)
    publishing.publish(plans, [lago])
    lago.close()
    sandbox.add_fault("stripe", CREATE_CUSTOMER, "slow", times=0, seconds=8)
    manager = OrgManager(database_url=postgres_url)
    with deployment(postgres_url, redis_url, sandbox_server.url, tmp_path) as deployed:
        for process in ("worker", "relay", "beat"):
            deployed.start(process)
        until(lambda: sandbox.counters().stripe.total > 0, "the worker runs")
        for number in range(40):
            manager.create_organization(f"Company {number}")
        # Eight threads that wait for Stripe alone would need five times the 8 s for forty organizations.
        until(lambda: sandbox.counters().lago.of("POST /api/v1/subscriptions") == 40, "all of them at Lago", seconds=35)
        assert sandbox.counters().stripe.of(CREATE_CUSTOMER) < 40
        sandbox.clear_faults()
    manager.close()
    database.close()
