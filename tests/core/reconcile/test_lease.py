"""A link's turn: who has it, what it may write, and that nothing waits for ever."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from sqlalchemy import select

from core.catalog.plans import Catalog
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.history import LinkHistory
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import commands, links
from core.organizations.commands import NewOrganization
from core.ports.errors import (
    ConflictError,
    LeaseLostError,
    MisconfiguredError,
    RejectedError,
    ThrottledError,
    UnavailableError,
)
from core.ports.provider import Customer, Subscription
from core.ports.spec import Provider
from core.reconcile import due_links, lease, outcomes
from core.reconcile.attempt import LINK_LEASE, MAX_CALL_DURATION, ApplyResult, SyncAttempt
from core.reconcile.backoff import COOLDOWN_AFTER_CONCURRENT_CHANGE, LINK_COOLDOWN, MAX_BACKOFF_SECONDS
from core.reconcile.lease import LeaseRefusal, NoLease
from core.reconcile.outcomes import FollowUps
from tests.support.clocks import SetClock

CUSTOMER = Customer(id="cus_1", livemode=False)
APPLIED = ApplyResult(customer=CUSTOMER, customer_fingerprint="d1")
NO_FOLLOW_UPS = FollowUps()
BODY = {"name": "Acme"}


class LinkHarness:
    def __init__(self, database: Database, plans: Catalog, clock: SetClock) -> None:
        self.database = database
        self.plans = plans
        self.clock = clock

    def create(self, name: str = "Acme") -> str:
        with self.database.write() as session:
            new = NewOrganization(name=name, plan_tier="professional")
            return commands.create(ChangeContext(session, self.clock()), new, self.plans).id

    def rename(self, org_id: str, name: str) -> None:
        with self.database.write() as session:
            organization = commands.lock(session, org_id)
            assert organization is not None
            commands.rename(ChangeContext(session, self.clock()), organization, name)

    def link(self, org_id: str, provider: Provider = "stripe") -> BillingLink:
        with self.database.read() as session:
            return session.get_one(BillingLink, (org_id, provider))

    def organization(self, org_id: str) -> Organization:
        with self.database.read() as session:
            return session.get_one(Organization, org_id)

    def acquire(self, org_id: str, provider: Provider = "stripe") -> SyncAttempt | NoLease:
        return lease.acquire(self.database, self.clock, org_id, provider)

    def refusal(self, org_id: str, provider: Provider = "stripe") -> tuple[LeaseRefusal, float | None]:
        """Why there is no attempt, and the seconds to wait."""
        refused = self.acquire(org_id, provider)
        assert isinstance(refused, NoLease)
        return refused.reason, refused.requeue_after

    def start_attempt(self, org_id: str, provider: Provider = "stripe") -> SyncAttempt:
        attempt = self.acquire(org_id, provider)
        assert isinstance(attempt, SyncAttempt)
        return attempt

    def dispatch(self, at: datetime, provider: Provider = "stripe") -> list[str]:
        with self.database.write() as session:
            return due_links.dispatch(session, provider, 10, at)


@pytest.fixture
def harness(database: Database, plans: Catalog, clock: SetClock) -> LinkHarness:
    return LinkHarness(database, plans, clock)


def test_a_turn_is_had_by_one_at_a_time_and_per_biller(harness: LinkHarness) -> None:
    org_id = harness.create()
    harness.start_attempt(org_id)
    assert harness.refusal(org_id) == ("leased", None)
    harness.start_attempt(org_id, "lago")
    assert harness.refusal("org_unknown") == ("unknown_organization", None)


def test_a_turn_is_taken_over_once_its_lease_is_over_and_the_late_one_may_write_nothing(harness: LinkHarness) -> None:
    org_id = harness.create()
    late = harness.start_attempt(org_id)
    late.record_intent("create_customer", BODY)
    harness.clock.advance(seconds=LINK_LEASE.total_seconds() + 1)
    new = harness.start_attempt(org_id)
    assert new.intent is not None
    assert new.intent.body == BODY
    for write in (
        lambda: late.record_intent("create_customer", BODY),
        late.resend_intent,
        lambda: late.before_request("POST /v1/customers"),
        lambda: late.save_customer(APPLIED),
        lambda: outcomes.complete(late, APPLIED, NO_FOLLOW_UPS),
        lambda: outcomes.park(late, RejectedError("stripe", "no")),
        lambda: outcomes.schedule_retry(late, UnavailableError("stripe", "down")),
    ):
        with pytest.raises(LeaseLostError):
            write()
    assert harness.link(org_id).customer_id is None
    assert outcomes.complete(new, APPLIED, NO_FOLLOW_UPS).is_behind is False
    assert harness.link(org_id).customer_id == "cus_1"


def test_a_turn_that_lost_its_lease_to_nobody_goes_on(harness: LinkHarness) -> None:
    org_id = harness.create()
    attempt = harness.start_attempt(org_id)
    harness.clock.advance(hours=1)
    attempt.before_request("POST /v1/customers")
    assert harness.link(org_id).lease_until == harness.clock() + LINK_LEASE


def test_a_lease_outlasts_each_call_and_costs_no_write_before_it_must(harness: LinkHarness) -> None:
    org_id = harness.create()
    attempt = harness.start_attempt(org_id)
    first = harness.link(org_id).lease_until
    attempt.before_request("POST /v1/customers")
    assert harness.link(org_id).lease_until == first
    for _ in range(10):
        harness.clock.advance(seconds=MAX_CALL_DURATION.total_seconds() - 1)
        attempt.before_request("POST /v1/customers")
        until = harness.link(org_id).lease_until
        assert until is not None
        assert until - harness.clock() >= MAX_CALL_DURATION
    assert attempt.request_count == 11


def test_a_resent_intent_keeps_its_key_its_body_and_its_first_moment(harness: LinkHarness) -> None:
    org_id = harness.create()
    attempt = harness.start_attempt(org_id)
    with pytest.raises(RuntimeError):
        attempt.resend_intent()
    written = attempt.record_intent("create_customer", BODY)
    assert written.idempotency_key == f"billing-sync:create_customer:{org_id}:1"
    harness.rename(org_id, "Other")
    harness.clock.advance(minutes=5)
    again = harness.start_attempt(org_id).resend_intent()
    assert (again.idempotency_key, again.body, again.first_sent_at) == (
        written.idempotency_key,
        written.body,
        written.first_sent_at,
    )
    assert again.last_sent_at == harness.clock()
    assert again.is_key_safe(written.first_sent_at + timedelta(hours=22))
    assert not again.is_key_safe(written.first_sent_at + timedelta(hours=23))


def test_a_second_intent_has_a_key_of_its_own(harness: LinkHarness) -> None:
    attempt = harness.start_attempt(harness.create())
    assert (
        attempt.record_intent("create_customer", BODY).idempotency_key
        != attempt.record_intent("create_customer", BODY).idempotency_key
    )


def test_what_is_about_to_be_told_is_doubted_first_and_ours_stays_ours(harness: LinkHarness) -> None:
    org_id = harness.create()
    attempt = harness.start_attempt(org_id)
    outcomes.complete(attempt, ApplyResult(customer=CUSTOMER, customer_fingerprint="d1", subscription=Subscription(id="s", plan_code="p")), NO_FOLLOW_UPS)  # fmt: skip  # noqa: E501
    harness.rename(org_id, "Other")
    attempt = harness.start_attempt(org_id)
    attempt.prepare_customer_write(None)
    attempt.prepare_subscription_write("q")
    attempt.before_request("POST /v1/customers/{id}")
    harness.clock.advance(minutes=5)
    known = harness.start_attempt(org_id).last_known
    assert (known.customer_id, known.confirmed, known.plan_code, known.next_plan_code) == ("cus_1", True, None, "q")
    assert (harness.link(org_id).customer_state, harness.link(org_id).plan_state) == ("unknown", "unknown")


def test_nothing_known_means_nothing_to_doubt(harness: LinkHarness) -> None:
    org_id = harness.create()
    attempt = harness.start_attempt(org_id)
    before = harness.link(org_id).lease_until
    harness.clock.advance(seconds=1)
    attempt.prepare_customer_write(None)
    attempt.prepare_subscription_write(None)
    assert harness.link(org_id).lease_until == before


def test_a_finished_turn_rests_only_if_it_called(harness: LinkHarness) -> None:
    org_id = harness.create()
    outcomes.complete(harness.start_attempt(org_id), APPLIED, NO_FOLLOW_UPS)
    assert harness.link(org_id).not_before is None
    harness.rename(org_id, "Other")
    attempt = harness.start_attempt(org_id)
    attempt.before_request("POST /v1/customers")
    outcomes.complete(attempt, APPLIED, NO_FOLLOW_UPS)
    harness.rename(org_id, "Third")
    assert harness.refusal(org_id) == ("cooldown", LINK_COOLDOWN.total_seconds())
    harness.clock.advance(seconds=1.5)
    assert harness.refusal(org_id) == ("cooldown", 0.5)
    harness.clock.advance(seconds=0.5)
    assert isinstance(harness.acquire(org_id), SyncAttempt)


def test_one_that_moved_on_while_it_was_told_rests_longer_for_the_burst_to_end(harness: LinkHarness) -> None:
    org_id = harness.create()
    attempt = harness.start_attempt(org_id)
    attempt.before_request("POST /v1/customers")
    harness.rename(org_id, "Other")
    assert (
        outcomes.complete(attempt, APPLIED, NO_FOLLOW_UPS).cooldown_seconds
        == COOLDOWN_AFTER_CONCURRENT_CHANGE.total_seconds()
    )
    assert harness.refusal(org_id) == ("cooldown", COOLDOWN_AFTER_CONCURRENT_CHANGE.total_seconds())
    harness.clock.advance(seconds=COOLDOWN_AFTER_CONCURRENT_CHANGE.total_seconds())
    assert isinstance(harness.acquire(org_id), SyncAttempt)


def test_an_organization_that_moved_on_leaves_the_link_behind_and_swept(harness: LinkHarness) -> None:
    org_id = harness.create()
    attempt = harness.start_attempt(org_id)
    harness.rename(org_id, "Other")
    assert outcomes.complete(attempt, APPLIED, NO_FOLLOW_UPS).is_behind
    link = harness.link(org_id)
    assert (link.applied_version, link.desired_version, link.synced_at) == (1, 2, None)
    assert harness.dispatch(harness.clock() + links.SWEEP_GRACE) == [org_id]


def test_every_failure_comes_due_again(harness: LinkHarness) -> None:
    org_id = harness.create()
    for error in (
        UnavailableError("stripe", "down"),
        ThrottledError("stripe", "slow", None, None, 5.0),
        ThrottledError("stripe", "slow", None, None, 10_000.0),
        MisconfiguredError("stripe", "key"),
    ):
        seconds = outcomes.schedule_retry(harness.start_attempt(org_id), error)
        assert 0 < seconds <= MAX_BACKOFF_SECONDS + 1
        is_misconfigured = isinstance(error, MisconfiguredError)
        reason, wait = harness.refusal(org_id)
        assert reason == ("breaker_open" if is_misconfigured else "backoff")
        assert wait == (None if is_misconfigured else pytest.approx(seconds, abs=0.1))
        assert harness.dispatch(harness.clock() + timedelta(seconds=seconds + 21)) == [org_id]
        harness.clock.advance(seconds=seconds)


def test_a_link_without_a_turn_says_why(harness: LinkHarness) -> None:
    org_id = harness.create()
    outcomes.complete(harness.start_attempt(org_id), APPLIED, NO_FOLLOW_UPS)
    assert harness.refusal(org_id) == ("in_sync", None)
    harness.rename(org_id, "Other")
    outcomes.park(harness.start_attempt(org_id), RejectedError("stripe", "no"))
    assert harness.refusal(org_id) == ("parked", None)
    outcomes.defer_for_payer(harness.start_attempt(org_id, "lago"), harness.clock() + timedelta(seconds=30))
    assert harness.refusal(org_id, "lago") == ("payer", 30.0)
    harness.clock.advance(seconds=30)
    outcomes.put_on_hold(harness.start_attempt(org_id, "lago"), ConflictError("lago", "somebody changed it"))
    assert harness.refusal(org_id, "lago") == ("on_hold", None)


def test_a_turn_that_died_comes_due_after_its_lease_and_not_before(harness: LinkHarness) -> None:
    org_id = harness.create()
    harness.start_attempt(org_id)
    assert harness.dispatch(harness.clock() + LINK_LEASE) == []
    assert harness.dispatch(harness.clock() + LINK_LEASE + timedelta(seconds=1)) == [org_id]


def test_a_turn_that_lost_the_link_before_it_sent_anything_frees_it_at_once(harness: LinkHarness) -> None:
    org_id = harness.create()
    attempt = harness.start_attempt(org_id)
    with harness.database.write() as session:
        link = session.get_one(BillingLink, (org_id, "stripe"))
        link.generation += 1
    with pytest.raises(LeaseLostError):
        outcomes.complete(attempt, APPLIED, NO_FOLLOW_UPS)
    outcomes.release(attempt)
    assert isinstance(harness.acquire(org_id), SyncAttempt)


def test_waiting_costs_no_attempt_also_when_a_change_came_meanwhile(harness: LinkHarness) -> None:
    org_id = harness.create()
    attempt = harness.start_attempt(org_id, "lago")
    harness.rename(org_id, "Other")
    assert outcomes.defer_for_payer(attempt, harness.clock() + timedelta(seconds=30)) == 0.0
    link = harness.link(org_id, "lago")
    assert (link.attempts, link.not_before, link.lease_until) == (0, None, None)


def test_two_links_that_would_name_one_customer_are_a_persons_matter_and_no_crash(harness: LinkHarness) -> None:
    first, second = harness.create("One"), harness.create("Two")
    outcomes.complete(harness.start_attempt(first), APPLIED, NO_FOLLOW_UPS)
    attempt = harness.start_attempt(second)
    for write in (
        lambda: attempt.save_customer(APPLIED),
        lambda: outcomes.complete(attempt, APPLIED, NO_FOLLOW_UPS),
    ):
        with pytest.raises(RejectedError, match="another organization's link") as caught:
            write()
        assert caught.value.code == "customer_id_in_use"
        assert "and adopt it with `billing-sync adopt`, then run `billing-sync retry" in caught.value.message
    assert outcomes.park(attempt, caught.value) is None
    assert harness.link(second).state == "parked"


def test_a_write_is_not_sent_if_it_took_as_long_as_the_lease_to_store_it(harness: LinkHarness) -> None:
    """Another worker may have the lease before the response comes, and what was true then is sent."""
    attempt = harness.start_attempt(harness.create())
    times = iter([timedelta(), timedelta(), LINK_LEASE - MAX_CALL_DURATION / 2])
    started = harness.clock()
    attempt.clock = lambda: started + next(times)
    with pytest.raises(LeaseLostError, match="ends too soon"):
        attempt.before_request("POST /v1/customers")
    assert attempt.request_count == 0


def test_the_answer_to_a_read_is_not_taken_for_that_of_a_write_that_got_none(harness: LinkHarness) -> None:
    org_id = harness.create()
    attempt = harness.start_attempt(org_id)
    attempt.before_request("POST /v1/customers")
    attempt.before_request("GET /v1/events")
    attempt.after_response("req_of_the_read")
    outcomes.complete(attempt, APPLIED, NO_FOLLOW_UPS)
    with harness.database.read() as session:
        (row,) = session.scalars(select(LinkHistory).where(LinkHistory.org_id == org_id))
    assert [(each["operation"], each["request_id"]) for each in row.data["requests"]] == [("POST /v1/customers", None)]
