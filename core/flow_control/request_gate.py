"""Request gate of a sync attempt: one concurrency slot for the whole attempt, then a permit for each request.

An attempt that would have to wait returns its thread (``MustWaitError``) before it has written or sent anything. An
attempt that has sent something goes before others and waits a moment inside. A slow provider fills only its own slots:
the other threads of the process stay free for the other provider.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from core.common.process_metrics import PROCESS_METRICS
from core.flow_control.rate_limiter import Priority, RateLimiter, UnlimitedRateLimiter
from core.ports.errors import MustWaitError, ObjectThrottledError, ThrottledError
from core.ports.spec import PROVIDERS, Provider

# The weight of the latest attempt in the mean duration. Callers that find all slots in use come back spread by it.
EWMA_WEIGHT: Final = 0.2
MIN_RETURN_SECONDS: Final = 0.5
MAX_RETURN_SECONDS: Final = 10.0  # below ``backoff.MAX_QUEUE_DELAY_SECONDS``, so the broker can hold the message


class ConcurrencySlots:
    """Limits the simultaneous attempts of one process at one provider. The others come back one after the other.

    Bulk work never has all slots if there are two or more, and interactive work does not come back behind it.
    """

    def __init__(self, size: int, now: Callable[[], float] = time.monotonic) -> None:
        self._size = size
        self._now = now
        self._used = 0
        self._bulk_used = 0  # of those in use
        self._mean_seconds = MIN_RETURN_SECONDS
        self._next_at = {False: 0.0, True: 0.0}  # by whether it is bulk work
        self._lock = threading.Lock()

    def acquire(self, *, bulk: bool = False) -> float | None:
        """None: the caller has a slot until it calls ``release``. Else the seconds until one should be free."""
        with self._lock:
            usable = max(1, self._size - 1) if bulk else self._size
            if self._used < self._size and not (bulk and self._bulk_used == usable):
                self._used += 1
                self._bulk_used += bulk
                return None
            now = self._now()
            # Capped, so that a caller that comes back is never behind one that comes now.
            self._next_at[bulk] = min(
                max(self._next_at[bulk] + self._mean_seconds / usable, now + MIN_RETURN_SECONDS),
                now + MAX_RETURN_SECONDS,
            )
            return self._next_at[bulk] - now

    def release(self, seconds: float, *, bulk: bool = False) -> None:
        """``seconds``: how long the slot was in use. ``bulk``: as it was acquired."""
        with self._lock:
            self._used -= 1
            self._bulk_used -= bulk
            self._mean_seconds += EWMA_WEIGHT * (seconds - self._mean_seconds)


@dataclass(slots=True)
class RequestGate:
    """The gate of one attempt. ``priority`` is its first one; after the first request it is ``in_flight``."""

    rate_limiter: RateLimiter
    slots: ConcurrencySlots
    provider: Provider
    org_id: str
    priority: Priority = "interactive"
    _slot_acquired_at: float | None = None
    _slot_is_bulk: bool = False
    _operation: str = ""
    _has_permit: bool = False

    @property
    def may_write(self) -> bool:
        """Outside an attempt, which has permits of its own, it is for reads and previews only."""
        return False

    def acquire_permit_ahead(self, operation: str) -> None:
        """Get the permit of the next request ahead of it, so that an attempt that must wait has written nothing yet."""
        self._acquire(operation)
        self._has_permit = True

    def before_request(self, operation: str) -> None:
        """Get the permit of a request that is sent now."""
        if not (self._has_permit and operation == self._operation):
            self._acquire(operation)
        self._has_permit = False

    def after_response(self, request_id: str | None) -> None:
        """A response changes no permit."""

    def record_throttle(self, error: ThrottledError) -> None:
        """The provider throttled the last request: apply the throttle penalty.

        Not for a limit of one object, which slower requests would reach all the same.
        """
        if isinstance(error, ObjectThrottledError):
            return
        # Stripe's adapter puts the reason of the limit (``Stripe-Rate-Limited-Reason``) into ``code``.
        self.rate_limiter.penalize(self.provider, self._operation, error.code, error.retry_after or 0.0)

    def close(self) -> None:
        """The attempt has ended: release its slot."""
        if self._slot_acquired_at is not None:
            self.slots.release(time.monotonic() - self._slot_acquired_at, bulk=self._slot_is_bulk)
            self._slot_acquired_at = None

    def _acquire(self, operation: str) -> None:
        if self._slot_acquired_at is None:
            self._slot_is_bulk = self.priority == "bulk"
            if (seconds := self.slots.acquire(bulk=self._slot_is_bulk)) is not None:
                raise MustWaitError(seconds, reserved=True)
            self._slot_acquired_at = time.monotonic()
        permit = self.rate_limiter.acquire(self.provider, operation, self.org_id, self.priority)
        PROCESS_METRICS.record_permit_wait(self.provider, permit.seconds)
        if permit.state != "go":
            raise MustWaitError(permit.seconds, reserved=permit.state == "queued")
        self._operation = operation
        self.priority = "in_flight"
        time.sleep(permit.seconds)


class RequestGates:
    """The gates of one process. ``threads``: its worker threads; one provider may use three quarters of them."""

    def __init__(self, rate_limiter: RateLimiter | None = None, threads: int = 8) -> None:
        self.rate_limiter: RateLimiter = rate_limiter or UnlimitedRateLimiter()
        self._slots = {provider: ConcurrencySlots(max(1, threads - max(1, threads // 4))) for provider in PROVIDERS}

    def open_gate(self, provider: Provider, org_id: str, priority: Priority) -> RequestGate:
        return RequestGate(self.rate_limiter, self._slots[provider], provider, org_id, priority)
