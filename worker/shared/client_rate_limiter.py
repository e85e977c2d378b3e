"""Rate limiter per API caller, shared by all API processes in Redis and timed by its clock.

While Redis does not respond, each process limits its callers on its own.
"""

from __future__ import annotations

from typing import Final, cast

from api.rate_limit import (
    CLIENT_BURST_SECONDS,
    CLIENT_TICKS_PER_SECOND,
    LocalClientRateLimiter,
    burst_tolerance,
    client_key,
)
from worker.shared.redis_fallback import RedisWithFallback

CLIENT_LIMIT_REDIS_TIMEOUT_SECONDS: Final = 0.25  # seconds; a healthy Redis responds in under a millisecond
CLIENT_LIMIT_REDIS_RETRY_SECONDS: Final = 5.0  # seconds

# KEYS: the bucket. ARGV: its interval and burst tolerance in microseconds, and its time to live in milliseconds.
_ACQUIRE_CLIENT_SCRIPT: Final = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local due = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
if due - now > tonumber(ARGV[2]) then return due - now - tonumber(ARGV[2]) end
redis.call('SET', KEYS[1], string.format('%.0f', due + tonumber(ARGV[1])), 'PX', ARGV[3])
return 0
"""


class RedisClientRateLimiter:
    def __init__(self, rate: float, redis_url: str) -> None:
        self._interval = int(CLIENT_TICKS_PER_SECOND / rate)
        self._burst_tolerance = burst_tolerance(rate)
        self._expires_in_ms = (
            int(1000 * (CLIENT_BURST_SECONDS + 1.0 / rate)) + 1
        )  # milliseconds: an idle bucket is full by then
        self._local = LocalClientRateLimiter(rate)
        self._redis = RedisWithFallback(
            redis_url,
            "client_rate_limiter",
            timeout_seconds=CLIENT_LIMIT_REDIS_TIMEOUT_SECONDS,
            retry_seconds=CLIENT_LIMIT_REDIS_RETRY_SECONDS,
            decode_responses=False,
        )
        self._acquire_script = self._redis.client.register_script(_ACQUIRE_CLIENT_SCRIPT)

    def acquire(self, caller: str) -> float:
        name = client_key(caller)
        return self._redis.run(lambda: self._acquire(name), lambda: self._local.acquire(name))

    def close(self) -> None:
        self._redis.close()

    def _acquire(self, name: str) -> float:
        arguments = [self._interval, self._burst_tolerance, self._expires_in_ms]
        wait = cast("int", self._acquire_script([f"billing-sync:pace:{name}"], arguments))
        return wait / CLIENT_TICKS_PER_SECOND
