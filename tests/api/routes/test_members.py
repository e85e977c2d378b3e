"""Members come and go over HTTP, by the new paths and the older ones; the last owner stays."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from core.db.models.organizations import MembershipRole
from tests.support.api_client import Api


def roles_by_user(api: Api, org_id: str) -> dict[str, str]:
    users = api.get(f"/api/organizations/{org_id}/users", api.as_service()).json()["users"]
    return {each["user_id"]: each["role"] for each in users}


@pytest.mark.parametrize("paths", ["/api/organizations/{}/users", "/api/v1/org/{}/members"])
def test_a_member_is_added_changed_and_taken_out(api: Api, paths: str) -> None:
    org_id = api.organization(u1="owner")
    path = paths.format(org_id)
    added = api.post(path, {"user_id": "u2"}, api.as_("u1"))
    assert (added.status_code, added.json()["role"], added.json()["sync"]) == (201, "member", {"version": 1})
    assert api.post(path, {"user_id": "u2"}, api.as_("u1")).json()["type"].endswith("already-member")
    assert api.send("PUT", f"{path}/u2/role", api.as_("u1"), {"role": "billing_admin"}).is_success
    assert roles_by_user(api, org_id) == {"u1": "owner", "u2": "billing_admin"}
    assert api.send("DELETE", f"{path}/u2", api.as_("u1")).json()["role"] is None
    assert roles_by_user(api, org_id) == {"u1": "owner"}
    assert api.send("DELETE", f"{path}/u2", api.as_("u1")).status_code == 404


def test_only_an_owner_makes_another_owner(api: Api) -> None:
    org_id = api.organization(u1="owner", u2="billing_admin")
    for path in (f"/api/organizations/{org_id}/users", f"/api/v1/org/{org_id}/members"):
        assert api.post(path, {"user_id": "u3", "role": "owner"}, api.as_("u2")).status_code == 403
    assert "u3" not in roles_by_user(api, org_id)
    assert api.post(f"/api/organizations/{org_id}/users", {"user_id": "u3"}, api.as_("u2")).status_code == 201
    owner = {"user_id": "u4", "role": "owner"}
    assert api.post(f"/api/organizations/{org_id}/users", owner, api.as_("u1")).status_code == 201


@pytest.mark.parametrize(("method", "tail", "body"), [("DELETE", "", None), ("PUT", "/role", {"role": "member"})])
def test_the_last_owner_stays_whoever_asks(api: Api, method: str, tail: str, body: dict[str, str] | None) -> None:
    org_id = api.organization(u1="owner", u2="member")
    for headers in (api.as_("u1"), api.as_service()):
        refused = api.send(method, f"/api/organizations/{org_id}/users/u1{tail}", headers, body)
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:billing-sync:problem:last-owner")
    assert roles_by_user(api, org_id)["u1"] == "owner"


def test_of_two_owners_who_take_each_other_out_at_once_one_stays(api: Api) -> None:
    for _ in range(5):
        org_id = api.organization(u1="owner", u2="owner")

        def take_out(pair: tuple[str, str], org_id: str = org_id) -> int:
            by, whom = pair
            return api.send("DELETE", f"/api/organizations/{org_id}/users/{whom}", api.as_(by)).status_code

        with ThreadPoolExecutor(2) as pool:
            answers = sorted(pool.map(take_out, [("u1", "u2"), ("u2", "u1")]))
        # The second finds itself out already (404), or the last one there (409).
        assert answers in ([200, 404], [200, 409])
        assert list(roles_by_user(api, org_id).values()) == ["owner"]


def test_members_come_page_by_page(api: Api) -> None:
    team: dict[str, MembershipRole] = {f"u{number}": "member" for number in range(5)}
    org_id = api.organization(**team)
    page = api.get(f"/api/organizations/{org_id}/users", api.as_service(), limit=2, offset=4).json()
    assert (page["count"], page["total"]) == (1, 5)
    older = api.get(f"/api/v1/org/{org_id}/members", api.as_("u1"), limit=2).json()
    assert (len(older["members"]), older["total"], older["members"][0]["org_role"]) == (2, 5, "member")


def test_the_older_paths_answer_in_their_own_words(api: Api) -> None:
    org_id = api.organization("starter", u1="owner", u2="member")
    root = f"/api/v1/org/{org_id}"
    mine = api.get("/api/v1/org/my-orgs", api.as_("u2")).json()
    assert [(each["id"], each["role"], each["member_count"]) for each in mine] == [(org_id, "member", 2)]
    roles = api.get("/api/v1/org/roles", api.as_("u2")).json()["roles"]
    assert [each["id"] for each in roles] == ["owner", "billing_admin", "member"]
    stats = api.get(f"{root}/stats", api.as_("u2")).json()
    assert (stats["total_members"], stats["members_by_role"]) == (2, {"owner": 1, "billing_admin": 0, "member": 1})
    assert api.get(f"{root}/billing", api.as_("u1")).json()["plan_tier"] == "starter"
    changed = api.send("PUT", f"{root}/settings", api.as_("u1"), {"billing_email": "a@b.test"})
    assert changed.json() == {"status": "updated", "sync": {"version": 2}}
    assert api.get(f"{root}/settings", api.as_("u2")).json()["settings"]["billing_email"] == "a@b.test"
