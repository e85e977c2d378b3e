"""Organizations over HTTP: what the guide's callers do, with its field names, answered as they expect."""

from __future__ import annotations

from sqlalchemy import select

from core.db.models.billing_links import BillingLink
from core.db.models.events import Event
from core.db.models.organizations import Organization
from tests.support.api_client import Api

NONSENSE: list[tuple[object, str]] = [
    ({}, "body.name"),
    ({"name": " "}, "body.name"),
    ({"name": "x" * 201}, "body.name"),
    ({"name": "a\x00b"}, "body.name"),
    ({"name": "a\nb"}, "body.name"),
    ({"name": "Acme\n"}, "body.name"),
    ({"name": "Acme\u202egpj"}, "body.name"),
    ({"name": "\u3164"}, "body.name"),
    ({"name": "A", "plan_tier": "gold"}, "plan_tier"),
    ({"name": "A", "billing_email": "nobody"}, "body.billing_email"),
    ({"name": "A", "currency": "usd"}, "body.currency"),
    ({"name": "A", "currency": "EUR"}, "currency"),
    ({"name": "A", "tier": "starter"}, "body.tier"),
    ([], "body"),
    ("A", "body"),
]


def test_whoever_makes_an_organization_owns_it(api: Api) -> None:
    made = api.post("/api/organizations", {"name": "Acme"}, api.as_("u1"))
    assert made.status_code == 201
    document = made.json()
    assert set(document) == {"org_id", "status", "sync"}
    assert (document["status"], document["sync"]) == ("created", {"version": 1})
    shown = api.get(f"/api/organizations/{document['org_id']}", api.as_("u1")).json()
    assert (shown["name"], shown["plan_tier"], shown["role"]) == ("Acme", "founders_friend", "owner")


def test_a_service_names_the_owner_and_a_person_cannot(api: Api) -> None:
    body = {"name": "Acme", "owner_user_id": "u9"}
    assert api.post("/api/organizations", body, api.as_("u1")).status_code == 422
    made = api.post("/api/organizations", body, api.as_service())
    mine = api.get("/api/users/u9/organizations", api.as_("u9")).json()
    assert [(each["id"], each["role"]) for each in mine["organizations"]] == [(made.json()["org_id"], "owner")]
    assert mine["count"] == 1


def test_the_audit_says_who_did_it_and_by_which_request(api: Api) -> None:
    headers = api.as_("u1") | {"X-Request-ID": "my-request-1"}
    org_id = api.post("/api/organizations", {"name": "Acme"}, headers).json()["org_id"]
    with api.database.read() as session:
        events = session.scalars(select(Event).where(Event.org_id == org_id).order_by(Event.seq)).all()
    assert [(event.type, event.actor, event.source, event.caused_by) for event in events] == [
        ("organization.created", "u1", "api", "request:my-request-1"),
        ("membership.added", "u1", "api", "request:my-request-1"),
    ]


def test_a_taken_name_is_a_conflict_and_leaves_nothing(api: Api) -> None:
    api.post("/api/organizations", {"name": "Acme"}, api.as_("u1"))
    again = api.post("/api/organizations", {"name": " ACME "}, api.as_("u2"))
    assert again.status_code == 409
    assert again.headers["content-type"] == "application/problem+json"
    assert again.json()["type"] == "urn:billing-sync:problem:name-taken"
    assert api.get("/api/organizations", api.as_("u2")).json()["count"] == 0


def test_a_value_that_cannot_be_is_refused_by_its_name(api: Api) -> None:
    for body, field in NONSENSE:
        refused = api.post("/api/organizations", body, api.as_("u1"))
        assert refused.status_code == 422, body
        assert [each["field"] for each in refused.json()["errors"]] == [field], body


def test_the_refusal_of_a_name_says_which_character_nobody_sees(api: Api) -> None:
    sentence = "name contains U+202E (RIGHT-TO-LEFT OVERRIDE) at position 5; use one line of text that can be seen"
    created = api.post("/api/organizations", {"name": "Acme\u202egpj"}, api.as_("u1")).json()
    assert created["errors"] == [{"field": "body.name", "detail": sentence}]
    path = f"/api/organizations/{api.organization(u1='owner')}"
    renamed = api.send("PATCH", path, api.as_("u1"), {"name": "Acme\u202egpj"})
    assert (renamed.status_code, renamed.json()["errors"]) == (422, [{"field": "name", "detail": sentence}])


