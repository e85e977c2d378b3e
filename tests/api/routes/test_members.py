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
    added = api.post(path, {"user_id": "u2"}, api.as_service())
    assert (added.status_code, added.json()["role"], added.json()["sync"]) == (201, "member", {"version": 1})
    for headers in (api.as_service(), api.as_("u1")):
        assert api.post(path, {"user_id": "u2"}, headers).json()["type"].endswith("already-member")
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


@pytest.mark.parametrize("paths", ["/api/organizations/{}/users", "/api/v1/org/{}/members"])
def test_a_user_whom_another_user_adds_is_invited_and_is_a_member_once_they_accept(api: Api, paths: str) -> None:
    org_id = api.organization(u1="owner")
    invited = api.post(paths.format(org_id), {"user_id": "auth0/new", "role": "billing_admin"}, api.as_("u1"))
    assert (invited.status_code, invited.json()["role"]) == (201, "billing_admin")
    assert "invited" in str(invited.json())
    assert roles_by_user(api, org_id) == {"u1": "owner"}
    new = api.as_("auth0/new")
    selector = api.get("/api/organizations/selector", new).json()
    assert (selector["count"], selector["default"]) == (0, None)
    [received] = api.get("/api/invitations", new).json()["invitations"]
    assert (received["org_id"], received["organization"], received["role"]) == (
        org_id,
        "Organization 1",
        "billing_admin",
    )
    stranger = api.post(f"/api/invitations/{received['id']}/accept", {}, api.as_("eve"))
    assert (stranger.status_code, stranger.json()["type"]) == (404, "urn:billing-sync:problem:not-found")
    assert api.post(f"/api/invitations/{received['id']}/accept", {}, new).json()["role"] == "billing_admin"
    assert roles_by_user(api, org_id) == {"u1": "owner", "auth0/new": "billing_admin"}
    assert api.get("/api/organizations/selector", new).json()["default"] == org_id


def test_a_declined_invitation_makes_no_member(api: Api) -> None:
    org_id = api.organization(u1="owner")
    api.post(f"/api/organizations/{org_id}/users", {"user_id": "u2"}, api.as_("u1"))
    [received] = api.get("/api/invitations", api.as_("u2")).json()["invitations"]
    assert api.post(f"/api/invitations/{received['id']}/decline", {}, api.as_("u2")).json()["status"] == "declined"
    assert api.get("/api/invitations", api.as_("u2")).json()["count"] == 0
    refused = api.post(f"/api/invitations/{received['id']}/accept", {}, api.as_("u2"))
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:billing-sync:problem:invitation-void")
    assert roles_by_user(api, org_id) == {"u1": "owner"}


def test_a_member_whose_id_cannot_be_in_a_path_is_changed_found_and_removed(api: Api) -> None:
    org_id = api.organization(u1="owner")
    path, slashed = f"/api/organizations/{org_id}/users", "auth0/../1"
    assert api.post(path, {"user_id": slashed}, api.as_service()).status_code == 201
    changed = api.send("PUT", path, api.as_("u1"), {"user_id": slashed, "role": "billing_admin"})
    assert (changed.status_code, changed.json()["role"]) == (200, "billing_admin")
    assert roles_by_user(api, org_id)[slashed] == "billing_admin"
    found = api.get("/api/organizations", api.as_service(), user_id=slashed).json()["organizations"]
    assert [each["id"] for each in found] == [org_id]
    assert api.get("/api/organizations", api.as_("u1"), user_id=slashed).status_code == 422
    removed = api.http.request("DELETE", path, params={"user_id": slashed}, headers=api.as_("u1"))
    assert removed.json()["role"] is None
    assert roles_by_user(api, org_id) == {"u1": "owner"}


def test_everybody_may_leave_but_the_last_owner(api: Api) -> None:
    org_id = api.organization(u1="owner", u2="member", u3="billing_admin", u4="owner")
    for user_id in ("u2", "u3", "u4"):
        assert api.post(f"/api/organizations/{org_id}/leave", {}, api.as_(user_id)).json()["status"] == "removed"
        assert api.post(f"/api/organizations/{org_id}/leave", {}, api.as_(user_id)).status_code == 404
    refused = api.post(f"/api/organizations/{org_id}/leave", {}, api.as_("u1"))
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:billing-sync:problem:last-owner")
    assert roles_by_user(api, org_id) == {"u1": "owner"}


