"""The quota of all worker processes together: the buckets of ``rate_limiter`` in Redis, one round trip a request.

Redis' own clock counts, and everything in it may be lost at any time: the buckets then start anew. While Redis does not
answer, each process goes on by itself with its share.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, cast

import redis
import structlog

from core.flow_control.rate_limiter import (
    MAX_IN_FLIGHT_WAIT_MICROSECONDS,
    MAX_PENALTY_HALVINGS,
    MICROSECONDS_PER_SECOND,
    MIN_QUEUE_FULL_WAIT_MICROSECONDS,
    PENALTY_MERGE_MICROSECONDS,
    PENALTY_MICROSECONDS,
    RESERVATION_TTL_MICROSECONDS,
    WAIT_POLICIES,
    LocalRateLimiter,
    Permit,
    Priority,
    ProviderRateLimits,
    RateLimit,
    buckets,
    penalized_bucket,
)
from core.ports.spec import Provider

log = structlog.get_logger()

# A request waits for the answer inside a turn; Redis answers in less than a millisecond or is away.
RATE_LIMITER_REDIS_TIMEOUT_SECONDS: Final = 0.5  # seconds
RATE_LIMITER_REDIS_RETRY_SECONDS: Final = 2.0  # seconds
# Nobody knows how many processes there are while they cannot see each other: so many stay within the limits.
ASSUMED_PROCESS_COUNT: Final = 4

# KEYS: the reservations, then every bucket that is passed. ARGV: the moment (0: Redis' own clock), then what
# ``acquire`` knows.
_ACQUIRE_PERMIT_SCRIPT: Final = """
local now = tonumber(ARGV[1])
if now == 0 then local t = redis.call('TIME'); now = t[1] * 1000000 + t[2] end
local holder, priority = ARGV[2], ARGV[3]
local max_wait, max_queue_wait = tonumber(ARGV[4]), tonumber(ARGV[5])
local reservation_ttl, soonest, longest_in_flight_wait = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. string.format('%.0f', now - reservation_ttl))
local wait, queue_end, widest, passed = 0, 0, 0, {}
for n = 2, #KEYS do
  local row = redis.call('HMGET', KEYS[n], 'next_at', 'fresh', 'bulk', 'halvings', 'slow_until')
  local b = {key = KEYS[n], next_at = tonumber(row[1]) or 0}
  b.fresh, b.bulk = tonumber(row[2]) or 0, tonumber(row[3]) or 0
  b.interval = tonumber(ARGV[5 + 2 * n])
  if (tonumber(row[5]) or 0) > now then b.interval = b.interval * 2 ^ tonumber(row[4]) end
  wait = math.max(wait, b.next_at - (tonumber(ARGV[6 + 2 * n]) - 1) * b.interval - now)
  widest = math.max(widest, b.interval)
  queue_end = math.max(queue_end, b.fresh, priority == 'bulk' and b.bulk or 0)
  passed[#passed + 1] = b
end
if priority == 'in_flight' then max_wait = math.max(max_wait, math.min(longest_in_flight_wait, 2 * widest)) end
local reserved_at = tonumber(redis.call('ZSCORE', KEYS[1], holder) or nil)
local due = reserved_at and reserved_at <= now + max_wait
if wait <= max_wait and (priority == 'in_flight' or due or queue_end <= now + max_wait) then
  redis.call('ZREM', KEYS[1], holder)
  for _, b in ipairs(passed) do
    redis.call('HSET', b.key, 'next_at', math.max(b.next_at, now) + b.interval)
    redis.call('EXPIRE', b.key, 3600)
  end
  return {'go', wait}
end
if reserved_at and not due then return {'queued', reserved_at - now} end
reserved_at = math.max(now + wait, queue_end)
if reserved_at - now > max_queue_wait then
  redis.call('ZREM', KEYS[1], holder)
  return {'full', math.max(soonest, reserved_at - now - max_queue_wait)}
end
local narrow = passed[1]
for _, b in ipairs(passed) do if b.interval > narrow.interval then narrow = b end end
redis.call('HSET', narrow.key, priority == 'bulk' and 'bulk' or 'fresh', reserved_at + narrow.interval)
redis.call('EXPIRE', narrow.key, 3600)
redis.call('ZADD', KEYS[1], reserved_at, holder)
redis.call('EXPIRE', KEYS[1], 3600)
return {'queued', reserved_at - now}
"""

_PENALIZE_SCRIPT: Final = """
local now = tonumber(ARGV[1])
if now == 0 then local t = redis.call('TIME'); now = t[1] * 1000000 + t[2] end
local interval, burst, pause = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local slow_for, same_moment, slowest = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local row = redis.call('HMGET', KEYS[1], 'next_at', 'halvings', 'slowed_at', 'slow_until')
local next_at, halvings = tonumber(row[1]) or 0, tonumber(row[2]) or 0
local slowed_at, still = tonumber(row[3]) or 0, (tonumber(row[4]) or 0) > now
if not (still and now - slowed_at < same_moment) then
  halvings = math.min(slowest, (still and halvings or 0) + 1)
  slowed_at = now
end
next_at = math.max(next_at, now + pause + (burst - 1) * interval * 2 ^ halvings)
redis.call('HSET', KEYS[1], 'next_at', next_at, 'slow_until', now + slow_for)
redis.call('HSET', KEYS[1], 'halvings', halvings, 'slowed_at', slowed_at)
redis.call('EXPIRE', KEYS[1], 3600)
return halvings
"""


class RedisRateLimiter:
    """``moment``: for tests that bring their own time; 0 asks Redis."""

    def __init__(self, limits: Mapping[Provider, ProviderRateLimits], redis_url: str) -> None:
        self.fixed_now = 0
        self._limits = limits
        self._local = LocalRateLimiter({provider: _process_share(each) for provider, each in limits.items()})
        self._redis = redis.Redis.from_url(
            redis_url,
            socket_timeout=RATE_LIMITER_REDIS_TIMEOUT_SECONDS,
            socket_connect_timeout=RATE_LIMITER_REDIS_TIMEOUT_SECONDS,
            decode_responses=True,
        )
        self._acquire_script = self._redis.register_script(_ACQUIRE_PERMIT_SCRIPT)
        self._penalize_script = self._redis.register_script(_PENALIZE_SCRIPT)
        self._unavailable_until = 0.0
        self._lock = threading.Lock()

    def acquire(self, provider: Provider, operation: str, holder: str, priority: Priority) -> Permit:
        if self._is_unavailable():
            return self._local.acquire(provider, operation, holder, priority)
        limits = buckets(self._limits[provider], provider, operation)
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
        arguments += [number for _, limit in limits for number in (limit.interval, limit.burst)]
        keys = [_key(provider, "places"), *(_key(provider, name) for name, _ in limits)]
        try:
            state, micros = cast("tuple[str, int]", self._acquire_script(keys, arguments))
        except redis.RedisError as error:
            self._mark_unavailable(error)
            return self._local.acquire(provider, operation, holder, priority)
        if state == "go":
            return Permit("go", micros / MICROSECONDS_PER_SECOND)
        return Permit("queued" if state == "queued" else "full", micros / MICROSECONDS_PER_SECOND)

    def penalize(self, provider: Provider, operation: str, reason: str | None, pause_seconds: float) -> None:
        self._local.penalize(provider, operation, reason, pause_seconds)
        if self._is_unavailable():
            return
        name, limit = penalized_bucket(self._limits[provider], provider, operation, reason)
        numbers = [
            limit.interval,
            limit.burst,
            int(pause_seconds * MICROSECONDS_PER_SECOND),
            PENALTY_MICROSECONDS,
            PENALTY_MERGE_MICROSECONDS,
            MAX_PENALTY_HALVINGS,
        ]
        try:
            self._penalize_script([_key(provider, name)], [self.fixed_now, *numbers])
        except redis.RedisError as error:
            self._mark_unavailable(error)

    def expected_rate(self, provider: Provider) -> float:
        return self._limits[provider].reconciles_per_second

    def close(self) -> None:
        self._redis.close()

    def _is_unavailable(self) -> bool:
        with self._lock:
            return time.monotonic() < self._unavailable_until

    def _mark_unavailable(self, error: redis.RedisError) -> None:
        with self._lock:
            self._unavailable_until = time.monotonic() + RATE_LIMITER_REDIS_RETRY_SECONDS
        # The class alone: the text may hold the address with its password.
        log.warning("redis_fallback_active", component="rate_limiter", error=type(error).__name__)


def _key(provider: Provider, name: str) -> str:
    # In braces what a cluster hashes by: one script reads them all.
    return f"billing-sync:{{{provider}}}:{name}"


def _process_share(limits: ProviderRateLimits) -> ProviderRateLimits:
    def share(limit: RateLimit) -> RateLimit:
        return replace(limit, rate=limit.rate / ASSUMED_PROCESS_COUNT, burst=1)

    return ProviderRateLimits(share(limits.account), share(limits.operation) if limits.operation else None)
