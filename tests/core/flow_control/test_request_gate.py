"""What must wait gives its turn back unharmed, what has begun goes on, and a slow biller keeps to its own lanes."""

from __future__ import annotations

import threading
import time as real_time
from dataclasses import replace
from datetime import timedelta

import pytest

from core.flow_control.rate_limiter import LocalRateLimiter, ProviderRateLimits, RateLimit
from core.flow_control.request_gate import MAX_RETURN_SECONDS, MIN_RETURN_SECONDS, ConcurrencySlots, RequestGates
from core.flow_control.token_bucket import MICROSECONDS_PER_SECOND
from core.organizations.links import SWEEP_GRACE
from core.ports.errors import MustWaitError
from core.ports.spec import Provider
from core.reconcile.backoff import MAX_QUEUE_DELAY_SECONDS
from core.reconcile.reconciler import Reconciler, ReconcileResult
from tests.support.sync_world import CREATE_CUSTOMER_REQUEST, SyncWorld

LIMITS: dict[Provider, ProviderRateLimits] = {
    "stripe": ProviderRateLimits(RateLimit(10.0, 1), RateLimit(5.0, 1)),
    "lago": ProviderRateLimits(RateLimit(5.0, 1)),
}


class GateClock:
    """The quota's; it stands still."""

    def __init__(self) -> None:
        self.now = MICROSECONDS_PER_SECOND

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def time() -> GateClock:
    return GateClock()


@pytest.fixture
def rate_limiter(time: GateClock) -> LocalRateLimiter:
    return LocalRateLimiter(LIMITS, time)


@pytest.fixture
def reconciler(world: SyncWorld, rate_limiter: LocalRateLimiter) -> Reconciler:
    return replace(world.reconciler, request_gates=RequestGates(rate_limiter))


def take_all(rate_limiter: LocalRateLimiter, provider: Provider, operation: str = CREATE_CUSTOMER_REQUEST) -> None:
    number = 0
    while rate_limiter.acquire(provider, operation, f"other_{number}", "interactive").state != "full":
        number += 1


def take_some(
    rate_limiter: LocalRateLimiter, provider: Provider, many: int, operation: str = CREATE_CUSTOMER_REQUEST
) -> None:
    for number in range(many):
        rate_limiter.acquire(provider, operation, f"other_{number}", "interactive")


def test_who_must_wait_has_sent_and_counted_nothing_and_passes_at_his_place(
    reconciler: Reconciler, world: SyncWorld, rate_limiter: LocalRateLimiter, time: GateClock
) -> None:
    org_id = world.create()
    take_some(rate_limiter, "stripe", 6)
    outcome = reconciler.run(org_id, "stripe")
    link = world.link(org_id, "stripe")
    assert outcome.kind == "waiting"
    assert outcome.requeue_after == pytest.approx(1.2)
    assert (link.attempts, link.error_kind, link.intent, link.lease_token) == (0, None, None, None)
    assert link.not_before == world.now + timedelta(seconds=1.2)
    assert link.next_sweep_at == world.now + timedelta(seconds=1.2) + SWEEP_GRACE
    assert world.sandbox.counters().stripe.of(CREATE_CUSTOMER_REQUEST) == 0
    world.advance_time(seconds=1.2)
    time.now += round(1.2 * MICROSECONDS_PER_SECOND)
    assert reconciler.run(org_id, "stripe").kind == "synced"


def test_an_organization_that_finds_the_line_full_is_left_to_the_sweep(
    reconciler: Reconciler, world: SyncWorld, rate_limiter: LocalRateLimiter
) -> None:
    org_id = world.create()
    take_all(rate_limiter, "stripe")
    assert reconciler.run(org_id, "stripe") == ReconcileResult(kind="waiting", reason="request")
    assert world.link(org_id, "stripe").next_sweep_at == world.now + timedelta(seconds=1)


def test_an_error_that_the_link_met_before_stays_in_sight_while_it_waits(
    reconciler: Reconciler, world: SyncWorld, rate_limiter: LocalRateLimiter
) -> None:
    org_id = world.create()
    world.sandbox.add_fault("stripe", CREATE_CUSTOMER_REQUEST, "500_before")
    world.reconciler.run(org_id, "stripe")
    world.advance_time(seconds=60)
    take_some(rate_limiter, "stripe", 6)
    reconciler.run(org_id, "stripe")
    link = world.link(org_id, "stripe")
    assert (link.attempts, link.error_kind) == (1, "unavailable")


def test_a_change_while_it_waits_is_taken_along_without_a_second_place(
    reconciler: Reconciler, world: SyncWorld, rate_limiter: LocalRateLimiter, time: GateClock
) -> None:
    org_id = world.create()
    take_some(rate_limiter, "stripe", 6)
    first = reconciler.run(org_id, "stripe").requeue_after
    for number in range(20):
        world.rename(org_id, f"Acme {number}")
        assert reconciler.run(org_id, "stripe").requeue_after == first
    other = rate_limiter.acquire("stripe", CREATE_CUSTOMER_REQUEST, "somebody", "interactive")
    assert other.seconds == pytest.approx((first or 0) + 0.2)
    world.advance_time(seconds=2)
    time.now += 2 * MICROSECONDS_PER_SECOND
    assert reconciler.run(org_id, "stripe").kind == "synced"
    assert [each["name"] for each in world.sandbox.state()["stripe"]["customers"]] == ["Acme 19"]


