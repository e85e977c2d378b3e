"""Sending to a real server: signed, once where it is taken, again under the same id where it is not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import pytest
from standardwebhooks.webhooks import Webhook
from structlog.testing import capture_logs

from core.catalog.plans import Catalog
from core.db.database import Database
from core.webhooks import endpoints
from core.webhooks.deliveries import DELIVERY_LEASE, DELIVERY_RETRY_DELAYS, WebhookResponse
from core.webhooks.dispatcher import Dispatcher, PerEndpointSlots
from core.webhooks.endpoints import NewEndpoint
from core.webhooks.signing import Signer
from providers.webhooks.http import WebhookHttpSender
from tests.conftest import SetClock
from tests.core.test_deliveries import Shop
from tests.receiver import Receiver, Says, receiving

SIGNER = Signer("a setting of the deployment, long and random")
SECONDS = 5.0


class DiesAfterSending:
    """A worker that is killed between the other side's yes and its own commit."""

    def __init__(self, sender: WebhookHttpSender) -> None:
        self._sender = sender

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> WebhookResponse:
        self._sender.post(url, body, headers)
        raise KeyboardInterrupt

    def close(self) -> None:
        return


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture
def wire() -> Iterator[WebhookHttpSender]:
    opened = WebhookHttpSender(allow_private=True, seconds=0.5)
    yield opened
    opened.close()


@pytest.fixture
def shop(database: Database, plans: Catalog, clock: SetClock) -> Shop:
    # The public library compares the signature's time with the clock on the wall.
    clock.now = datetime.now(UTC)
    return Shop(database, plans, clock)


@pytest.fixture
def courier(shop: Shop, wire: WebhookHttpSender) -> Dispatcher:
    return Dispatcher(database=shop.database, clock=shop.clock, signer=SIGNER, sender=wire)


def subscribe(shop: Shop, receiver: Receiver, *events: str) -> str:
    with shop.database.write() as session:
        new = NewEndpoint(url=receiver.url, events=events)
        return endpoints.add(session, new, shop.clock(), allow_private=True).id


def test_what_arrives_is_a_cloud_event_that_the_public_scheme_verifies(
    shop: Shop, courier: Dispatcher, receiver: Receiver
) -> None:
    endpoint_id = subscribe(shop, receiver)
    org_id = shop.happens()
    with capture_logs() as log:
        assert not courier.run(endpoint_id, SECONDS)
    [sent] = receiver.sent
    told = Webhook(SIGNER.secret(endpoint_id, 1)).verify(sent.body, dict(sent.headers))
    assert told["type"] == "organization.created"
    assert (told["subject"], told["data"]["plan_tier"]) == (org_id, "professional")
    assert told["id"] == {name.lower(): value for name, value in sent.headers.items()}["webhook-id"]
    assert sent.headers["Content-Type"] == "application/cloudevents+json"
    assert shop.states(endpoint_id) == ["delivered"]
    assert not [line for line in log if receiver.url in str(line) or "Personal" in str(line)]


def test_what_was_not_taken_comes_again_under_the_same_id_with_the_same_bytes(
    shop: Shop, courier: Dispatcher, receiver: Receiver
) -> None:
    endpoint_id = subscribe(shop, receiver)
    receiver.answers = [Says(status=500), Says(after=1.0), Says(status=302, headers={"Location": "/"}), Says()]
    shop.happens()
    for wait in DELIVERY_RETRY_DELAYS[:3]:
        courier.run(endpoint_id, SECONDS)
        assert shop.states(endpoint_id) == ["pending"]
        shop.clock.advance(seconds=wait.total_seconds())
    courier.run(endpoint_id, SECONDS)
    assert shop.states(endpoint_id) == ["delivered"]
    assert len(receiver.sent) == 4
    assert len({(sent.headers["webhook-id"], sent.body) for sent in receiver.sent}) == 1
    assert len({sent.headers["webhook-timestamp"] for sent in receiver.sent}) == 4


def test_a_worker_that_dies_between_sending_and_marking_is_followed_by_one_that_sends_the_same_id(
    shop: Shop, courier: Dispatcher, wire: WebhookHttpSender, receiver: Receiver
) -> None:
    endpoint_id = subscribe(shop, receiver)
    shop.happens()
    dying = Dispatcher(database=shop.database, clock=shop.clock, signer=SIGNER, sender=DiesAfterSending(wire))
    with pytest.raises(KeyboardInterrupt):
        dying.run(endpoint_id, SECONDS)
    courier.run(endpoint_id, SECONDS)
    assert len(receiver.sent) == 1
    shop.clock.advance(seconds=DELIVERY_LEASE.total_seconds() + 1)
    courier.run(endpoint_id, SECONDS)
    assert len({sent.headers["webhook-id"] for sent in receiver.sent}) == 1
    assert (len(receiver.sent), shop.states(endpoint_id)) == (2, ["delivered"])


