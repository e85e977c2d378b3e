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

from core.flow_control.rate_limiter import PLACE_KEPT, SECOND, SLOW_FOR, Limit, Limits, LocalQuota, Urgency
from core.ports.spec import Provider

CREATE, READ = "POST /v1/customers", "GET /v1/customers/{id}"
LIMITS: dict[Provider, Limits] = {
    "stripe": Limits(Limit(98.0, 20), Limit(24.5, 5)),
    "lago": Limits(Limit(45.0, 2), round_takes=2),
}


class Time:
    def __init__(self) -> None:
        self.now = 1000 * SECOND

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def quota(time: Time) -> LocalQuota:
    return LocalQuota(LIMITS, time)


def fill(quota: LocalQuota, urgency: Urgency, many: int, provider: Provider = "stripe") -> list[float]:
    """A crowd at one moment; the seconds of those that got a place in line."""
    slots = [quota.take(provider, CREATE, f"{urgency}_{number}", urgency) for number in range(many)]
    return [slot.seconds for slot in slots if slot.state == "queued"]


def test_a_quiet_bucket_lets_the_burst_through_at_once_and_the_rest_one_interval_apart(quota: LocalQuota) -> None:
    slots = [quota.take("stripe", CREATE, f"org_{number}", "fresh") for number in range(12)]
    assert [slot.seconds for slot in slots[:5]] == [0.0] * 5
    assert {round(after.seconds - before.seconds, 3) for before, after in pairwise(slots[4:])} == {0.041}


def test_places_in_line_are_one_interval_apart_up_to_the_horizon(quota: LocalQuota) -> None:
    places = fill(quota, "fresh", 300)
    assert {round(after - before, 3) for before, after in pairwise(places)} == {0.041}
    assert 4.9 < places[-1] <= 5.0
    beyond = quota.take("stripe", CREATE, "late", "fresh")
    assert beyond.state == "full"
    assert beyond.seconds == 1.0


def test_who_comes_back_in_time_passes_before_those_who_come_new(quota: LocalQuota, time: Time) -> None:
    places = fill(quota, "fresh", 300)
    time.now += int(places[0] * SECOND)
    assert quota.take("stripe", CREATE, "new", "fresh").state != "go"
    assert quota.take("stripe", CREATE, "fresh_11", "fresh").state == "go"


def test_one_organization_has_one_place_however_often_it_asks(quota: LocalQuota, time: Time) -> None:
    fill(quota, "fresh", 30)
    first = quota.take("stripe", CREATE, "eager", "fresh")
    for _ in range(1000):
        time.now += 100
        assert quota.take("stripe", CREATE, "eager", "fresh").state == "queued"
    assert quota.take("stripe", CREATE, "other", "fresh").seconds == pytest.approx(
        first.seconds + 0.041 - 0.1, abs=0.01
    )


def test_a_place_that_nobody_comes_back_for_is_forgotten(quota: LocalQuota, time: Time) -> None:
    fill(quota, "fresh", 100)
    assert len(quota._places) > 80  # noqa: SLF001 - that it does not grow for ever cannot be seen from outside
    time.now += PLACE_KEPT + 10 * SECOND
    quota.take("stripe", CREATE, "org", "fresh")
    assert not quota._places  # noqa: SLF001 - see above


def test_fresh_work_passes_a_line_of_bulk_work_and_other_operations_pass_both(quota: LocalQuota) -> None:
    assert len(fill(quota, "bulk", 400)) > 200
    assert quota.take("stripe", CREATE, "fresh", "fresh").state == "go"
    fill(quota, "fresh", 300)
    assert quota.take("stripe", READ, "reader", "fresh") == ("go", 0.0)
    assert quota.take("lago", CREATE, "elsewhere", "fresh") == ("go", 0.0)


def test_what_has_begun_goes_before_all_others(quota: LocalQuota) -> None:
    fill(quota, "fresh", 300)
    slot = quota.take("stripe", CREATE, "begun", "started")
    assert slot.state == "go"
    assert slot.seconds < 0.5


