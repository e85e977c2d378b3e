"""The callers' buckets of all API processes, in Redis and by its clock; while it is away each process has its own."""

from __future__ import annotations

import threading
import time
from typing import Final, cast

import redis
import structlog

from api.rate_limit import (
    CLIENT_BURST_SECONDS,
    CLIENT_TICKS_PER_SECOND,
    LocalClientRateLimiter,
    burst_tolerance,
    client_key,
)

log = structlog.get_logger()

CLIENT_LIMIT_REDIS_TIMEOUT_SECONDS: Final = 0.25  # seconds; Redis answers in less than a millisecond or is away
CLIENT_LIMIT_REDIS_RETRY_SECONDS: Final = 5.0  # seconds

# KEYS: the bucket. ARGV, microseconds: the interval, how far ahead of now one may be, how long the bucket is kept.
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
        )  # milliseconds: by then the bucket is full
        self._local = LocalClientRateLimiter(rate)
        self._redis = redis.Redis.from_url(
            redis_url,
            socket_timeout=CLIENT_LIMIT_REDIS_TIMEOUT_SECONDS,
            socket_connect_timeout=CLIENT_LIMIT_REDIS_TIMEOUT_SECONDS,
        )
        self._acquire_script = self._redis.register_script(_ACQUIRE_CLIENT_SCRIPT)
        self._unavailable_until = 0.0
        self._lock = threading.Lock()

    def acquire(self, caller: str) -> float:
        name = client_key(caller)
        if self._is_unavailable():
            return self._local.acquire(name)
        try:
            wait = cast(
                "int",
                self._acquire_script(
                    [f"billing-sync:pace:{name}"], [self._interval, self._burst_tolerance, self._expires_in_ms]
                ),
            )
        except redis.RedisError as error:
            self._mark_unavailable(error)
            return self._local.acquire(name)
        return wait / CLIENT_TICKS_PER_SECOND

    def close(self) -> None:
        self._redis.close()

    def _is_unavailable(self) -> bool:
        with self._lock:
            return time.monotonic() < self._unavailable_until

    def _mark_unavailable(self, error: redis.RedisError) -> None:
        with self._lock:
            self._unavailable_until = time.monotonic() + CLIENT_LIMIT_REDIS_RETRY_SECONDS
        # The class alone: the text may hold the address with its password.
        log.warning("redis_fallback_active", component="client_rate_limiter", error=type(error).__name__)
