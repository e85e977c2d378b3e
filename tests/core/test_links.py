"""A link's turn: who has it, what it may write, and that nothing waits for ever."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from core.catalog.plans import Catalog
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import commands, links
from core.organizations.commands import NewOrganization
from core.ports.errors import LeaseLostError, MisconfiguredError, RejectedError, ThrottledError, UnavailableError
from core.ports.provider import Customer, Subscription
from core.ports.spec import Provider
from core.reconcile import due_links, lease, outcomes
from core.reconcile.attempt import LINK_LEASE, MAX_CALL_DURATION, UNKNOWN, ApplyResult, SyncAttempt
from core.reconcile.backoff import BURST_COOLDOWN, LINK_COOLDOWN, MAX_BACKOFF_SECONDS
from core.reconcile.outcomes import FollowUps
from tests.conftest import SetClock

CUSTOMER = Customer(id="cus_1", livemode=False)
MADE = ApplyResult(customer=CUSTOMER, customer_fingerprint="d1")
NO_CONSEQUENCES = FollowUps()
BODY = {"name": "Acme"}


class Rows:
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

    def claim(self, org_id: str, provider: Provider = "stripe") -> SyncAttempt | float | None:
        return lease.acquire(self.database, self.clock, org_id, provider)

    def turn(self, org_id: str, provider: Provider = "stripe") -> SyncAttempt:
        claimed = self.claim(org_id, provider)
        assert isinstance(claimed, SyncAttempt)
        return claimed

    def swept(self, at: datetime, provider: Provider = "stripe") -> list[str]:
        with self.database.write() as session:
            return due_links.dispatch(session, provider, 10, at)


@pytest.fixture
def rows(database: Database, plans: Catalog, clock: SetClock) -> Rows:
    return Rows(database, plans, clock)


def test_a_turn_is_had_by_one_at_a_time_and_per_biller(rows: Rows) -> None:
    org_id = rows.create()
    rows.turn(org_id)
    assert rows.claim(org_id) is None
    rows.turn(org_id, "lago")
    assert rows.claim("org_unknown") is None


def test_a_turn_is_taken_over_once_its_lease_is_over_and_the_late_one_may_write_nothing(rows: Rows) -> None:
    org_id = rows.create()
    late = rows.turn(org_id)
    late.record_intent("create_customer", BODY)
    rows.clock.advance(seconds=LINK_LEASE.total_seconds() + 1)
    new = rows.turn(org_id)
    assert new.intent is not None
    assert new.intent.body == BODY
    for write in (
        lambda: late.record_intent("create_customer", BODY),
        late.resend_intent,
        lambda: late.before_request("POST /v1/customers"),
        lambda: late.save_customer(MADE),
        lambda: outcomes.complete(late, MADE, NO_CONSEQUENCES),
        lambda: outcomes.park(late, RejectedError("stripe", "no")),
        lambda: outcomes.schedule_retry(late, UnavailableError("stripe", "down")),
    ):
        with pytest.raises(LeaseLostError):
            write()
    assert rows.link(org_id).customer_id is None
    assert outcomes.complete(new, MADE, NO_CONSEQUENCES).is_behind is False
    assert rows.link(org_id).customer_id == "cus_1"


def test_a_turn_that_lost_its_lease_to_nobody_goes_on(rows: Rows) -> None:
    org_id = rows.create()
    turn = rows.turn(org_id)
    rows.clock.advance(hours=1)
    turn.before_request("POST /v1/customers")
    assert rows.link(org_id).lease_until == rows.clock() + LINK_LEASE


def test_a_lease_outlasts_each_call_and_costs_no_write_before_it_must(rows: Rows) -> None:
    org_id = rows.create()
    turn = rows.turn(org_id)
    first = rows.link(org_id).lease_until
    turn.before_request("POST /v1/customers")
    assert rows.link(org_id).lease_until == first
    for _ in range(10):
        rows.clock.advance(seconds=MAX_CALL_DURATION.total_seconds() - 1)
        turn.before_request("POST /v1/customers")
        until = rows.link(org_id).lease_until
        assert until is not None
        assert until - rows.clock() >= MAX_CALL_DURATION
    assert turn.request_count == 11


def test_a_resent_intent_keeps_its_key_its_body_and_its_first_moment(rows: Rows) -> None:
    org_id = rows.create()
    turn = rows.turn(org_id)
    with pytest.raises(RuntimeError):
        turn.resend_intent()
    written = turn.record_intent("create_customer", BODY)
    assert written.idempotency_key == f"billing-sync:create_customer:{org_id}:1"
    rows.rename(org_id, "Other")
    rows.clock.advance(minutes=5)
    again = rows.turn(org_id).resend_intent()
    assert (again.idempotency_key, again.body, again.first_sent_at) == (
        written.idempotency_key,
        written.body,
        written.first_sent_at,
    )
    assert again.last_sent_at == rows.clock()
    assert again.is_key_safe(written.first_sent_at + timedelta(hours=22))
    assert not again.is_key_safe(written.first_sent_at + timedelta(hours=23))


def test_a_second_intent_has_a_key_of_its_own(rows: Rows) -> None:
    turn = rows.turn(rows.create())
    assert (
        turn.record_intent("create_customer", BODY).idempotency_key
        != turn.record_intent("create_customer", BODY).idempotency_key
    )


def test_what_is_about_to_be_told_is_doubted_first_and_ours_stays_ours(rows: Rows) -> None:
    org_id = rows.create()
    turn = rows.turn(org_id)
    outcomes.complete(turn, ApplyResult(customer=CUSTOMER, customer_fingerprint="d1", subscription=Subscription(id="s", plan_code="p")), NO_CONSEQUENCES)  # fmt: skip  # noqa: E501
    rows.rename(org_id, "Other")
    turn = rows.turn(org_id)
    turn.mark_customer_unknown(None)
    turn.mark_plan_unknown("q")
    rows.clock.advance(minutes=5)
    known = rows.turn(org_id).last_known
    assert (known.customer_id, known.confirmed, known.plan_code, known.next_plan_code) == ("cus_1", True, None, "q")
    assert rows.link(org_id).customer_fingerprint == UNKNOWN


def test_nothing_known_means_nothing_to_doubt(rows: Rows) -> None:
    org_id = rows.create()
    turn = rows.turn(org_id)
    before = rows.link(org_id).lease_until
    rows.clock.advance(seconds=1)
    turn.mark_customer_unknown(None)
    turn.mark_plan_unknown(None)
    assert rows.link(org_id).lease_until == before


def test_a_finished_turn_rests_only_if_it_called(rows: Rows) -> None:
    org_id = rows.create()
    outcomes.complete(rows.turn(org_id), MADE, NO_CONSEQUENCES)
    assert rows.link(org_id).cooldown_until is None
    rows.rename(org_id, "Other")
    turn = rows.turn(org_id)
    turn.before_request("POST /v1/customers")
    outcomes.complete(turn, MADE, NO_CONSEQUENCES)
    rows.rename(org_id, "Third")
    assert rows.claim(org_id) == LINK_COOLDOWN.total_seconds()
    rows.clock.advance(seconds=1.5)
    assert rows.claim(org_id) == pytest.approx(0.5)
    rows.clock.advance(seconds=0.5)
    assert isinstance(rows.claim(org_id), SyncAttempt)


def test_one_that_moved_on_while_it_was_told_rests_longer_for_the_burst_to_end(rows: Rows) -> None:
    org_id = rows.create()
    turn = rows.turn(org_id)
    turn.before_request("POST /v1/customers")
    rows.rename(org_id, "Other")
    assert outcomes.complete(turn, MADE, NO_CONSEQUENCES).cooldown_seconds == BURST_COOLDOWN.total_seconds()
    assert rows.claim(org_id) == BURST_COOLDOWN.total_seconds()
    rows.clock.advance(seconds=BURST_COOLDOWN.total_seconds())
    assert isinstance(rows.claim(org_id), SyncAttempt)


def test_an_organization_that_moved_on_leaves_the_link_behind_and_swept(rows: Rows) -> None:
    org_id = rows.create()
    turn = rows.turn(org_id)
    rows.rename(org_id, "Other")
    assert outcomes.complete(turn, MADE, NO_CONSEQUENCES).is_behind
    link = rows.link(org_id)
    assert (link.applied_version, link.desired_version, link.synced_at) == (1, 2, None)
    assert rows.swept(rows.clock() + links.SWEEP_GRACE) == [org_id]


def test_every_failure_comes_due_again(rows: Rows) -> None:
    org_id = rows.create()
    for error in (
        UnavailableError("stripe", "down"),
        ThrottledError("stripe", "slow", None, None, 5.0),
        ThrottledError("stripe", "slow", None, None, 10_000.0),
        MisconfiguredError("stripe", "key"),
    ):
        seconds = outcomes.schedule_retry(rows.turn(org_id), error)
        assert 0 < seconds <= MAX_BACKOFF_SECONDS + 1
        stopped = isinstance(error, MisconfiguredError)
        assert rows.claim(org_id) == (None if stopped else pytest.approx(seconds, abs=0.1))
        assert rows.swept(rows.clock() + timedelta(seconds=seconds + 21)) == [org_id]
        rows.clock.advance(seconds=seconds)


def test_a_turn_that_died_comes_due_after_its_lease_and_not_before(rows: Rows) -> None:
    org_id = rows.create()
    rows.turn(org_id)
    assert rows.swept(rows.clock() + LINK_LEASE) == []
    assert rows.swept(rows.clock() + LINK_LEASE + timedelta(seconds=1)) == [org_id]


def test_a_turn_that_lost_the_link_before_it_sent_anything_frees_it_at_once(rows: Rows) -> None:
    org_id = rows.create()
    turn = rows.turn(org_id)
    with rows.database.write() as session:
        link = session.get_one(BillingLink, (org_id, "stripe"))
        link.generation += 1
    with pytest.raises(LeaseLostError):
        outcomes.complete(turn, MADE, NO_CONSEQUENCES)
    outcomes.release(turn)
    assert isinstance(rows.claim(org_id), SyncAttempt)


def test_waiting_costs_no_attempt_also_when_a_change_came_meanwhile(rows: Rows) -> None:
    org_id = rows.create()
    turn = rows.turn(org_id, "lago")
    rows.rename(org_id, "Other")
    assert outcomes.defer(turn, rows.clock() + timedelta(seconds=30), "waiting", "waits") == 0.0
    link = rows.link(org_id, "lago")
    assert (link.attempts, link.not_before, link.lease_until) == (0, None, None)


def test_two_links_that_would_name_one_customer_are_a_persons_matter_and_no_crash(rows: Rows) -> None:
    first, second = rows.create("One"), rows.create("Two")
    outcomes.complete(rows.turn(first), MADE, NO_CONSEQUENCES)
    turn = rows.turn(second)
    for write in (
        lambda: turn.save_customer(MADE),
        lambda: outcomes.complete(turn, MADE, NO_CONSEQUENCES),
    ):
        with pytest.raises(RejectedError, match="another organization's link") as caught:
            write()
        assert caught.value.code == "customer_id_in_use"
    assert outcomes.park(turn, caught.value) is None
    assert rows.link(second).state == "parked"