def test_an_endpoint_that_answers_gone_is_asked_no_more(shop: Shop, courier: Dispatcher, receiver: Receiver) -> None:
    endpoint_id = subscribe(shop, receiver)
    receiver.answers = [Says(status=410), Says()]
    shop.create()
    shop.happens()
    courier.run(endpoint_id, SECONDS)
    shop.clock.advance(days=1)
    courier.run(endpoint_id, SECONDS)
    assert (len(receiver.sent), shop.states(endpoint_id)) == (1, ["failed", "failed"])
    shop.replay(endpoint_id)
    courier.run(endpoint_id, SECONDS)
    assert (len(receiver.sent), shop.states(endpoint_id)) == (3, ["delivered", "delivered"])


def test_workers_at_the_same_endpoint_at_the_same_time_send_each_event_once(
    shop: Shop, wire: WebhookHttpSender, receiver: Receiver
) -> None:
    endpoint_id = subscribe(shop, receiver)
    for _ in range(12):
        shop.create()
    shop.relay()
    crew = [Dispatcher(database=shop.database, clock=shop.clock, signer=SIGNER, sender=wire).run for _ in range(6)]
    threads = [threading.Thread(target=run, args=(endpoint_id, SECONDS)) for run in crew]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shop.states(endpoint_id) == ["delivered"] * 12
    assert len(receiver.sent) == len({sent.headers["webhook-id"] for sent in receiver.sent}) == 12


def test_a_slow_endpoint_takes_one_wait_and_then_rests_while_another_is_told_everything(
    shop: Shop, courier: Dispatcher, receiver: Receiver
) -> None:
    with receiving() as slow:
        slow.answers = [Says(after=2.0)]
        slow_id, quick_id = subscribe(shop, slow), subscribe(shop, receiver)
        for _ in range(5):
            shop.create()
        shop.relay()
        began = time.monotonic()
        assert not courier.run(slow_id, SECONDS)
        assert not courier.run(slow_id, SECONDS)
        assert not courier.run(quick_id, SECONDS)
        assert time.monotonic() - began < 2.0
        assert (len(slow.sent), shop.states(quick_id)) == (1, ["delivered"] * 5)


def test_an_event_that_is_refused_for_itself_holds_no_other_up(
    shop: Shop, courier: Dispatcher, receiver: Receiver
) -> None:
    endpoint_id = subscribe(shop, receiver)
    receiver.answers = [Says(status=400), Says(), Says(status=422), Says()]
    for _ in range(4):
        shop.create()
    shop.relay()
    assert not courier.run(endpoint_id, SECONDS)
    assert shop.states(endpoint_id) == ["pending", "delivered", "pending", "delivered"]
    shop.clock.advance(seconds=DELIVERY_RETRY_DELAYS[0].total_seconds())
    courier.run(endpoint_id, SECONDS)
    assert shop.states(endpoint_id) == ["delivered"] * 4


def test_a_process_has_no_more_out_than_its_lanes_and_half_of_them_at_one_endpoint() -> None:
    lanes = PerEndpointSlots(4)
    assert [lanes.try_acquire(name) for name in "aaabbc"] == [True, True, False, True, True, False]
    lanes.release("a")
    assert [lanes.try_acquire(name) for name in "bc"] == [False, True]
    assert [PerEndpointSlots(1).try_acquire("a"), PerEndpointSlots(2).try_acquire("a")] == [True, True]


def test_who_finds_no_lane_leaves_what_is_due_for_later(shop: Shop, courier: Dispatcher, receiver: Receiver) -> None:
    endpoint_id = subscribe(shop, receiver)
    shop.happens()
    assert courier.slots.try_acquire(endpoint_id)
    assert not courier.run(endpoint_id, SECONDS)
    assert receiver.sent == []
    courier.slots.release(endpoint_id)
    courier.run(endpoint_id, SECONDS)
    assert len(receiver.sent) == 1


def test_only_what_was_asked_for_is_sent(shop: Shop, courier: Dispatcher, receiver: Receiver) -> None:
    endpoint_id = subscribe(shop, receiver, "organization.deleted")
    shop.happens()
    courier.run(endpoint_id, SECONDS)
    assert receiver.sent == []


def test_a_replay_sends_what_was_taken_again_under_its_id(shop: Shop, courier: Dispatcher, receiver: Receiver) -> None:
    endpoint_id = subscribe(shop, receiver)
    shop.happens()
    courier.run(endpoint_id, SECONDS)
    assert shop.replay(endpoint_id, hours=1) == 1
    courier.run(endpoint_id, SECONDS)
    [first, second] = [json.loads(sent.body)["id"] for sent in receiver.sent]
    assert first == second