def test_what_a_script_needs_is_shown_and_found_without_it(api: Api) -> None:
    name = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    org_id = api.post("/api/organizations", {"name": name}, api.as_("u1")).json()["org_id"]
    assert api.get(f"/api/organizations/{org_id}", api.as_("u1")).json()["name"] == name
    for search in ("میخواهم", name):
        assert api.get("/api/organizations", api.as_("u1"), search=search).json()["count"] == 1
    again = api.post("/api/organizations", {"name": "میخواهم"}, api.as_("u2"))
    assert again.status_code == 409


def test_a_name_that_is_older_than_the_rule_stays_until_it_is_changed(api: Api) -> None:
    org_id = api.organization(u1="owner")
    with api.database.write() as session:
        session.get_one(Organization, org_id).name = "Ac\u200bme"
    path = f"/api/organizations/{org_id}"
    kept = api.send("PATCH", path, api.as_("u1"), {"name": "Ac\u200bme", "currency": "USD"})
    assert (kept.status_code, kept.json()["sync"]) == (200, {"version": 2})
    assert api.get(path, api.as_("u1")).json()["name"] == "Ac\u200bme"


def test_a_list_is_walked_by_its_cursor(api: Api) -> None:
    made = [api.organization(u1="owner") for _ in range(5)]
    api.organization(u2="owner")
    found: list[str] = []
    params: dict[str, str] = {}
    while True:
        page = api.get("/api/organizations", api.as_("u1"), limit=2, **params).json()
        found += [each["id"] for each in page["organizations"]]
        assert page["count"] == len(page["organizations"])
        if page["next_cursor"] is None:
            break
        params = {"cursor": page["next_cursor"]}
    assert found == made
    assert api.get("/api/organizations", api.as_service()).json()["count"] == 6
    assert api.get("/api/organizations", api.as_("u1"), search="zation 3").json()["count"] == 1
    assert api.get("/api/organizations", api.as_("u1"), plan="starter").json()["count"] == 0


# The first and the last moment, in zones whose UTC has no year for them.
ENDS_OF_TIME = (
    "WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzE0OjAwIiwgIm9yZ19hIl0",
    "WyI5OTk5LTEyLTMxVDIzOjU5OjU5LTE0OjAwIiwgIm9yZ19hIl0",
)


def test_a_cursor_that_nobody_gave_out_is_refused(api: Api) -> None:
    for cursor in (
        *ENDS_OF_TIME,
        "x",
        "é",
        "bnVsbA",
        "WzEsMl0",
        "W10",
        "WyIyMDI2LTExLTIzIiwib3JnX2EiXQ",
        "%00",
        "[" * 200,
    ):
        refused = api.get("/api/organizations", api.as_("u1"), cursor=cursor)
        assert refused.status_code == 422, cursor
        assert refused.json()["errors"][0]["field"] == "query.cursor"


def test_details_change_where_given_and_stay_where_not(api: Api) -> None:
    org_id = api.organization(u1="billing_admin")
    path = f"/api/organizations/{org_id}"
    first = api.send("PATCH", path, api.as_("u1"), {"billing_email": "a@acme.test", "currency": "USD"})
    assert first.json() == {"status": "updated", "sync": {"version": 2}}
    assert api.send("PATCH", path, api.as_("u1"), {"name": "Acme Two"}).json()["sync"] == {"version": 3}
    assert api.send("PATCH", path, api.as_("u1"), {}).json()["sync"] == {"version": 3}
    with api.database.read() as session:
        row = session.get_one(Organization, org_id)
        assert (row.name, row.billing_email, row.currency) == ("Acme Two", "a@acme.test", "USD")


