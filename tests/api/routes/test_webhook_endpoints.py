"""Who is told by webhook: the secret is shown once and kept nowhere, words are checked, repeats are repeats."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from sqlalchemy import select

from core.common.clock import utc_now
from core.db.models.access import IdempotencyRecord
from core.db.models.events import Event
from core.db.models.webhooks import WebhookDelivery
from core.events import outbox
from core.webhooks import deliveries, endpoints, payloads
from core.webhooks.signing import Signer
from tests.support.api_client import SIGNING_SECRET, Api

URL = "https://hooks.example.com/billing"
SIGNER = Signer(SIGNING_SECRET)


@pytest.fixture
def mine(api: Api) -> dict[str, str]:
    return api.as_service("webhooks:write")


def add(api: Api, mine: dict[str, str], **body: object) -> dict[str, Any]:
    made = api.post("/api/webhooks", {"url": URL} | body, mine)
    assert made.status_code == 201, made.text
    return dict(made.json())


def relay(api: Api) -> None:
    with api.database.write() as session:
        token, _ = outbox.lease_batch(session, 500, utc_now())
        deliveries.create_for_events(session, outbox.mark_published(session, token, utc_now()), utc_now())


def states(api: Api) -> list[str]:
    with api.database.read() as session:
        return list(session.scalars(select(WebhookDelivery.state).order_by(WebhookDelivery.event_seq)))


def test_the_secret_is_shown_once_and_the_list_shows_the_rest(api: Api, mine: dict[str, str]) -> None:
    made = add(api, mine, events=["organization.synced", "organization.created"], description="the desk")
    assert made == {
        "id": made["id"],
        "status": "created",
        "secret_generation": 1,
        "secret": SIGNER.secret(made["id"], 1),
    }
    listed = api.get("/api/webhooks", mine)
    [webhook] = listed.json()["webhooks"]
    assert (webhook["id"], webhook["url"], webhook["description"]) == (made["id"], URL, "the desk")
    assert webhook["events"] == ["organization.created", "organization.synced"]
    assert (webhook["pending"], webhook["failed"], webhook["disabled_at"]) == (0, 0, None)
    assert made["secret"] not in listed.text


@pytest.mark.parametrize("name", payloads.OPERATOR_EVENT_NAMES)
def test_a_service_does_not_get_what_operators_must_act_on(api: Api, mine: dict[str, str], name: str) -> None:
    refused = api.post("/api/webhooks", {"url": URL, "events": [name]}, mine)
    assert refused.status_code == 422
    assert api.get("/api/webhooks", mine).json()["count"] == 0


def test_a_repeat_under_a_key_makes_one_webhook_and_keeps_no_secret(api: Api, mine: dict[str, str]) -> None:
    first, second = (api.post("/api/webhooks", {"url": URL}, mine, key="once") for _ in range(2))
    assert (first.status_code, first.content) == (second.status_code, second.content)
    assert first.json()["secret"].startswith("whsec_")
    assert second.headers["Idempotent-Replayed"] == "true"
    assert api.get("/api/webhooks", mine).json()["count"] == 1
    with api.database.read() as session:
        [kept] = session.scalars(select(IdempotencyRecord.body))
    assert "whsec_" not in kept


def test_a_rotation_gives_another_secret(api: Api, mine: dict[str, str]) -> None:
    made = add(api, mine)
    rotated = api.post(f"/api/webhooks/{made['id']}/rotate", None, mine).json()
    assert (rotated["status"], rotated["secret_generation"]) == ("rotated", 2)
    assert rotated["secret"] == SIGNER.secret(made["id"], 2) != made["secret"]


def test_what_cannot_be_told_is_refused_by_name(api: Api, mine: dict[str, str]) -> None:
    for body, field in (
        ({"url": "http://hooks.example.com"}, "url"),
        ({"url": URL, "events": ["organization.sold"]}, "body.events.0"),
        ({"url": URL, "description": "two\nlines"}, "description"),
        ({"url": URL, "secret": "mine"}, "body.secret"),
        ({}, "body.url"),
    ):
        refused = api.post("/api/webhooks", body, mine)
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, field), refused.text
        assert "hooks.example.com" not in refused.text


def test_a_webhook_that_is_not_there_is_not_found(api: Api, mine: dict[str, str]) -> None:
    for method, path in (("DELETE", ""), ("POST", "/rotate"), ("POST", "/replay")):
        missing = api.send(method, f"/api/webhooks/we_none{path}", mine, {} if path == "/replay" else None)
        assert missing.status_code == 404, missing.text


def test_another_accounts_endpoint_is_not_found_in_the_same_words_as_an_unknown_one(
    api: Api, mine: dict[str, str]
) -> None:
    made = add(api, mine)
    other = api.as_service("webhooks:write", account="another service")
    assert api.get("/api/webhooks", other).json()["count"] == 0
    for method, path in (("DELETE", ""), ("POST", "/rotate"), ("POST", "/replay")):
        body: dict[str, str] | None = {} if path == "/replay" else None
        foreign = api.send(method, f"/api/webhooks/{made['id']}{path}", other, body)
        unknown = api.send(method, f"/api/webhooks/we_none{path}", other, body)
        assert (foreign.status_code, foreign.json()["detail"]) == (404, unknown.json()["detail"])
    assert api.post(f"/api/webhooks/{made['id']}/rotate", None, mine).json()["secret_generation"] == 2
    next_key = api.as_service("webhooks:write")
    assert api.get("/api/webhooks", next_key).json()["webhooks"][0]["id"] == made["id"]
    assert api.send("DELETE", f"/api/webhooks/{made['id']}", next_key).json() == {"status": "removed"}


def test_an_operators_endpoint_is_no_accounts(api: Api, mine: dict[str, str]) -> None:
    with api.database.write() as session:
        made = endpoints.add(session, endpoints.NewEndpoint(url=URL), utc_now(), allow_private=False)
    assert api.get("/api/webhooks", mine).json()["count"] == 0
    assert api.send("DELETE", f"/api/webhooks/{made.id}", mine).status_code == 404


def test_what_is_removed_is_told_nothing_more(api: Api, mine: dict[str, str]) -> None:
    made = add(api, mine)
    api.organization()
    relay(api)
    assert states(api) == ["pending"]
    assert api.send("DELETE", f"/api/webhooks/{made['id']}", mine).json() == {"status": "removed"}
    api.organization()
    relay(api)
    assert (states(api), api.get("/api/webhooks", mine).json()["count"]) == ([], 0)


def test_a_replay_makes_what_was_settled_due_again(api: Api, mine: dict[str, str]) -> None:
    made = add(api, mine)
    api.organization()
    relay(api)
    with api.database.write() as session:
        tried = deliveries.lease_next(session, made["id"], utc_now())
        assert tried is not None
        deliveries.record_attempt(session, tried, deliveries.WebhookResponse(status=200), utc_now())
    replay = f"/api/webhooks/{made['id']}/replay"
    assert api.post(replay, {}, mine).json() == {"status": "replayed", "count": 0}
    since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    assert api.post(replay, {"since": since}, mine).json() == {"status": "replayed", "count": 1}
    assert states(api) == ["pending"]
    assert api.get("/api/webhooks", mine).json()["webhooks"][0]["pending"] == 1
    for wrong in (
        {"since": "2026-11-23T12:00:00"},
        {"since": "2020-01-01T00:00:00Z"},
        {"since": "now"},
        {"since": "0001-01-01T00:00:00+14:00"},
        {"since": "9999-12-31T23:59:59-14:00"},
    ):
        assert api.post(replay, wrong, mine).status_code == 422


def test_what_is_sent_is_what_the_document_says(api: Api) -> None:
    document = api.get("/openapi.json").json()
    body = document["webhooks"]["event"]["post"]["requestBody"]["content"][payloads.CLOUDEVENT_MEDIA_TYPE]
    assert body["schema"] == {"$ref": "#/components/schemas/WebhookEvent"}
    api.organization(owner="owner")
    with api.database.read() as session:
        told = [
            payloads.build(event, payloads.PUBLIC_NAME_BY_TYPE["organization.created"])
            for event in session.scalars(select(Event).where(Event.type == "organization.created"))
        ]
    schema = {"$ref": "#/components/schemas/WebhookEvent", "components": document["components"]}
    [error] = list(Draft202012Validator(schema).iter_errors(told[0].model_dump(mode="json"))) or [None]
    assert error is None
