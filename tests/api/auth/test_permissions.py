"""Every route of /openapi.json and everybody who may send it a request, compared with the page of who may do what.

The expectations are those of docs/how-to/permissions.md, which is written by hand, and not those of the table in
``api.auth.permissions``.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import itertools
import json
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
import stripe
from sqlalchemy import update

from api.auth.permissions import PERMISSIONS
from core.access import api_keys
from core.access.api_keys import SCOPES, Scope
from core.common.clock import utc_now
from core.db.models.access import ApiKey
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import MembershipRole
from core.events.event_types import ChangeContext
from core.organizations import commands
from providers.lago.webhooks import HmacCheck, LagoWebhookParser
from providers.stripe.webhooks import StripeWebhookParser
from tests.support import permissions_page
from tests.support.api_client import Api, begin, browser
from tests.support.oidc_provider import Key
from tests.support.permissions_page import PAGE_NAME, Column, PageCell, PageRow, RouteKey

USERS: dict[str, Column] = {
    "stranger": "stranger",
    "member of another organization": "stranger",
    "member": "member",
    "billing_admin": "billing admin",
    "owner": "owner",
}
COLUMN_OF_CALLER: dict[str, Column] = {
    "nobody": "nobody",
    "forged token": "nobody",
    "revoked key": "nobody",
    "expired key": "nobody",
    **USERS,
    "service": "service",
    "service without the scope": "service",
}
ADMITTED = "admitted"
PARTS = 4
ORG = "/api/organizations/{org_id}"

# One request for each changing route that is right in itself, so that only its caller can be the reason of a refusal.
BODIES: dict[RouteKey, dict[str, Any]] = {
    ("POST", "/api/organizations"): {"name": "New {n}"},
    ("PATCH", ORG): {"name": "Renamed {n}"},
    ("PATCH", f"{ORG}/billing"): {"stripe_id": "cus_{n}"},
    ("PATCH", f"{ORG}/plan"): {"plan_tier": "enterprise"},
    ("POST", f"{ORG}/plan/preview"): {"plan_tier": "enterprise"},
    ("PUT", f"{ORG}/status"): {"status": "deleted"},
    ("POST", f"{ORG}/users"): {"user_id": "somebody {n}"},
    ("PUT", f"{ORG}/users/{{user_id}}/role"): {"role": "billing_admin"},
    ("PUT", f"{ORG}/users"): {"user_id": "target", "role": "billing_admin"},
    ("POST", f"{ORG}/leave"): {},
    ("POST", f"{ORG}/invitations"): {"email": "somebody.{n}@acme.test"},
    ("POST", "/api/invitations/accept"): {"token": "{token}"},
    ("POST", "/api/invitations/{invitation_id}/accept"): {},
    ("POST", "/api/invitations/{invitation_id}/decline"): {},
    ("POST", "/api/events"): {
        "specversion": "1.0",
        "id": "{n}",
        "source": "/walk",
        "type": "organization.created",
        "subject": "org_walk_{n}",
        "data": {"name": "Walked {n}"},
    },
    ("POST", "/api/webhooks"): {"url": "https://hooks.example.com/{n}"},
    ("POST", "/api/webhooks/{endpoint_id}/rotate"): {},
    ("POST", "/api/webhooks/{endpoint_id}/replay"): {"since": None},
    ("POST", "/api/v1/org/{org_id}/members"): {"user_id": "somebody {n}"},
    ("PUT", "/api/v1/org/{org_id}/members/{user_id}/role"): {"role": "billing_admin"},
    ("PUT", "/api/v1/org/{org_id}/settings"): {"name": "Renamed {n}"},
    ("POST", "/api/v1/subscriptions/upgrade"): {"target_tier": "enterprise"},
    ("POST", "/api/v1/subscriptions/downgrade"): {"target_tier": "starter"},
    ("POST", "/api/v1/subscriptions/change"): {"target_tier": "starter"},
}
# What `some` leaves out, where it is in the body. An invitation that is revoked differs in whose it is.
LEFT_OUT: dict[RouteKey, dict[str, Any]] = {
    ("PUT", f"{ORG}/status"): {"status": "suspended"},
    ("POST", f"{ORG}/users"): {"user_id": "somebody {n}", "role": "owner"},
    ("POST", f"{ORG}/invitations"): {"email": "somebody.{n}@acme.test", "role": "owner"},
    ("POST", "/api/v1/org/{org_id}/members"): {"user_id": "somebody {n}", "role": "owner"},
}
QUERIES = {
    ("GET", "/api/v1/subscriptions/preview-change"): "?target_tier=starter",
    ("DELETE", f"{ORG}/users"): "?user_id=target",
}
WHSEC, LAGO_SECRET = "whsec_of_the_walk", "lago secret of the walk"


@pytest.fixture
def stripe_webhooks() -> StripeWebhookParser:
    return StripeWebhookParser(WHSEC)


@pytest.fixture
def lago_webhooks() -> LagoWebhookParser:
    return LagoWebhookParser(HmacCheck(LAGO_SECRET))


@functools.cache
def rows() -> dict[RouteKey, PageRow]:
    return permissions_page.read()


def routes_of(api: Api) -> set[RouteKey]:
    """Every operation that the app documents; the section for webhooks that are sent has none of them."""
    paths = api.get("/openapi.json").json()["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}


def is_current(route: RouteKey, row: PageRow) -> bool:
    """About the organization of the header, because a caller without any organization finds nothing."""
    return "{org_id}" not in route[1] and row.cells["stranger"].status == 404 and row.cells["stranger"].mark is None


def expected(route: RouteKey, row: PageRow, caller: str) -> PageCell:
    service = row.cells["service"]
    if caller == "member of another organization" and not row.is_public and "{org_id}" not in route[1]:
        return PageCell(mark=None, status=404)  # names the organization in the header
    if caller == "service without the scope" and service.scope is not None:
        return PageCell(mark=None, status=403)
    return row.cells[COLUMN_OF_CALLER[caller]]


def outcome(response: httpx.Response) -> str:
    return ADMITTED if response.status_code < 400 else str(response.status_code)


class Target(NamedTuple):
    """What one request is about. ``user``: who sends it, if a user does."""

    org_id: str
    user: str
    invited: tuple[str, str] = ("", "")


def mismatch(route: RouteKey, caller: str, got: str, page: str) -> str:
    return f"{' '.join(route)}, {caller}: the response is {got}, and {PAGE_NAME} says {page}"


class PermissionWalk:
    """Sends requests as each caller. A request that is let in and changes something has an organization of its own."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._numbers = itertools.count(1)
        self._names: dict[str, str] = {}
        self._keys: dict[tuple[str, tuple[Scope, ...]], dict[str, str]] = {}
        self._not_valid = self._credentials_that_are_not_valid()
        elsewhere: dict[str, MembershipRole] = {"member of another organization": "owner"}
        self._remember(api.organization(**elsewhere))

    def of_route(self, route: RouteKey, row: PageRow) -> Iterator[str]:
        shared = self.organization()
        for caller in COLUMN_OF_CALLER:
            yield from self._of_cell(route, row, caller, shared)
        yield from self._of_statuses(route, row)

    def organization(self) -> str:
        roles: dict[str, MembershipRole] = {"owner": "owner", "other": "owner", "billing_admin": "billing_admin"}
        return self._remember(self._api.organization(**roles, member="member", target="member"))

    def read(self, route: RouteKey, caller: str, org_id: str) -> httpx.Response:
        return self._send(route, rows()[route], caller, Target(org_id, caller))

    def _remember(self, org_id: str) -> str:
        self._names[org_id] = f"Organization {self._api.made}"
        return org_id

    def _of_cell(self, route: RouteKey, row: PageRow, caller: str, shared: str) -> Iterator[str]:
        cell = expected(route, row, caller)
        user = f"stranger-{next(self._numbers)}" if caller == "stranger" else caller
        if cell.mark is not None:
            org_id = shared if route[0] == "GET" else self.organization()
            response = self._send(route, row, caller, self._target(route, org_id, user))
            yield from self._compare(route, caller, response, ADMITTED)
        if cell.status is not None:
            left_out = cell.mark is not None
            target = self._target(route, shared, user, left_out=left_out)
            response = self._send(route, row, caller, target, left_out=left_out)
            yield from self._compare(route, caller, response, str(cell.status))

    def _of_statuses(self, route: RouteKey, row: PageRow) -> Iterator[str]:
        """As somebody who may, for an organization that is suspended, and for one that is deleted."""
        if "{org_id}" not in route[1] and not is_current(route, row) and not is_about_invitation(route):
            if row.conflicts:
                yield mismatch(route, "anybody", "about no organization", "409")
            return
        caller = next(each for each in ("owner", "service") if expected(route, row, each).mark is not None)
        for status in ("suspended", "deleted"):
            target = self._target(route, self.organization(), caller)
            with self._api.database.write() as session:
                organization = commands.lock(session, target.org_id)
                assert organization is not None
                commands.change_status(ChangeContext(session, utc_now()), organization, status)
            response = self._send(route, row, caller, target)
            page = "409" if status in row.conflicts else ADMITTED
            yield from self._compare(route, f"{caller}, {status}", response, page)

    def _compare(self, route: RouteKey, caller: str, response: httpx.Response, page: str) -> Iterator[str]:
        got = outcome(response)
        if got != page:
            yield mismatch(route, caller, got, page)
        elif page in {"400", "401", "403", "404"} or (caller == "stranger" and route[0] == "GET"):
            text = f"{response.text} {response.headers}"
            told = [org_id for org_id, name in self._names.items() if org_id in text or name in text]
            if told:
                yield mismatch(route, caller, f"{got} and names an organization", page)

    def _target(self, route: RouteKey, org_id: str, user: str, *, left_out: bool = False) -> Target:
        """What is left out of an invitation that is yours is another's; of one to revoke, the one of an owner."""
        if not is_about_invitation(route):
            return Target(org_id, user)
        guest = f"guest-{next(self._numbers)}"
        if "{org_id}" in route[1]:
            invited_by = "owner" if left_out else "billing_admin"
            return Target(org_id, user, self._api.invitation(org_id, guest, invited_by))
        inviting = self._remember(self._api.organization())
        return Target(inviting, user, self._api.invitation(inviting, guest if left_out else user))

    def _send(
        self, route: RouteKey, row: PageRow, caller: str, target: Target, *, left_out: bool = False
    ) -> httpx.Response:
        (method, path), number = route, next(self._numbers)
        headers = self._headers(route, row, caller, target, left_out=left_out)
        match row.cells["nobody"].mark:
            case "signed":
                raw, signature = signed_webhook(path, number)
                return self._api.http.post(path, content=raw, headers=headers if left_out else headers | signature)
            case "browser" if not left_out:
                with browser(self._api) as started:
                    return started.get(path, params=begin(started), headers=headers)
        invitation_id, token = target.invited
        body = LEFT_OUT.get(route, BODIES.get(route)) if left_out else BODIES.get(route)
        is_own = path.startswith("/api/users/") and caller in USERS and not left_out
        ids = {"org_id": target.org_id, "user_id": target.user if is_own else "target", "invitation_id": invitation_id}
        ids["endpoint_id"] = self._api.webhook() if "{endpoint_id}" in path else ""
        filled = _filled(body, n=str(number), token=token)
        return self._api.send(method, path.format(**ids) + QUERIES.get(route, ""), headers, filled or None)

    def _headers(self, route: RouteKey, row: PageRow, caller: str, target: Target, *, left_out: bool) -> dict[str, str]:
        names_another = caller == "member of another organization" and "{org_id}" not in route[1]
        names_it = is_current(route, row) and caller != "stranger"  # who finds nothing without the header, too
        named = {"X-Organization-ID": target.org_id} if names_it or names_another else {}
        return self._credential(row.cells["service"].scope, caller, target.user, left_out=left_out) | named

    def _credential(self, scope: Scope | None, caller: str, user: str, *, left_out: bool) -> dict[str, str]:
        if caller in USERS:
            return self._api.as_(user)
        match caller:
            case "service":
                return self._key("another service" if left_out else "a service", (scope,) if scope else SCOPES)
            case "service without the scope":
                return self._key("a service", tuple(each for each in SCOPES if each != scope))
        return self._not_valid[caller]

    def _key(self, account: str, scopes: tuple[Scope, ...]) -> dict[str, str]:
        if (account, scopes) not in self._keys:
            self._keys[account, scopes] = self._api.as_service(*scopes, account=account)
        return self._keys[account, scopes]

    def _credentials_that_are_not_valid(self) -> dict[str, dict[str, str]]:
        """Each would let in almost everywhere: the token names an owner, and the keys have every scope."""
        api = self._api
        forged = api.oidc_provider.token("owner", key=Key(api.oidc_provider.keys[-1].kid))
        with api.database.write() as session:
            keys = [api_keys.create(session, "a key", SCOPES, utc_now(), account_id=api.account_id()) for _ in range(2)]
            (revoked, revoked_key), (expired, expired_key) = keys
            api_keys.revoke(session, revoked.id, utc_now())
            session.execute(update(ApiKey).where(ApiKey.id == expired.id).values(expires_at=utc_now()))
        bearers = {"forged token": forged, "revoked key": revoked_key, "expired key": expired_key}
        return {"nobody": {}} | {caller: {"Authorization": f"Bearer {each}"} for caller, each in bearers.items()}