def test_a_round_that_has_begun_ends_though_a_crowd_waits(
    reconciler: Reconciler, world: SyncWorld, rate_limiter: LocalRateLimiter
) -> None:
    """Lago takes two requests from one bucket: the second does not go to the end of the line."""
    world.policy = replace(world.policy, sends_payer_to_lago=False)
    org_id = world.create()
    began = replace(reconciler, policy=world.policy)
    world.providers["lago"].after_customer = lambda: take_all(rate_limiter, "lago")
    since = real_time.monotonic()
    assert began.run(org_id, "lago").kind == "synced"
    assert real_time.monotonic() - since > 0.2  # one interval of the bucket
    assert world.sandbox.counters().lago.operations["POST /api/v1/subscriptions"] == 1


def test_what_was_booked_is_paid_once_and_a_second_request_again(rate_limiter: LocalRateLimiter) -> None:
    gate = RequestGates(rate_limiter).open_gate("stripe", "org_1", "interactive")
    gate.acquire_permit_ahead(CREATE_CUSTOMER_REQUEST)
    gate.before_request(CREATE_CUSTOMER_REQUEST)
    assert rate_limiter.acquire("stripe", CREATE_CUSTOMER_REQUEST, "org_2", "in_flight").seconds == pytest.approx(0.2)
    gate.before_request(CREATE_CUSTOMER_REQUEST)
    assert rate_limiter.acquire("stripe", CREATE_CUSTOMER_REQUEST, "org_2", "in_flight").seconds == pytest.approx(0.6)


@pytest.mark.parametrize("reason", ["endpoint-rate", "global-rate"])
def test_a_429_slows_everybody_by_its_reason(
    reconciler: Reconciler, world: SyncWorld, rate_limiter: LocalRateLimiter, time: GateClock, reason: str
) -> None:
    org_id = world.create()
    world.sandbox.add_fault("stripe", CREATE_CUSTOMER_REQUEST, "429", reason=reason)
    assert reconciler.run(org_id, "stripe").kind == "retry"
    assert world.link(org_id, "stripe").error_kind == "throttled"
    one_operation = reason == "endpoint-rate"
    assert spacing(rate_limiter, time, CREATE_CUSTOMER_REQUEST) == pytest.approx(0.4 if one_operation else 0.2)
    assert spacing(rate_limiter, time, "GET /v1/customers") == pytest.approx(0.2)
    assert spacing(rate_limiter, time, None) == pytest.approx(0.1 if one_operation else 0.2)


def test_a_429_about_one_object_keeps_its_organization_out_and_slows_nobody(
    reconciler: Reconciler, world: SyncWorld, rate_limiter: LocalRateLimiter, time: GateClock
) -> None:
    org_id, other = world.create(), world.create("Other")
    world.sandbox.add_fault("stripe", CREATE_CUSTOMER_REQUEST, "429", times=2, reason="resource-specific")
    outcome, link = reconciler.run(org_id, "stripe"), world.link(org_id, "stripe")
    assert (outcome.kind, outcome.requeue_after) == ("retry", 60.0)
    assert (link.error_kind, link.error_code) == ("throttled", "resource-specific")
    assert spacing(rate_limiter, time, CREATE_CUSTOMER_REQUEST) == pytest.approx(0.2)
    assert spacing(rate_limiter, time, None) == pytest.approx(0.1)
    time.now += 5 * MICROSECONDS_PER_SECOND
    world.sandbox.clear_faults()
    assert reconciler.run(other, "stripe").kind == "synced"


def test_one_that_stripe_sees_too_often_waits_longer_each_time_and_no_change_hurries_it(
    reconciler: Reconciler, world: SyncWorld, time: GateClock
) -> None:
    org_id = world.create()
    world.sandbox.add_fault("stripe", CREATE_CUSTOMER_REQUEST, "429", times=3, reason="resource-specific")
    waits = []
    for number in range(3):
        outcome = reconciler.run(org_id, "stripe")
        waits.append(outcome.requeue_after)
        world.advance_time(seconds=30)
        assert reconciler.run(org_id, "stripe").kind == "waiting"
        if number == 2:
            world.rename(org_id, "Acme GmbH")
            assert reconciler.run(org_id, "stripe").kind == "waiting"
        world.advance_time(seconds=outcome.requeue_after or 0.0)
        time.now += 300 * MICROSECONDS_PER_SECOND
    assert waits == [60.0, 120.0, 240.0]
    assert reconciler.run(org_id, "stripe").kind == "synced"
    assert [each["name"] for each in world.stripe_objects("customers")] == ["Acme GmbH"]


def spacing(rate_limiter: LocalRateLimiter, time: GateClock, operation: str | None) -> float:
    """Seconds between two requests of one operation, or of a different one each."""
    time.now += 5 * MICROSECONDS_PER_SECOND
    slots = [
        rate_limiter.acquire("stripe", operation or f"operation {number}", "org", "in_flight") for number in range(4)
    ]
    return slots[3].seconds - slots[2].seconds


