"""When a link is tried again after an error, and how long it rests after calls: every delay of the reconciler."""

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

# After a round with calls: what changes within it is taken along by one more, so a burst costs two rounds.
LINK_COOLDOWN = timedelta(seconds=2)
# After one whose organization moved on while it ran: a burst is under way, and its end is waited for a little longer.
BURST_COOLDOWN = timedelta(seconds=5)

# Seconds. A wait that is longer is the row's and the sweep's: on Redis a message with a countdown lies in a worker's
# memory until then, so what one holds is what it can handle within so many seconds. Long enough for a rest, a place in
# a quota's line and the first retries; short of a wait for a payer or for a person's new key.
MAX_QUEUE_DELAY_SECONDS = 15.0
MAX_BACKOFF_SECONDS = 900.0  # seconds
MISCONFIGURED_BACKOFF_SECONDS = 60.0  # seconds; every organization fails alike until a person has changed a setting
# Seconds; doubled by each. What one object may see Stripe counts by the minute, the hour and the day (stripe.md 3).
OBJECT_THROTTLE_BACKOFF_SECONDS = 60.0

Jitter = Callable[[float, float], float]


def retry_delay(error: RetryableError, attempts: int, jitter: Jitter = random.uniform) -> float:
    """Seconds to wait: the biller's wish if it named one, else full jitter over 2, 4, 8 … up to ``LONGEST_WAIT``."""
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
