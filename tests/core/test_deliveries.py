"""Each event once to each endpoint that asks for it: tried, put off, given up, replayed; whoever dies in between."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import event as sql_event
from sqlalchemy import select

from core.catalog.plans import Catalog
from core.common.validation import InvalidChangeError
from core.db.database import Database
from core.db.models.events import Event
from core.db.models.organizations import Organization
from core.db.models.webhooks import WebhookDelivery, WebhookEndpoint
from core.events import outbox
from core.events.event_types import ChangeContext
from core.organizations import commands, memberships, plan_changes
from core.organizations.commands import NewOrganization
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
from core.webhooks.endpoints import NewEndpoint
from core.webhooks.payloads import PUBLIC_EVENT_NAMES
from tests.conftest import SetClock

URL = "https://hooks.example.com/billing?token=secret"
TAKEN = WebhookResponse(status=200)


class Shop:
    """A database in which things happen, are relayed, and are sent by whoever the test says."""

    def __init__(self, database: Database, plans: Catalog, clock: SetClock) -> None:
        self.database, self.plans, self.clock = database, plans, clock
        self.made = 0

    def endpoint(self, *events: str) -> str:
        with self.database.write() as session:
            return endpoints.add(session, NewEndpoint(url=URL, events=events), self.clock(), allow_private=False).id

    def create(self) -> str:
        self.made += 1
        new = NewOrganization(
            name=f"Personal Name {self.made}", plan_tier="professional", billing_email="secret@mail.test"
        )
        with self.database.write() as session:
            return commands.create(ChangeContext(session, self.clock()), new, self.plans).id

    def change(self, org_id: str, change: Callable[[ChangeContext, Organization], object]) -> None:
        with self.database.write() as session:
            organization = commands.lock(session, org_id)
            assert organization is not None
            change(ChangeContext(session, self.clock()), organization)

    def relay(self) -> int:
        """As the relay does it; how many deliveries that made."""
        with self.database.write() as session:
            token, _ = outbox.lease_batch(session, 500, self.clock())
        with self.database.write() as session:
            published = outbox.mark_published(session, token, self.clock())
            return deliveries.create_for_events(session, published, self.clock()).total()

    def happens(self) -> str:
        org_id = self.create()
        self.relay()
        return org_id

    def claim(self, endpoint_id: str) -> DeliveryAttempt | None:
        with self.database.write() as session:
            return deliveries.lease_next(session, endpoint_id, self.clock())

    def settle(self, tried: DeliveryAttempt, answer: WebhookResponse) -> None:
        with self.database.write() as session:
            deliveries.record_attempt(session, tried, answer, self.clock())

    def send(self, endpoint_id: str, answer: WebhookResponse = TAKEN) -> DeliveryAttempt:
        tried = self.claim(endpoint_id)
        assert tried is not None
        self.settle(tried, answer)
        return tried

    def rows(self, endpoint_id: str) -> list[WebhookDelivery]:
        with self.database.read() as session:
            found = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint_id)
            return list(session.scalars(found.order_by(WebhookDelivery.event_seq)))

    def states(self, endpoint_id: str) -> list[str]:
        return [row.state for row in self.rows(endpoint_id)]

    def row(self, endpoint_id: str) -> WebhookEndpoint:
        with self.database.read() as session:
            return session.get_one(WebhookEndpoint, endpoint_id)

    def due(self) -> list[str]:
        with self.database.read() as session:
            return deliveries.due_endpoints(session, self.clock())

    def replay(self, endpoint_id: str, **back: float) -> int | None:
        since = self.clock() - timedelta(**back) if back else None
        with self.database.write() as session:
            return deliveries.replay(session, endpoint_id, self.clock(), since)


@pytest.fixture
def shop(database: Database, plans: Catalog, clock: SetClock) -> Shop:
    return Shop(database, plans, clock)


def test_where_nobody_is_told_anything_a_batch_costs_one_look(shop: Shop) -> None:
    shop.create()
    with shop.database.write() as session:
        token, _ = outbox.lease_batch(session, 500, shop.clock())
        published = outbox.mark_published(session, token, shop.clock())
        said: list[str] = []
        sql_event.listen(shop.database.engine, "before_cursor_execute", lambda *args: said.append(args[2]))
        assert not deliveries.create_for_events(session, published, shop.clock())
    assert len([statement for statement in said if not statement.startswith(("BEGIN", "COMMIT"))]) == 1


def test_each_event_is_told_by_its_public_name_to_those_who_ask_for_it(shop: Shop) -> None:
    everything, only = shop.endpoint(), shop.endpoint("organization.deleted", "membership.added")
    org_id = shop.create()
    shop.change(org_id, lambda change, it: commands.rename(change, it, "Other"))
    shop.change(org_id, lambda change, it: commands.change_billing_details(change, it, currency="EUR"))
    shop.change(org_id, lambda change, it: plan_changes.change_plan(change, it, "enterprise", shop.plans))
    shop.change(org_id, lambda change, it: memberships.add(change, it, "user_1", "owner"))
    shop.change(org_id, lambda change, it: commands.change_status(change, it, "suspended"))
    shop.change(org_id, lambda change, it: commands.change_status(change, it, "deleted"))
    shop.change(org_id, lambda change, it: outbox.record(change, "organization.synced", it.id, {"version": it.version}))
    shop.relay()
    assert [row.type for row in shop.rows(everything)] == [
        "organization.created",
        "organization.updated",
        "organization.updated",
        "organization.plan_changed",
        "membership.added",
        "organization.status_changed",
        "organization.deleted",
        "organization.synced",
    ]
    assert [row.type for row in shop.rows(only)] == ["membership.added", "organization.deleted"]


def test_an_announcement_holds_identity_and_few_facts_and_neither_name_nor_address(shop: Shop) -> None:
    endpoint_id = shop.endpoint()
    org_id = shop.happens()
    shop.clock.advance(seconds=1)
    shop.change(org_id, lambda change, it: plan_changes.change_plan(change, it, "enterprise", shop.plans))
    shop.change(
        org_id,
        lambda change, it: commands.change_billing_details(change, it, billing_email="other@mail.test"),
    )
    shop.change(org_id, lambda change, it: commands.rename(change, it, "Another Personal Name"))
    shop.relay()
    told = []
    while (tried := shop.claim(endpoint_id)) is not None:
        told.append(payloads.build(tried.event, tried.name).model_dump_json())
        shop.settle(tried, TAKEN)
    assert not [body for body in told if "Personal" in body or "@" in body]
    with shop.database.read() as session:
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


def test_an_event_that_is_marked_again_is_told_once(shop: Shop) -> None:
    endpoint_id = shop.endpoint()
    shop.create()
    assert (shop.relay(), shop.relay()) == (1, 0)
    with shop.database.write() as session:
        seqs = set(session.scalars(select(Event.seq)))
        assert not deliveries.create_for_events(session, seqs, shop.clock())
    assert shop.states(endpoint_id) == ["pending"]


def test_what_was_committed_before_an_endpoint_and_relayed_after_it_is_told(shop: Shop) -> None:
    shop.create()
    endpoint_id = shop.endpoint()
    assert shop.relay() == 1
    assert shop.due() == [endpoint_id]


def test_what_is_not_taken_comes_again_at_the_promised_times_and_is_then_given_up(shop: Shop) -> None:
    endpoint_id = shop.endpoint()
    org_id = shop.happens()
    event_id = shop.send(endpoint_id, WebhookResponse(status=500)).event.id
    for wait in DELIVERY_RETRY_DELAYS:
        shop.clock.advance(seconds=wait.total_seconds() - 1)
        assert shop.claim(endpoint_id) is None
        shop.clock.advance(seconds=1)
        assert shop.send(endpoint_id, WebhookResponse(error="timeout")).event.id == event_id
    assert shop.states(endpoint_id) == ["failed"]
    with shop.database.read() as session:
        [failed], total = deliveries.list_failed(session, 10)
    assert (failed.org_id, failed.event_id, failed.attempts) == (org_id, event_id, len(DELIVERY_RETRY_DELAYS) + 1)
    assert (failed.status, failed.error, total) == (None, "timeout", 1)
    shop.clock.advance(days=1)
    assert shop.due() == []


def test_two_workers_never_hold_the_same_delivery(shop: Shop) -> None:
    endpoint_id = shop.endpoint()
    shop.happens()
    first, second = shop.claim(endpoint_id), shop.claim(endpoint_id)
    assert (first is not None, second) == (True, None)


def test_many_workers_at_once_take_each_delivery_once_and_no_more_than_so_many(shop: Shop) -> None:
    endpoint_id = shop.endpoint()
    for _ in range(MAX_CONCURRENT_PER_ENDPOINT + 2):
        shop.create()
    shop.relay()
    held: list[DeliveryAttempt | None] = []
    crowd = [
        threading.Thread(target=lambda: held.append(shop.claim(endpoint_id)))
        for _ in range(MAX_CONCURRENT_PER_ENDPOINT + 4)
    ]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    taken = [tried.event.seq for tried in held if tried is not None]
    assert (len(held), len(taken), len(set(taken))) == (
        MAX_CONCURRENT_PER_ENDPOINT + 4,
        MAX_CONCURRENT_PER_ENDPOINT,
        MAX_CONCURRENT_PER_ENDPOINT,
    )


def test_a_worker_that_died_is_followed_by_another_with_the_same_event_and_writes_nothing_late(shop: Shop) -> None:
    endpoint_id = shop.endpoint()
    shop.happens()
    died = shop.claim(endpoint_id)
    assert died is not None
    shop.clock.advance(seconds=DELIVERY_LEASE.total_seconds() - 1)
    assert (shop.due(), shop.claim(endpoint_id)) == ([], None)
    shop.clock.advance(seconds=2)
    again = shop.claim(endpoint_id)
    assert again is not None
    assert again.event.id == died.event.id
    shop.settle(died, WebhookResponse(status=500))
    assert (shop.states(endpoint_id), shop.rows(endpoint_id)[0].attempts) == (["pending"], 0)
    shop.settle(again, TAKEN)
    assert shop.states(endpoint_id) == ["delivered"]


def test_an_endpoint_that_does_not_take_rests_is_then_asked_by_one_alone_and_keeps_no_other_waiting(shop: Shop) -> None:
    tired, awake = shop.endpoint(), shop.endpoint()
    for _ in range(3):
        shop.create()
    shop.relay()
    shop.send(tired, WebhookResponse(error="timeout"))
    assert shop.claim(tired) is None
    assert shop.due() == [awake]
    assert shop.send(awake).endpoint.id == awake
    shop.clock.advance(seconds=2)
    one = shop.claim(tired)
    assert one is not None
    assert shop.claim(tired) is None
    shop.settle(one, TAKEN)
    assert shop.row(tired).consecutive_failures == 0
    assert shop.claim(tired) is not None


def test_an_endpoint_that_is_gone_is_told_nothing_more_until_somebody_replays(shop: Shop) -> None:
    endpoint_id = shop.endpoint()
    shop.create()
    shop.happens()
    shop.send(endpoint_id, WebhookResponse(status=HTTP_GONE))
    assert shop.states(endpoint_id) == ["failed", "failed"]
    assert shop.row(endpoint_id).disabled_reason == "it answered 410, gone"
    shop.happens()
    assert len(shop.rows(endpoint_id)) == 2
    assert shop.replay(endpoint_id) == 2
    assert shop.row(endpoint_id).disabled_at is None
    shop.send(endpoint_id)
    shop.send(endpoint_id)
    assert shop.states(endpoint_id) == ["delivered", "delivered"]


def test_a_replay_since_a_moment_brings_all_that_was_and_what_was_not_told_then(shop: Shop) -> None:
    long_ago = shop.happens()
    shop.clock.advance(hours=2)
    before = shop.happens()
    endpoint_id = shop.endpoint("organization.created")
    after = shop.happens()
    first = shop.send(endpoint_id)
    assert shop.replay(endpoint_id, hours=1) == 2
    sent = [shop.send(endpoint_id), shop.send(endpoint_id)]
    assert [tried.event.org_id for tried in sent] == [before, after]
    assert first.event.id in {tried.event.id for tried in sent}
    assert shop.claim(endpoint_id) is None
    assert shop.replay(endpoint_id, hours=3) == 3
    assert shop.send(endpoint_id).event.org_id == long_ago
    assert shop.replay("we_none") is None
    with pytest.raises(InvalidChangeError):
        shop.replay(endpoint_id, days=DELIVERY_RETENTION.days + 1)


def test_what_a_replay_overtakes_is_not_written_down_by_the_one_before(shop: Shop) -> None:
    endpoint_id = shop.endpoint()
    shop.happens()
    slow = shop.claim(endpoint_id)
    assert slow is not None
    assert shop.replay(endpoint_id, hours=1) == 1
    shop.settle(slow, TAKEN)
    assert shop.states(endpoint_id) == ["pending"]


def test_an_endpoint_that_is_removed_takes_its_deliveries_along(shop: Shop) -> None:
    endpoint_id = shop.endpoint()
    shop.happens()
    held = shop.claim(endpoint_id)
    with shop.database.write() as session:
        assert endpoints.remove(session, endpoint_id)
        assert not endpoints.remove(session, endpoint_id)
    assert held is not None
    shop.settle(held, TAKEN)
    assert shop.rows(endpoint_id) == []
    shop.happens()


def test_a_relay_that_meets_a_removal_waits_for_it_and_then_does_not_find_the_endpoint(
    postgres_url: str, plans: Catalog, clock: SetClock
) -> None:
    shop = Shop(Database(postgres_url), plans, clock)
    shop.database.upgrade()
    endpoint_id = shop.endpoint()
    shop.create()
    made: list[int] = []
    relay = threading.Thread(target=lambda: made.append(shop.relay()))
    with shop.database.write() as session:
        endpoints.remove(session, endpoint_id)
        session.flush()
        relay.start()
        relay.join(0.3)
        assert relay.is_alive()
    relay.join(10)
    assert made == [0]
    shop.database.close()


def test_what_is_relayed_while_an_endpoint_is_being_told_again_is_told(
    postgres_url: str, plans: Catalog, clock: SetClock
) -> None:
    shop = Shop(Database(postgres_url), plans, clock)
    shop.database.upgrade()
    endpoint_id = shop.endpoint()
    shop.happens()
    shop.send(endpoint_id, WebhookResponse(status=HTTP_GONE))
    shop.create()
    relay = threading.Thread(target=shop.relay)
    with shop.database.write() as session:
        deliveries.replay(session, endpoint_id, clock(), clock() - timedelta(days=1))
        relay.start()
        relay.join(0.3)
    relay.join(10)
    assert shop.states(endpoint_id) == ["pending"] * 2
    shop.database.close()


def test_what_was_settled_long_ago_is_forgotten_and_what_waits_is_not(shop: Shop) -> None:
    endpoint_id = shop.endpoint()
    shop.create()
    shop.happens()
    shop.send(endpoint_id)
    with shop.database.read() as session:
        assert deliveries.endpoints_with_expired(session, shop.clock()) == []
    shop.clock.advance(days=DELIVERY_RETENTION.days, seconds=1)
    with shop.database.write() as session:
        assert deliveries.endpoints_with_expired(session, shop.clock()) == [endpoint_id]
        assert not deliveries.delete_expired(session, endpoint_id, shop.clock())
    assert shop.states(endpoint_id) == ["pending"]
