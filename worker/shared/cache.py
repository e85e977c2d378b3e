"""The short memory of all API processes together, in Redis; while it does not answer, each process has its own."""

from __future__ import annotations

import threading
import time
from typing import Final

import redis
import structlog

from api.usage import LocalCache

log = structlog.get_logger()

CACHE_REDIS_TIMEOUT_SECONDS: Final = 0.25  # seconds
CACHE_REDIS_RETRY_SECONDS: Final = 5.0  # seconds


class RedisCache:
    def __init__(self, redis_url: str, name: str) -> None:
        self._name = name
        self._local = LocalCache(time.monotonic)
        self._redis = redis.Redis.from_url(
            redis_url,
            socket_timeout=CACHE_REDIS_TIMEOUT_SECONDS,
            socket_connect_timeout=CACHE_REDIS_TIMEOUT_SECONDS,
            decode_responses=True,
        )
        self._unavailable_until = 0.0
        self._lock = threading.Lock()

    def get(self, key: str) -> str | None:
        if self._is_unavailable():
            return self._local.get(key)
        try:
            found = self._redis.get(self._redis_key(key))
        except redis.RedisError as error:
            self._mark_unavailable(error)
            return self._local.get(key)
        return found if isinstance(found, str) else None

    def put(self, key: str, value: str, ttl_seconds: float) -> None:
        self._local.put(key, value, ttl_seconds)
        if self._is_unavailable():
            return
        try:
            self._redis.set(self._redis_key(key), value, px=int(ttl_seconds * 1000))
        except redis.RedisError as error:
            self._mark_unavailable(error)

    def close(self) -> None:
        self._redis.close()

    def _redis_key(self, key: str) -> str:
        return f"billing-sync:{self._name}:{key}"

    def _is_unavailable(self) -> bool:
        with self._lock:
            return time.monotonic() < self._unavailable_until

    def _mark_unavailable(self, error: redis.RedisError) -> None:
        with self._lock:
            self._unavailable_until = time.monotonic() + CACHE_REDIS_RETRY_SECONDS
        # The class alone: the text may hold the address with its password.
        log.warning("redis_fallback_active", component="cache", error=type(error).__name__)
