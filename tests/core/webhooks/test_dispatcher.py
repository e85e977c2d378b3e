"""Sending to a real server: signed, once where it is taken, again under the same id where it is not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sqlalchemy import select
from standardwebhooks.webhooks import Webhook
from structlog.testing import capture_logs

from core.catalog.plans import Catalog
from core.db.database import Database
from core.db.models.webhooks import WebhookDelivery
from core.webhooks import endpoints
from core.webhooks.deliveries import DELIVERY_LEASE, DELIVERY_RETRY_DELAYS, WebhookResponse
from core.webhooks.dispatcher import Dispatcher, PerEndpointSlots
from core.webhooks.endpoints import NewEndpoint
from core.webhooks.signing import Signer
from providers.outbound_webhooks.http import WebhookHttpSender
from tests.support.clocks import SetClock
from tests.support.delivery_harness import DeliveryHarness
from tests.support.strange_error import StrangeError
from tests.support.webhook_receiver import ReceiverReply, WebhookReceiver, receiving

SIGNER = Signer("a setting of the deployment, long and random")
SECONDS = 30.0


class DiesAfterSending:
    """A worker that is killed between the other side's yes and its own commit."""

    def __init__(self, sender: WebhookHttpSender) -> None:
        self._sender = sender

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> WebhookResponse:
        self._sender.post(url, body, headers)
        raise KeyboardInterrupt

    def close(self) -> None:
        return


class FailsStrangely:
    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> WebhookResponse:
        raise StrangeError(url + str(body) + str(headers))

    def close(self) -> None:
        return


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with receiving() as running:
        yield running


@pytest.fixture
def wire() -> Iterator[WebhookHttpSender]:
    opened = WebhookHttpSender(allow_private=True, seconds=10.0)
    yield opened
    opened.close()


@pytest.fixture
def hasty() -> Iterator[WebhookHttpSender]:
    opened = WebhookHttpSender(allow_private=True, seconds=0.5)
    yield opened
    opened.close()


@pytest.fixture
def harness(database: Database, plans: Catalog, clock: SetClock) -> DeliveryHarness:
    # The public library compares the signature's time with the clock on the wall.
    clock.now = datetime.now(UTC)
    return DeliveryHarness(database, plans, clock)


@pytest.fixture
def dispatcher(harness: DeliveryHarness, wire: WebhookHttpSender) -> Dispatcher:
    return Dispatcher(database=harness.database, clock=harness.clock, signer=SIGNER, sender=wire)


def subscribe(harness: DeliveryHarness, receiver: WebhookReceiver, *events: str) -> str:
    with harness.database.write() as session:
        new = NewEndpoint(url=receiver.url, events=events)
        return endpoints.add(session, new, harness.clock(), allow_private=True).id


def test_what_arrives_is_a_cloud_event_that_the_public_scheme_verifies(
    harness: DeliveryHarness, dispatcher: Dispatcher, receiver: WebhookReceiver
) -> None:
    endpoint_id = subscribe(harness, receiver)
    org_id = harness.publish_event()
    with capture_logs() as log:
        assert not dispatcher.run(endpoint_id, SECONDS)
    [sent] = receiver.requests
    told = Webhook(SIGNER.secret(endpoint_id, 1)).verify(sent.body, dict(sent.headers))
    assert told["type"] == "organization.created"
    assert (told["subject"], told["data"]["plan_tier"]) == (org_id, "professional")
    assert told["id"] == {name.lower(): value for name, value in sent.headers.items()}["webhook-id"]
    assert sent.headers["Content-Type"] == "application/cloudevents+json"
    assert harness.states(endpoint_id) == ["delivered"]
    assert not [line for line in log if receiver.url in str(line) or "Personal" in str(line)]


