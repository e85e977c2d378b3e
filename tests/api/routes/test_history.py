"""The history over HTTP: for services with the right to read, in pages, without data of people."""

from __future__ import annotations

from tests.support.api_client import Api


def test_a_service_reads_the_history_in_pages(api: Api) -> None:
    org_id = api.organization("professional", u1="owner")
    path = f"/api/organizations/{org_id}/history"
    service = api.as_service("organizations:read")
    for number in range(3):
        api.http.patch(f"/api/organizations/{org_id}", json={"name": f"Acme {number}"}, headers=api.as_("u1"))
    whole = [each["kind"] for each in api.get(path, service).json()["entries"]]
    assert whole[:3] == ["organization.renamed"] * 3
    paged: list[str] = []
    before: dict[str, str] = {}
    while entries := api.get(path, service, limit=1, **before).json()["entries"]:
        paged += [each["kind"] for each in entries]
        before = {"before": entries[-1]["at"]}
    assert sorted(paged) == sorted(whole)


def test_a_moment_in_the_past_is_answered_beside_the_entries(api: Api) -> None:
    org_id = api.organization("professional", u1="owner")
    path = f"/api/organizations/{org_id}/history"
    service = api.as_service("organizations:read")
    now = api.get(path, service).json()["entries"][0]["at"]
    past = api.get(path, service, at=now).json()["past"]
    assert (past["plan_tier"], past["status"], past["links"]) == (
        "professional",
        "active",
        {"stripe": None, "lago": None},
    )
    assert api.get(path, service, at="2001-01-01T00:00:00Z").json()["past"] is None
    assert [api.get(path, service, at=each).status_code for each in ("2026-11-01", "0.5", "yesterday")] == [422] * 3


def test_a_change_of_a_service_names_its_account_and_its_key(api: Api) -> None:
    org_id = api.organization()
    service = api.as_service(account="signup")
    key_id = service["Authorization"].split("_")[1]
    renamed = api.http.patch(f"/api/organizations/{org_id}", json={"name": "Acme"}, headers=service)
    event = {
        "specversion": "1.0",
        "id": "1",
        "source": "/signup",
        "type": "organization.renamed",
        "subject": org_id,
        "data": {"name": "Acme AG"},
    }
    assert api.http.post("/api/events", json=event, headers=service).status_code == 200
    entries = api.get(f"/api/organizations/{org_id}/history", service).json()["entries"]
    by = {each["by"] for each in entries if each["kind"] in {"organization.renamed", "applied"}}
    assert by == {
        f"service:{api.account_id('signup')} signup, key {key_id} (request:{renamed.headers['X-Request-ID']})",
        f"service signup, key {key_id} (/signup#1)",
        f"/signup signup, key {key_id}",
    }


def test_no_member_and_no_service_without_the_right_reads_it(api: Api) -> None:
    org_id = api.organization("professional", u1="owner")
    path = f"/api/organizations/{org_id}/history"
    assert api.get(path, api.as_("u1")).status_code == 403
    assert api.get(path, api.as_service("events:write")).status_code == 403
    assert api.get("/api/organizations/org_none/history", api.as_service("organizations:read")).status_code == 404
