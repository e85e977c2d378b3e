"""Token buckets: the arithmetic of the rate limiter, over values that never change. No lock, no clock, no I/O.

A bucket lets requests through one interval apart, with a small burst after a pause, and never more. It stores no
tokens but moments: when the next request is due, and where each of its queues ends. Times are whole microseconds, so
that the twin in Redis (``worker/shared/*.lua``) computes exactly the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, Literal, NamedTuple, Self

MICROSECONDS_PER_SECOND: Final = 1_000_000

Priority = Literal["interactive", "bulk", "in_flight"]
"""``in_flight``: an attempt that has already sent something. It goes before all others, so that it ends."""


@dataclass(frozen=True, slots=True)
class WaitPolicy:
    """In microseconds: the longest wait inside the thread, and how far ahead a reservation may be."""

    max_inline_wait: int
    max_queue_wait: int


# An interactive change waits up to a quarter of a second inside, which costs less than coming back. Bulk work waits
# less, so that interactive work never finds a bucket that is too far ahead for it.
WAIT_POLICIES: Final[Mapping[Priority, WaitPolicy]] = {
    "interactive": WaitPolicy(MICROSECONDS_PER_SECOND // 4, 5 * MICROSECONDS_PER_SECOND),
    "bulk": WaitPolicy(MICROSECONDS_PER_SECOND * 3 // 20, 10 * MICROSECONDS_PER_SECOND),
    "in_flight": WaitPolicy(2 * MICROSECONDS_PER_SECOND, 5 * MICROSECONDS_PER_SECOND),
}

# An attempt that has sent something waits for two intervals if those are longer. If it had to come back before its next
# request, it would start again, use its permit for its first request, and never end. Shorter than an attempt's lease.
MAX_IN_FLIGHT_WAIT_MICROSECONDS: Final = 20 * MICROSECONDS_PER_SECOND
MIN_REQUESTS_PER_SECOND: Final = 0.1  # at a lower rate even that wait would be too short

# The throttle penalty: a 429 shows that others use the account, too, so the bucket runs at half its rate for a while.
# Several 429 responses to simultaneous requests count once.
PENALTY_MICROSECONDS: Final = 30 * MICROSECONDS_PER_SECOND
PENALTY_MERGE_MICROSECONDS: Final = 2 * MICROSECONDS_PER_SECOND
MAX_PENALTY_HALVINGS: Final = 3
# A caller that found the queue full need not come back earlier.
MIN_QUEUE_FULL_WAIT_MICROSECONDS: Final = MICROSECONDS_PER_SECOND


@dataclass(frozen=True, slots=True)
class RateLimit:
    """``rate``: requests per second. ``burst``: how many may be sent at once after a pause."""

    rate: float
    burst: int

    @property
    def interval(self) -> int:
        """Microseconds between two requests, rounded up, so that it is never faster than the rate."""
        return -int(-MICROSECONDS_PER_SECOND // self.rate)


class Permit(NamedTuple):
    """``go``: wait ``seconds``, which is within the longest inline wait, and send. ``queued``: come back after
    ``seconds``. ``full``: the queue is full, and may have room again after ``seconds``.
    """

    state: Literal["go", "queued", "full"]
    seconds: float


class BucketState(NamedTuple):
    """What is stored of a bucket. All moments are zero before its first use.

    ``next_at``: when the request after all permitted ones is due. ``*_queue_end``: where that queue ends.
    """

    next_at: int = 0
    interactive_queue_end: int = 0
    bulk_queue_end: int = 0
    halvings: int = 0
    penalized_at: int = 0
    penalty_until: int = 0


UNUSED_BUCKET: Final = BucketState()


class LimitedBucket(NamedTuple):
    """A bucket as it is ``now``. ``interval``: between two requests, with the throttle penalty."""

    state: BucketState
    interval: int
    burst: int
    now: int

    @classmethod
    def at(cls, now: int, state: BucketState, limit: RateLimit) -> Self:
        interval = limit.interval << state.halvings if state.penalty_until > now else limit.interval
        return cls(state, interval, limit.burst, now)

    @property
    def free_at(self) -> int:
        """When the next request may be sent: ahead of ``next_at`` by the burst, and not before ``now``."""
        return max(self.now, self.state.next_at - (self.burst - 1) * self.interval)

    def queue_end(self, priority: Priority) -> int:
        """Where the queue ends for this priority. Bulk work comes after all interactive work."""
        queue_end = self.state.interactive_queue_end
        return max(queue_end, self.state.bulk_queue_end) if priority == "bulk" else queue_end

    def after_request(self) -> BucketState:
        return self.state._replace(next_at=max(self.state.next_at, self.now) + self.interval)

    def after_reservation(self, reserved_at: int, priority: Priority) -> BucketState:
        queue_end = reserved_at + self.interval
        if priority == "bulk":
            return self.state._replace(bulk_queue_end=queue_end)
        return self.state._replace(interactive_queue_end=queue_end)


class AcquireResult(NamedTuple):
    """The permit, and what is to be stored: the states in the order of the buckets, and the holder's reservation."""

    permit: Permit
    states: tuple[BucketState, ...]
    reserved_at: int | None


