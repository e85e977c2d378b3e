"""Rate limiter per provider, shared by all processes in Redis: ``core.flow_control.token_bucket`` in Lua.

Each permit costs one round trip, and Redis' clock sets the time. The data in Redis may be lost at any time: the buckets
then start full. While Redis does not respond, each process continues locally with its share of the limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal, cast

from core.flow_control.rate_limiter import (
    RESERVATION_TTL_MICROSECONDS,
    LocalRateLimiter,
    ProviderRateLimits,
    buckets,
    penalized_bucket,
)
from core.flow_control.token_bucket import (
    MAX_IN_FLIGHT_WAIT_MICROSECONDS,
    MAX_PENALTY_HALVINGS,
    MICROSECONDS_PER_SECOND,
    MIN_QUEUE_FULL_WAIT_MICROSECONDS,
    PENALTY_MERGE_MICROSECONDS,
    PENALTY_MICROSECONDS,
    WAIT_POLICIES,
    Permit,
    Priority,
    RateLimit,
)
from core.ports.spec import Provider
from worker.shared.redis_fallback import RedisWithFallback

# A sync attempt waits for this response. A healthy Redis responds in under a millisecond.
RATE_LIMITER_REDIS_TIMEOUT_SECONDS: Final = 0.5  # seconds
RATE_LIMITER_REDIS_RETRY_SECONDS: Final = 2.0  # seconds
# Without Redis the number of processes is unknown. Up to this many stay within the limits together.
ASSUMED_PROCESS_COUNT: Final = 4

_ACQUIRE_PERMIT_SCRIPT: Final = Path(__file__).with_name("acquire_permit.lua").read_text(encoding="utf-8")
_PENALIZE_SCRIPT: Final = Path(__file__).with_name("penalize.lua").read_text(encoding="utf-8")


class RedisRateLimiter:
    """Set ``fixed_now`` in tests that use their own time; 0 means Redis' clock."""

    def __init__(self, limits: Mapping[Provider, ProviderRateLimits], redis_url: str) -> None:
        self.fixed_now = 0
        self._limits = limits
        self._local = LocalRateLimiter({provider: _process_share(each) for provider, each in limits.items()})
        self._redis = RedisWithFallback(
            redis_url,
            "rate_limiter",
            timeout_seconds=RATE_LIMITER_REDIS_TIMEOUT_SECONDS,
            retry_seconds=RATE_LIMITER_REDIS_RETRY_SECONDS,
        )
        self._acquire_script = self._redis.client.register_script(_ACQUIRE_PERMIT_SCRIPT)
        self._penalize_script = self._redis.client.register_script(_PENALIZE_SCRIPT)

    def acquire(self, provider: Provider, operation: str, holder: str, priority: Priority) -> Permit:
        return self._redis.run(
            lambda: self._acquire(provider, operation, holder, priority),
            lambda: self._local.acquire(provider, operation, holder, priority),
        )

    def penalize(self, provider: Provider, operation: str, reason: str | None, pause_seconds: float) -> None:
        self._local.penalize(provider, operation, reason, pause_seconds)
        self._redis.run(lambda: self._penalize(provider, operation, reason, pause_seconds), lambda: None)

    def expected_rate(self, provider: Provider) -> float:
        return self._limits[provider].reconciles_per_second

    def close(self) -> None:
        self._redis.close()

    def _acquire(self, provider: Provider, operation: str, holder: str, priority: Priority) -> Permit:
        limited = buckets(self._limits[provider], provider, operation)
        policy = WAIT_POLICIES[priority]
        arguments: list[str | int] = [
            self.fixed_now,
            holder,
            priority,
            policy.max_inline_wait,
            policy.max_queue_wait,
            RESERVATION_TTL_MICROSECONDS,
            MIN_QUEUE_FULL_WAIT_MICROSECONDS,
            MAX_IN_FLIGHT_WAIT_MICROSECONDS,
        ]
        arguments += [number for _, limit in limited for number in (limit.interval, limit.burst)]
        # "places" holds the reservations. Running processes share this name, so it stays.
        keys = [_key(provider, "places"), *(_key(provider, name) for name, _ in limited)]
        state, wait = cast(
            "tuple[Literal['go', 'queued', 'full'], int]",
            self._acquire_script(keys, arguments),
        )
        return Permit(state, wait / MICROSECONDS_PER_SECOND)

    def _penalize(self, provider: Provider, operation: str, reason: str | None, pause_seconds: float) -> None:
        name, limit = penalized_bucket(self._limits[provider], provider, operation, reason)
        arguments = [
            self.fixed_now,
            limit.interval,
            limit.burst,
            int(pause_seconds * MICROSECONDS_PER_SECOND),
            PENALTY_MICROSECONDS,
            PENALTY_MERGE_MICROSECONDS,
            MAX_PENALTY_HALVINGS,
        ]
        self._penalize_script([_key(provider, name)], arguments)


def _key(provider: Provider, name: str) -> str:
    # The braces put all keys of a provider into one hash slot of a cluster, so that one script can read them.
    return f"billing-sync:{{{provider}}}:{name}"


def _process_share(limits: ProviderRateLimits) -> ProviderRateLimits:
    def share(limit: RateLimit) -> RateLimit:
        return replace(limit, rate=limit.rate / ASSUMED_PROCESS_COUNT, burst=1)

    return ProviderRateLimits(share(limits.account), share(limits.operation) if limits.operation else None)