def is_about_invitation(route: RouteKey) -> bool:
    return "{invitation_id}" in route[1] or "token" in BODIES.get(route, {})


def signed_webhook(path: str, number: int) -> tuple[bytes, dict[str, str]]:
    """The body, and the headers that show who sent it."""
    if "lago" in path:
        about = {"lago_id": "l-1", "external_customer_id": "org_1"}
        body = {"webhook_type": "subscription.updated", "object_type": "subscription", "subscription": about}
        raw = json.dumps(body | {"organization_id": "1a901a90-1a90-1a90-1a90-1a901a901a90"}).encode()
        digest = base64.b64encode(hmac.new(LAGO_SECRET.encode(), raw, hashlib.sha256).digest()).decode()
        algorithm = {"X-Lago-Signature-Algorithm": "hmac", "X-Lago-Unique-Key": f"walk-{number}"}
        return raw, {"X-Lago-Signature": digest} | algorithm
    about = {"id": "sub_1", "object": "subscription", "customer": "cus_1"}
    event = {"id": f"evt_{number}", "object": "event", "type": "customer.subscription.updated", "livemode": False}
    raw = json.dumps(event | {"data": {"object": about}}).encode()
    header = stripe.WebhookSignature.generate_signature_header(raw.decode(), WHSEC, int(time.time()))
    return raw, {"Stripe-Signature": header}


