"""When a link is tried again: retry delays and cooldowns, and whether a message or the sweep starts the attempt.

A wait is stored in the link's row, so it survives everything. A short one also gets a delayed message, so that it ends
on time; a longer one is left to the sweep.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from datetime import datetime, timedelta

from core.organizations.links import SWEEP_GRACE
from core.ports.errors import (
    MisconfiguredError,
    ObjectThrottledError,
    RetryableError,
    RetryLaterError,
)
from core.ports.spec import Provider

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


# Lago's billing job starts at ten past each hour and carries out the downgrades of periods that ended (lago.md 5.1).
LAGO_BILLING_MINUTE = 10
# It needs some minutes, and the checks of many downgrades on the same day are spread over some more.
LAGO_BILLING_TIME = timedelta(minutes=5)
DOWNGRADE_CHECK_SPREAD_SECONDS = 600
# A downgrade that is late, because that job does not run, is checked less and less often.
MIN_DOWNGRADE_RECHECK = timedelta(minutes=5)
MAX_DOWNGRADE_RECHECK = timedelta(hours=1)
RECHECK_SHARE_OF_WAIT = 4

MIN_WAIT_FOR_LAGO = timedelta(seconds=30)
MAX_WAIT_FOR_LAGO = timedelta(minutes=15)


def first_downgrade_check(org_id: str, provider: Provider, effective_at: datetime, now: datetime) -> datetime:
    """When to read the provider first for a downgrade that it scheduled now. Stripe changes the price on the very day.

    Lago carries out a downgrade in its next billing run if it was ordered before the run of a period's first day, and
    names the end of the next period meanwhile (B17). So the next run is awaited, whatever day Lago named.
    """
    return effective_at if provider == "stripe" else _after_billing_run(org_id, min(now, effective_at))


def next_downgrade_check(org_id: str, provider: Provider, effective_at: datetime | None, now: datetime) -> datetime:
    """When to read the provider again after a check: on the plan's day, and from that day on at growing intervals."""
    if effective_at is not None and effective_at > now:
        return effective_at if provider == "stripe" else _after_billing_run(org_id, effective_at)
    waited = now - (effective_at or now)
    return now + min(max(waited / RECHECK_SHARE_OF_WAIT, MIN_DOWNGRADE_RECHECK), MAX_DOWNGRADE_RECHECK)


def _after_billing_run(org_id: str, moment: datetime) -> datetime:
    """When Lago's next billing run after that moment is over. Spread: each organization has its own time."""
    run = moment.replace(minute=LAGO_BILLING_MINUTE, second=0, microsecond=0)
    if run <= moment:
        run += timedelta(hours=1)
    spread = timedelta(seconds=zlib.crc32(org_id.encode()) % DOWNGRADE_CHECK_SPREAD_SECONDS)
    return run + LAGO_BILLING_TIME + spread


def wait_for_lago(waited: timedelta) -> timedelta:
    """Until Stripe asks again whether Lago was read. The attempt that reads it ends the wait before."""
    return min(max(waited, MIN_WAIT_FOR_LAGO), MAX_WAIT_FOR_LAGO)


def has_message(seconds: float) -> bool:
    """Whether a delayed message starts the attempt after this wait. Else the sweep does."""
    return seconds <= MAX_QUEUE_DELAY_SECONDS


def sweep_at(now: datetime, seconds: float) -> datetime:
    """When the sweep starts the attempt: after the wait, or later if only a lost message leaves it to the sweep."""
    retry_at = now + timedelta(seconds=seconds)
    return retry_at + SWEEP_GRACE if has_message(seconds) else retry_at


Jitter = Callable[[float, float], float]


def retry_delay(error: RetryableError, attempts: int, jitter: Jitter = random.uniform) -> float:
    """Seconds to wait: full jitter over 2, 4, 8 … ``MAX_BACKOFF_SECONDS``, or what the provider asked for.

    After a limit of one object or a rejected key it is longer.
    """
    ceiling = min(MAX_BACKOFF_SECONDS, 2.0 ** min(attempts, 16))
    wait = max(0.2, jitter(0.0, ceiling))
    match error:
        case ObjectThrottledError():
            doubled = OBJECT_THROTTLE_BACKOFF_SECONDS * 2.0 ** min(max(attempts - 1, 0), 16)
            return min(MAX_BACKOFF_SECONDS, max(doubled, error.retry_after or 0.0))
        case RetryLaterError(retry_after=float() | int() as retry_after):
            return min(MAX_BACKOFF_SECONDS, retry_after + jitter(0.0, 1.0))
        case MisconfiguredError():
            return max(MISCONFIGURED_BACKOFF_SECONDS, wait)
    return wait
