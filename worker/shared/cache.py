"""The cache that all API processes share in Redis. While Redis does not respond, each process uses a local one."""

from __future__ import annotations

import time
from typing import Final

from api.usage import LocalCache
from worker.shared.redis_fallback import RedisWithFallback

CACHE_REDIS_TIMEOUT_SECONDS: Final = 0.25  # seconds
CACHE_REDIS_RETRY_SECONDS: Final = 5.0  # seconds


class RedisCache:
    def __init__(self, redis_url: str, name: str) -> None:
        self._name = name
        self._local = LocalCache(time.monotonic)
        self._redis = RedisWithFallback(
            redis_url,
            "cache",
            timeout_seconds=CACHE_REDIS_TIMEOUT_SECONDS,
            retry_seconds=CACHE_REDIS_RETRY_SECONDS,
        )

    def get(self, key: str) -> str | None:
        return self._redis.run(lambda: self._get(key), lambda: self._local.get(key))

    def put(self, key: str, value: str, ttl_seconds: float) -> None:
        self._local.put(key, value, ttl_seconds)
        self._redis.run(lambda: self._put(key, value, ttl_seconds), lambda: None)

    def close(self) -> None:
        self._redis.close()

    def _get(self, key: str) -> str | None:
        found = self._redis.client.get(self._redis_key(key))
        return found if isinstance(found, str) else None

    def _put(self, key: str, value: str, ttl_seconds: float) -> None:
        self._redis.client.set(self._redis_key(key), value, px=int(ttl_seconds * 1000))

    def _redis_key(self, key: str) -> str:
        return f"billing-sync:{self._name}:{key}"
