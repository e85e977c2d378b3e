"""How fast a biller may be asked: buckets that every request passes, and a line for those who come too early.

A bucket lets requests through one interval apart, with a small burst after a pause; it never lets more through, however
late, early or often somebody comes. Who would have to wait longer than a moment is given a place in line instead,
comes back then and passes: nobody waits inside, nobody races. Fresh work stands in a line of its own, bulk work behind
it. Time is whole microseconds, so that the form in Redis (``worker.shared.rate_limiter``) decides exactly alike.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Protocol

from core.ports.spec import Provider

MICROSECONDS_PER_SECOND: Final = 1_000_000

Priority = Literal["interactive", "bulk", "in_flight"]
"""``started``: a turn that has sent something already. It is let through before all others, so that it ends."""


@dataclass(frozen=True, slots=True)
class WaitPolicy:
    """Microseconds: how long one may wait inside, at most, and how far ahead a place in line may lie."""

    max_inline_wait: int
    max_queue_wait: int


# A fresh change waits a quarter of a second where it is: less than coming back would cost. Bulk work waits less, so
# that the bucket is never further ahead than fresh work is patient.
WAIT_POLICIES: Final[Mapping[Priority, WaitPolicy]] = {
    "interactive": WaitPolicy(MICROSECONDS_PER_SECOND // 4, 5 * MICROSECONDS_PER_SECOND),
    "bulk": WaitPolicy(MICROSECONDS_PER_SECOND * 3 // 20, 10 * MICROSECONDS_PER_SECOND),
    "in_flight": WaitPolicy(2 * MICROSECONDS_PER_SECOND, 5 * MICROSECONDS_PER_SECOND),
}

# A turn that has begun waits for two intervals where those are longer: given back before its next request, it would
# begin again, spend what it waits for on its first one, and never end. Shorter than a turn's lease.
MAX_IN_FLIGHT_WAIT_MICROSECONDS: Final = 20 * MICROSECONDS_PER_SECOND
MIN_REQUESTS_PER_SECOND: Final = 0.1  # a second; slower than this even that would not do

# A 429 that comes anyway: others use the account too, so this bucket goes at half its speed for a while. Answers to
# requests that were under way together count once.
PENALTY_MICROSECONDS: Final = 30 * MICROSECONDS_PER_SECOND
PENALTY_MERGE_MICROSECONDS: Final = 2 * MICROSECONDS_PER_SECOND
MAX_PENALTY_HALVINGS: Final = 3  # halvings
# Nobody who found the line full need ask again before.
MIN_QUEUE_FULL_WAIT_MICROSECONDS: Final = MICROSECONDS_PER_SECOND
# Who has not come back for his place by then will not come.
RESERVATION_TTL_MICROSECONDS: Final = 60 * MICROSECONDS_PER_SECOND


@dataclass(frozen=True, slots=True)
class RateLimit:
    """``rate`` a second, and how many may go at once after a pause."""

    rate: float
    burst: int

    @property
    def interval(self) -> int:
        """Microseconds, rounded up: never faster than the rate."""
        return -int(-MICROSECONDS_PER_SECOND // self.rate)


@dataclass(frozen=True, slots=True)
class ProviderRateLimits:
    """One biller's: of the whole account, and of each operation where it counts those, too.

    ``calls_per_reconcile``: how many requests of the narrowest one a round mostly sends.
    """

    account: RateLimit
    operation: RateLimit | None = None
    calls_per_reconcile: int = 1

    @property
    def reconciles_per_second(self) -> float:
        """Rounds a second of a crowd that all want the same."""
        return (
            min(self.account.rate, self.operation.rate if self.operation else self.account.rate)
            / self.calls_per_reconcile
        )


class Permit(NamedTuple):
    """``go``: send after ``seconds``, which is within one's patience. ``queued``: come back after them. ``full``: the
    line is as long as it may be, and may have room again after them."""

    state: Literal["go", "queued", "full"]
    seconds: float


class RateLimiter(Protocol):
    """Of all billers; shared by all who send."""

    def acquire(self, provider: Provider, operation: str, holder: str, priority: Priority, /) -> Permit:
        """Ask to send one request. ``holder`` has one place in line at each biller, however often it asks."""

    def penalize(self, provider: Provider, operation: str, reason: str | None, pause_seconds: float, /) -> None:
        """The biller answered 429: nothing for ``pause`` seconds, then half the speed for a while.

        ``reason`` is Stripe's ``Stripe-Rate-Limited-Reason`` (stripe.md 3); without one the narrowest bucket slows.
        """

    def expected_rate(self, provider: Provider, /) -> float:
        """Rounds a second that the quota allows when nothing is slowed."""


class UnlimitedRateLimiter:
    """For what runs alone and seldom: nothing waits."""

    def acquire(self, *_: object) -> Permit:
        return Permit("go", 0.0)

    def penalize(self, *_: object) -> None:
        return

    def expected_rate(self, *_: object) -> float:
        return 100.0


def buckets(limits: ProviderRateLimits, provider: Provider, operation: str) -> list[tuple[str, RateLimit]]:
    """Every bucket that the request passes: its name and its limit."""
    applicable = [(str(provider), limits.account)]
    if limits.operation is not None:
        applicable.append((f"{provider}:{operation}", limits.operation))
    return applicable


def penalized_bucket(
    limits: ProviderRateLimits, provider: Provider, operation: str, reason: str | None
) -> tuple[str, RateLimit]:
    """The bucket that a 429 of this reason is about. Fewer requests a second are fewer at the same time, too."""
    applicable = buckets(limits, provider, operation)
    return applicable[0] if (reason or "").startswith("global") else applicable[-1]


def max_inline_wait(priority: Priority, interval: int) -> int:
    """How long one may wait inside where requests are so far apart."""
    policy_wait = WAIT_POLICIES[priority].max_inline_wait
    return (
        max(policy_wait, min(MAX_IN_FLIGHT_WAIT_MICROSECONDS, 2 * interval)) if priority == "in_flight" else policy_wait
    )


def monotonic_microseconds() -> int:
    return time.monotonic_ns() // 1000


@dataclass(slots=True)
class _Bucket:
    """``next_at``: when the one after all that were let through is due. ``fresh``, ``bulk``: where those lines end."""

    next_at: int = 0
    interactive_queue_end: int = 0
    bulk_queue_end: int = 0
    halvings: int = 0
    penalized_at: int = 0
    penalty_until: int = 0

    def interval(self, limit: RateLimit, now: int) -> int:
        return limit.interval << self.halvings if self.penalty_until > now else limit.interval


@dataclass
class LocalRateLimiter:
    """The buckets of one process; safe between threads."""

    limits: Mapping[Provider, ProviderRateLimits]
    now: Callable[[], int] = monotonic_microseconds
    _buckets: dict[str, _Bucket] = field(default_factory=dict)
    _reservations: dict[tuple[Provider, str], int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def acquire(self, provider: Provider, operation: str, holder: str, priority: Priority) -> Permit:
        with self._lock:
            now = self.now()
            self._drop_expired_reservations(now)
            policy = WAIT_POLICIES[priority]
            applicable = [
                (bucket := self._bucket(name), bucket.interval(limit, now), limit.burst)
                for name, limit in buckets(self.limits[provider], provider, operation)
            ]
            max_wait = max_inline_wait(priority, max(interval for _, interval, _ in applicable))
            wait = max(0, *(bucket.next_at - (burst - 1) * interval - now for bucket, interval, burst in applicable))
            queue_ends = [
                max(bucket.interactive_queue_end, bucket.bulk_queue_end if priority == "bulk" else 0)
                for bucket, _, _ in applicable
            ]
            reserved_at = self._reservations.get((provider, holder))
            if reserved_at is not None and reserved_at < now - RESERVATION_TTL_MICROSECONDS:
                reserved_at = None
            is_due = reserved_at is not None and reserved_at <= now + max_wait
            may_go = priority == "in_flight" or is_due or max(queue_ends) <= now + max_wait
            if wait <= max_wait and may_go:
                self._reservations.pop((provider, holder), None)
                for bucket, interval, _ in applicable:
                    bucket.next_at = max(bucket.next_at, now) + interval
                return Permit("go", wait / MICROSECONDS_PER_SECOND)
            if reserved_at is not None and not is_due:
                return Permit("queued", (reserved_at - now) / MICROSECONDS_PER_SECOND)
            reserved_at = max(now + wait, *queue_ends)
            self._reservations.pop((provider, holder), None)
            if reserved_at - now > policy.max_queue_wait:
                return Permit(
                    "full",
                    max(MIN_QUEUE_FULL_WAIT_MICROSECONDS, reserved_at - now - policy.max_queue_wait)
                    / MICROSECONDS_PER_SECOND,
                )
            # The line forms at the narrowest bucket; the others are passed when the time has come.
            bucket, interval, _ = max(applicable, key=lambda each: each[1])
            if priority == "bulk":
                bucket.bulk_queue_end = reserved_at + interval
            else:
                bucket.interactive_queue_end = reserved_at + interval
            self._reservations[provider, holder] = reserved_at
            return Permit("queued", (reserved_at - now) / MICROSECONDS_PER_SECOND)

    def penalize(self, provider: Provider, operation: str, reason: str | None, pause_seconds: float) -> None:
        name, limit = penalized_bucket(self.limits[provider], provider, operation, reason)
        with self._lock:
            now = self.now()
            bucket = self._bucket(name)
            is_penalized = bucket.penalty_until > now
            if not (is_penalized and now - bucket.penalized_at < PENALTY_MERGE_MICROSECONDS):
                bucket.halvings = min(MAX_PENALTY_HALVINGS, (bucket.halvings if is_penalized else 0) + 1)
                bucket.penalized_at = now
            bucket.penalty_until = now + PENALTY_MICROSECONDS
            until = now + int(pause_seconds * MICROSECONDS_PER_SECOND) + (limit.burst - 1) * bucket.interval(limit, now)
            bucket.next_at = max(bucket.next_at, until)

    def expected_rate(self, provider: Provider) -> float:
        return self.limits[provider].reconciles_per_second

    def _bucket(self, name: str) -> _Bucket:
        return self._buckets.setdefault(name, _Bucket())

    def _drop_expired_reservations(self, now: int) -> None:
        # Places are given out in almost rising order, so the oldest stand first; it need not be exact.
        for key in list(self._reservations):
            if self._reservations[key] >= now - RESERVATION_TTL_MICROSECONDS:
                return
            del self._reservations[key]