def test_a_probe_of_a_stopped_biller_is_not_kept_waiting(
    reconciler: Reconciler, world: SyncWorld, rate_limiter: LocalRateLimiter
) -> None:
    for number in range(5):
        world.sandbox.add_fault("stripe", CREATE_CUSTOMER_REQUEST, "500_before")
        world.reconciler.run(world.create(f"Failing {number}"), "stripe")
    waiting = world.create()
    assert world.reconciler.run(waiting, "stripe").reason == "breaker_open"
    world.advance_time(seconds=5)
    take_all(rate_limiter, "stripe")
    assert reconciler.run(waiting, "stripe").kind == "synced"


def test_the_lanes_of_a_process_leave_room_for_the_other_biller() -> None:
    gates = RequestGates(threads=8)
    inside = [gates.open_gate("stripe", f"org_{number}", "interactive") for number in range(6)]
    for gate in inside:
        gate.before_request(CREATE_CUSTOMER_REQUEST)
    with pytest.raises(MustWaitError) as caught:
        gates.open_gate("stripe", "org_late", "interactive").acquire_permit_ahead(CREATE_CUSTOMER_REQUEST)
    assert caught.value.reserved
    gates.open_gate("lago", "org_1", "interactive").before_request("POST /api/v1/customers")
    inside[0].close()
    inside[0].close()
    gates.open_gate("stripe", "org_late", "interactive").before_request(CREATE_CUSTOMER_REQUEST)
    with pytest.raises(MustWaitError):
        gates.open_gate("stripe", "org_later", "interactive").before_request(CREATE_CUSTOMER_REQUEST)


def test_those_who_find_the_lanes_full_come_back_as_slowly_as_turns_end() -> None:
    moment = 100.0
    slots = ConcurrencySlots(2, lambda: moment)
    for _ in range(40):
        slots.acquire()
        slots.release(4.0)
    assert (slots.acquire(), slots.acquire()) == (None, None)
    waits = [slots.acquire() or 0.0 for _ in range(40)]
    assert waits[0] == MIN_RETURN_SECONDS
    assert waits[2] - waits[1] == pytest.approx(2.0, abs=0.1)
    assert max(waits) == MAX_RETURN_SECONDS < MAX_QUEUE_DELAY_SECONDS


def test_a_fresh_change_finds_a_lane_where_bulk_work_fills_all_that_it_may() -> None:
    slots = ConcurrencySlots(3, lambda: 100.0)
    bulk = [slots.acquire(bulk=True) for _ in range(60)]
    assert bulk[:3] == [None, None, MIN_RETURN_SECONDS]
    assert bulk[-1] == MAX_RETURN_SECONDS
    assert (slots.acquire(), slots.acquire()) == (None, MIN_RETURN_SECONDS)
    assert ConcurrencySlots(1).acquire(bulk=True) is None


def test_bulk_work_finds_a_lane_where_fresh_changes_come_without_end() -> None:
    slots = ConcurrencySlots(3)
    assert [slots.acquire(), slots.acquire(), slots.acquire(bulk=True), slots.acquire()] == [
        None,
        None,
        None,
        MIN_RETURN_SECONDS,
    ]
    slots.release(0.1, bulk=True)
    assert slots.acquire(bulk=True) is None


def test_bulk_turns_that_end_leave_room_for_the_next() -> None:
    gates = RequestGates(threads=4)  # two lanes each, one of them for bulk work
    for number in range(3):
        gate = gates.open_gate("stripe", f"org_{number}", "bulk")
        gate.before_request(CREATE_CUSTOMER_REQUEST)
        gate.close()


def test_a_crowd_that_was_sent_away_is_forgotten_soon_after() -> None:
    moment = [100.0]
    slots = ConcurrencySlots(1, lambda: moment[0])
    slots.acquire()
    for _ in range(1000):
        slots.acquire()
    moment[0] += MAX_RETURN_SECONDS
    assert (slots.acquire() or 0.0) <= 2 * MIN_RETURN_SECONDS


def test_a_round_that_fails_leaves_its_lane(world: SyncWorld) -> None:
    gates = RequestGates(threads=2)  # one lane each
    reconciler = replace(world.reconciler, request_gates=gates)
    world.sandbox.add_fault("stripe", CREATE_CUSTOMER_REQUEST, "500_before", times=3)
    outcomes = [reconciler.run(world.create(f"Acme {number}"), "stripe").kind for number in range(4)]
    assert outcomes == ["retry", "retry", "retry", "synced"]


def test_many_threads_never_have_more_turns_at_a_biller_than_lanes() -> None:
    slots, most, inside, lock = ConcurrencySlots(3), 0, 0, threading.Lock()

    def work() -> None:
        nonlocal most, inside
        for _ in range(200):
            if slots.acquire() is not None:
                continue
            with lock:
                inside += 1
                most = max(most, inside)
            real_time.sleep(0)
            with lock:
                inside -= 1
            slots.release(0.0)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 3
    assert [slots.acquire() for _ in range(3)] == [None] * 3
