"""Events over HTTP: each taken once, answered with its verdict; what is refused is refused by name, alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, text

from core.db.models.events import Event
from core.db.models.organizations import Organization
from core.inbox.event_schemas import MAX_SERVICE_EVENT_BYTES
from tests.support.api_client import Api

ONE = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
ORG = "org_from_events"
CREATED: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1",
    "source": "/signup",
    "type": "organization.created",
    "subject": ORG,
    "data": {"name": "Initech", "plan_tier": "starter", "owner_user_id": "user_1"},
}


def event(number: int, kind: str = "organization.renamed", subject: str = ORG, **data: object) -> dict[str, Any]:
    return CREATED | {"id": str(number), "type": kind, "subject": subject, "data": data}


def send(api: Api, body: object, kind: str | None = None) -> httpx.Response:
    named = {"Content-Type": kind} if kind else {}
    return api.http.post("/api/events", json=body, headers=api.as_service("events:write") | named)


def said(api: Api, org_id: str = ORG) -> list[str]:
    """What has happened to the organization."""
    with api.database.read() as session:
        return list(session.scalars(select(Event.type).where(Event.org_id == org_id).order_by(Event.seq)))


def test_one_that_is_taken_is_answered_with_what_its_receipt_is_asked_by(api: Api) -> None:
    answer = send(api, CREATED, f"{ONE}; charset=utf-8")
    assert answer.status_code == 200
    assert answer.json() == {
        "id": "1",
        "source": "/signup",
        "status": "applied",
        "reason": None,
        "org_id": ORG,
        "sync": {"version": 1},
    }
    status = api.get(f"/api/organizations/{ORG}/sync", api.as_service("organizations:read"), version=1)
    assert status.status_code == 200
    changed = send(api, event(2, name="Initech AG"))
    assert changed.json()["sync"] == {"version": 2}


def test_one_that_is_refused_is_a_problem_that_names_each_field_and_repeats_nothing(api: Api) -> None:
    answer = send(api, event(1, "organization.created", name="", billing_email="not-an-address", colour="secret-word"))
    problem = answer.json()
    assert (answer.status_code, answer.headers["Content-Type"]) == (422, "application/problem+json")
    assert problem["type"].endswith("event-rejected")
    assert {each["field"] for each in problem["errors"]} >= {"data.name", "data.billing_email"}
    assert "not-an-address" not in answer.text
    assert "secret-word" not in answer.text
    assert said(api) == []


def test_what_collides_with_what_is_there_names_its_field(api: Api) -> None:
    send(api, CREATED)
    taken = send(api, event(2, "organization.created", "org_other", name="initech"))
    assert (taken.status_code, [each["field"] for each in taken.json()["errors"]]) == (422, ["data.name"])
    unknown = send(api, event(3, "organization.plan_changed", plan_tier="gold"))
    assert [each["field"] for each in unknown.json()["errors"]] == ["data.plan_tier"]


def test_only_changes_are_taken(api: Api) -> None:
    send(api, CREATED)
    for number, kind in enumerate(("organization.synced", "organization.sold"), 2):
        refused = send(api, event(number, kind, through=1))
        assert (refused.status_code, [each["field"] for each in refused.json()["errors"]]) == (422, ["type"])


def test_one_that_comes_too_early_waits_and_one_that_comes_too_late_changes_nothing(api: Api) -> None:
    early = event(2) | {"time": "2026-11-23T12:00:02Z", "data": {"name": "Initech AG"}}
    waits = send(api, early)
    assert (waits.status_code, waits.json()["status"], waits.json()["sync"]) == (202, "waiting", None)
    send(api, CREATED)
    assert said(api).count("organization.renamed") == 1
    late = send(api, event(3) | {"time": "2026-11-23T12:00:01Z", "data": {"name": "Initech GmbH"}})
    assert (late.status_code, late.json()["status"], late.json()["org_id"]) == (200, "superseded", None)
    assert said(api).count("organization.renamed") == 1


def test_a_repeat_is_given_the_same_verdict_and_does_nothing(api: Api) -> None:
    bodies = (CREATED, event(2, name=""), event(3, subject="org_unknown", name="Nobody"))
    first = [send(api, body) for body in bodies]
    before = said(api)
    again = [send(api, body) for body in bodies]
    assert [answer.status_code for answer in first] == [answer.status_code for answer in again] == [200, 422, 202]
    for one, other in zip(first, again, strict=True):
        assert {**one.json(), "request_id": None} == {**other.json(), "request_id": None}
    assert said(api) == before


def test_the_same_event_many_times_at_once_is_taken_once(api: Api) -> None:
    headers = api.as_service("events:write")
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: api.http.post("/api/events", json=CREATED, headers=headers), range(16)))
    assert {(answer.status_code, answer.text) for answer in answers} == {(200, answers[0].text)}
    assert said(api) == ["organization.created", "membership.added"]


def test_other_content_under_a_used_id_is_refused_and_changes_nothing(api: Api) -> None:
    assert send(api, CREATED).status_code == 200
    refused = send(api, CREATED | {"data": {"name": "Globex"}})
    assert (refused.status_code, [each["field"] for each in refused.json()["errors"]]) == (422, ["id"])
    assert send(api, CREATED).json()["status"] == "applied"


def test_a_service_cannot_send_from_the_source_of_another(api: Api) -> None:
    assert send(api, CREATED).status_code == 200
    other = api.as_service("events:write", account="another service")
    foreign = event(2, name="Globex")
    refused = api.http.post("/api/events", json=foreign, headers=other)
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:billing-sync:problem:forbidden")
    own = foreign | {"source": "/other"}
    batch = api.http.post("/api/events", json=[foreign, own], headers=other).json()
    assert [each["status"] for each in batch["events"]] == ["rejected", "applied"]
    assert batch["events"][0]["reason"].startswith("source: ")
    assert send(api, event(2, name="Initech AG")).json()["status"] == "applied"


def test_a_batch_is_answered_event_by_event_and_a_bad_one_keeps_no_other_out(api: Api) -> None:
    batch = [CREATED, event(2, name=""), "nonsense", event(3, name="Initech AG"), CREATED]
    answer = send(api, batch, BATCH)
    body = answer.json()
    assert (answer.status_code, body["count"]) == (200, 5)
    assert [each["status"] for each in body["events"]] == ["applied", "rejected", "rejected", "applied", "applied"]
    assert [each["id"] for each in body["events"]] == ["1", "2", None, "3", "1"]
    assert body["events"][1]["reason"].startswith("data.name: ")
    assert [each["sync"] for each in body["events"]] == [{"version": 2}, None, None, {"version": 2}, {"version": 2}]
    assert said(api) == ["organization.created", "membership.added", "organization.renamed"]
    assert send(api, batch).json() == body


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_batch_that_the_database_leaves_halfway_does_not_say_that_nothing_was_changed(api: Api) -> None:
    created = CREATED | {"data": {"name": "Initech", "plan_tier": "starter"}}
    batch = [created, event(2, "membership.added", user_id="user_1", role="owner")]
    with api.database.write() as session:
        session.execute(text("ALTER TABLE memberships RENAME TO away"))
    answer = send(api, batch)
    assert answer.status_code == 503
    assert "No change was made" not in answer.json()["detail"]
    assert said(api) == ["organization.created"]
    with api.database.write() as session:
        session.execute(text("ALTER TABLE away RENAME TO memberships"))
    assert {each["status"] for each in send(api, batch).json()["events"]} == {"applied"}
    assert said(api) == ["organization.created", "membership.added"]


def test_batches_that_race_take_each_event_once(api: Api) -> None:
    headers = api.as_service("events:write")
    batch = [event(n, "organization.created", f"org_{n}", name=f"Company {n}") for n in range(10)]
    orders = [batch, batch[::-1], batch[5:] + batch[:5]]
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda body: api.http.post("/api/events", json=body, headers=headers), orders))
    assert {answer.status_code for answer in answers} == {200}
    assert {each["status"] for answer in answers for each in answer.json()["events"]} == {"applied"}
    with api.database.read() as session:
        assert session.scalar(select(func.count()).select_from(Organization)) == 10
        assert session.scalar(select(func.count()).select_from(Event)) == 10


def test_a_hundred_events_of_the_largest_size_fit_and_one_more_does_not(api: Api) -> None:
    room = "x" * (MAX_SERVICE_EVENT_BYTES - 1000)
    batch = [event(n, "organization.created", f"org_{n}", name=f"Company {n}") | {"note": room} for n in range(100)]
    answer = send(api, batch)
    assert {each["status"] for each in answer.json()["events"]} == {"applied"}
    refused = send(api, [*batch, CREATED])
    assert refused.status_code in {413, 422}
    assert send(api, [CREATED] * 101).status_code == 422
    assert send(api, []).json() == {"events": [], "count": 0}


NO_EVENTS = (
    (b"", "application/json", 422),
    (b"{", "application/json", 422),
    (b"[" * 100_000, "application/json", 422),
    (b'{"id": NaN}', "application/json", 422),
    (b"\xff\xfe\xff", "application/json", 422),
    (b'"text"', "application/json", 422),
    (b'{"id": "\\ud800"}', "application/json", 422),
    (b"[]", ONE, 422),
    (b"{}", BATCH, 422),
    (b"{}", "text/plain", 415),
    (b"id=1", "application/x-www-form-urlencoded", 415),
)


def test_what_is_no_event_is_refused_without_a_fault(api: Api) -> None:
    headers = api.as_service("events:write")
    for body, kind, status in NO_EVENTS:
        answer = api.http.post("/api/events", content=body, headers=headers | {"Content-Type": kind})
        assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json"), body[:20]
        assert answer.json()["request_id"]
