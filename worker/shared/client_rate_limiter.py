"""The callers' buckets of all API processes, in Redis and by its clock; while it is away each process has its own."""

from __future__ import annotations

import threading
import time
from typing import Final, cast

import redis
import structlog

from api.rate_limit import BURST_SECONDS, SECOND, LocalPaces, ahead_of, anonymous

log = structlog.get_logger()

ANSWERS_WITHIN: Final = 0.25  # seconds; Redis answers in less than a millisecond or is away
ASK_AGAIN: Final = 5.0  # seconds

# KEYS: the bucket. ARGV, microseconds: the interval, how far ahead of now one may be, how long the bucket is kept.
_TAKE: Final = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local due = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
if due - now > tonumber(ARGV[2]) then return due - now - tonumber(ARGV[2]) end
redis.call('SET', KEYS[1], string.format('%.0f', due + tonumber(ARGV[1])), 'PX', ARGV[3])
return 0
"""


class SharedPaces:
    def __init__(self, rate: float, redis_url: str) -> None:
        self._interval = int(SECOND / rate)
        self._ahead = ahead_of(rate)
        self._kept = int(1000 * (BURST_SECONDS + 1.0 / rate)) + 1  # milliseconds: by then the bucket is full
        self._own = LocalPaces(rate)
        self._redis = redis.Redis.from_url(
            redis_url, socket_timeout=ANSWERS_WITHIN, socket_connect_timeout=ANSWERS_WITHIN
        )
        self._take = self._redis.register_script(_TAKE)
        self._away_until = 0.0
        self._lock = threading.Lock()

    def take(self, caller: str) -> float:
        name = anonymous(caller)
        if self._is_away():
            return self._own.take(name)
        try:
            wait = cast("int", self._take([f"billing-sync:pace:{name}"], [self._interval, self._ahead, self._kept]))
        except redis.RedisError as error:
            self._gone(error)
            return self._own.take(name)
        return wait / SECOND

    def close(self) -> None:
        self._redis.close()

    def _is_away(self) -> bool:
        with self._lock:
            return time.monotonic() < self._away_until

    def _gone(self, error: redis.RedisError) -> None:
        with self._lock:
            self._away_until = time.monotonic() + ASK_AGAIN
        # The class alone: the text may hold the address with its password.
        log.warning("pace_is_not_shared", error=type(error).__name__)
