"""A POST that comes again under its Idempotency-Key is answered as before and does nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.support.api_client import Api


def count(api: Api) -> int:
    return int(api.get("/api/organizations", api.as_service()).json()["count"])


def test_the_same_request_under_the_same_key_has_the_same_answer(api: Api) -> None:
    first = api.post("/api/organizations", {"name": "Acme"}, api.as_("u1"), key="k1")
    again = api.post("/api/organizations", {"name": "Acme"}, api.as_("u1"), key="k1")
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert ("Idempotent-Replayed" in first.headers, again.headers["Idempotent-Replayed"]) == (False, "true")
    assert count(api) == 1


def test_a_repeat_with_the_next_key_of_the_account_has_the_same_answer(api: Api) -> None:
    first = api.post("/api/organizations", {"name": "Acme"}, api.as_service(), key="k1")
    again = api.post("/api/organizations", {"name": "Acme"}, api.as_service(), key="k1")
    assert (again.content, again.headers["Idempotent-Replayed"]) == (first.content, "true")
    other = api.post("/api/organizations", {"name": "Other"}, api.as_service(account="another service"), key="k1")
    assert other.status_code == 201


def test_another_request_under_the_key_is_refused(api: Api) -> None:
    org_id = api.organization(u1="owner")
    assert api.post("/api/organizations", {"name": "Acme"}, api.as_("u1"), key="k1").status_code == 201
    for path, body in (("/api/organizations", {"name": "Other"}), (f"/api/v1/org/{org_id}/members", {"user_id": "u2"})):
        refused = api.post(path, body, api.as_("u1"), key="k1")
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["field"] == "Idempotency-Key"
    assert api.post("/api/organizations", {"name": "Other"}, api.as_("u2"), key="k1").status_code == 201


def test_what_was_refused_may_be_asked_again_under_its_key(api: Api) -> None:
    api.post("/api/organizations", {"name": "Acme"}, api.as_("u1"))
    assert api.post("/api/organizations", {"name": "Acme"}, api.as_("u2"), key="k").status_code == 409
    assert api.post("/api/organizations", {"name": "Acme"}, api.as_("u2"), key="k").status_code == 409


def test_of_repeats_at_the_same_moment_one_does_the_work(api: Api) -> None:
    def once(_: int) -> tuple[int, bytes]:
        answer = api.post("/api/organizations", {"name": "Acme"}, api.as_("u1"), key="k1")
        return answer.status_code, answer.content

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(once, range(8)))
    assert [status for status, _ in answers] == [201]
    assert count(api) == 1


def test_a_key_that_no_header_should_hold_is_refused(api: Api) -> None:
    for key in ("x" * 256, "two words"):
        assert api.post("/api/organizations", {"name": "Acme"}, api.as_("u1"), key=key).status_code == 422
    assert count(api) == 0


def test_a_member_is_added_once(api: Api) -> None:
    org_id = api.organization(u1="owner")
    for user_id, path in (("u2", f"/api/organizations/{org_id}/users"), ("u3", f"/api/v1/org/{org_id}/members")):
        answers = [api.post(path, {"user_id": user_id}, api.as_("u1"), key=user_id) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [201, 201]