def acquire(buckets: Sequence[LimitedBucket], reserved_at: int | None, priority: Priority) -> AcquireResult:
    """Ask all ``buckets`` of one request for one permit. ``reserved_at``: the holder's reservation, if it has one."""
    now = buckets[0].now
    latest = now + max_inline_wait(priority, _narrowest(buckets).interval)
    free_at = max(bucket.free_at for bucket in buckets)
    queue_end = max(bucket.queue_end(priority) for bucket in buckets)
    if free_at <= latest and _passes_queue(queue_end, reserved_at, latest, priority):
        return AcquireResult(_permit("go", free_at - now), tuple(map(LimitedBucket.after_request, buckets)), None)
    if reserved_at is not None and reserved_at > latest:
        return AcquireResult(_permit("queued", reserved_at - now), _unchanged(buckets), reserved_at)
    return _reserve(buckets, max(free_at, queue_end), priority)


def max_inline_wait(priority: Priority, interval: int) -> int:
    """The longest inline wait, in microseconds, if requests are ``interval`` apart."""
    policy_wait = WAIT_POLICIES[priority].max_inline_wait
    if priority == "in_flight":
        return max(policy_wait, min(MAX_IN_FLIGHT_WAIT_MICROSECONDS, 2 * interval))
    return policy_wait


def penalize(now: int, state: BucketState, limit: RateLimit, pause: int) -> BucketState:
    """The state after a 429: no request for ``pause`` microseconds, then half the rate for a while."""
    is_penalized = state.penalty_until > now
    halvings, penalized_at = state.halvings, state.penalized_at
    if not (is_penalized and now - penalized_at < PENALTY_MERGE_MICROSECONDS):
        halvings = min(MAX_PENALTY_HALVINGS, (halvings if is_penalized else 0) + 1)
        penalized_at = now
    # Later by the burst, which would else be sent at the end of the pause.
    next_at = now + pause + (limit.burst - 1) * (limit.interval << halvings)
    return state._replace(
        next_at=max(state.next_at, next_at),
        halvings=halvings,
        penalized_at=penalized_at,
        penalty_until=max(state.penalty_until, now + pause + PENALTY_MICROSECONDS),
    )


def _passes_queue(queue_end: int, reserved_at: int | None, latest: int, priority: Priority) -> bool:
    """Whether the holder is first: it goes before all others, or its reservation is due, or nobody else waits."""
    is_due = reserved_at is not None and reserved_at <= latest
    return priority == "in_flight" or is_due or queue_end <= latest


def _reserve(buckets: Sequence[LimitedBucket], reserved_at: int, priority: Priority) -> AcquireResult:
    """Put the holder at the end of the queue, unless that is too far ahead."""
    wait = reserved_at - buckets[0].now
    too_long = wait - WAIT_POLICIES[priority].max_queue_wait
    if too_long > 0:
        full = _permit("full", max(MIN_QUEUE_FULL_WAIT_MICROSECONDS, too_long))
        return AcquireResult(full, _unchanged(buckets), None)
    # The queue is kept for the narrowest bucket; the others are passed when the time has come.
    narrowest = _narrowest(buckets)
    states = tuple(
        bucket.after_reservation(reserved_at, priority) if bucket is narrowest else bucket.state for bucket in buckets
    )
    return AcquireResult(_permit("queued", wait), states, reserved_at)


def _narrowest(buckets: Sequence[LimitedBucket]) -> LimitedBucket:
    return max(buckets, key=attrgetter("interval"))


def _unchanged(buckets: Sequence[LimitedBucket]) -> tuple[BucketState, ...]:
    return tuple(bucket.state for bucket in buckets)


def _permit(state: Literal["go", "queued", "full"], microseconds: int) -> Permit:
    return Permit(state, microseconds / MICROSECONDS_PER_SECOND)
