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

SECOND: Final = 1_000_000

Urgency = Literal["fresh", "bulk", "started"]
"""``started``: a turn that has sent something already. It is let through before all others, so that it ends."""


@dataclass(frozen=True, slots=True)
class Manner:
    """Microseconds: how long one may wait inside, at most, and how far ahead a place in line may lie."""

    patience: int
    horizon: int


# A fresh change waits a quarter of a second where it is: less than coming back would cost. Bulk work waits less, so
# that the bucket is never further ahead than fresh work is patient.
MANNERS: Final[Mapping[Urgency, Manner]] = {
    "fresh": Manner(SECOND // 4, 5 * SECOND),
    "bulk": Manner(SECOND * 3 // 20, 10 * SECOND),
    "started": Manner(2 * SECOND, 5 * SECOND),
}

# A turn that has begun waits for two intervals where those are longer: given back before its next request, it would
# begin again, spend what it waits for on its first one, and never end. Shorter than a turn's lease.
MOST_PATIENT: Final = 20 * SECOND
LEAST_RATE: Final = 0.1  # a second; slower than this even that would not do

# A 429 that comes anyway: others use the account too, so this bucket goes at half its speed for a while. Answers to
# requests that were under way together count once.
SLOW_FOR: Final = 30 * SECOND
SAME_MOMENT: Final = 2 * SECOND
SLOWEST: Final = 3  # halvings
# Nobody who found the line full need ask again before.
SOONEST: Final = SECOND
# Who has not come back for his place by then will not come.
PLACE_KEPT: Final = 60 * SECOND


@dataclass(frozen=True, slots=True)
class Limit:
    """``rate`` a second, and how many may go at once after a pause."""

    rate: float
    burst: int

    @property
    def interval(self) -> int:
        """Microseconds, rounded up: never faster than the rate."""
        return -int(-SECOND // self.rate)


@dataclass(frozen=True, slots=True)
class Limits:
    """One biller's: of the whole account, and of each operation where it counts those, too.

    ``round_takes``: how many requests of the narrowest one a round mostly sends.
    """

    account: Limit
    operation: Limit | None = None
    round_takes: int = 1

    @property
    def pace(self) -> float:
        """Rounds a second of a crowd that all want the same."""
        return min(self.account.rate, self.operation.rate if self.operation else self.account.rate) / self.round_takes


class Slot(NamedTuple):
    """``go``: send after ``seconds``, which is within one's patience. ``queued``: come back after them. ``full``: the
    line is as long as it may be, and may have room again after them."""

    state: Literal["go", "queued", "full"]
    seconds: float


class Quota(Protocol):
    """Of all billers; shared by all who send."""

    def take(self, provider: Provider, operation: str, holder: str, urgency: Urgency, /) -> Slot:
        """Ask to send one request. ``holder`` has one place in line at each biller, however often it asks."""

    def slow_down(self, provider: Provider, operation: str, reason: str | None, pause: float, /) -> None:
        """The biller answered 429: nothing for ``pause`` seconds, then half the speed for a while.

        ``reason`` is Stripe's ``Stripe-Rate-Limited-Reason`` (stripe.md 3); without one the narrowest bucket slows.
        """

    def pace(self, provider: Provider, /) -> float:
        """Rounds a second that the quota allows when nothing is slowed."""


class Unlimited:
    """For what runs alone and seldom: nothing waits."""

    def take(self, *_: object) -> Slot:
        return Slot("go", 0.0)

    def slow_down(self, *_: object) -> None:
        return

    def pace(self, *_: object) -> float:
        return 100.0


def buckets(limits: Limits, provider: Provider, operation: str) -> list[tuple[str, Limit]]:
    """Every bucket that the request passes: its name and its limit."""
    passed = [(str(provider), limits.account)]
    if limits.operation is not None:
        passed.append((f"{provider}:{operation}", limits.operation))
    return passed


def slowed(limits: Limits, provider: Provider, operation: str, reason: str | None) -> tuple[str, Limit]:
    """The bucket that a 429 of this reason is about. Fewer requests a second are fewer at the same time, too."""
    passed = buckets(limits, provider, operation)
    return passed[0] if (reason or "").startswith("global") else passed[-1]


def patience(urgency: Urgency, interval: int) -> int:
    """How long one may wait inside where requests are so far apart."""
    least = MANNERS[urgency].patience
    return max(least, min(MOST_PATIENT, 2 * interval)) if urgency == "started" else least


def monotonic() -> int:
    return time.monotonic_ns() // 1000


@dataclass(slots=True)
class _Bucket:
    """``next_at``: when the one after all that were let through is due. ``fresh``, ``bulk``: where those lines end."""

    next_at: int = 0
    fresh: int = 0
    bulk: int = 0
    halvings: int = 0
    slowed_at: int = 0
    slow_until: int = 0

    def interval(self, limit: Limit, now: int) -> int:
        return limit.interval << self.halvings if self.slow_until > now else limit.interval


@dataclass
class LocalQuota:
    """The buckets of one process; safe between threads."""

    limits: Mapping[Provider, Limits]
    now: Callable[[], int] = monotonic
    _buckets: dict[str, _Bucket] = field(default_factory=dict)
    _places: dict[tuple[Provider, str], int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, provider: Provider, operation: str, holder: str, urgency: Urgency) -> Slot:
        with self._lock:
            now = self.now()
            self._forget_places(now)
            manner = MANNERS[urgency]
            passed = [
                (bucket := self._bucket(name), bucket.interval(limit, now), limit.burst)
                for name, limit in buckets(self.limits[provider], provider, operation)
            ]
            patient = patience(urgency, max(interval for _, interval, _ in passed))
            wait = max(0, *(bucket.next_at - (burst - 1) * interval - now for bucket, interval, burst in passed))
            ends = [max(bucket.fresh, bucket.bulk if urgency == "bulk" else 0) for bucket, _, _ in passed]
            place = self._places.get((provider, holder))
            if place is not None and place < now - PLACE_KEPT:
                place = None
            due = place is not None and place <= now + patient
            in_turn = urgency == "started" or due or max(ends) <= now + patient
            if wait <= patient and in_turn:
                self._places.pop((provider, holder), None)
                for bucket, interval, _ in passed:
                    bucket.next_at = max(bucket.next_at, now) + interval
                return Slot("go", wait / SECOND)
            if place is not None and not due:
                return Slot("queued", (place - now) / SECOND)
            place = max(now + wait, *ends)
            self._places.pop((provider, holder), None)
            if place - now > manner.horizon:
                return Slot("full", max(SOONEST, place - now - manner.horizon) / SECOND)
            # The line forms at the narrowest bucket; the others are passed when the time has come.
            bucket, interval, _ = max(passed, key=lambda each: each[1])
            if urgency == "bulk":
                bucket.bulk = place + interval
            else:
                bucket.fresh = place + interval
            self._places[provider, holder] = place
            return Slot("queued", (place - now) / SECOND)

    def slow_down(self, provider: Provider, operation: str, reason: str | None, pause: float) -> None:
        name, limit = slowed(self.limits[provider], provider, operation, reason)
        with self._lock:
            now = self.now()
            bucket = self._bucket(name)
            still = bucket.slow_until > now
            if not (still and now - bucket.slowed_at < SAME_MOMENT):
                bucket.halvings = min(SLOWEST, (bucket.halvings if still else 0) + 1)
                bucket.slowed_at = now
            bucket.slow_until = now + SLOW_FOR
            until = now + int(pause * SECOND) + (limit.burst - 1) * bucket.interval(limit, now)
            bucket.next_at = max(bucket.next_at, until)

    def pace(self, provider: Provider) -> float:
        return self.limits[provider].pace

    def _bucket(self, name: str) -> _Bucket:
        return self._buckets.setdefault(name, _Bucket())

    def _forget_places(self, now: int) -> None:
        # Places are given out in almost rising order, so the oldest stand first; it need not be exact.
        for key in list(self._places):
            if self._places[key] >= now - PLACE_KEPT:
                return
            del self._places[key]
