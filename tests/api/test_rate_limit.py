"""Each caller has a bucket: who asks too often is told when to come back, and nobody else notices."""

from __future__ import annotations

import time

import pytest

from api.auth.permissions import PERMISSIONS
from api.rate_limit import ClientRateLimiter, LocalClientRateLimiter
from tests.support.api_client import Api
from worker.shared.client_rate_limiter import RedisClientRateLimiter

one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

RATE = 5.0


class RateLimitClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def moment() -> RateLimitClock:
    return RateLimitClock()


@pytest.fixture
def rate_limiter(moment: RateLimitClock) -> ClientRateLimiter:
    return LocalClientRateLimiter(RATE, moment)


@one_database
def test_a_caller_who_asks_too_often_is_told_when_to_come_back(api: Api, moment: RateLimitClock) -> None:
    mine, others = api.as_("u1"), api.as_("u2")
    assert {api.get("/api/organizations", mine).status_code for _ in range(10)} == {200}
    refused = api.get("/api/organizations", mine)
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["type"] == "urn:billing-sync:problem:too-many-requests"
    assert api.get("/api/organizations", others).status_code == 200
    moment.now += 0.2
    assert [api.get("/api/organizations", mine).status_code for _ in range(2)] == [200, 429]


@one_database
def test_a_service_account_is_one_caller_with_all_its_keys(api: Api) -> None:
    first, second, other = api.as_service(), api.as_service(), api.as_service(account="another service")
    assert [api.get("/api/organizations", first).status_code for _ in range(11)] == [200] * 10 + [429]
    assert api.get("/api/organizations", second).status_code == 429
    assert api.get("/api/organizations", other).status_code == 200


@one_database
def test_who_shows_nothing_that_opens_is_counted_by_address_and_holds_up_nobody_who_does(api: Api) -> None:
    bad = {"Authorization": "Bearer bsk_0000000000000000_" + "A" * 43}
    assert [api.get("/api/organizations", bad).status_code for _ in range(11)] == [401] * 10 + [429]
    assert api.get("/api/organizations").status_code == 429
    assert api.get("/api/organizations", api.as_("u1")).status_code == 200


@one_database
@pytest.mark.parametrize(("path", "status"), [("/auth/login", 303), ("/auth/callback", 400)])
def test_sign_in_by_browser_is_counted_by_address(api: Api, path: str, status: int) -> None:
    assert [api.get(path).status_code for _ in range(11)] == [status] * 10 + [429]
    assert "retry-after" in api.get(path).headers
    assert api.get("/api/organizations", api.as_("u1")).status_code == 200
    assert api.get("/healthz").status_code == 200


@one_database
def test_probes_and_webhooks_of_providers_are_counted_for_nobody(api: Api) -> None:
    assert {api.get("/healthz").status_code for _ in range(30)} == {200}
    assert {api.get("/readyz").status_code for _ in range(30)} == {200}
    assert 429 not in {api.http.post("/webhooks/stripe", content=b"{}").status_code for _ in range(30)}


def test_each_public_route_is_limited_but_probes_and_webhooks() -> None:
    """A route that is added later is limited unless it says otherwise."""
    unlimited = {path for (_, path), rule in PERMISSIONS.items() if rule.is_unlimited}
    assert {path for path in unlimited if "webhooks" not in path} == {"/healthz", "/readyz"}
    assert {path for (_, path), rule in PERMISSIONS.items() if rule.public and not rule.is_unlimited} == {
        "/auth/login",
        "/auth/callback",
    }


def count_allowed(rate_limiter: ClientRateLimiter, callers: int = 1, tries: int = 30) -> int:
    return sum(rate_limiter.acquire(f"caller {each}") == 0 for _ in range(tries) for each in range(callers))


def test_a_bucket_is_full_after_a_pause_and_never_fuller(moment: RateLimitClock) -> None:
    rate_limiter = LocalClientRateLimiter(RATE, moment)
    assert count_allowed(rate_limiter) == 10
    moment.now += 1
    assert count_allowed(rate_limiter) == 5
    moment.now += 3600
    assert count_allowed(rate_limiter) == 10


def test_a_rate_below_one_a_second_lets_one_through_at_a_time(moment: RateLimitClock) -> None:
    rate_limiter = LocalClientRateLimiter(0.25, moment)
    assert count_allowed(rate_limiter) == 1
    assert rate_limiter.acquire("caller 0") == pytest.approx(4)
    moment.now += 4
    assert count_allowed(rate_limiter) == 1


def test_callers_beyond_number_cost_no_memory_beyond_bound(moment: RateLimitClock) -> None:
    rate_limiter = LocalClientRateLimiter(RATE, moment, max_clients=10)
    for number in range(1000):
        assert rate_limiter.acquire(f"caller {number}") == 0
    assert len(rate_limiter.__dict__["_full_at"]) == 10


def test_processes_share_a_callers_bucket_through_redis(redis_url: str) -> None:
    first, second = RedisClientRateLimiter(RATE, redis_url), RedisClientRateLimiter(RATE, redis_url)
    began = time.monotonic()
    passed = count_allowed(first, tries=8) + count_allowed(second, tries=20)
    assert 10 <= passed <= 10 + RATE * (time.monotonic() - began) + 1
    wait = second.acquire("caller 0")
    assert 0 < wait <= 1 / RATE
    time.sleep(wait)
    assert first.acquire("caller 0") == 0
    first.close()
    second.close()


def test_without_redis_each_process_keeps_pace_by_itself() -> None:
    alone = RedisClientRateLimiter(RATE, "redis://127.0.0.1:1/0")
    began = time.monotonic()
    passed = count_allowed(alone)
    took = time.monotonic() - began
    assert 10 <= passed <= 10 + RATE * took + 1
    assert took < 2  # a second try at Redis, each time, takes longer
    alone.close()
