"""A biller that is stopped: who stops it, who may try it, and what the others do meanwhile."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, event
from structlog.testing import capture_logs

from core.db.models.providers import ProviderStatus
from core.flow_control import circuit_breaker
from core.flow_control.circuit_breaker import BREAKER_FAILURE_THRESHOLD, MAX_PROBE_BACKOFF_SECONDS, OpenBreaker
from core.ports.errors import (
    MisconfiguredError,
    RejectedError,
    RetryableError,
    ThrottledError,
    UnavailableError,
)
from core.ports.spec import Provider
from core.reconcile import backoff, due_links, lease, outcomes
from core.reconcile.attempt import ApplyResult, SyncAttempt
from core.reconcile.lease import LeaseRefusal, NoLease
from core.reconcile.outcomes import FollowUps
from core.reconcile.reconciler import MAX_UNEXPECTED_ATTEMPTS
from tests.support.strange_error import StrangeError
from tests.support.sync_world import CREATE_CUSTOMER_REQUEST, SyncWorld

DOWN = UnavailableError("stripe", "no answer")
REFUSED = MisconfiguredError("stripe", "Stripe does not accept the key")
MANY = 50


def open_breaker(world: SyncWorld, provider: Provider = "stripe") -> OpenBreaker | None:
    with world.database.read() as session:
        return circuit_breaker.open_breakers(session).get(provider)


def failures(world: SyncWorld) -> int:
    with world.database.read() as session:
        return session.get_one(ProviderStatus, "stripe").consecutive_failures


def acquire_lease(world: SyncWorld, org_id: str) -> SyncAttempt | NoLease:
    return lease.acquire(world.database, world.clock, org_id, "stripe")


def refusal(world: SyncWorld, org_id: str) -> LeaseRefusal:
    refused = acquire_lease(world, org_id)
    assert isinstance(refused, NoLease)
    assert refused.requeue_after is None
    return refused.reason


def start_attempt(world: SyncWorld, org_id: str) -> SyncAttempt:
    attempt = acquire_lease(world, org_id)
    assert isinstance(attempt, SyncAttempt)
    return attempt


def fail(world: SyncWorld, org_id: str, error: RetryableError = DOWN) -> None:
    failing = start_attempt(world, org_id)
    failing.before_request("POST /v1/customers")
    outcomes.schedule_retry(failing, error)


def succeed(world: SyncWorld, org_id: str) -> None:
    working = start_attempt(world, org_id)
    working.before_request("POST /v1/customers")
    outcomes.complete(working, ApplyResult(), FollowUps())


def organizations(world: SyncWorld, count: int) -> list[str]:
    return [world.create(f"Acme {number}") for number in range(count)]


def trip_breaker(world: SyncWorld, error: RetryableError = DOWN) -> list[str]:
    """A world whose Stripe is stopped, and three organizations that have not met it."""
    failing = organizations(world, BREAKER_FAILURE_THRESHOLD)
    for org_id in failing:
        fail(world, org_id, error)
        if open_breaker(world) is not None:
            break
    return [world.create(f"Other {number}") for number in range(3)]


def dispatch(world: SyncWorld) -> list[str]:
    """What one sweep would hand over."""
    with world.database.write() as session:
        return due_links.dispatch(
            session, "stripe", circuit_breaker.free_capacity(session, "stripe", 100, world.now), world.now
        )


def pass_until_probe(world: SyncWorld) -> None:
    found = open_breaker(world)
    assert found is not None
    assert found.probe_at is not None
    world.now = max(world.now, found.probe_at)


def test_so_many_in_a_row_stop_a_biller_and_one_less_does_not(world: SyncWorld) -> None:
    for org_id in organizations(world, BREAKER_FAILURE_THRESHOLD - 1):
        fail(world, org_id)
    assert open_breaker(world) is None
    fail(world, world.create("The last"))
    found = open_breaker(world)
    assert found is not None
    assert (found.reason, found.open_since, found.message) == ("unavailable", world.now, "no answer")
    assert open_breaker(world, "lago") is None


def test_an_answer_in_between_begins_the_count_anew(world: SyncWorld) -> None:
    *failing, answered = organizations(world, BREAKER_FAILURE_THRESHOLD)
    for org_id in failing:
        fail(world, org_id)
    succeed(world, answered)
    assert failures(world) == 0


@pytest.mark.parametrize("answer", [ThrottledError("stripe", "slow"), RejectedError("stripe", "no")])
def test_a_refusal_of_one_organization_is_an_answer_too(
    world: SyncWorld, answer: ThrottledError | RejectedError
) -> None:
    *failing, answered = organizations(world, BREAKER_FAILURE_THRESHOLD)
    for org_id in failing:
        fail(world, org_id)
    attempt = start_attempt(world, answered)
    attempt.before_request("POST /v1/customers")
    if isinstance(answer, RetryableError):
        outcomes.schedule_retry(attempt, answer)
    else:
        outcomes.park(attempt, answer)
    assert failures(world) == 0


def test_a_turn_that_asked_nothing_is_no_answer(world: SyncWorld) -> None:
    *failing, idle = organizations(world, BREAKER_FAILURE_THRESHOLD)
    for org_id in failing:
        fail(world, org_id)
    outcomes.complete(start_attempt(world, idle), ApplyResult(), FollowUps())
    assert failures(world) == BREAKER_FAILURE_THRESHOLD - 1


def test_an_answer_that_came_while_others_failed_begins_the_count_anew(world: SyncWorld) -> None:
    early, failing = world.create("Early"), world.create("Failing")
    under_way = start_attempt(world, early)
    fail(world, failing)
    under_way.before_request("POST /v1/customers")
    outcomes.complete(under_way, ApplyResult(), FollowUps())
    assert failures(world) == 0


def test_one_organization_alone_never_stops_a_biller(world: SyncWorld) -> None:
    org_id = world.create()
    for _ in range(2 * BREAKER_FAILURE_THRESHOLD):
        fail(world, org_id)
        world.wait(backoff.MAX_BACKOFF_SECONDS)
    assert open_breaker(world) is None
    assert failures(world) == 1


def test_a_refused_key_stops_a_biller_after_one_try(world: SyncWorld) -> None:
    fail(world, world.create(), REFUSED)
    found = open_breaker(world)
    assert found is not None
    assert found.reason == "misconfigured"
    assert found.probe_at == world.now + timedelta(seconds=60)


def test_while_stopped_nobody_gets_a_turn_and_nothing_is_counted_against_anybody(world: SyncWorld) -> None:
    waiting = trip_breaker(world)
    for org_id in waiting:
        assert refusal(world, org_id) == "breaker_open"
        link = world.link(org_id, "stripe")
        assert (link.attempts, link.error_kind, link.lease_until) == (0, None, None)
        assert link.next_sweep_at == world.now + timedelta(seconds=circuit_breaker.MIN_PROBE_BACKOFF_SECONDS)


def test_when_its_time_has_come_one_turn_alone_is_the_probe(world: SyncWorld) -> None:
    first, second, _ = trip_breaker(world)
    pass_until_probe(world)
    probe = start_attempt(world, first)
    assert probe.is_breaker_probe
    assert refusal(world, second) == "breaker_open"
    assert world.link(second, "stripe").attempts == 0


def test_an_answered_probe_opens_the_biller_for_all(world: SyncWorld) -> None:
    first, second, third = trip_breaker(world)
    pass_until_probe(world)
    succeed(world, first)
    assert open_breaker(world) is None
    assert failures(world) == 0
    assert not start_attempt(world, second).is_breaker_probe
    assert not start_attempt(world, third).is_breaker_probe


def test_each_probe_that_fails_doubles_the_wait_up_to_a_minute(world: SyncWorld) -> None:
    trip_breaker(world)
    since = world.now
    waits = []
    for number in range(8):
        pass_until_probe(world)
        fail(world, world.create(f"Probe {number}"))
        found = open_breaker(world)
        assert found is not None
        assert found.probe_at is not None
        waits.append((found.probe_at - world.now).total_seconds())
        assert found.open_since == since
    assert waits == [
        4.0,
        8.0,
        16.0,
        32.0,
        MAX_PROBE_BACKOFF_SECONDS,
        MAX_PROBE_BACKOFF_SECONDS,
        MAX_PROBE_BACKOFF_SECONDS,
        MAX_PROBE_BACKOFF_SECONDS,
    ]


def test_a_probe_that_asked_nothing_leaves_it_to_the_next(world: SyncWorld) -> None:
    first, second, third = trip_breaker(world)
    pass_until_probe(world)
    outcomes.complete(start_attempt(world, first), ApplyResult(), FollowUps())
    assert open_breaker(world) is not None
    outcomes.defer_for_payer(start_attempt(world, second), world.now + timedelta(seconds=5))
    lost = start_attempt(world, third)
    outcomes.release(lost)
    assert start_attempt(world, third).is_breaker_probe


def test_a_probe_that_died_is_followed_by_another(world: SyncWorld) -> None:
    first, second, _ = trip_breaker(world)
    pass_until_probe(world)
    start_attempt(world, first)
    world.expire_lease()
    assert start_attempt(world, second).is_breaker_probe


@pytest.mark.parametrize("error", [DOWN, REFUSED])
def test_what_was_under_way_when_it_was_stopped_changes_nothing(world: SyncWorld, error: RetryableError) -> None:
    fine, failing = start_attempt(world, world.create("Fine")), start_attempt(world, world.create("Failing"))
    trip_breaker(world, error)
    before = open_breaker(world)
    fine.before_request("POST /v1/customers")
    outcomes.complete(fine, ApplyResult(), FollowUps())
    failing.before_request("POST /v1/customers")
    outcomes.schedule_retry(failing, DOWN)
    assert open_breaker(world) == before


def test_the_kind_of_trouble_is_the_last_probes(world: SyncWorld) -> None:
    first, second, _ = trip_breaker(world)
    pass_until_probe(world)
    fail(world, first, REFUSED)
    found = open_breaker(world)
    assert found is not None
    assert (found.reason, found.message) == ("misconfigured", REFUSED.message)
    pass_until_probe(world)
    fail(world, second)
    again = open_breaker(world)
    assert again is not None
    assert (again.reason, again.open_since) == ("unavailable", found.open_since)


def test_the_sweep_hands_over_one_probe_and_afterwards_the_oldest_first(world: SyncWorld) -> None:
    early = [*trip_breaker(world), world.create("Never rung")]
    early_failures, not_failed = early[:3], early[3]
    for org_id in early_failures:
        assert refusal(world, org_id) == "breaker_open"
    world.wait(60)
    probe = dispatch(world)
    assert len(probe) == 1
    attempt = start_attempt(world, probe[0])
    assert dispatch(world) == []
    late = world.create("Late")
    assert refusal(world, late) == "breaker_open"
    attempt.before_request("POST /v1/customers")
    outcomes.complete(attempt, ApplyResult(), FollowUps())
    world.wait(60)
    handed = dispatch(world)
    assert not_failed in handed
    assert handed.index(late) > max(handed.index(org_id) for org_id in early if org_id not in probe)


def test_a_persons_word_has_a_stopped_biller_tried_at_once_and_changes_no_open_one(world: SyncWorld) -> None:
    first, second, _ = trip_breaker(world, REFUSED)
    assert refusal(world, first) == "breaker_open"
    with world.database.write() as session:
        assert circuit_breaker.probe_now(session, world.now) == ["stripe"]
        assert circuit_breaker.probe_now(session, world.now) == ["stripe"]
    assert start_attempt(world, first).is_breaker_probe
    assert refusal(world, second) == "breaker_open"


def test_the_key_of_another_account_stops_it_until_a_process_starts_with_the_right_one(world: SyncWorld) -> None:
    org_id = world.create()
    with world.database.write() as session:
        circuit_breaker.open_for_wrong_account(session, "stripe", "another account", world.now)
        assert circuit_breaker.probe_now(session, world.now) == []
    world.wait(3600)
    assert refusal(world, org_id) == "breaker_open"
    assert dispatch(world) == []
    with world.database.write() as session:
        circuit_breaker.reset(session, "stripe", world.now)
    assert not start_attempt(world, org_id).is_breaker_probe


def test_while_all_goes_well_a_turn_pays_no_statement_for_it(world: SyncWorld) -> None:
    org_id = world.create()
    sent: list[str] = []

    def note(_connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(world.database.engine, "before_cursor_execute", note)
    assert world.run(org_id, "stripe").kind == "synced"
    event.remove(world.database.engine, "before_cursor_execute", note)
    assert any("provider_status" in each for each in sent)
    assert [each for each in sent if each.startswith(("UPDATE provider_status", "SELECT provider_status"))] == []


def test_fifty_organizations_and_a_refused_key_cost_one_call(world: SyncWorld) -> None:
    org_ids = organizations(world, MANY)
    world.sandbox.settings(revoked_keys=["sk_test_sandbox"])
    for org_id in org_ids:
        world.run(org_id, "stripe")
    assert world.count_requests() == (1, 0)
    for org_id in org_ids:
        world.run(org_id, "lago")
    assert world.count_requests()[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_biller_that_is_back_gets_one_create_for_each_organization(world: SyncWorld) -> None:
    org_ids = organizations(world, MANY)
    world.sandbox.add_fault("stripe", "*", "500_before", times=0)
    for org_id in org_ids:
        world.run(org_id, "stripe")
    assert world.count_requests() == (BREAKER_FAILURE_THRESHOLD, 0)
    world.sandbox.clear_faults()
    pass_until_probe(world)
    for org_id in reversed(org_ids):
        world.reconcile_until_idle(org_id)
    counted = world.sandbox.counters().stripe
    assert counted.operations == {CREATE_CUSTOMER_REQUEST: MANY}
    assert len(world.stripe_objects("customers")) == MANY


def breaker_lines(logged: list[Any]) -> list[tuple[str, str, str]]:
    return [
        (line["event"].removeprefix("provider_breaker_"), line["log_level"], line["reason"])
        for line in logged
        if line["event"].startswith("provider_breaker_")
    ]


def test_each_transition_is_logged_once(world: SyncWorld) -> None:
    *failing, probe, last = organizations(world, BREAKER_FAILURE_THRESHOLD + 2)
    with capture_logs() as logged:
        for org_id in failing:
            fail(world, org_id)
        opened_at = world.now
        world.wait(3)
        fail(world, probe)  # a probe without an answer changes nothing
        world.wait(MAX_PROBE_BACKOFF_SECONDS)
        fail(world, last, REFUSED)
        world.wait(MAX_PROBE_BACKOFF_SECONDS)
        succeed(world, last)
        world.wait(30)
        succeed(world, probe)
    assert breaker_lines(logged) == [
        ("opened", "warning", "unavailable"),
        ("reason_changed", "warning", "misconfigured"),
        ("closed", "warning", "misconfigured"),
    ]
    assert {line["since"] for line in logged if "since" in line} == {opened_at.isoformat()}
    assert [line["message"] for line in logged if "breaker" in line["event"] and "message" in line] == [
        DOWN.message,
        REFUSED.message,
    ]


def test_a_start_with_a_valid_key_logs_that_the_breaker_closed(world: SyncWorld) -> None:
    fail(world, world.create(), REFUSED)
    with capture_logs() as logged:
        world.account_guard.start()
        world.account_guard.start()
    assert breaker_lines(logged) == [("closed", "warning", "misconfigured")]


class RolledBackError(Exception):
    pass


def open_and_roll_back(world: SyncWorld) -> None:
    with world.database.write() as session:
        circuit_breaker.open_for_wrong_account(session, "stripe", "another account", world.now)
        raise RolledBackError


def test_a_transition_that_was_rolled_back_is_not_logged(world: SyncWorld) -> None:
    with capture_logs() as logged, pytest.raises(RolledBackError):
        open_and_roll_back(world)
    assert breaker_lines(logged) == []
    assert open_breaker(world) is None


def test_a_program_that_fails_after_its_request_closes_no_breaker_and_gives_the_probe_back(world: SyncWorld) -> None:
    """Whether it is retried or parked: the request was counted before it was sent, and nobody knows what came of it."""
    world.sandbox.add_fault("stripe", "*", "500_before", times=999)
    for number in range(BREAKER_FAILURE_THRESHOLD):
        world.run(world.create(f"Down {number}"), "stripe")
    opened = open_breaker(world)
    assert opened is not None
    world.sandbox.clear_faults()

    def fail() -> None:
        raise StrangeError

    org_id = world.create("Strange")
    for tries in range(1, MAX_UNEXPECTED_ATTEMPTS + 1):
        world.wait(901)
        world.providers["stripe"].after_customer = fail
        world.sandbox.reset_calls()
        assert world.run(org_id, "stripe").kind == ("retry" if tries < MAX_UNEXPECTED_ATTEMPTS else "parked")
        assert world.count_requests()[0] > 0
        breaker = open_breaker(world)
        assert breaker is not None, tries
        assert (breaker.reason, breaker.open_since, breaker.probe_at) == (opened.reason, opened.open_since, world.now)
        assert failures(world) == BREAKER_FAILURE_THRESHOLD