@pytest.mark.parametrize(
    ("reason", "creates", "reads"),
    [("endpoint-rate", 2, 1), ("endpoint-concurrency", 2, 1), (None, 2, 1), ("global-rate", 1, 1)],
)
def test_a_429_halves_the_bucket_that_its_reason_names(
    quota: LocalQuota, time: Time, reason: str | None, creates: int, reads: int
) -> None:
    quota.slow_down("stripe", CREATE, reason, 0.0)
    assert spacing(quota, CREATE) == pytest.approx(creates / 24.5, abs=0.001)
    assert spacing(quota, READ) == pytest.approx(reads / 24.5, abs=0.001)
    time.now += SLOW_FOR + SECOND
    assert spacing(quota, CREATE) == pytest.approx(1 / 24.5, abs=0.001)


def test_many_429s_of_one_moment_halve_once_and_later_ones_again(quota: LocalQuota, time: Time) -> None:
    for _ in range(20):
        quota.slow_down("lago", CREATE, None, 0.0)
    assert spacing(quota, CREATE, "lago") == pytest.approx(2 / 45, abs=0.001)
    for _ in range(9):
        time.now += 3 * SECOND
        quota.slow_down("lago", CREATE, None, 0.0)
    assert spacing(quota, CREATE, "lago") == pytest.approx(8 / 45, abs=0.001)


def test_the_pause_that_a_429_asks_for_is_kept(quota: LocalQuota, time: Time) -> None:
    quota.slow_down("lago", CREATE, None, 3.0)
    assert quota.take("lago", CREATE, "org", "fresh") == ("queued", 3.0)
    time.now += 3 * SECOND
    assert quota.take("lago", CREATE, "org", "fresh").state == "go"


def spacing(quota: LocalQuota, operation: str, provider: Provider = "stripe") -> float:
    """Seconds between two places in line."""
    slots = [quota.take(provider, operation, str(uuid4()), "fresh") for _ in range(40)]
    first, second = [slot.seconds for slot in slots if slot.state == "queued"][:2]
    return second - first


urgencies: st.SearchStrategy[Urgency] = st.sampled_from(["fresh", "bulk", "started"])


@given(
    asked=st.lists(st.tuples(st.integers(0, 200_000), st.sampled_from([CREATE, READ]), urgencies), max_size=200),
    provider=st.sampled_from(["stripe", "lago"]),
)
def test_whoever_asks_however_often_no_bucket_lets_more_through_than_its_rate(
    asked: list[tuple[int, str, Urgency]], provider: Provider
) -> None:
    time = Time()
    quota = LocalQuota(LIMITS, time)
    sent: dict[str, list[int]] = {"account": [], CREATE: [], READ: []}
    for number, (pause, operation, urgency) in enumerate(asked):
        time.now += pause
        slot = quota.take(provider, operation, f"org_{number % 40}", urgency)
        if slot.state == "go":
            for bucket in ("account", operation):
                sent[bucket].append(time.now + round(slot.seconds * SECOND))
    limits = LIMITS[provider]
    within(sent["account"], limits.account, most_late=2 * SECOND)
    if limits.operation is not None:
        within(sent[CREATE], limits.operation)
        within(sent[READ], limits.operation)


def within(sent: list[int], limit: Limit, most_late: int = 0) -> None:
    """``most_late``: who waits inside for a narrower bucket was counted by this one before that."""
    sent = sorted(sent)
    for first, last in itertools.combinations(range(len(sent)), 2):
        allowed = limit.burst + (sent[last] - sent[first] + most_late) / limit.interval
        assert last - first + 1 <= allowed + 1e-6


