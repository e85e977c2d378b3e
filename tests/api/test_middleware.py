"""What every request meets: an id, bounds, headers that browsers obey, problems for errors, a line in the log."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from jsonschema.validators import Draft202012Validator

from api.auth.permissions import PERMISSIONS
from api.context import ApiContext
from api.routing import MAX_API_BODY_BYTES
from api.server import ApiServer
from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.organizations import MembershipRole
from tests.support.api_client import Api
from tests.support.next_schema import OUR_REVISION, upgrade_to_next_versions
from tests.support.waiting import until

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def test_a_request_keeps_its_callers_id_and_gets_one_else(api: Api) -> None:
    assert api.get("/healthz", {"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    for unusable in ("", "x" * 65, "a b", "a\tb"):
        given = api.get("/healthz", {"X-Request-ID": unusable}).headers["x-request-id"]
        assert len(given) == 32
    refused = api.get("/api/organizations", {"X-Request-ID": "abc-2"})
    assert refused.json()["request_id"] == refused.headers["x-request-id"] == "abc-2"


def test_every_answer_tells_browsers_to_keep_to_it(api: Api) -> None:
    for path in ("/healthz", "/api/organizations", "/nowhere", "/openapi.json"):
        headers = api.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers
        assert "strict-transport-security" not in headers
    preflight = {"Origin": "https://evil.test", "Access-Control-Request-Method": "GET"}
    asked = api.http.options("/api/organizations", headers=preflight)
    assert (asked.status_code, "access-control-allow-origin" in asked.headers) == (405, False)


def test_the_page_of_the_document_loads_everything_from_here(api: Api) -> None:
    page = api.get("/docs")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "http" not in policy
    assert "unsafe-eval" not in policy
    parts = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(parts) == 4
    for part in parts:
        answer = api.get(part)
        assert answer.status_code == 200, part
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-type"].split(";")[0] in {"text/javascript", "text/css", "image/png"}
    assert "<script>" not in page.text
    assert 'url: "/openapi.json"' in api.get("/docs/start.js").text
    assert api.get("/docs/../conftest.py").status_code == 404
    assert api.get("/docs/redoc.standalone.js").status_code == 404


def test_a_body_that_is_too_large_is_refused_before_it_is_read(api: Api) -> None:
    whole = api.http.post("/api/organizations", headers=api.as_("u1"), content=b" " * (MAX_API_BODY_BYTES + 1))
    assert whole.status_code == 413
    assert whole.json()["type"].endswith("too-large")

    def pieces() -> Iterator[bytes]:
        for _ in range(MAX_API_BODY_BYTES // 65536 + 2):
            yield b" " * 65536

    try:
        streamed = api.http.post("/api/organizations", headers=api.as_("u1"), content=pieces())
    except httpx.WriteError:
        return  # refused and closed while it was still being sent
    assert streamed.status_code == 413


def test_what_is_no_json_is_refused_by_its_place(api: Api) -> None:
    broken = [b"", b"{", b"\xff", b"[" * 100_000]
    odd = [b'"\\ud800"', b'{"name": "\\ud800"}', b'{"name": NaN}', b'{"name": 1e999}', b'{"name": null}']
    for content in broken + odd:
        headers = api.as_("u1") | {"Content-Type": "application/json"}
        refused = api.http.post("/api/organizations", headers=headers, content=content)
        assert refused.status_code == 422, content
        assert refused.headers["content-type"] == "application/problem+json"


def test_a_path_or_method_that_is_not_there_is_a_problem_too(api: Api) -> None:
    assert api.get("/nowhere").json()["type"] == "urn:billing-sync:problem:not-found"
    wrong = api.http.put("/api/organizations")
    assert (wrong.status_code, wrong.json()["status"], wrong.headers["allow"]) == (405, 405, "GET, POST")
    assert api.http.put("/api/organizations/selector").headers["allow"] == "GET"


def test_the_log_says_what_was_asked_and_nothing_that_is_personal(api: Api) -> None:
    alice: dict[str, MembershipRole] = {"alice@acme.test": "owner"}
    org_id = api.organization(**alice)
    api.get(f"/api/organizations/{org_id}/users", api.as_("alice@acme.test"), limit=7)
    api.get("/api/users/alice@acme.test/organizations", api.as_("alice@acme.test"))
    api.get("/nowhere/alice@acme.test")
    headers = api.as_service("organizations:read")
    api.get("/api/organizations", headers)
    until(lambda: len(api.log) >= 4, "four lines")
    assert [(line["route"], line["status"], line["role"], line["organization"]) for line in api.log] == [
        ("/api/organizations/{org_id}/users", 200, "owner", org_id),
        ("/api/users/{user_id}/organizations", 200, "owner", org_id),
        (None, 404, None, None),
        ("/api/organizations", 200, "service", None),
    ]
    assert api.log[-1]["key"] in headers["Authorization"]
    text = json.dumps(api.log, default=str)
    assert "alice" not in text
    assert "Bearer" not in text
    assert headers["Authorization"][-43:] not in text


def test_the_log_holds_no_query_and_no_path_that_nobody_wrote_down(api: Api) -> None:
    private = ("SECRET-CODE", "SECRET-STATE", "alice@acme.test", "SECRET-TOKEN")
    api.get("/auth/callback", code=private[0], state=private[1])
    api.get("/api/organizations", api.as_("u1"), search=private[2], cursor=private[3])
    api.get(f"/api/organizations/{private[2]}", api.as_("u1"))
    api.get("/api/organizations", {"Authorization": f"Bearer {private[3]}", "X-Organization-ID": private[2]})
    until(lambda: len(api.log) >= 4, "four lines")
    text = json.dumps(api.log, default=str)
    assert [each for each in private if each in text] == []


def test_a_database_that_is_away_is_said_to_be_away(api: Api, tmp_path: Path) -> None:
    assert api.get("/readyz").json() == {"status": "ok"}
    headers = api.as_service()
    (tmp_path / "billing-sync.db").rename(tmp_path / "gone.db")
    api.database.close()
    assert api.get("/healthz").is_success
    for path in ("/readyz", "/api/organizations"):
        answer = api.get(path, headers)
        assert answer.status_code == 503, path
        assert answer.headers["retry-after"]
    assert answer.json()["detail"] == "The database did not respond in time. Send the request again."
    unsure = api.send("POST", "/api/organizations", headers, {"name": "Acme"})
    assert unsure.status_code == 503
    assert "The change may have been made." in unsure.json()["detail"]


def test_a_rolling_deploy_leaves_an_older_api_ready_if_the_new_schema_permits_it(api: Api, tmp_path: Path) -> None:
    upgrade_to_next_versions(api.database, tmp_path / "next", OUR_REVISION)
    assert api.get("/readyz").json() == {"status": "ok"}
    made = api.send("POST", "/api/organizations", api.as_service(), {"name": "Acme"})
    assert made.status_code == 201, made.text
    upgrade_to_next_versions(api.database, tmp_path / "after it", OUR_REVISION, None)
    answer = api.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["detail"] == (
        "The database schema is of a newer version. Install it here: `pip install --upgrade billing-sync`."
    )


def test_no_answer_waits_for_the_packet_before_it_to_be_acknowledged(api: Api) -> None:
    took = []
    for _ in range(20):
        began = time.perf_counter()
        assert api.get("/healthz").is_success
        took.append(time.perf_counter() - began)
    assert min(took[1:]) < 0.03  # an acknowledgement may be 40 ms late


def test_a_server_that_stops_answers_who_waits(database: Database, plans: Catalog, api: Api) -> None:
    org_id = api.organization()
    headers = api.as_service()
    with ApiServer(
        ApiContext(database=database, catalog=plans, clock=utc_now), "127.0.0.1", 0, version="test"
    ) as server:
        port = int(server.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as waiting:
            asked = f"GET /api/organizations/{org_id}/sync?wait=30s HTTP/1.1\r\nHost: x\r\n"
            waiting.sendall(f"{asked}Authorization: {headers['Authorization']}\r\n\r\n".encode())
            time.sleep(0.5)
            began = time.monotonic()
            server.stop()
            assert waiting.recv(12) == b"HTTP/1.1 200"
            assert time.monotonic() - began < 20  # it asked to wait for 30
    assert not server.is_alive


def test_the_document_names_each_route_with_who_may_and_how_it_refuses(api: Api) -> None:
    document = api.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert {(method.upper(), path) for path, methods in document["paths"].items() for method in methods} == set(
        PERMISSIONS
    )
    for (method, path), rule in PERMISSIONS.items():
        operation = document["paths"][path][method.lower()]
        assert operation["summary"]
        assert ("security" in operation) == (not rule.public)
        assert rule.public or {"401", "403", "404", "429"} <= set(operation["responses"])
        for status, answer in operation["responses"].items():
            if status.startswith("4"):
                assert list(answer["content"]) == ["application/problem+json"], (method, path, status)
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    assert api.get("/docs").is_success