def test_a_higher_plan_applies_now_and_a_lower_one_waits(api: Api) -> None:
    org_id = api.organization("professional", u1="owner")
    path = f"/api/organizations/{org_id}/plan"
    up = api.send("PATCH", path, api.as_("u1"), {"plan_tier": "enterprise"}).json()
    assert (up["plan_tier"], up["pending_plan_tier"], up["effective"]) == ("enterprise", None, "now")
    down = api.send("PATCH", path, api.as_("u1"), {"plan_tier": "starter"}).json()
    assert (down["plan_tier"], down["pending_plan_tier"], down["effective"]) == ("enterprise", "starter", "period_end")
    back = api.send("PATCH", path, api.as_("u1"), {"plan_tier": "enterprise"}).json()
    assert (back["pending_plan_tier"], back["sync"]) == (None, {"version": 4})


def test_where_no_biller_is_named_a_preview_tells_the_change_and_no_amount(api: Api) -> None:
    org_id = api.organization("starter", u1="owner")
    path = f"/api/organizations/{org_id}/plan/preview"
    said = api.post(path, {"plan_tier": "enterprise"}, api.as_("u1")).json()
    assert (said["change"], said["providers"]["lago"]["state"]) == ("now", "unavailable")
    assert (
        "no provider"
        in api.post(path, {"plan_tier": "enterprise"}, api.as_service()).json()["providers"]["lago"]["reason"]
    )


def test_a_billing_id_belongs_to_one_organization(api: Api) -> None:
    service, org_id = api.as_service("billing:write"), api.organization()
    path = f"/api/organizations/{org_id}/billing"
    assert api.send("PATCH", path, service, {"stripe_id": "cus_1", "lago_id": "l-1"}).json()["status"] == "updated"
    with api.database.read() as session:
        links = session.scalars(select(BillingLink.customer_id).where(BillingLink.org_id == org_id)).all()
    assert set(links) == {"cus_1", "l-1"}
    other = api.send("PATCH", f"/api/organizations/{api.organization()}/billing", service, {"stripe_id": "cus_1"})
    assert other.status_code == 422


def test_an_owner_closes_an_organization_and_a_service_alone_suspends_and_opens(api: Api) -> None:
    org_id = api.organization(u1="owner")
    path = f"/api/organizations/{org_id}"
    for status in ("suspended", "active"):
        assert api.send("PUT", f"{path}/status", api.as_("u1"), {"status": status}).status_code == 403
        assert api.send("PUT", f"{path}/status", api.as_service(), {"status": status}).json()["status"] == status
    assert api.send("PUT", f"{path}/status", api.as_("u1"), {"status": "deleted"}).is_success
    assert api.get(path, api.as_("u1")).json()["status"] == "deleted"
    assert api.get("/api/organizations", api.as_("u1")).json()["count"] == 0
    for method, tail, body in (("PATCH", "", {"name": "B"}), ("PATCH", "/plan", {"plan_tier": "starter"})):
        refused = api.send(method, path + tail, api.as_("u1"), body)
        assert (refused.status_code, refused.json()["type"][-7:]) == (409, "deleted")
    assert api.send("PUT", f"{path}/status", api.as_service(), {"status": "active"}).is_success
    assert api.get("/api/organizations", api.as_("u1")).json()["count"] == 1


def test_the_dashboard_shows_each_organization_with_its_sync(api: Api) -> None:
    first, second = api.organization("starter", u1="owner", u2="member"), api.organization(u1="billing_admin")
    board = api.get("/api/dashboard", api.as_("u1")).json()
    assert (board["count"], board["current"]) == (2, first)
    assert [(row["org_id"], row["role"], row["team_size"], row["plan"]) for row in board["organizations"]] == [
        (first, "owner", 2, "starter"),
        (second, "billing_admin", 1, "professional"),
    ]
    assert board["organizations"][0]["sync"] == {
        "version": 1,
        "in_sync": False,
        "providers": {"stripe": "queued", "lago": "queued"},
    }
    nobody = {"organizations": [], "count": 0, "current": None, "usage": None, "unpaid": 0, "credit_left": 0}
    assert api.get("/api/dashboard", api.as_("u3")).json() == nobody
