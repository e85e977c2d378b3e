"""The arithmetic of one permit and of one 429, as a table and as what holds for every state."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.flow_control.token_bucket import (
    MAX_PENALTY_HALVINGS,
    MICROSECONDS_PER_SECOND,
    MIN_QUEUE_FULL_WAIT_MICROSECONDS,
    PENALTY_MICROSECONDS,
    UNUSED_BUCKET,
    WAIT_POLICIES,
    AcquireResult,
    BucketState,
    LimitedBucket,
    Permit,
    Priority,
    RateLimit,
    acquire,
    max_inline_wait,
    penalize,
)

SECOND = MICROSECONDS_PER_SECOND
NOW = 1000 * SECOND
INTERVAL = SECOND // 10
TEN = RateLimit(10.0, 1)


def bucket(state: BucketState = UNUSED_BUCKET, limit: RateLimit = TEN, now: int = NOW) -> LimitedBucket:
    return LimitedBucket.at(now, state, limit)


# The state beside NOW, when the holder's reservation is, its priority; the permit, what the state becomes, and when the
# reservation is then. Moments are microseconds from NOW.
TABLE: dict[str, tuple[BucketState, int | None, Priority, str, int, BucketState, int | None]] = {
    "an unused bucket": (UNUSED_BUCKET, None, "interactive", "go", 0, BucketState(INTERVAL), None),
    "an inline wait": (
        BucketState(SECOND // 4), None, "interactive", "go", SECOND // 4, BucketState(SECOND // 4 + INTERVAL), None,
    ),
    "a microsecond more is a reservation": (
        BucketState(SECOND // 4 + 1), None, "interactive",
        "queued", SECOND // 4 + 1, BucketState(SECOND // 4 + 1, SECOND // 4 + 1 + INTERVAL), SECOND // 4 + 1,
    ),
    "bulk work waits less inside": (
        BucketState(SECOND // 4), None, "bulk",
        "queued", SECOND // 4, BucketState(SECOND // 4, 0, SECOND // 4 + INTERVAL), SECOND // 4,
    ),
    "a queue is joined at its end, though the bucket is free": (
        BucketState(0, SECOND), None, "interactive", "queued", SECOND, BucketState(0, SECOND + INTERVAL), SECOND,
    ),
    "interactive work does not see the bulk queue": (
        BucketState(0, 0, 9 * SECOND), None, "interactive", "go", 0, BucketState(INTERVAL, 0, 9 * SECOND), None,
    ),
    "bulk work sees both queues": (
        BucketState(0, SECOND, 2 * SECOND), None, "bulk",
        "queued", 2 * SECOND, BucketState(0, SECOND, 2 * SECOND + INTERVAL), 2 * SECOND,
    ),
    "bulk work comes after interactive work": (
        BucketState(0, 2 * SECOND, SECOND), None, "bulk",
        "queued", 2 * SECOND, BucketState(0, 2 * SECOND, 2 * SECOND + INTERVAL), 2 * SECOND,
    ),
    "an attempt in flight sees no queue": (
        BucketState(0, 4 * SECOND, 9 * SECOND), None, "in_flight",
        "go", 0, BucketState(INTERVAL, 4 * SECOND, 9 * SECOND), None,
    ),
    "an attempt in flight waits longer inside": (
        BucketState(2 * SECOND), None, "in_flight", "go", 2 * SECOND, BucketState(2 * SECOND + INTERVAL), None,
    ),
    "an attempt in flight is queued at last": (
        BucketState(3 * SECOND), None, "in_flight",
        "queued", 3 * SECOND, BucketState(3 * SECOND, 3 * SECOND + INTERVAL), 3 * SECOND,
    ),
    "a due reservation passes the queue": (
        BucketState(0, 4 * SECOND), 0, "interactive", "go", 0, BucketState(INTERVAL, 4 * SECOND), None,
    ),
    "a reservation is due within the inline wait": (
        BucketState(0, 4 * SECOND), SECOND // 4, "interactive", "go", 0, BucketState(INTERVAL, 4 * SECOND), None,
    ),
    "who asks early keeps the reservation": (
        BucketState(0, 4 * SECOND), SECOND, "interactive", "queued", SECOND, BucketState(0, 4 * SECOND), SECOND,
    ),
    "who asks early goes if nobody waits": (UNUSED_BUCKET, SECOND, "interactive", "go", 0, BucketState(INTERVAL), None),
    "a due reservation for a bucket that is not free gets a new place": (
        BucketState(SECOND, 2 * SECOND), -1, "interactive",
        "queued", 2 * SECOND, BucketState(SECOND, 2 * SECOND + INTERVAL), 2 * SECOND,
    ),
    "the last place": (
        BucketState(0, 5 * SECOND), None, "interactive",
        "queued", 5 * SECOND, BucketState(0, 5 * SECOND + INTERVAL), 5 * SECOND,
    ),
    "a full queue": (
        BucketState(0, 5 * SECOND + 1), None, "interactive", "full", SECOND, BucketState(0, 5 * SECOND + 1), None,
    ),
    "a bucket that is paused for long": (
        BucketState(60 * SECOND), None, "interactive", "full", 55 * SECOND, BucketState(60 * SECOND), None,
    ),
    "the bulk queue is longer": (
        BucketState(0, 6 * SECOND), None, "bulk",
        "queued", 6 * SECOND, BucketState(0, 6 * SECOND, 6 * SECOND + INTERVAL), 6 * SECOND,
    ),
    "a full bulk queue": (
        BucketState(0, 0, 12 * SECOND), None, "bulk", "full", 2 * SECOND, BucketState(0, 0, 12 * SECOND), None,
    ),
    "a full queue drops the due reservation": (
        BucketState(SECOND, 7 * SECOND), 0, "interactive",
        "full", 2 * SECOND, BucketState(SECOND, 7 * SECOND), None,
    ),
}  # fmt: skip


def from_now(state: BucketState) -> BucketState:
    """Of the table: moments that are 0 there were long ago."""
    return state._replace(
        next_at=state.next_at and NOW + state.next_at,
        interactive_queue_end=state.interactive_queue_end and NOW + state.interactive_queue_end,
        bulk_queue_end=state.bulk_queue_end and NOW + state.bulk_queue_end,
    )


@pytest.mark.parametrize("case", TABLE)
def test_one_bucket_decides_by_the_table(case: str) -> None:
    state, reserved_at, priority, permit, wait, state_after, reserved_after = TABLE[case]
    result = acquire([bucket(from_now(state))], None if reserved_at is None else NOW + reserved_at, priority)
    assert result == AcquireResult(
        Permit("go" if permit == "go" else "queued" if permit == "queued" else "full", wait / SECOND),
        (from_now(state_after),),
        None if reserved_after is None else NOW + reserved_after,
    )


def test_a_burst_may_be_ahead_of_the_rate() -> None:
    state, waits = UNUSED_BUCKET, []
    for _ in range(5):
        permit, (state,), _ = acquire([bucket(state, RateLimit(10.0, 3))], None, "interactive")
        waits.append(permit.seconds)
    assert waits == [0.0, 0.0, 0.0, 0.1, 0.2]


def test_a_request_waits_for_the_slowest_of_its_buckets_and_all_count_it() -> None:
    account, operation = bucket(BucketState(NOW)), bucket(BucketState(NOW + 3 * INTERVAL // 2), RateLimit(5.0, 1))
    result = acquire([account, operation], None, "interactive")
    assert result.permit == ("go", 0.15)
    assert [state.next_at for state in result.states] == [NOW + INTERVAL, NOW + 3 * INTERVAL // 2 + 2 * INTERVAL]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_only_the_narrowest_bucket_has_the_queue(order: tuple[int, int]) -> None:
    both = [bucket(BucketState(NOW + SECOND)), bucket(limit=RateLimit(5.0, 1))]
    result = acquire([both[each] for each in order], None, "interactive")
    assert result.permit == ("queued", 1.0)
    account, operation = (result.states[each] for each in order)
    assert account == BucketState(NOW + SECOND)
    assert operation == BucketState(0, NOW + SECOND + 2 * INTERVAL)


def test_of_two_equal_buckets_the_first_has_the_queue() -> None:
    result = acquire([bucket(BucketState(NOW + SECOND)), bucket()], None, "interactive")
    assert [state.interactive_queue_end for state in result.states] == [NOW + SECOND + INTERVAL, 0]


@pytest.mark.parametrize(
    ("priority", "interval", "longest"),
    [
        ("interactive", 30 * SECOND, SECOND // 4),
        ("bulk", 30 * SECOND, 3 * SECOND // 20),
        ("in_flight", SECOND // 10, 2 * SECOND),
        ("in_flight", 5 * SECOND, 10 * SECOND),
        ("in_flight", 30 * SECOND, 20 * SECOND),
    ],
)
def test_only_an_attempt_in_flight_waits_for_two_long_intervals(
    priority: Priority, interval: int, longest: int
) -> None:
    assert max_inline_wait(priority, interval) == longest


# The halvings, the seconds since the last 429 that counted and until the penalty ends; the halvings then.
@pytest.mark.parametrize(
    ("halvings", "since", "left", "halvings_after", "counts"),
    [
        (0, 1000.0, -970.0, 1, True),
        (1, 0.0, 30.0, 1, False),
        (1, 1.999999, 28.0, 1, False),
        (1, 2.0, 28.0, 2, True),
        (2, 29.0, 1.0, 3, True),
        (3, 29.0, 1.0, MAX_PENALTY_HALVINGS, True),
        (3, 30.0, 0.0, 1, True),
        (2, 1.0, 0.0, 1, True),
    ],
)
def test_a_429_halves_the_rate_by_the_table(
    halvings: int, since: float, left: float, halvings_after: int, *, counts: bool
) -> None:
    penalized_at = NOW - round(since * SECOND)
    state = BucketState(0, 7, 8, halvings, penalized_at, NOW + round(left * SECOND))
    assert penalize(NOW, state, TEN, 0) == BucketState(
        NOW, 7, 8, halvings_after, NOW if counts else penalized_at, NOW + PENALTY_MICROSECONDS
    )


def test_after_the_pause_of_a_429_no_burst_is_sent() -> None:
    limit = RateLimit(10.0, 3)
    state = penalize(NOW, UNUSED_BUCKET, limit, 3 * SECOND)
    waits = []
    for _ in range(3):
        permit, (state,), _ = acquire([bucket(state, limit, NOW + 3 * SECOND)], None, "in_flight")
        waits.append(permit.seconds)
    assert waits == [0.0, 0.2, 0.4]
    assert penalize(NOW, BucketState(NOW + 9 * SECOND), TEN, SECOND).next_at == NOW + 9 * SECOND


def test_the_half_rate_begins_after_a_pause_however_long() -> None:
    state = penalize(NOW, UNUSED_BUCKET, TEN, 60 * SECOND)
    assert state.penalty_until == NOW + 60 * SECOND + PENALTY_MICROSECONDS
    shorter_pause = penalize(NOW + SECOND, state, TEN, 0)
    assert shorter_pause.penalty_until == state.penalty_until


unhurried = settings(deadline=None)  # a busy machine proves nothing
moments = st.integers(NOW - 2 * SECOND, NOW + 12 * SECOND)
limits = st.builds(RateLimit, st.sampled_from([0.1, 0.45, 5.0, 24.5, 98.0]), st.integers(1, 20))
never = st.just(0)
states = st.builds(BucketState, moments, moments, moments, never, never, never)
penalized_states = st.builds(BucketState, moments, moments, moments, st.integers(1, 3), moments, moments)
priorities: st.SearchStrategy[Priority] = st.sampled_from(["interactive", "bulk", "in_flight"])


def some_buckets(states: st.SearchStrategy[BucketState]) -> st.SearchStrategy[list[LimitedBucket]]:
    return st.lists(st.builds(bucket, states, limits), min_size=1, max_size=3)


@unhurried
@given(buckets=some_buckets(penalized_states), reserved_at=st.none() | moments, priority=priorities)
def test_whatever_the_state_is_a_result_keeps_what_its_permit_promises(
    buckets: list[LimitedBucket], reserved_at: int | None, priority: Priority
) -> None:
    permit, states_after, reserved_after = acquire(buckets, reserved_at, priority)
    wait = round(permit.seconds * SECOND)
    queues = [(state.interactive_queue_end, state.bulk_queue_end) for state in states_after]
    queues_before = [(each.state.interactive_queue_end, each.state.bulk_queue_end) for each in buckets]
    if permit.state == "go":
        assert reserved_after is None
        assert queues == queues_before
        assert wait <= max_inline_wait(priority, max(each.interval for each in buckets))
        for each, state in zip(buckets, states_after, strict=True):
            assert each.free_at <= NOW + wait
            assert state.next_at == max(each.state.next_at, NOW) + each.interval
        return
    assert [state.next_at for state in states_after] == [each.state.next_at for each in buckets]
    if permit.state == "full":
        assert (reserved_after, queues) == (None, queues_before)
        assert wait >= MIN_QUEUE_FULL_WAIT_MICROSECONDS
    elif reserved_after == reserved_at:
        assert reserved_after == NOW + wait
    else:
        assert reserved_after == NOW + wait
        assert wait <= WAIT_POLICIES[priority].max_queue_wait
        changed = [pair for pair in zip(queues, queues_before, strict=True) if pair[0] != pair[1]]
        assert len(changed) <= 1
        other = 0 if priority == "bulk" else 1
        assert [after[other] for after, _ in changed] == [before[other] for _, before in changed]


@unhurried
@given(buckets=some_buckets(states), priority=priorities)
def test_who_comes_back_at_the_reserved_time_goes_at_once_if_nobody_went_before(
    buckets: list[LimitedBucket], priority: Priority
) -> None:
    result = acquire(buckets, None, priority)
    if result.reserved_at is None:
        return
    then = [
        each._replace(state=state, now=result.reserved_at) for state, each in zip(result.states, buckets, strict=True)
    ]
    assert acquire(then, result.reserved_at, priority).permit == ("go", 0.0)


@unhurried
@given(
    state=penalized_states,
    limit=limits,
    pause=st.integers(0, 20 * SECOND),
    halves=st.integers(1, 5),
    priority=priorities,
)
def test_after_a_429_nobody_sends_before_the_pause_is_over(
    state: BucketState, limit: RateLimit, pause: int, halves: int, priority: Priority
) -> None:
    for _ in range(halves):
        state = penalize(NOW, state, limit, pause)
    assert 1 <= state.halvings <= MAX_PENALTY_HALVINGS
    permit, _, _ = acquire([bucket(state, limit)], None, priority)
    assert permit.state != "go" or permit.seconds >= pause / SECOND