def test_what_was_not_taken_comes_again_under_the_same_id_with_the_same_bytes(
    harness: DeliveryHarness, dispatcher: Dispatcher, receiver: WebhookReceiver
) -> None:
    endpoint_id = subscribe(harness, receiver)
    receiver.replies = [
        ReceiverReply(status=500),
        ReceiverReply(hangs_up=True),
        ReceiverReply(status=302, headers={"Location": "/"}),
        ReceiverReply(),
    ]
    harness.publish_event()
    for wait in DELIVERY_RETRY_DELAYS[:3]:
        dispatcher.run(endpoint_id, SECONDS)
        assert harness.states(endpoint_id) == ["pending"]
        harness.clock.advance(seconds=wait.total_seconds())
    dispatcher.run(endpoint_id, SECONDS)
    assert harness.states(endpoint_id) == ["delivered"]
    assert len(receiver.requests) == 4
    assert len({(sent.headers["webhook-id"], sent.body) for sent in receiver.requests}) == 1
    assert len({sent.headers["webhook-timestamp"] for sent in receiver.requests}) == 4


def test_a_worker_that_dies_between_sending_and_marking_is_followed_by_one_that_sends_the_same_id(
    harness: DeliveryHarness, dispatcher: Dispatcher, wire: WebhookHttpSender, receiver: WebhookReceiver
) -> None:
    endpoint_id = subscribe(harness, receiver)
    harness.publish_event()
    dying = Dispatcher(database=harness.database, clock=harness.clock, signer=SIGNER, sender=DiesAfterSending(wire))
    with pytest.raises(KeyboardInterrupt):
        dying.run(endpoint_id, SECONDS)
    dispatcher.run(endpoint_id, SECONDS)
    assert len(receiver.requests) == 1
    harness.clock.advance(seconds=DELIVERY_LEASE.total_seconds() + 1)
    dispatcher.run(endpoint_id, SECONDS)
    assert len({sent.headers["webhook-id"] for sent in receiver.requests}) == 1
    assert (len(receiver.requests), harness.states(endpoint_id)) == (2, ["delivered"])


def test_an_endpoint_that_answers_gone_is_asked_no_more(
    harness: DeliveryHarness, dispatcher: Dispatcher, receiver: WebhookReceiver
) -> None:
    endpoint_id = subscribe(harness, receiver)
    receiver.replies = [ReceiverReply(status=410), ReceiverReply()]
    harness.create()
    harness.publish_event()
    dispatcher.run(endpoint_id, SECONDS)
    harness.clock.advance(days=1)
    dispatcher.run(endpoint_id, SECONDS)
    assert (len(receiver.requests), harness.states(endpoint_id)) == (1, ["failed", "failed"])
    harness.replay(endpoint_id)
    dispatcher.run(endpoint_id, SECONDS)
    assert (len(receiver.requests), harness.states(endpoint_id)) == (3, ["delivered", "delivered"])


def test_workers_at_the_same_endpoint_at_the_same_time_send_each_event_once(
    harness: DeliveryHarness, wire: WebhookHttpSender, receiver: WebhookReceiver
) -> None:
    endpoint_id = subscribe(harness, receiver)
    for _ in range(12):
        harness.create()
    harness.relay()
    crew = [
        Dispatcher(database=harness.database, clock=harness.clock, signer=SIGNER, sender=wire).run for _ in range(6)
    ]
    threads = [threading.Thread(target=run, args=(endpoint_id, SECONDS)) for run in crew]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert harness.states(endpoint_id) == ["delivered"] * 12
    assert len(receiver.requests) == len({sent.headers["webhook-id"] for sent in receiver.requests}) == 12


def test_a_slow_endpoint_takes_one_wait_and_then_rests_while_another_is_told_everything(
    harness: DeliveryHarness, dispatcher: Dispatcher, hasty: WebhookHttpSender, receiver: WebhookReceiver
) -> None:
    dispatcher = replace(dispatcher, sender=hasty)
    with receiving() as slow:
        slow.replies = [ReceiverReply(after=30.0)]
        slow_id, quick_id = subscribe(harness, slow), subscribe(harness, receiver)
        for _ in range(5):
            harness.create()
        harness.relay()
        began = time.monotonic()
        assert not dispatcher.run(slow_id, SECONDS)
        assert not dispatcher.run(slow_id, SECONDS)
        assert not dispatcher.run(quick_id, SECONDS)
        assert time.monotonic() - began < 10
        assert (len(slow.requests), harness.states(quick_id)) == (1, ["delivered"] * 5)