@pytest.mark.parametrize("burst", [1, 2, 5])
@pytest.mark.parametrize("rate", [0.1, 0.45, 0.9, 4.5])
@pytest.mark.parametrize("halvings", [0, 1])
def test_turns_of_several_requests_end_however_slow_the_bucket_is(
    quota: LocalQuota, time: Time, rate: float, burst: int, halvings: int
) -> None:
    """One that is given back begins again with its first request."""
    limit = Limit(rate, burst)
    quota.limits = {**LIMITS, "lago": Limits(limit)}
    for _ in range(halvings):
        quota.slow_down("lago", CREATE, None, 0.0)
    interval, began, ended = limit.interval << halvings, time.now, 0
    coming: list[tuple[int, int, int]] = [(time.now, member, 3) for member in range(8)]
    while coming:
        time.now, member, left = heapq.heappop(coming)
        slot = quota.take("lago", CREATE, f"org_{member}", "fresh" if left == 3 else "started")
        back = time.now + round(slot.seconds * SECOND) + 1000
        if slot.state != "go":
            heapq.heappush(coming, (back, member, 3))
        elif left > 1:
            heapq.heappush(coming, (back + SECOND // 5, member, left - 1))
        else:
            ended += 1
        assert time.now - began < 2 * 24 * interval + 60 * SECOND, f"{ended} of 8 ended"


@dataclass
class Crowd:
    """``requests`` each, in made-up time. The bulk of it is handed over as the sweep does it: every five seconds."""

    provider: Provider
    requests: int
    urgency: Urgency
    size: int = 1000
    sent: list[int] = field(default_factory=list)
    comings: Counter[int] = field(default_factory=Counter)
    fresh: list[int] = field(default_factory=list)

    def run(self) -> float:
        """Returns the share of the rate that was used."""
        time, late = Time(), random.Random(7)  # noqa: S311 - not for secrets
        quota = LocalQuota(LIMITS, time)
        pace = quota.pace(self.provider)
        window = int(pace * 10)
        waiting = [(time.now, member) for member in range(self.size)]
        # When, who (negative: a fresh change from outside), what he still has to send, and how urgent he is.
        events = [(time.now + 5 * SECOND * n, 0, 0, self.urgency) for n in range(200)]
        events += [(time.now + SECOND * n, -1 - n, 1, "fresh") for n in range(20)]
        if self.urgency == "fresh":
            events += [(at, member, self.requests, self.urgency) for at, member in waiting]
            waiting = []
        heapq.heapify(events)
        home, away = 0, len(events) - 220
        while home < self.size:
            time.now, who, left, urgency = heapq.heappop(events)
            if not left:
                waiting.sort()
                due = [each for each in waiting[: max(0, window - away)] if each[0] <= time.now]
                waiting = waiting[len(due) :]
                for _, member in due:
                    comes = time.now + int(away / pace * SECOND) + late.randrange(SECOND // 10)
                    heapq.heappush(events, (comes, member, self.requests, "bulk"))
                    away += 1
                continue
            self.comings[who] += urgency != "started"
            slot = quota.take(self.provider, CREATE, str(who), urgency)
            at = time.now + round(slot.seconds * SECOND)
            if slot.state == "go":
                self.sent.append(at)
                if left > 1:
                    heapq.heappush(events, (at + SECOND // 5, who, left - 1, "started"))
                elif who >= 0:
                    home, away = home + 1, away - 1
                else:
                    self.fresh.append(at - (1000 * SECOND - SECOND * (1 + who)))
            elif slot.state == "queued":
                heapq.heappush(events, (at + late.randrange(SECOND // 10), who, left, urgency))
            else:
                waiting.append((at, who))
                away -= 1
        return len(self.sent) * SECOND / (max(self.sent) - min(self.sent)) / quota.pace(self.provider) / self.requests


@pytest.mark.parametrize("urgency", ["fresh", "bulk"])
@pytest.mark.parametrize(("provider", "requests"), [("stripe", 1), ("lago", 2)])
def test_a_crowd_uses_the_whole_rate_and_asks_a_few_times_each(
    provider: Provider, requests: int, urgency: Urgency
) -> None:
    crowd = Crowd(provider, requests, urgency)
    assert crowd.run() > 0.96
    assert sum(crowd.comings.values()) / crowd.size <= 2 + requests
    if urgency == "bulk":
        assert max(crowd.fresh) < SECOND // 4