def _filled(value: Any, **words: str) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        return {name: _filled(each, **words) for name, each in value.items()}
    return value.format(**words) if isinstance(value, str) else value


# --- the whole API


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_each_route_lets_in_whom_the_page_names_and_nobody_else(api: Api, part: int) -> None:
    """In parts, so that none takes long where other programs run."""
    walk = PermissionWalk(api)
    routes = sorted(routes_of(api))[part::PARTS]
    assert len(routes) > 10
    found = permissions_page.differences(set(routes) - rows().keys(), set())
    found += [each for route in routes if route in rows() for each in walk.of_route(route, rows()[route])]
    assert not found, "\n".join(found)


def test_every_route_is_on_the_page_and_the_page_names_no_other(api: Api) -> None:
    found = permissions_page.differences(routes_of(api), set(rows()))
    assert not found, "\n".join(found)


def test_the_permission_table_has_the_routes_of_the_page() -> None:
    assert set(PERMISSIONS) == set(rows())


def test_every_changing_route_is_walked_with_a_right_request() -> None:
    changing = {route for route, row in rows().items() if route[0] not in {"GET", "DELETE"} and not row.is_public}
    assert changing == set(BODIES), "write a request that is right in itself into BODIES, and remove what is gone"
    assert set(LEFT_OUT) <= changing