def test_an_event_that_is_refused_for_itself_holds_no_other_up(
    harness: DeliveryHarness, dispatcher: Dispatcher, receiver: WebhookReceiver
) -> None:
    endpoint_id = subscribe(harness, receiver)
    receiver.replies = [ReceiverReply(status=400), ReceiverReply(), ReceiverReply(status=422), ReceiverReply()]
    for _ in range(4):
        harness.create()
    harness.relay()
    assert not dispatcher.run(endpoint_id, SECONDS)
    assert harness.states(endpoint_id) == ["pending", "delivered", "pending", "delivered"]
    harness.clock.advance(seconds=DELIVERY_RETRY_DELAYS[0].total_seconds())
    dispatcher.run(endpoint_id, SECONDS)
    assert harness.states(endpoint_id) == ["delivered"] * 4


def test_a_process_has_no_more_out_than_its_lanes_and_half_of_them_at_one_endpoint() -> None:
    slots = PerEndpointSlots(4)
    assert [slots.try_acquire(name) for name in "aaabbc"] == [True, True, False, True, True, False]
    slots.release("a")
    assert [slots.try_acquire(name) for name in "bc"] == [False, True]
    assert [PerEndpointSlots(1).try_acquire("a"), PerEndpointSlots(2).try_acquire("a")] == [True, True]


def test_who_finds_no_lane_leaves_what_is_due_for_later(
    harness: DeliveryHarness, dispatcher: Dispatcher, receiver: WebhookReceiver
) -> None:
    endpoint_id = subscribe(harness, receiver)
    harness.publish_event()
    assert dispatcher.slots.try_acquire(endpoint_id)
    assert not dispatcher.run(endpoint_id, SECONDS)
    assert receiver.requests == []
    dispatcher.slots.release(endpoint_id)
    dispatcher.run(endpoint_id, SECONDS)
    assert len(receiver.requests) == 1


def test_only_what_was_asked_for_is_sent(
    harness: DeliveryHarness, dispatcher: Dispatcher, receiver: WebhookReceiver
) -> None:
    endpoint_id = subscribe(harness, receiver, "organization.deleted")
    harness.publish_event()
    dispatcher.run(endpoint_id, SECONDS)
    assert receiver.requests == []


def test_a_replay_sends_what_was_taken_again_under_its_id(
    harness: DeliveryHarness, dispatcher: Dispatcher, receiver: WebhookReceiver
) -> None:
    endpoint_id = subscribe(harness, receiver)
    harness.publish_event()
    dispatcher.run(endpoint_id, SECONDS)
    assert harness.replay(endpoint_id, hours=1) == 1
    dispatcher.run(endpoint_id, SECONDS)
    [first, second] = [json.loads(sent.body)["id"] for sent in receiver.requests]
    assert first == second


def test_an_error_that_nobody_named_is_a_failed_attempt(
    harness: DeliveryHarness, receiver: WebhookReceiver, dispatcher: Dispatcher
) -> None:
    endpoint_id = subscribe(harness, receiver, "organization.created")
    harness.publish_event()
    broken = replace(dispatcher, sender=FailsStrangely())
    with capture_logs() as logs:
        for delay in (*DELIVERY_RETRY_DELAYS, DELIVERY_RETRY_DELAYS[-1]):
            broken.run(endpoint_id, SECONDS)
            harness.clock.advance(seconds=2 * delay.total_seconds() + 60)
    with harness.database.read() as session:
        (delivery,) = session.scalars(select(WebhookDelivery)).all()
    assert (delivery.state, delivery.last_error) == ("failed", "unexpected")
    assert delivery.attempts == len(DELIVERY_RETRY_DELAYS) + 1
    strange = [each for each in logs if each["event"] == "webhook_failed_unexpectedly"]
    assert {each["error"] for each in strange} == {"StrangeError"}
    assert receiver.url not in str(logs)
