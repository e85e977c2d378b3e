"""A post to another service ends in time, says what came of it, follows nothing and stays out of our network."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from core.webhooks.deliveries import WebhookResponse
from providers.outbound_webhooks.http import WebhookHttpSender
from tests.support.waiting import until
from tests.support.webhook_receiver import ReceiverReply, WebhookReceiver, receiving

BODY = b'{"id":"1"}'


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


def post(wire: WebhookHttpSender, url: str) -> WebhookResponse:
    return wire.post(url, BODY, {"Content-Type": "application/cloudevents+json", "webhook-id": "1"})


def test_what_is_sent_arrives_byte_for_byte_and_the_status_is_told(
    wire: WebhookHttpSender, receiver: WebhookReceiver
) -> None:
    assert post(wire, f"{receiver.url}?token=1") == WebhookResponse(status=200)
    [sent] = receiver.requests
    assert (sent.path, sent.body) == ("/hook?token=1", BODY)
    assert sent.headers["webhook-id"] == "1"
    assert sent.headers["User-Agent"] == "billing-sync"


@pytest.mark.parametrize("status", [204, 400, 410, 500])
def test_a_status_is_what_it_is(wire: WebhookHttpSender, receiver: WebhookReceiver, status: int) -> None:
    receiver.replies = [ReceiverReply(status=status)]
    answer = post(wire, receiver.url)
    assert (answer.status, answer.accepted) == (status, status == 204)


def test_a_redirect_is_not_followed_and_not_taken(wire: WebhookHttpSender, receiver: WebhookReceiver) -> None:
    receiver.replies = [ReceiverReply(status=307, headers={"Location": receiver.url})]
    answer = post(wire, receiver.url)
    assert (answer, answer.accepted, len(receiver.requests)) == (WebhookResponse(status=307), False, 1)


def test_an_answer_that_does_not_come_ends_in_time(hasty: WebhookHttpSender, receiver: WebhookReceiver) -> None:
    receiver.replies = [ReceiverReply(after=30.0)]
    began = time.monotonic()
    assert post(hasty, receiver.url) == WebhookResponse(error="timeout")
    assert time.monotonic() - began < 10


def test_a_body_that_drips_is_waited_for_no_longer_and_its_status_counts(
    hasty: WebhookHttpSender, receiver: WebhookReceiver
) -> None:
    receiver.replies = [ReceiverReply(body=b"x" * 600, drips=True)]  # for half a minute
    began = time.monotonic()
    assert post(hasty, receiver.url) == WebhookResponse(status=200)
    assert time.monotonic() - began < 10


def test_of_a_large_body_little_is_read(wire: WebhookHttpSender, receiver: WebhookReceiver) -> None:
    receiver.replies = [ReceiverReply(body=b"x" * 50_000_000), ReceiverReply()]
    assert post(wire, receiver.url) == WebhookResponse(status=200)
    until(lambda: receiver.cut_short == 1, "the rest is not read")
    assert post(wire, receiver.url) == WebhookResponse(status=200)


def test_nothing_that_an_endpoint_hands_over_is_kept_and_sent_along(
    wire: WebhookHttpSender, receiver: WebhookReceiver
) -> None:
    receiver.replies = [ReceiverReply(headers={"Set-Cookie": "c=1; Max-Age=9999"})]
    assert post(wire, receiver.url) == WebhookResponse(status=200)
    assert post(wire, receiver.url) == WebhookResponse(status=200)
    assert "Cookie" not in receiver.requests[1].headers


def test_silence_is_told_by_its_reason(wire: WebhookHttpSender, receiver: WebhookReceiver) -> None:
    receiver.replies = [ReceiverReply(hangs_up=True)]
    assert post(wire, receiver.url) == WebhookResponse(error="no_answer")
    assert post(wire, "http://127.0.0.1:1/") == WebhookResponse(error="no_connection")
    assert post(wire, f"https://127.0.0.1:{receiver.port}/") == WebhookResponse(error="tls")
    assert post(wire, "https://no-such-host.invalid/") == WebhookResponse(error="no_connection")
    assert post(wire, "https://" + "a" * 300 + "/").error in {"bad_address", "no_connection"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1"])
def test_no_spelling_of_this_machine_is_connected_to(receiver: WebhookReceiver, host: str) -> None:
    wire = WebhookHttpSender(allow_private=False, seconds=10.0)
    assert post(wire, f"http://{host}:{receiver.port}/").error == "private_address"
    assert receiver.requests == []
    wire.close()