@pytest.mark.parametrize("route", rows(), ids=" ".join)
def test_the_page_gives_nobody_what_belongs_to_an_organization(route: RouteKey) -> None:
    row = rows()[route]
    if "{org_id}" in route[1]:
        assert {column: cell.status for column, cell in row.cells.items()}.items() >= {
            "nobody": 401,
            "stranger": 404,
        }.items()
        assert row.cells["nobody"].mark is row.cells["stranger"].mark is None
    if row.is_public:
        assert len(set(map(repr, row.cells.values()))) == 1
        assert route[1].startswith(("/auth/", "/healthz", "/readyz", "/webhooks/")) or "/webhooks/" in route[1]
    elif route[0] != "GET" and ("{org_id}" in route[1] or is_current(route, row)) and not route[1].endswith("/leave"):
        assert row.cells["member"] == PageCell(mark=None, status=403)


def test_a_member_reads_no_customer_id(api: Api) -> None:
    walk = PermissionWalk(api)
    org_id = walk.organization()
    with api.database.write() as session:
        links = update(BillingLink).where(BillingLink.org_id == org_id)
        session.execute(links.values(customer_id="id_of_the_" + BillingLink.provider))
    reading = [route for route in rows() if route[0] == "GET" and not rows()[route].is_public]
    responses_of = {
        caller: {route: walk.read(route, caller, org_id) for route in reading} for caller in ("member", "owner")
    }
    shown = {
        caller: {route for route, response in responses.items() if "id_of_the_" in response.text}
        for caller, responses in responses_of.items()
    }
    assert shown["member"] == set()
    assert ("GET", "/api/v1/org/{org_id}/billing") in shown["owner"]
    assert all(response.is_success for response in responses_of["owner"].values() if response.status_code != 403)


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
    assert api.get(f"/api/organizations/{first}", mine | {"X-Organization-ID": strange}).json()["id"] == first
    assert api.get(f"/api/organizations/{strange}", mine | {"X-Organization-ID": first}).status_code == 404


