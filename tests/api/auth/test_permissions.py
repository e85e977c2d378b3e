"""Every route and everybody who may stand before it, compared with the table that says who is let in."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from api.auth.permissions import PERMISSIONS, PermissionRule
from core.access.api_keys import SCOPES
from core.db.models.organizations import MembershipRole
from tests.support.api_client import Api

USERS = ("stranger", "member of another organization", "member", "billing_admin", "owner")
CALLERS = ("nobody", *USERS, "service", "service without the scope")
ADMITTED = "admitted"

# One request for each changing route that is right in itself, so that what refuses it is the table alone.
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/api/organizations"): {"name": "New {n}"},
    ("PATCH", "/api/organizations/{org_id}"): {"name": "Renamed {n}"},
    ("PATCH", "/api/organizations/{org_id}/billing"): {"stripe_id": "cus_{n}"},
    ("PATCH", "/api/organizations/{org_id}/plan"): {"plan_tier": "enterprise"},
    ("POST", "/api/organizations/{org_id}/plan/preview"): {"plan_tier": "enterprise"},
    ("PUT", "/api/organizations/{org_id}/status"): {"status": "deleted"},
    ("POST", "/api/organizations/{org_id}/users"): {"user_id": "somebody"},
    ("PUT", "/api/organizations/{org_id}/users/{user_id}/role"): {"role": "billing_admin"},
    ("PUT", "/api/organizations/{org_id}/users"): {"user_id": "target", "role": "billing_admin"},
    ("POST", "/api/organizations/{org_id}/leave"): {},
    ("POST", "/api/organizations/{org_id}/invitations"): {"email": "somebody@acme.test"},
    ("POST", "/api/invitations/accept"): {"token": "{token}"},
    ("POST", "/api/invitations/{invitation_id}/accept"): {},
    ("POST", "/api/invitations/{invitation_id}/decline"): {},
    ("POST", "/api/events"): {
        "specversion": "1.0",
        "id": "{n}",
        "source": "/walk",
        "type": "organization.created",
        "subject": "org_walk_{n}",
        "data": {"name": "Walked"},
    },
    ("POST", "/api/webhooks"): {"url": "https://hooks.example.com/{n}"},
    ("POST", "/api/webhooks/{endpoint_id}/rotate"): {},
    ("POST", "/api/webhooks/{endpoint_id}/replay"): {"since": None},
    ("POST", "/api/v1/org/{org_id}/members"): {"user_id": "somebody"},
    ("PUT", "/api/v1/org/{org_id}/members/{user_id}/role"): {"role": "billing_admin"},
    ("PUT", "/api/v1/org/{org_id}/settings"): {"name": "Renamed {n}"},
    ("POST", "/api/v1/subscriptions/upgrade"): {"target_tier": "enterprise"},
    ("POST", "/api/v1/subscriptions/downgrade"): {"target_tier": "starter"},
    ("POST", "/api/v1/subscriptions/change"): {"target_tier": "starter"},
}
QUERIES = {
    ("GET", "/api/v1/subscriptions/preview-change"): "?target_tier=starter",
    ("DELETE", "/api/organizations/{org_id}/users"): "?user_id=target",
}
WEBHOOKS = ("/webhooks/stripe", "/webhooks/lago", "/api/v1/webhooks/", "/api/v1/billing/webhooks/")
GUARDED = [(route, rule) for route, rule in PERMISSIONS.items() if not rule.public]


def expected(rule: PermissionRule, caller: str) -> str:
    if caller == "nobody":
        return "401"
    if caller.startswith("service"):
        return ADMITTED if rule.scope is not None and caller == "service" else "403"
    if rule.path_subject == "user":
        return ADMITTED if caller == "member" else "404"
    if rule.path_subject == "nothing":
        return ADMITTED if rule.allows_users else "403"
    if caller in {"stranger", "member of another organization"}:
        return "404"
    return ADMITTED if caller in rule.roles else "403"


def headers(api: Api, rule: PermissionRule, caller: str) -> dict[str, str]:
    match caller:
        case "nobody":
            return {}
        case "service":
            return api.as_service(*([rule.scope] if rule.scope else SCOPES))
        case "service without the scope":
            return api.as_service(*[scope for scope in SCOPES if scope != rule.scope])
    return api.as_(caller)


def outcome(api: Api, route: tuple[str, str], caller: str, number: int) -> str:
    """What the request was answered, on an organization of its own."""
    method, path = route
    org_id = api.organization(
        owner="owner", other="owner", billing_admin="billing_admin", member="member", target="member"
    )
    user_id = "member" if PERMISSIONS[route].path_subject == "user" else "target"
    by_id = "{org_id}" in path
    invited, token = api.invitation(org_id, "guest") if by_id else api.invitation(api.organization(), caller)
    body = {
        name: word.format(n=number, token=token) if isinstance(word, str) else word
        for name, word in BODIES.get(route, {}).items()
    } or None
    ids = {"org_id": org_id, "user_id": user_id, "invitation_id": invited}
    ids["endpoint_id"] = api.webhook() if "{endpoint_id}" in path else ""
    asked = path.format(**ids) + QUERIES.get(route, "")
    named = {"X-Organization-ID": org_id} if PERMISSIONS[route].path_subject == "current" else {}
    answer = api.send(method, asked, headers(api, PERMISSIONS[route], caller) | named, body)
    return ADMITTED if answer.is_success else str(answer.status_code)


def walk(api: Api) -> Iterator[tuple[str, str, str, str]]:
    elsewhere: dict[str, MembershipRole] = {"member of another organization": "owner"}
    api.organization(**elsewhere)
    for number, ((route, rule), caller) in enumerate(itertools.product(GUARDED, CALLERS)):
        got = outcome(api, route, caller, number)
        if got != (wanted := expected(rule, caller)):
            yield " ".join(route), caller, got, wanted


@pytest.mark.slow
def test_each_route_lets_in_whom_the_table_names_and_nobody_else(api: Api) -> None:
    assert list(walk(api)) == []


def test_every_changing_route_is_walked_with_a_right_request() -> None:
    assert {route for route, _ in GUARDED if route[0] not in {"GET", "DELETE"}} == set(BODIES)


@pytest.mark.parametrize(("route", "rule"), PERMISSIONS.items())
def test_what_belongs_to_an_organization_is_never_for_everybody(route: tuple[str, str], rule: PermissionRule) -> None:
    assert ("{org_id}" in route[1]) == (rule.path_subject == "organization")
    assert rule.public == (route[1].startswith(("/auth/", "/healthz", "/readyz", *WEBHOOKS)))
    if route[0] != "GET" and rule.path_subject in {"organization", "current"} and not route[1].endswith("/leave"):
        assert "member" not in rule.roles


def test_the_header_names_the_organization_and_opens_no_other(api: Api) -> None:
    first, second = api.organization(u1="owner"), api.organization(u1="member")
    strange = api.organization(u2="owner")
    mine = api.as_("u1")
    assert api.get("/api/organizations/selector", mine).json()["default"] == first
    chosen = api.get("/api/organizations/selector", mine | {"X-Organization-ID": second})
    assert chosen.json()["default"] == second
    for org_id in (strange, "org_none", "nonsense", "org_\x7f", "org_" + "x" * 100):
        refused = api.get("/api/organizations/selector", mine | {"X-Organization-ID": org_id})
        assert refused.status_code == 404, org_id
    assert api.get("/api/dashboard", mine | {"X-Organization-ID": strange}).status_code == 404


def test_a_role_given_a_moment_ago_counts_and_one_taken_does_not(api: Api) -> None:
    org_id = api.organization(u1="owner", u2="owner")
    assert api.send("PUT", f"/api/organizations/{org_id}/users/u2/role", api.as_("u1"), {"role": "member"}).is_success
    renamed = api.send("PATCH", f"/api/organizations/{org_id}", api.as_("u2"), {"name": "Mine now"})
    assert renamed.status_code == 403
    assert api.send("DELETE", f"/api/organizations/{org_id}/users/u2", api.as_("u1")).is_success
    assert api.get(f"/api/organizations/{org_id}", api.as_("u2")).status_code == 404


def test_a_stranger_learns_nothing_from_the_answer(api: Api) -> None:
    org_id = api.organization(u1="owner")
    there = api.get(f"/api/organizations/{org_id}", api.as_("stranger")).json()
    nowhere = api.get("/api/organizations/org_none", api.as_("stranger")).json()
    there.pop("request_id"), nowhere.pop("request_id")
    assert there == nowhere
    malformed = api.send("PATCH", f"/api/organizations/{org_id}/plan", api.as_("stranger"), {"no": 1})
    assert malformed.status_code == 404


def test_a_key_without_the_scope_is_told_how_to_get_one(api: Api) -> None:
    answer = api.get("/api/organizations", api.as_service("events:write"))
    assert answer.status_code == 403
    assert "`billing-sync keys create NAME --scope organizations:read`" in answer.json()["detail"]
