"""What a process measures of itself: each request once, by what came of it, and no label with an id."""

from __future__ import annotations

import pytest

from core.common.process_metrics import PROCESS_METRICS, ProcessMetrics
from core.flow_control.rate_limiter import LocalRateLimiter, ProviderRateLimits, RateLimit
from core.flow_control.request_gate import RequestGates
from core.ports.errors import MustWaitError
from core.ports.spec import Provider
from tests.support.metrics_page import Values, value, values_of
from tests.support.sync_world import SyncWorld

one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
CREATE_CUSTOMER = "POST /v1/customers"


def requests(found: Values, provider: str, **labels: str) -> float:
    wanted = {"provider": provider, **labels}.items()
    name = "billing_sync_provider_requests_total"
    return sum(number for (each, has), number in found.items() if each == name and wanted <= has)


@pytest.mark.parametrize(("status", "shown"), [(200, "2xx"), (404, "4xx"), (429, "429"), (503, "5xx"), (None, "none")])
def test_a_request_is_counted_by_the_class_of_its_status(status: int | None, shown: str) -> None:
    metrics = ProcessMetrics()
    metrics.record_request("stripe", CREATE_CUSTOMER, "unavailable", status, 0.2)
    found = values_of(metrics.registry)
    labels = {"provider": "stripe", "operation": CREATE_CUSTOMER}
    assert value(found, "provider_requests_total", **labels, outcome="unavailable", status=shown) == 1
    assert value(found, "provider_request_seconds_sum", **labels) == pytest.approx(0.2)


@one_database
@pytest.mark.parametrize(
    ("provider", "operation", "fault", "status", "outcome"),
    [
        ("stripe", CREATE_CUSTOMER, "429", "429", "throttled"),
        ("stripe", CREATE_CUSTOMER, "reset", "none", "unavailable"),
        ("lago", "POST /api/v1/customers", "429", "429", "throttled"),
        ("lago", "POST /api/v1/customers", "401", "4xx", "misconfigured"),
    ],
)
def test_an_attempt_counts_each_request_and_what_came_of_it(  # noqa: PLR0913, PLR0917 - one for each column
    world: SyncWorld, provider: Provider, operation: str, fault: str, status: str, outcome: str
) -> None:
    org_id = world.create()
    if provider == "lago":
        world.run(org_id, "stripe")  # whose customer Lago charges
    before = values_of(PROCESS_METRICS.registry)
    world.sandbox.add_fault(provider, operation, fault)
    world.run(org_id, provider)
    after = values_of(PROCESS_METRICS.registry)
    labels = {"operation": operation, "outcome": outcome, "status": status}
    assert requests(after, provider, **labels) - requests(before, provider, **labels) == 1
    assert org_id not in str(after)


@one_database
def test_a_change_is_timed_once_when_its_link_is_in_sync(world: SyncWorld) -> None:
    def timed() -> tuple[float, float]:
        found = values_of(PROCESS_METRICS.registry)
        name = "commit_to_sync_seconds"
        return value(found, f"{name}_count", provider="lago") or 0, value(found, f"{name}_sum", provider="lago") or 0

    count, seconds = timed()
    org_id = world.create()
    world.wait(40)
    world.reconcile_until_idle(org_id)
    assert timed()[0] == count + 1
    assert 40 <= timed()[1] - seconds < 50
    world.reconcile_until_idle(org_id)
    assert timed()[0] == count + 1


def test_only_a_permit_that_is_waited_for_counts() -> None:
    def waits() -> tuple[float, float]:
        found = values_of(PROCESS_METRICS.registry)
        name = "permit_wait_seconds"
        return value(found, f"{name}_count", provider="lago") or 0, value(found, f"{name}_sum", provider="lago") or 0

    limits: dict[Provider, ProviderRateLimits] = {"lago": ProviderRateLimits(RateLimit(0.5, burst=1))}
    gates = RequestGates(LocalRateLimiter(limits, now=lambda: 0))
    count, seconds = waits()
    gates.open_gate("lago", "org_1", "interactive").before_request("GET /api/v1/plans")
    assert waits() == (count, seconds)
    with pytest.raises(MustWaitError):
        gates.open_gate("lago", "org_2", "interactive").before_request("GET /api/v1/plans")
    assert waits()[0] == count + 1
    assert waits()[1] - seconds == pytest.approx(2.0)