def test_a_suspended_organization_keeps_its_plan_and_members_and_the_rest_goes_on(api: Api) -> None:
    org_id = api.organization(u1="owner", u2="member")
    path = f"/api/organizations/{org_id}"
    api.post(f"{path}/users", {"user_id": "u3"}, api.as_("u1"))
    [received] = api.get("/api/invitations", api.as_("u3")).json()["invitations"]
    assert api.send("PUT", f"{path}/status", api.as_service(), {"status": "suspended"}).is_success
    u1, service = api.as_("u1"), api.as_service()
    current = u1 | {"X-Organization-ID": org_id}
    for refused in (
        api.send("PATCH", f"{path}/plan", u1, {"plan_tier": "enterprise"}),
        api.send("PATCH", f"{path}/plan", service, {"plan_tier": "enterprise"}),
        api.post("/api/v1/subscriptions/change", {"target_tier": "enterprise"}, current),
        api.post("/api/v1/subscriptions/upgrade", {"target_tier": "enterprise"}, current),
        api.post(f"{path}/invitations", {"email": "bob@acme.test"}, u1),
        api.post(f"{path}/users", {"user_id": "u4"}, u1),
        api.post(f"{path}/users", {"user_id": "u4"}, service),
        api.post(f"/api/invitations/{received['id']}/accept", {}, api.as_("u3")),
    ):
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:billing-sync:problem:suspended")
    assert api.get(path, u1).is_success
    assert api.send("PATCH", path, u1, {"billing_email": "pay@acme.test"}).is_success
    assert api.post(f"{path}/leave", {}, api.as_("u2")).is_success


def test_a_member_sees_no_customer_ids(api: Api) -> None:
    org_id = api.organization(u1="owner", u2="member")
    api.send("PATCH", f"/api/organizations/{org_id}/billing", api.as_service("billing:write"), {"stripe_id": "cus_1"})

    def seen(headers: dict[str, str]) -> set[str | None]:
        listed = api.get("/api/organizations", headers).json()["organizations"]
        own = api.get(f"/api/organizations/{org_id}", headers).json()
        return {each["stripe_customer_id"] for each in [*listed, own]}

    assert seen(api.as_("u1")) == seen(api.as_service()) == {"cus_1"}
    assert seen(api.as_("u2")) == {None}
    for path in ("/api/users/u2/organizations", "/api/organizations?user_id=u2"):
        (shown,) = api.get(path, api.as_service()).json()["organizations"]
        assert shown["stripe_customer_id"] == "cus_1"
    assert (
        api.get("/api/users/u2/organizations", api.as_("u2")).json()["organizations"][0]["stripe_customer_id"] is None
    )


def test_an_owner_who_is_made_over_http_ends_the_wait_of_a_message(api: Api) -> None:
    org_id = api.organization(u1="owner", u2="member")
    event = {
        "specversion": "1.0",
        "id": "1",
        "source": "/shop",
        "type": "membership.removed",
        "subject": org_id,
        "data": {"user_id": "u1"},
    }
    assert api.post("/api/events", event, api.as_service("events:write")).json()["status"] == "waiting"
    assert api.send("PUT", f"/api/organizations/{org_id}/users/u2/role", api.as_("u1"), {"role": "owner"}).is_success
    assert roles_by_user(api, org_id) == {"u2": "owner"}


def test_an_organization_that_a_service_chose_is_nobodys_default_beside_an_own_one(api: Api) -> None:
    imposed = api.organization(u2="owner")
    assert api.post(f"/api/organizations/{imposed}/users", {"user_id": "u1"}, api.as_service()).status_code == 201
    assert api.get("/api/organizations/selector", api.as_("u1")).json()["default"] == imposed
    own = api.post("/api/organizations", {"name": "Own"}, api.as_("u1")).json()["org_id"]
    assert api.get("/api/organizations/selector", api.as_("u1")).json()["default"] == own
