"""Rate limiter: token buckets per provider account and operation, with a reservation queue.

A caller that would have to wait longer than a moment gets a reservation: it returns its thread, comes back at that time
and gets the permit. So no thread waits long, and callers do not race. Interactive work has its own queue, and bulk work
comes after it. The arithmetic is in ``core.flow_control.token_bucket``; here are the buckets of one process, and in
``worker.shared.rate_limiter`` those of all processes in Redis.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from core.flow_control import token_bucket
from core.flow_control.token_bucket import (
    MICROSECONDS_PER_SECOND,
    MIN_REQUESTS_PER_SECOND,
    UNUSED_BUCKET,
    BucketState,
    LimitedBucket,
    Permit,
    Priority,
    RateLimit,
)
from core.ports.spec import Provider

# With those names of the token bucket that the rate limiter's callers need.
__all__ = [
    "MIN_REQUESTS_PER_SECOND",
    "RESERVATION_TTL_MICROSECONDS",
    "LocalRateLimiter",
    "Permit",
    "Priority",
    "ProviderRateLimits",
    "RateLimit",
    "RateLimiter",
    "UnlimitedRateLimiter",
    "buckets",
    "penalized_bucket",
]

# A reservation that was not used by then is dropped.
RESERVATION_TTL_MICROSECONDS: Final = 60 * MICROSECONDS_PER_SECOND


@dataclass(frozen=True, slots=True)
class ProviderRateLimits:
    """The limits of one provider: of the whole account, and of each operation if it limits those, too.

    ``calls_per_reconcile``: how many requests to the narrowest limit one reconcile usually sends.
    """

    account: RateLimit
    operation: RateLimit | None = None
    calls_per_reconcile: int = 1

    @property
    def reconciles_per_second(self) -> float:
        """Reconciles per second in a burst of changes of the same kind."""
        return (
            min(self.account.rate, self.operation.rate if self.operation else self.account.rate)
            / self.calls_per_reconcile
        )


class RateLimiter(Protocol):
    """The rate limiter of all providers, shared by everything that sends requests."""

    def acquire(self, provider: Provider, operation: str, holder: str, priority: Priority, /) -> Permit:
        """Ask for a permit for one request. ``holder`` has one reservation per provider, however often it asks."""

    def penalize(self, provider: Provider, operation: str, reason: str | None, pause_seconds: float, /) -> None:
        """The provider responded 429: no request for ``pause_seconds``, then half the rate for a while.

        ``reason`` is Stripe's ``Stripe-Rate-Limited-Reason`` (stripe.md 3); without one it is the last bucket.
        """

    def expected_rate(self, provider: Provider, /) -> float:
        """Reconciles per second that the limits allow without a throttle penalty."""


class UnlimitedRateLimiter:
    """Gives every permit at once, for programs that run alone and seldom."""

    def acquire(self, *_: object) -> Permit:
        return Permit("go", 0.0)

    def penalize(self, *_: object) -> None:
        return

    def expected_rate(self, *_: object) -> float:
        return 100.0


def buckets(limits: ProviderRateLimits, provider: Provider, operation: str) -> list[tuple[str, RateLimit]]:
    """The name and limit of every bucket that the request passes: the account's, then the operation's."""
    applicable = [(str(provider), limits.account)]
    if limits.operation is not None:
        applicable.append((f"{provider}:{operation}", limits.operation))
    return applicable


def penalized_bucket(
    limits: ProviderRateLimits, provider: Provider, operation: str, reason: str | None
) -> tuple[str, RateLimit]:
    """The bucket that a 429 of this reason is about.

    A limit of simultaneous requests counts, too: fewer requests a second are also fewer at the same time.
    """
    applicable = buckets(limits, provider, operation)
    return applicable[0] if (reason or "").startswith("global") else applicable[-1]


def monotonic_microseconds() -> int:
    return time.monotonic_ns() // 1000


@dataclass(slots=True)
class ReservationBook:
    """When each holder may come back, by provider and holder. Not thread-safe."""

    _reserved_at: dict[tuple[Provider, str], int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._reserved_at)

    def find(self, provider: Provider, holder: str, now: int) -> int | None:
        reserved_at = self._reserved_at.get((provider, holder))
        return None if reserved_at is None or _is_expired(reserved_at, now) else reserved_at

    def store(self, provider: Provider, holder: str, reserved_at: int | None) -> None:
        """None: the holder has no reservation any more."""
        if reserved_at is not None and self._reserved_at.get((provider, holder)) == reserved_at:
            return
        self._reserved_at.pop((provider, holder), None)
        if reserved_at is not None:
            self._reserved_at[provider, holder] = reserved_at

    def drop_expired(self, now: int) -> None:
        # Reservations are made in almost rising order, so the oldest are first; this need not be exact.
        for key in list(self._reserved_at):
            if not _is_expired(self._reserved_at[key], now):
                return
            del self._reserved_at[key]


def _is_expired(reserved_at: int, now: int) -> bool:
    return reserved_at < now - RESERVATION_TTL_MICROSECONDS


@dataclass
class LocalRateLimiter:
    """The buckets of one process; thread-safe."""

    limits: Mapping[Provider, ProviderRateLimits]
    now: Callable[[], int] = monotonic_microseconds
    _states: dict[str, BucketState] = field(default_factory=dict)
    _reservations: ReservationBook = field(default_factory=ReservationBook)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def acquire(self, provider: Provider, operation: str, holder: str, priority: Priority) -> Permit:
        limited = buckets(self.limits[provider], provider, operation)
        with self._lock:
            now = self.now()
            self._reservations.drop_expired(now)
            reserved_at = self._reservations.find(provider, holder, now)
            found = [LimitedBucket.at(now, self._state(name), limit) for name, limit in limited]
            result = token_bucket.acquire(found, reserved_at, priority)
            self._states.update(zip((name for name, _ in limited), result.states, strict=True))
            self._reservations.store(provider, holder, result.reserved_at)
            return result.permit

    def penalize(self, provider: Provider, operation: str, reason: str | None, pause_seconds: float) -> None:
        name, limit = penalized_bucket(self.limits[provider], provider, operation, reason)
        pause = int(pause_seconds * MICROSECONDS_PER_SECOND)
        with self._lock:
            self._states[name] = token_bucket.penalize(self.now(), self._state(name), limit, pause)

    def expected_rate(self, provider: Provider) -> float:
        return self.limits[provider].reconciles_per_second

    def _state(self, name: str) -> BucketState:
        return self._states.get(name, UNUSED_BUCKET)
