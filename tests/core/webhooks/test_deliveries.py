"""Each event once to each endpoint that asks for it: tried, put off, given up, replayed; whoever dies in between."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from sqlalchemy import event as sql_event
from sqlalchemy import select

from core.catalog.plans import Catalog
from core.common.validation import InvalidChangeError
from core.db.database import Database
from core.db.models.events import Event
from core.events import outbox
from core.organizations import commands, memberships, plan_changes
from core.webhooks import deliveries, endpoints, payloads
from core.webhooks.deliveries import (
    DELIVERY_LEASE,
    DELIVERY_RETENTION,
    DELIVERY_RETRY_DELAYS,
    HTTP_GONE,
    MAX_CONCURRENT_PER_ENDPOINT,
    DeliveryAttempt,
    WebhookResponse,
)
from core.webhooks.payloads import PUBLIC_EVENT_NAMES
from tests.support.clocks import SetClock
from tests.support.delivery_harness import ACCEPTED_RESPONSE, DeliveryHarness
from tests.support.waiting import PATIENCE_SECONDS


@pytest.fixture
def harness(database: Database, plans: Catalog, clock: SetClock) -> DeliveryHarness:
    return DeliveryHarness(database, plans, clock)


def test_where_nobody_is_told_anything_a_batch_costs_one_look(harness: DeliveryHarness) -> None:
    harness.create()
    with harness.database.write() as session:
        token, _ = outbox.lease_batch(session, 500, harness.clock())
        published = outbox.mark_published(session, token, harness.clock())
        said: list[str] = []
        sql_event.listen(harness.database.engine, "before_cursor_execute", lambda *args: said.append(args[2]))
        assert not deliveries.create_for_events(session, published, harness.clock())
    assert len([statement for statement in said if not statement.startswith(("BEGIN", "COMMIT"))]) == 1


def test_each_event_is_told_by_its_public_name_to_those_who_ask_for_it(harness: DeliveryHarness) -> None:
    everything, only = harness.endpoint(), harness.endpoint("organization.deleted", "membership.added")
    org_id = harness.create()
    harness.change(org_id, lambda change, it: commands.rename(change, it, "Other"))
    harness.change(
        org_id, lambda change, it: commands.change_billing_details(change, it, harness.plans, currency="USD")
    )
    harness.change(org_id, lambda change, it: plan_changes.change_plan(change, it, "enterprise", harness.plans))
    harness.change(org_id, lambda change, it: memberships.add(change, it, "user_1", "owner"))
    harness.change(org_id, lambda change, it: commands.change_status(change, it, "suspended"))
    harness.change(org_id, lambda change, it: commands.change_status(change, it, "deleted"))
    harness.change(
        org_id, lambda change, it: outbox.record(change, "organization.synced", it.id, {"version": it.version})
    )
    harness.relay()
    assert [row.type for row in harness.rows(everything)] == [
        "organization.created",
        "organization.updated",
        "organization.updated",
        "organization.plan_changed",
        "membership.added",
        "organization.status_changed",
        "organization.deleted",
        "organization.synced",
    ]
    assert [row.type for row in harness.rows(only)] == ["membership.added", "organization.deleted"]


def test_an_announcement_holds_identity_and_few_facts_and_neither_name_nor_address(harness: DeliveryHarness) -> None:
    endpoint_id = harness.endpoint()
    org_id = harness.publish_event()
    harness.clock.advance(seconds=1)
    harness.change(org_id, lambda change, it: plan_changes.change_plan(change, it, "enterprise", harness.plans))
    harness.change(
        org_id,
        lambda change, it: commands.change_billing_details(change, it, harness.plans, billing_email="other@mail.test"),
    )
    harness.change(org_id, lambda change, it: commands.rename(change, it, "Another Personal Name"))
    harness.relay()
    told = []
    while (tried := harness.lease_next(endpoint_id)) is not None:
        told.append(payloads.build(tried.event, tried.name).model_dump_json())
        harness.record_attempt(tried, ACCEPTED_RESPONSE)
    assert not [body for body in told if "Personal" in body or "@" in body]
    with harness.database.read() as session:
        [first, second, *_] = session.scalars(select(Event).order_by(Event.seq)).all()
    assert payloads.build(second, "organization.plan_changed").model_dump(mode="json") == {
        "specversion": "1.0",
        "id": second.id,
        "source": "/billing-sync",
        "type": "organization.plan_changed",
        "subject": org_id,
        "time": "2026-11-23T12:00:01Z",
        "datacontenttype": "application/json",
        "data": {
            "org_id": org_id,
            "sequence": second.seq,
            "from": "professional",
            "to": "enterprise",
            "at": "now",
        },
    }
    assert second.seq > first.seq
    assert (
        set(payloads.PUBLIC_NAME_BY_TYPE.values()) | {"organization.deleted"}
        == set(PUBLIC_EVENT_NAMES)
        == set(payloads.FIELDS_BY_PUBLIC_NAME)
    )


def test_an_event_that_is_marked_again_is_told_once(harness: DeliveryHarness) -> None:
    endpoint_id = harness.endpoint()
    harness.create()
    assert (harness.relay(), harness.relay()) == (1, 0)
    with harness.database.write() as session:
        seqs = set(session.scalars(select(Event.seq)))
        assert not deliveries.create_for_events(session, seqs, harness.clock())
    assert harness.states(endpoint_id) == ["pending"]


def test_what_was_committed_before_an_endpoint_and_relayed_after_it_is_told(harness: DeliveryHarness) -> None:
    harness.create()
    endpoint_id = harness.endpoint()
    assert harness.relay() == 1
    assert harness.due() == [endpoint_id]


def test_what_is_not_taken_comes_again_at_the_promised_times_and_is_then_given_up(harness: DeliveryHarness) -> None:
    endpoint_id = harness.endpoint()
    org_id = harness.publish_event()
    event_id = harness.send(endpoint_id, WebhookResponse(status=500)).event.id
    for wait in DELIVERY_RETRY_DELAYS:
        harness.clock.advance(seconds=wait.total_seconds() - 1)
        assert harness.lease_next(endpoint_id) is None
        harness.clock.advance(seconds=1)
        assert harness.send(endpoint_id, WebhookResponse(error="timeout")).event.id == event_id
    assert harness.states(endpoint_id) == ["failed"]
    with harness.database.read() as session:
        [failed], total = deliveries.list_failed(session, 10)
    assert (failed.org_id, failed.event_id, failed.attempts) == (org_id, event_id, len(DELIVERY_RETRY_DELAYS) + 1)
    assert (failed.status, failed.error, total) == (None, "timeout", 1)
    harness.clock.advance(days=1)
    assert harness.due() == []


def test_two_workers_never_hold_the_same_delivery(harness: DeliveryHarness) -> None:
    endpoint_id = harness.endpoint()
    harness.publish_event()
    first, second = harness.lease_next(endpoint_id), harness.lease_next(endpoint_id)
    assert (first is not None, second) == (True, None)


def test_many_workers_at_once_take_each_delivery_once_and_no_more_than_so_many(harness: DeliveryHarness) -> None:
    endpoint_id = harness.endpoint()
    for _ in range(MAX_CONCURRENT_PER_ENDPOINT + 2):
        harness.create()
    harness.relay()
    held: list[DeliveryAttempt | None] = []
    threads = [
        threading.Thread(target=lambda: held.append(harness.lease_next(endpoint_id)))
        for _ in range(MAX_CONCURRENT_PER_ENDPOINT + 4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = [tried.event.seq for tried in held if tried is not None]
    assert (len(held), len(taken), len(set(taken))) == (
        MAX_CONCURRENT_PER_ENDPOINT + 4,
        MAX_CONCURRENT_PER_ENDPOINT,
        MAX_CONCURRENT_PER_ENDPOINT,
    )


def test_a_worker_that_died_is_followed_by_another_with_the_same_event_and_writes_nothing_late(
    harness: DeliveryHarness,
) -> None:
    endpoint_id = harness.endpoint()
    harness.publish_event()
    died = harness.lease_next(endpoint_id)
    assert died is not None
    harness.clock.advance(seconds=DELIVERY_LEASE.total_seconds() - 1)
    assert (harness.due(), harness.lease_next(endpoint_id)) == ([], None)
    harness.clock.advance(seconds=2)
    again = harness.lease_next(endpoint_id)
    assert again is not None
    assert again.event.id == died.event.id
    harness.record_attempt(died, WebhookResponse(status=500))
    assert (harness.states(endpoint_id), harness.rows(endpoint_id)[0].attempts) == (["pending"], 0)
    harness.record_attempt(again, ACCEPTED_RESPONSE)
    assert harness.states(endpoint_id) == ["delivered"]


def test_an_endpoint_that_does_not_take_rests_is_then_asked_by_one_alone_and_keeps_no_other_waiting(
    harness: DeliveryHarness,
) -> None:
    tired, awake = harness.endpoint(), harness.endpoint()
    for _ in range(3):
        harness.create()
    harness.relay()
    harness.send(tired, WebhookResponse(error="timeout"))
    assert harness.lease_next(tired) is None
    assert harness.due() == [awake]
    assert harness.send(awake).endpoint.id == awake
    harness.clock.advance(seconds=2)
    one = harness.lease_next(tired)
    assert one is not None
    assert harness.lease_next(tired) is None
    harness.record_attempt(one, ACCEPTED_RESPONSE)
    assert harness.row(tired).consecutive_failures == 0
    assert harness.lease_next(tired) is not None


def test_an_endpoint_that_is_gone_is_told_nothing_more_until_somebody_replays(harness: DeliveryHarness) -> None:
    endpoint_id = harness.endpoint()
    harness.create()
    harness.publish_event()
    harness.send(endpoint_id, WebhookResponse(status=HTTP_GONE))
    assert harness.states(endpoint_id) == ["failed", "failed"]
    assert harness.row(endpoint_id).disabled_reason == "the endpoint responded 410 Gone"
    harness.publish_event()
    assert len(harness.rows(endpoint_id)) == 2
    assert harness.replay(endpoint_id) == 2
    assert harness.row(endpoint_id).disabled_at is None
    harness.send(endpoint_id)
    harness.send(endpoint_id)
    assert harness.states(endpoint_id) == ["delivered", "delivered"]


def test_one_failed_delivery_is_sent_again_and_the_others_stay(harness: DeliveryHarness) -> None:
    endpoint_id = harness.endpoint()
    harness.create()
    harness.publish_event()
    harness.send(endpoint_id, WebhookResponse(status=HTTP_GONE))
    with harness.database.read() as session:
        [first, second], total = deliveries.list_failed(session, 10)
    assert total == 2
    assert harness.replay(endpoint_id, second.event_id) == 1
    with harness.database.read() as session:
        assert [each.event_id for each in deliveries.list_failed(session, 10)[0]] == [first.event_id]
    assert harness.replay(endpoint_id, second.event_id) == 0
    assert harness.replay(endpoint_id, "no event") == 0


def test_a_replay_since_a_moment_brings_all_that_was_and_what_was_not_told_then(harness: DeliveryHarness) -> None:
    long_ago = harness.publish_event()
    harness.clock.advance(hours=2)
    before = harness.publish_event()
    endpoint_id = harness.endpoint("organization.created")
    after = harness.publish_event()
    first = harness.send(endpoint_id)
    assert harness.replay(endpoint_id, hours=1) == 2
    sent = [harness.send(endpoint_id), harness.send(endpoint_id)]
    assert [tried.event.org_id for tried in sent] == [before, after]
    assert first.event.id in {tried.event.id for tried in sent}
    assert harness.lease_next(endpoint_id) is None
    assert harness.replay(endpoint_id, hours=3) == 3
    assert harness.send(endpoint_id).event.org_id == long_ago
    assert harness.replay("we_none") is None
    with pytest.raises(InvalidChangeError):
        harness.replay(endpoint_id, days=DELIVERY_RETENTION.days + 1)


def test_what_a_replay_overtakes_is_not_written_down_by_the_one_before(harness: DeliveryHarness) -> None:
    endpoint_id = harness.endpoint()
    harness.publish_event()
    slow = harness.lease_next(endpoint_id)
    assert slow is not None
    assert harness.replay(endpoint_id, hours=1) == 1
    harness.record_attempt(slow, ACCEPTED_RESPONSE)
    assert harness.states(endpoint_id) == ["pending"]


def test_an_endpoint_that_is_removed_takes_its_deliveries_along(harness: DeliveryHarness) -> None:
    endpoint_id = harness.endpoint()
    harness.publish_event()
    held = harness.lease_next(endpoint_id)
    with harness.database.write() as session:
        assert endpoints.remove(session, endpoint_id)
        assert not endpoints.remove(session, endpoint_id)
    assert held is not None
    harness.record_attempt(held, ACCEPTED_RESPONSE)
    assert harness.rows(endpoint_id) == []
    harness.publish_event()


def test_a_relay_that_meets_a_removal_waits_for_it_and_then_does_not_find_the_endpoint(
    postgres_url: str, plans: Catalog, clock: SetClock
) -> None:
    harness = DeliveryHarness(Database(postgres_url), plans, clock)
    harness.database.upgrade()
    endpoint_id = harness.endpoint()
    harness.create()
    made: list[int] = []
    relay = threading.Thread(target=lambda: made.append(harness.relay()))
    with harness.database.write() as session:
        endpoints.remove(session, endpoint_id)
        session.flush()
        relay.start()
        relay.join(0.3)
        assert relay.is_alive()
    relay.join(PATIENCE_SECONDS)
    assert made == [0]
    harness.database.close()


def test_what_is_relayed_while_an_endpoint_is_being_told_again_is_told(
    postgres_url: str, plans: Catalog, clock: SetClock
) -> None:
    harness = DeliveryHarness(Database(postgres_url), plans, clock)
    harness.database.upgrade()
    endpoint_id = harness.endpoint()
    harness.publish_event()
    harness.send(endpoint_id, WebhookResponse(status=HTTP_GONE))
    harness.create()
    relay = threading.Thread(target=harness.relay)
    with harness.database.write() as session:
        deliveries.replay(session, endpoint_id, clock(), clock() - timedelta(days=1))
        relay.start()
        relay.join(0.3)
    relay.join(PATIENCE_SECONDS)
    assert harness.states(endpoint_id) == ["pending"] * 2
    harness.database.close()


def test_what_was_settled_long_ago_is_forgotten_and_what_waits_is_not(harness: DeliveryHarness) -> None:
    endpoint_id = harness.endpoint()
    harness.create()
    harness.publish_event()
    harness.send(endpoint_id)
    with harness.database.read() as session:
        assert deliveries.endpoints_with_expired(session, harness.clock()) == []
    harness.clock.advance(days=DELIVERY_RETENTION.days, seconds=1)
    with harness.database.write() as session:
        assert deliveries.endpoints_with_expired(session, harness.clock()) == [endpoint_id]
        assert not deliveries.delete_expired(session, endpoint_id, harness.clock())
    assert harness.states(endpoint_id) == ["pending"]
