"""Retry delays and cooldowns of a link, and their limits."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta

from core.ports.errors import (
    MisconfiguredError,
    ObjectThrottledError,
    RetryableError,
    ThrottledError,
)

# After an attempt that made calls. All changes within this time are sent by one more attempt, so a burst costs two.
LINK_COOLDOWN = timedelta(seconds=2)
# After an attempt during which the organization changed: more changes are likely, so the pause is longer.
COOLDOWN_AFTER_CONCURRENT_CHANGE = timedelta(seconds=5)

# A longer delay is left to the sweep: with Redis a delayed message stays in a worker's memory until it is due, so this
# limits how many a worker holds. It is long enough for a cooldown, a reservation of the rate limiter and the first
# retries, and shorter than a wait for a payer or for a new API key.
MAX_QUEUE_DELAY_SECONDS = 15.0
MAX_BACKOFF_SECONDS = 900.0
MISCONFIGURED_BACKOFF_SECONDS = 60.0  # every organization fails in the same way until an operator changes a setting
# Doubled by each failure. Stripe limits the requests to one object by the minute, the hour and the day (stripe.md 3).
OBJECT_THROTTLE_BACKOFF_SECONDS = 60.0

Jitter = Callable[[float, float], float]


def retry_delay(error: RetryableError, attempts: int, jitter: Jitter = random.uniform) -> float:
    """Seconds to wait: what the provider asked for, or else full jitter over 2, 4, 8 … ``MAX_BACKOFF_SECONDS``."""
    ceiling = min(MAX_BACKOFF_SECONDS, 2.0 ** min(attempts, 16))
    wait = max(0.2, jitter(0.0, ceiling))
    match error:
        case ObjectThrottledError():
            doubled = OBJECT_THROTTLE_BACKOFF_SECONDS * 2.0 ** min(max(attempts - 1, 0), 16)
            return min(MAX_BACKOFF_SECONDS, max(doubled, error.retry_after or 0.0))
        case ThrottledError(retry_after=float() | int() as retry_after):
            return min(MAX_BACKOFF_SECONDS, retry_after + jitter(0.0, 1.0))
        case MisconfiguredError():
            return max(MISCONFIGURED_BACKOFF_SECONDS, wait)
    return wait