def test_a_service_without_the_header_has_no_current_organization(api: Api) -> None:
    service, org_id = api.as_service(), api.organization()
    assert api.get("/api/v1/subscriptions/current", service).status_code == 404
    assert api.get("/api/v1/subscriptions/current", service | {"X-Organization-ID": org_id}).is_success


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


# --- that the test can fail


ROW = "| GET `/new/{org_id}` | 401 | 404 | yes | yes | yes | `organizations:read` | deleted | Read it. |"
TABLE = "\n".join(["", f"| {' | '.join(permissions_page.HEADER)} |", "|---|", ROW, ""])


def test_a_row_of_the_page_is_read() -> None:
    (row,) = permissions_page.parse(TABLE).values()
    assert row.cells["stranger"] == PageCell(mark=None, status=404)
    assert row.cells["service"] == PageCell(mark="yes", scope="organizations:read")
    assert row.conflicts == {"deleted"}


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (TABLE.replace("| yes | yes |", "| yes | maybe |"), "mark that it does not explain, 'maybe'"),
        (TABLE.replace("organizations:read", "organizations:all"), "mark that it does not explain"),
        (TABLE.replace("| deleted |", "| archived |"), "does not have the form of its header"),
        (TABLE.replace("| 401 ", ""), "does not have the form of its header"),
        (TABLE.replace(ROW, f"{ROW}\n{ROW}"), "two rows of GET /new/{org_id}"),
    ],
)
def test_a_row_that_is_not_understood_is_refused_with_a_sentence(table: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        permissions_page.parse(table)


def test_a_route_without_a_row_and_a_row_without_a_route_are_told_with_what_to_do() -> None:
    assert permissions_page.differences({("GET", "/new")}, {("GET", "/old")}) == [
        f"GET /new has no row on {PAGE_NAME}: decide who may call it, and write a row into one of the tables",
        f"{PAGE_NAME} has a row of GET /old, which /openapi.json does not name: remove the row, or add the route",
    ]
