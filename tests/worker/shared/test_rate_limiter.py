"""The buckets in Redis and those in memory decide alike, and whatever comes, nobody is let through too fast."""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.flow_control.rate_limiter import (
    LocalRateLimiter,
    Priority,
    ProviderRateLimits,
    RateLimit,
)
from core.flow_control.token_bucket import MICROSECONDS_PER_SECOND
from core.ports.spec import PROVIDERS, Provider
from worker.shared.rate_limiter import ASSUMED_PROCESS_COUNT, RedisRateLimiter

LIMITS: dict[Provider, ProviderRateLimits] = {
    "stripe": ProviderRateLimits(RateLimit(98.0, 20), RateLimit(24.5, 5)),
    "lago": ProviderRateLimits(RateLimit(45.0, 2), calls_per_reconcile=2),
}
OPERATIONS = ("POST /v1/customers", "GET /v1/customers/{id}")
BEGIN = 1_790_000_000 * MICROSECONDS_PER_SECOND

providers = st.sampled_from(PROVIDERS)
operations = st.sampled_from(OPERATIONS)
reasons = st.sampled_from([None, "global-rate", "endpoint-rate", "endpoint-concurrency"])
priorities: st.SearchStrategy[Priority] = st.sampled_from(["interactive", "bulk", "in_flight"])
pauses = st.integers(0, 400_000) | st.sampled_from(
    [0, 1, 5 * MICROSECONDS_PER_SECOND, 40 * MICROSECONDS_PER_SECOND, 90 * MICROSECONDS_PER_SECOND]
)
takes = st.tuples(st.just("take"), pauses, providers, operations, st.integers(0, 6), priorities)
penalties = st.tuples(st.just("slow"), pauses, providers, operations, reasons, st.sampled_from([0.0, 0.5, 3.0]))
# Enough takes at one moment that lines form.
bursts = st.tuples(st.just("crowd"), st.integers(0, 60_000), providers, operations, st.integers(1, 60), priorities)


# Slower than one a second, where a turn that has begun waits for longer.
SLOW: dict[Provider, ProviderRateLimits] = {
    "stripe": ProviderRateLimits(RateLimit(1.5, 3), RateLimit(0.3, 2)),
    "lago": ProviderRateLimits(RateLimit(0.45, 2), calls_per_reconcile=2),
}


@pytest.fixture
def shared(redis_url: str) -> Iterator[RedisRateLimiter]:
    rate_limiter = RedisRateLimiter(LIMITS, redis_url)
    yield rate_limiter
    rate_limiter.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(takes | penalties | bursts, max_size=40))
def test_redis_decides_as_memory_does(
    steps: list[tuple[object, ...]], shared: RedisRateLimiter, redis_url: str
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    now = BEGIN
    local = LocalRateLimiter(LIMITS, lambda: now)
    for step in steps:
        match step:
            case ("slow", int() as pause, provider, str() as operation, reason, float() as seconds):
                now += pause
                shared.fixed_now = now
                for rate_limiter in (local, shared):
                    rate_limiter.penalize(_provider(provider), operation, _text(reason), seconds)
            case (kind, int() as pause, provider, str() as operation, int() as many, priority):
                now += pause
                shared.fixed_now = now
                holders = [f"org_{n}_{now}" for n in range(many)] if kind == "crowd" else [f"org_{many}"]
                for holder in holders:
                    in_memory = local.acquire(_provider(provider), operation, holder, _priority(priority))
                    in_redis = shared.acquire(_provider(provider), operation, holder, _priority(priority))
                    assert in_memory == in_redis
            case _:
                pytest.fail("a step of an unknown kind")


@pytest.mark.parametrize("limits", [LIMITS, SLOW], ids=["as published", "slow"])
@pytest.mark.parametrize("seed", range(4))
def test_redis_decides_as_memory_does_through_a_long_day(
    seed: int, limits: dict[Provider, ProviderRateLimits], redis_url: str
) -> None:
    """Lines that form and drain, people who come back early, in time and late, and one 429 after the other."""
    now = BEGIN
    local, shared = LocalRateLimiter(limits, lambda: now), RedisRateLimiter(limits, redis_url)
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    for _ in range(1500):
        now += chance.choice([0, 0, 0, 20_000, 100_000, 300_000, 2_500_000])
        shared.fixed_now = now
        provider, operation = chance.choice(PROVIDERS), chance.choice(OPERATIONS)
        if chance.random() < 0.05:
            reason, pause = chance.choice([None, "global-rate"]), chance.choice([0.0, 1.0])
            for rate_limiter in (local, shared):
                rate_limiter.penalize(provider, operation, reason, pause)
            continue
        holder, priority = (
            f"org_{chance.randrange(200)}",
            _priority(chance.choice(["interactive", "bulk", "bulk", "in_flight"])),
        )
        assert local.acquire(provider, operation, holder, priority) == shared.acquire(
            provider, operation, holder, priority
        )
    shared.close()


def test_threads_that_share_redis_get_the_rate_and_the_burst_together(shared: RedisRateLimiter) -> None:
    shared.fixed_now = BEGIN

    def ask(number: int) -> str:
        return shared.acquire("stripe", OPERATIONS[0], f"org_{number}", "interactive").state

    with ThreadPoolExecutor(8) as pool:
        states = Counter(pool.map(ask, range(400)))
    # The burst, a quarter of a second of patience at 24.5, and a line of five seconds.
    assert states["go"] == 5 + int(24.5 / 4)
    assert states["go"] + states["queued"] in range(5 + int(24.5 * 5), 9 + int(24.5 * 5))


def test_a_wiped_redis_starts_the_buckets_anew(shared: RedisRateLimiter, redis_url: str) -> None:
    shared.fixed_now = BEGIN
    while shared.acquire("lago", "POST /customers", "org_1", "bulk").state == "go":
        pass
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        client.script_flush()
    assert shared.acquire("lago", "POST /customers", "org_1", "bulk").state == "go"


def test_without_redis_each_process_goes_on_with_its_share() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    rate_limiter = RedisRateLimiter(LIMITS, f"redis://127.0.0.1:{port}")
    slots = [rate_limiter.acquire("stripe", OPERATIONS[0], f"org_{number}", "interactive") for number in range(20)]
    assert slots[0].state == "go"
    queued = [slot for slot in slots if slot.state == "queued"]
    spacing = {round(after.seconds - before.seconds, 2) for before, after in pairwise(queued)}
    assert spacing == {round(ASSUMED_PROCESS_COUNT / 24.5, 2)}
    rate_limiter.penalize("stripe", OPERATIONS[0], None, 0.0)
    rate_limiter.close()


def _provider(value: object) -> Provider:
    return "stripe" if value == "stripe" else "lago"


def _priority(value: object) -> Priority:
    return "interactive" if value == "interactive" else "bulk" if value == "bulk" else "in_flight"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
