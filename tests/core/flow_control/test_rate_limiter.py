"""Buckets never let more through than their rate, use all of it while somebody waits, and let fresh work pass a crowd.

The crowd lives in made-up time: its members come, are told to come back, come back a little late, as messages do.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.flow_control.rate_limiter import (
    RESERVATION_TTL_MICROSECONDS,
    LocalRateLimiter,
    Priority,
    ProviderRateLimits,
    RateLimit,
)
from core.flow_control.token_bucket import MICROSECONDS_PER_SECOND, PENALTY_MICROSECONDS
from core.ports.spec import Provider

CREATE, READ = "POST /v1/customers", "GET /v1/customers/{id}"
LIMITS: dict[Provider, ProviderRateLimits] = {
    "stripe": ProviderRateLimits(RateLimit(98.0, 20), RateLimit(24.5, 5)),
    "lago": ProviderRateLimits(RateLimit(45.0, 2), calls_per_reconcile=2),
}


class BucketClock:
    def __init__(self) -> None:
        self.now = 1000 * MICROSECONDS_PER_SECOND

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def time() -> BucketClock:
    return BucketClock()


@pytest.fixture
def rate_limiter(time: BucketClock) -> LocalRateLimiter:
    return LocalRateLimiter(LIMITS, time)


def fill(rate_limiter: LocalRateLimiter, priority: Priority, many: int, provider: Provider = "stripe") -> list[float]:
    """A crowd at one moment; the seconds of those that got a place in line."""
    slots = [rate_limiter.acquire(provider, CREATE, f"{priority}_{number}", priority) for number in range(many)]
    return [slot.seconds for slot in slots if slot.state == "queued"]


def test_a_quiet_bucket_lets_the_burst_through_at_once_and_the_rest_one_interval_apart(
    rate_limiter: LocalRateLimiter,
) -> None:
    slots = [rate_limiter.acquire("stripe", CREATE, f"org_{number}", "interactive") for number in range(12)]
    assert [slot.seconds for slot in slots[:5]] == [0.0] * 5
    assert {round(after.seconds - before.seconds, 3) for before, after in pairwise(slots[4:])} == {0.041}


def test_places_in_line_are_one_interval_apart_up_to_the_horizon(rate_limiter: LocalRateLimiter) -> None:
    places = fill(rate_limiter, "interactive", 300)
    assert {round(after - before, 3) for before, after in pairwise(places)} == {0.041}
    assert 4.9 < places[-1] <= 5.0
    beyond = rate_limiter.acquire("stripe", CREATE, "late", "interactive")
    assert beyond.state == "full"
    assert beyond.seconds == 1.0


def test_who_comes_back_in_time_passes_before_those_who_come_new(
    rate_limiter: LocalRateLimiter, time: BucketClock
) -> None:
    places = fill(rate_limiter, "interactive", 300)
    time.now += int(places[0] * MICROSECONDS_PER_SECOND)
    assert rate_limiter.acquire("stripe", CREATE, "new", "interactive").state != "go"
    assert rate_limiter.acquire("stripe", CREATE, "interactive_11", "interactive").state == "go"


def test_one_organization_has_one_place_however_often_it_asks(
    rate_limiter: LocalRateLimiter, time: BucketClock
) -> None:
    fill(rate_limiter, "interactive", 30)
    first = rate_limiter.acquire("stripe", CREATE, "eager", "interactive")
    for _ in range(1000):
        time.now += 100
        assert rate_limiter.acquire("stripe", CREATE, "eager", "interactive").state == "queued"
    assert rate_limiter.acquire("stripe", CREATE, "other", "interactive").seconds == pytest.approx(
        first.seconds + 0.041 - 0.1, abs=0.01
    )


def test_a_place_that_nobody_comes_back_for_is_forgotten(rate_limiter: LocalRateLimiter, time: BucketClock) -> None:
    fill(rate_limiter, "interactive", 100)
    assert len(rate_limiter._reservations) > 80  # noqa: SLF001 - that it does not grow for ever cannot be seen from outside
    time.now += RESERVATION_TTL_MICROSECONDS + 10 * MICROSECONDS_PER_SECOND
    rate_limiter.acquire("stripe", CREATE, "org", "interactive")
    assert not rate_limiter._reservations  # noqa: SLF001 - see above


def test_fresh_work_passes_a_line_of_bulk_work_and_other_operations_pass_both(rate_limiter: LocalRateLimiter) -> None:
    assert len(fill(rate_limiter, "bulk", 400)) > 200
    assert rate_limiter.acquire("stripe", CREATE, "fresh", "interactive").state == "go"
    fill(rate_limiter, "interactive", 300)
    assert rate_limiter.acquire("stripe", READ, "reader", "interactive") == ("go", 0.0)
    assert rate_limiter.acquire("lago", CREATE, "elsewhere", "interactive") == ("go", 0.0)


def test_what_has_begun_goes_before_all_others(rate_limiter: LocalRateLimiter) -> None:
    fill(rate_limiter, "interactive", 300)
    slot = rate_limiter.acquire("stripe", CREATE, "begun", "in_flight")
    assert slot.state == "go"
    assert slot.seconds < 0.5


@pytest.mark.parametrize(
    ("reason", "creates", "reads"),
    [("endpoint-rate", 2, 1), ("endpoint-concurrency", 2, 1), (None, 2, 1), ("global-rate", 1, 1)],
)
def test_a_429_halves_the_bucket_that_its_reason_names(
    rate_limiter: LocalRateLimiter, time: BucketClock, reason: str | None, creates: int, reads: int
) -> None:
    rate_limiter.penalize("stripe", CREATE, reason, 0.0)
    assert spacing(rate_limiter, CREATE) == pytest.approx(creates / 24.5, abs=0.001)
    assert spacing(rate_limiter, READ) == pytest.approx(reads / 24.5, abs=0.001)
    time.now += PENALTY_MICROSECONDS + MICROSECONDS_PER_SECOND
    assert spacing(rate_limiter, CREATE) == pytest.approx(1 / 24.5, abs=0.001)


def test_many_429s_of_one_moment_halve_once_and_later_ones_again(
    rate_limiter: LocalRateLimiter, time: BucketClock
) -> None:
    for _ in range(20):
        rate_limiter.penalize("lago", CREATE, None, 0.0)
    assert spacing(rate_limiter, CREATE, "lago") == pytest.approx(2 / 45, abs=0.001)
    for _ in range(9):
        time.now += 3 * MICROSECONDS_PER_SECOND
        rate_limiter.penalize("lago", CREATE, None, 0.0)
    assert spacing(rate_limiter, CREATE, "lago") == pytest.approx(8 / 45, abs=0.001)


def test_the_pause_that_a_429_asks_for_is_kept(rate_limiter: LocalRateLimiter, time: BucketClock) -> None:
    rate_limiter.penalize("lago", CREATE, None, 3.0)
    assert rate_limiter.acquire("lago", CREATE, "org", "interactive") == ("queued", 3.0)
    time.now += 3 * MICROSECONDS_PER_SECOND
    assert rate_limiter.acquire("lago", CREATE, "org", "interactive").state == "go"


def spacing(rate_limiter: LocalRateLimiter, operation: str, provider: Provider = "stripe") -> float:
    """Seconds between two places in line."""
    slots = [rate_limiter.acquire(provider, operation, str(uuid4()), "interactive") for _ in range(40)]
    first, second = [slot.seconds for slot in slots if slot.state == "queued"][:2]
    return second - first


priorities: st.SearchStrategy[Priority] = st.sampled_from(["interactive", "bulk", "in_flight"])


@given(
    asked=st.lists(st.tuples(st.integers(0, 200_000), st.sampled_from([CREATE, READ]), priorities), max_size=200),
    provider=st.sampled_from(["stripe", "lago"]),
)
def test_whoever_asks_however_often_no_bucket_lets_more_through_than_its_rate(
    asked: list[tuple[int, str, Priority]], provider: Provider
) -> None:
    time = BucketClock()
    rate_limiter = LocalRateLimiter(LIMITS, time)
    sent: dict[str, list[int]] = {"account": [], CREATE: [], READ: []}
    for number, (pause, operation, priority) in enumerate(asked):
        time.now += pause
        slot = rate_limiter.acquire(provider, operation, f"org_{number % 40}", priority)
        if slot.state == "go":
            for bucket in ("account", operation):
                sent[bucket].append(time.now + round(slot.seconds * MICROSECONDS_PER_SECOND))
    limits = LIMITS[provider]
    within(sent["account"], limits.account, most_late=2 * MICROSECONDS_PER_SECOND)
    if limits.operation is not None:
        within(sent[CREATE], limits.operation)
        within(sent[READ], limits.operation)


def within(sent: list[int], limit: RateLimit, most_late: int = 0) -> None:
    """``most_late``: who waits inside for a narrower bucket was counted by this one before that."""
    sent = sorted(sent)
    for first, last in itertools.combinations(range(len(sent)), 2):
        allowed = limit.burst + (sent[last] - sent[first] + most_late) / limit.interval
        assert last - first + 1 <= allowed + 1e-6


@pytest.mark.parametrize("burst", [1, 2, 5])
@pytest.mark.parametrize("rate", [0.1, 0.45, 0.9, 4.5])
@pytest.mark.parametrize("halvings", [0, 1])
def test_turns_of_several_requests_end_however_slow_the_bucket_is(
    rate_limiter: LocalRateLimiter, time: BucketClock, rate: float, burst: int, halvings: int
) -> None:
    """One that is given back begins again with its first request."""
    limit = RateLimit(rate, burst)
    rate_limiter.limits = {**LIMITS, "lago": ProviderRateLimits(limit)}
    for _ in range(halvings):
        rate_limiter.penalize("lago", CREATE, None, 0.0)
    interval, began, ended = limit.interval << halvings, time.now, 0
    coming: list[tuple[int, int, int]] = [(time.now, member, 3) for member in range(8)]
    while coming:
        time.now, member, left = heapq.heappop(coming)
        slot = rate_limiter.acquire("lago", CREATE, f"org_{member}", "interactive" if left == 3 else "in_flight")
        back = time.now + round(slot.seconds * MICROSECONDS_PER_SECOND) + 1000
        if slot.state != "go":
            heapq.heappush(coming, (back, member, 3))
        elif left > 1:
            heapq.heappush(coming, (back + MICROSECONDS_PER_SECOND // 5, member, left - 1))
        else:
            ended += 1
        assert time.now - began < 2 * 24 * interval + 60 * MICROSECONDS_PER_SECOND, f"{ended} of 8 ended"


@dataclass
class SimulatedBurst:
    """``requests`` each, in made-up time. The bulk of it is handed over as the sweep does it: every five seconds."""

    provider: Provider
    requests: int
    priority: Priority
    size: int = 1000
    sent: list[int] = field(default_factory=list)
    tries: Counter[int] = field(default_factory=Counter)
    interactive_waits: list[int] = field(default_factory=list)

    def run(self) -> float:
        """Returns the share of the rate that was used."""
        time, late = BucketClock(), random.Random(7)  # noqa: S311 - not for secrets
        rate_limiter = LocalRateLimiter(LIMITS, time)
        rate = rate_limiter.expected_rate(self.provider)
        window = int(rate * 10)
        waiting = [(time.now, member) for member in range(self.size)]
        # When, who (negative: a fresh change from outside), what he still has to send, and how urgent he is.
        events = [(time.now + 5 * MICROSECONDS_PER_SECOND * n, 0, 0, self.priority) for n in range(200)]
        events += [(time.now + MICROSECONDS_PER_SECOND * n, -1 - n, 1, "interactive") for n in range(20)]
        if self.priority == "interactive":
            events += [(at, member, self.requests, self.priority) for at, member in waiting]
            waiting = []
        heapq.heapify(events)
        home, away = 0, len(events) - 220
        while home < self.size:
            time.now, who, left, priority = heapq.heappop(events)
            if not left:
                waiting.sort()
                due = [each for each in waiting[: max(0, window - away)] if each[0] <= time.now]
                waiting = waiting[len(due) :]
                for _, member in due:
                    comes = (
                        time.now
                        + int(away / rate * MICROSECONDS_PER_SECOND)
                        + late.randrange(MICROSECONDS_PER_SECOND // 10)
                    )
                    heapq.heappush(events, (comes, member, self.requests, "bulk"))
                    away += 1
                continue
            self.tries[who] += priority != "in_flight"
            slot = rate_limiter.acquire(self.provider, CREATE, str(who), priority)
            at = time.now + round(slot.seconds * MICROSECONDS_PER_SECOND)
            if slot.state == "go":
                self.sent.append(at)
                if left > 1:
                    heapq.heappush(events, (at + MICROSECONDS_PER_SECOND // 5, who, left - 1, "in_flight"))
                elif who >= 0:
                    home, away = home + 1, away - 1
                else:
                    self.interactive_waits.append(
                        at - (1000 * MICROSECONDS_PER_SECOND - MICROSECONDS_PER_SECOND * (1 + who))
                    )
            elif slot.state == "queued":
                heapq.heappush(events, (at + late.randrange(MICROSECONDS_PER_SECOND // 10), who, left, priority))
            else:
                waiting.append((at, who))
                away -= 1
        return (
            len(self.sent)
            * MICROSECONDS_PER_SECOND
            / (max(self.sent) - min(self.sent))
            / rate_limiter.expected_rate(self.provider)
            / self.requests
        )


@pytest.mark.parametrize("priority", ["interactive", "bulk"])
@pytest.mark.parametrize(("provider", "requests"), [("stripe", 1), ("lago", 2)])
def test_a_crowd_uses_the_whole_rate_and_asks_a_few_times_each(
    provider: Provider, requests: int, priority: Priority
) -> None:
    burst = SimulatedBurst(provider, requests, priority)
    assert burst.run() > 0.96
    assert sum(burst.tries.values()) / burst.size <= 2 + requests
    if priority == "bulk":
        assert max(burst.interactive_waits) < MICROSECONDS_PER_SECOND // 4
