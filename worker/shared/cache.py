"""The short memory of all API processes together, in Redis; while it does not answer, each process has its own."""

from __future__ import annotations

import threading
import time
from typing import Final

import redis
import structlog

from api.usage import LocalShelf

log = structlog.get_logger()

ANSWERS_WITHIN: Final = 0.25  # seconds
ASK_AGAIN: Final = 5.0  # seconds


class SharedShelf:
    def __init__(self, redis_url: str, name: str) -> None:
        self._name = name
        self._own = LocalShelf(time.monotonic)
        self._redis = redis.Redis.from_url(
            redis_url, socket_timeout=ANSWERS_WITHIN, socket_connect_timeout=ANSWERS_WITHIN, decode_responses=True
        )
        self._away_until = 0.0
        self._lock = threading.Lock()

    def get(self, key: str) -> str | None:
        if self._is_away():
            return self._own.get(key)
        try:
            found = self._redis.get(self._key(key))
        except redis.RedisError as error:
            self._gone(error)
            return self._own.get(key)
        return found if isinstance(found, str) else None

    def put(self, key: str, text: str, seconds: float) -> None:
        self._own.put(key, text, seconds)
        if self._is_away():
            return
        try:
            self._redis.set(self._key(key), text, px=int(seconds * 1000))
        except redis.RedisError as error:
            self._gone(error)

    def close(self) -> None:
        self._redis.close()

    def _key(self, key: str) -> str:
        return f"billing-sync:{self._name}:{key}"

    def _is_away(self) -> bool:
        with self._lock:
            return time.monotonic() < self._away_until

    def _gone(self, error: redis.RedisError) -> None:
        with self._lock:
            self._away_until = time.monotonic() + ASK_AGAIN
        # The class alone: the text may hold the address with its password.
        log.warning("shelf_is_not_shared", error=type(error).__name__)
