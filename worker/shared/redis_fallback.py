"""Redis that may be down: each operation has a short timeout and a local fallback.

After a failure only the fallback is used for some seconds, so that not every caller waits for the timeout. Then Redis
is tried again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import redis
import structlog

from core.common import tls_failures

log = structlog.get_logger()

Result = TypeVar("Result")


class RedisWithFallback:
    """``component``: whose fallback it is, for the log. ``client`` connects at its first operation; thread-safe."""

    def __init__(  # noqa: PLR0913 - each component has its own
        self,
        redis_url: str,
        component: str,
        *,
        timeout_seconds: float,
        retry_seconds: float,
        decode_responses: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client = redis.Redis.from_url(
            redis_url,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            decode_responses=decode_responses,
        )
        self._component = component
        self._retry_seconds = retry_seconds
        self._monotonic = monotonic
        self._unavailable_until = 0.0
        self._lock = threading.Lock()

    def run(self, operation: Callable[[], Result], fallback: Callable[[], Result]) -> Result:
        """The result of ``operation``, or of ``fallback`` while Redis does not respond."""
        if self._is_unavailable():
            return fallback()
        try:
            return operation()
        except redis.RedisError as error:
            self._mark_unavailable(error)
        return fallback()

    def close(self) -> None:
        self.client.close()

    def _is_unavailable(self) -> bool:
        with self._lock:
            return self._monotonic() < self._unavailable_until

    def _mark_unavailable(self, error: redis.RedisError) -> None:
        with self._lock:
            now = self._monotonic()
            is_marked = now < self._unavailable_until
            self._unavailable_until = now + self._retry_seconds
        # Threads that fail at the same time log one line. It has only the error's class: the text may contain the URL
        # with the password.
        if not is_marked:
            name, why = type(error).__name__, tls_failures.reason(error)
            shown = name if why is None else f"{name}: {why}"
            log.warning("redis_fallback_active", component=self._component, error=shown)
