"""Lago's customers, plans and subscriptions as lago.md 1 to 5 have them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from lago_python_client.client import Client
from lago_python_client.exceptions import LagoApiError
from lago_python_client.models import Customer, Subscription

from sandbox.client import SandboxClient
from sandbox.server import Sandbox

PLANS = {
    "free": ("monthly", 0),
    "starter": ("monthly", 1900),
    "professional": ("monthly", 4900),
    "starter_yearly": ("yearly", 12 * 1900),
}
PLAN: dict[str, object] = {"name": "Plan", "amount_currency": "USD", "pay_in_advance": True}


@pytest.fixture(autouse=True)
def plans(sandbox: SandboxClient) -> None:
    sandbox.preload_lago_plans(
        {
            "name": code,
            "code": code,
            "interval": interval,
            "amount_cents": cents,
            "amount_currency": "USD",
            "pay_in_advance": True,
        }
        for code, (interval, cents) in PLANS.items()
    )


def upsert(lago: httpx.Client, external_id: str = "org_1", **fields: object) -> httpx.Response:
    return lago.post("/customers", json={"customer": {"external_id": external_id, **fields}})


def subscribe(lago: httpx.Client, plan_code: str, external_id: str = "org_1", **fields: object) -> httpx.Response:
    body = {"external_customer_id": "org_1", "external_id": external_id, "plan_code": plan_code, **fields}
    return lago.post("/subscriptions", json={"subscription": body})


def details(answer: httpx.Response) -> object:
    assert answer.status_code == 422
    return answer.json()["error_details"]


def reasons(sandbox: SandboxClient) -> list[tuple[str, int]]:
    """With the price of a whole period, which does not depend on the day."""
    return [(charge["reason"], charge["price"]) for charge in sandbox.charges()]


def amounts(sandbox: SandboxClient) -> list[tuple[str, int]]:
    return [(charge["reason"], charge["amount"]) for charge in sandbox.charges()]


# --- customers


def test_post_creates_then_updates_only_what_it_names(lago: httpx.Client) -> None:
    made = upsert(lago, name="Acme", email="a@acme.test", currency="USD").json()["customer"]
    changed = upsert(lago, name="Acme GmbH").json()["customer"]
    cleared = upsert(lago, email=None).json()["customer"]
    assert changed["lago_id"] == made["lago_id"]
    assert (changed["name"], changed["email"]) == ("Acme GmbH", "a@acme.test")
    assert (cleared["name"], cleared["email"]) == ("Acme GmbH", None)
    assert lago.get("/customers/org_1").json()["customer"] == cleared


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"currency": "XXX", "external_id": ""},
            {"currency": ["value_is_invalid"], "external_id": ["value_is_mandatory"]},
        ),
        ({"email": "no"}, {"email": ["invalid_email_format"]}),
        ({"email": "a@b.test, no"}, {"email": ["invalid_email_format"]}),
        ({"country": "Germany"}, {"country": ["not_a_valid_country_code"]}),
        ({"name": "x" * 256}, {"name": ["value_is_too_long"]}),
        ({"net_payment_term": -1}, {"net_payment_term": ["value_is_out_of_range"]}),
        ({"metadata": [{"key": str(n), "value": "1"} for n in range(6)]}, {"metadata": ["invalid_count"]}),
        (
            {"metadata": [{"key": "k" * 21, "value": ""}]},
            {"key": ["value_is_too_long"], "value": ["value_is_mandatory"]},
        ),
    ],
)
def test_validation_names_every_field(lago: httpx.Client, fields: dict[str, Any], expected: object) -> None:
    answer = lago.post("/customers", json={"customer": {"external_id": "org_1", **fields}})
    assert answer.json() == {
        "status": 422,
        "error": "Unprocessable Entity",
        "code": "validation_errors",
        "error_details": expected,
    }
    assert lago.get("/customers/org_1").status_code == 404


def test_metadata_is_replaced_and_only_ids_save_an_entry(lago: httpx.Client) -> None:
    first = upsert(lago, metadata=[{"key": "org_id", "value": "1"}, {"key": "other", "value": "x"}]).json()["customer"]
    again = upsert(lago, metadata=[{"key": "org_id", "value": "1"}])
    assert details(again) == {"key": ["value_already_exist"]}
    entry = next(each for each in first["metadata"] if each["key"] == "org_id")
    kept = upsert(lago, metadata=[{"id": entry["lago_id"], "key": "org_id", "value": "2"}]).json()["customer"]
    assert [(each["lago_id"], each["value"]) for each in kept["metadata"]] == [(entry["lago_id"], "2")]
    untouched = upsert(lago, name="Acme").json()["customer"]
    assert untouched["metadata"] == kept["metadata"]
    assert upsert(lago, metadata=[]).json()["customer"]["metadata"] == []


def test_a_provider_named_at_creation_without_an_id_is_ignored_and_set_by_the_second_post(lago: httpx.Client) -> None:
    configuration = {"payment_provider": "stripe", "payment_provider_code": "stripe_main"}
    first = upsert(lago, billing_configuration=configuration).json()["customer"]["billing_configuration"]
    second = upsert(lago, billing_configuration=configuration).json()["customer"]["billing_configuration"]
    assert first["payment_provider"] is None
    assert "provider_customer_id" not in first
    assert second["payment_provider_code"] == "stripe_main"


def test_an_unknown_provider_code_is_refused_after_the_customer_was_saved(
    lago: httpx.Client, sandbox: SandboxClient
) -> None:
    wanted = {"payment_provider": "stripe", "payment_provider_code": "nope", "provider_customer_id": "cus_1"}
    assert details(upsert(lago, billing_configuration=wanted)) == {"base": ["payment_provider_not_found"]}
    assert lago.get("/customers/org_1").status_code == 200
    sandbox.settings(lago_providers=["one", "two"])
    missing = upsert(lago, billing_configuration={"payment_provider": "stripe", "provider_customer_id": "cus_1"})
    assert details(missing) == {"base": ["payment_provider_code_missing"]}


def test_a_linked_customer_is_rewritten_at_stripe_without_blanks(lago: httpx.Client, sandbox: SandboxClient) -> None:
    """As recorded in what-lago-asks-of-stripe.jsonl: name and what else Lago holds (lago.md 3.5, B20)."""
    sandbox.preload_stripe_customers([{"id": "cus_1", "name": "Acme", "email": "a@acme.test", "phone": "1"}])
    link = {"payment_provider": "stripe", "payment_provider_code": "stripe_main", "provider_customer_id": "cus_1"}
    linked = upsert(lago, name="Acme", billing_configuration=link).json()["customer"]["billing_configuration"]
    assert linked["provider_customer_id"] == "cus_1"
    assert linked["provider_payment_methods"] == ["card"]
    upsert(lago, name="Acme GmbH")
    written = sandbox.state()["stripe"]["customers"][0]
    assert (written["name"], written["email"], written["phone"]) == ("Acme GmbH", "a@acme.test", "1")
    upsert(lago, city="Bonn")
    assert sandbox.state()["stripe"]["customers"][0]["address"]["city"] == "Bonn"
    elsewhere = upsert(lago, billing_configuration={**link, "provider_customer_id": "cus_unknown"})
    assert details(elsewhere) == {"third_party": "Stripe", "thirdparty_error": "No such customer: 'cus_unknown'"}
    saved = lago.get("/customers/org_1").json()["customer"]["billing_configuration"]
    assert saved["provider_customer_id"] == "cus_unknown"
    upsert(lago, billing_configuration=link)
    sandbox.delete("stripe", "customers", "cus_1")
    refused = upsert(lago, name="Third")
    assert refused.json()["code"] == "third_party_error"
    assert details(refused) == {"third_party": "Stripe", "thirdparty_error": "No such customer: 'cus_1'"}
    assert lago.get("/customers/org_1").json()["customer"]["name"] == "Third"
    unlinked = upsert(lago, billing_configuration={"payment_provider": None}).json()["customer"]
    assert unlinked["billing_configuration"]["payment_provider"] is None


def test_lago_can_make_the_stripe_customer_itself(lago: httpx.Client, sandbox: SandboxClient) -> None:
    wanted = {"payment_provider": "stripe", "payment_provider_code": "stripe_main", "sync_with_provider": True}
    answer = upsert(lago, name="Acme", billing_configuration=wanted).json()["customer"]["billing_configuration"]
    assert (answer["provider_customer_id"], answer["sync_with_provider"]) == (None, True)
    made = sandbox.state()["stripe"]["customers"]
    assert [each["metadata"]["customer_id"] for each in made] == ["org_1"]
    later = lago.get("/customers/org_1").json()["customer"]["billing_configuration"]
    assert later["provider_customer_id"] == made[0]["id"]
    assert sandbox.counters().stripe.total == 0


def test_a_deleted_customer_is_404_its_subscription_ends_and_its_id_is_free(
    lago: httpx.Client, sandbox: SandboxClient
) -> None:
    sandbox.settings(lago_job_delay_seconds=300)
    made = upsert(lago).json()["customer"]
    subscribe(lago, "starter")
    assert lago.delete("/customers/org_1").json()["customer"]["lago_id"] == made["lago_id"]
    gone = lago.get("/customers/org_1")
    assert gone.json() == {"status": 404, "error": "Not Found", "code": "customer_not_found"}
    assert lago.delete("/customers/org_1").status_code == 404
    assert upsert(lago).json()["customer"]["lago_id"] != made["lago_id"]
    assert details(subscribe(lago, "starter")) == {"external_id": ["value_already_exist"]}
    sandbox.advance(301)
    assert subscribe(lago, "starter").status_code == 200


def test_a_dot_in_an_id_reads_another_customer_but_no_other_plan_or_subscription(lago: httpx.Client) -> None:
    upsert(lago, "acme")
    upsert(lago, "acme.com", name="Dotted")
    assert lago.get("/customers/acme.com").json()["customer"]["external_id"] == "acme"
    assert lago.get("/customers/acme%2Ecom").json()["customer"]["name"] == "Dotted"
    assert lago.get("/customers/acme.com/subscriptions").json()["code"] == "resource_not_found"
    lago.post("/plans", json={"plan": {"name": "d", "code": "d.ot", "interval": "monthly", "amount_cents": 1,
                                       "amount_currency": "USD", "pay_in_advance": True}})  # fmt: skip
    assert lago.get("/plans/d.ot").json()["plan"]["code"] == "d.ot"
    subscribe(lago, "d.ot", "sub.1")
    assert lago.get("/subscriptions/sub.1").json()["subscription"]["external_id"] == "sub.1"
    upsert(lago, "a/b")
    assert lago.get("/customers/a%2Fb").json()["customer"]["external_id"] == "a/b"


def test_lists_are_paged_newest_first_and_filtered(lago: httpx.Client, sandbox: SandboxClient) -> None:
    assert lago.get("/customers").json()["meta"] == {
        "current_page": 0,
        "next_page": None,
        "prev_page": None,
        "total_pages": 0,
        "total_count": 0,
    }
    for number in range(3):
        upsert(lago, f"org_{number}", name=f"Name {number}")
        sandbox.advance(10)
    page = lago.get("/customers", params={"page": 1, "per_page": 2}).json()
    assert [each["external_id"] for each in page["customers"]] == ["org_2", "org_1"]
    assert page["meta"] == {"current_page": 1, "next_page": 2, "prev_page": None, "total_pages": 2, "total_count": 3}
    for query in ({"external_id": "org_1"}, {"search_term": "name 1"}):
        found = lago.get("/customers", params=query).json()["customers"]
        assert [each["external_id"] for each in found] == ["org_1"]


# --- errors that belong to no object


def test_errors_have_lagos_exact_bodies(lago: httpx.Client) -> None:
    malformed = lago.post("/customers", content=b"{")
    assert (malformed.status_code, malformed.content) == (400, b"")
    bodies: list[dict[str, object]] = [{}, {"customer": {}}, {"customer": "x"}]
    for body in bodies:
        assert lago.post("/customers", json=body).json() == {
            "status": 400,
            "error": "BadRequest: param is missing or the value is empty or invalid: customer",
        }
    for key in ("bad", ""):
        refused = lago.get("/customers", headers={"Authorization": f"Bearer {key}".strip()})
        assert (refused.status_code, refused.json()) == (401, {"status": 401, "error": "Unauthorized"})
    unknown = {"status": 404, "error": "Not Found", "code": "resource_not_found"}
    assert lago.get("/nothing").json() == unknown
    assert lago.get("/nothing", headers={"Authorization": "Bearer bad"}).json() == unknown
    assert lago.put("/customers/org_1", json={"customer": {"name": "x"}}).json() == unknown


def test_health_needs_no_key_and_the_organization_is_known(lago: httpx.Client, server: Sandbox) -> None:
    with httpx.Client(trust_env=False) as nobody:
        assert nobody.get(f"{server.url}/health").json()["message"] == "Success"
    assert lago.get("/organizations").json()["organization"]["lago_id"]


# --- plans


def test_a_plan_code_is_taken_once_and_a_plan_is_edited_in_place(lago: httpx.Client) -> None:
    plan = lago.get("/plans/starter").json()["plan"]
    again = lago.post("/plans", json={"plan": {**plan, "name": "Again"}})
    assert details(again) == {"code": ["value_already_exist"]}
    assert lago.put("/plans/starter", json={"plan": {"amount_cents": 2900}}).json()["plan"]["amount_cents"] == 2900
    assert lago.get("/plans/none").json()["code"] == "plan_not_found"
    assert lago.get("/plans").json()["meta"]["total_count"] == len(PLANS)
    assert details(lago.post("/plans", json={"plan": {"code": "x", "interval": "daily"}})) == {
        "name": ["value_is_mandatory"],
        "interval": ["value_is_invalid"],
        "amount_cents": ["value_is_mandatory"],
        "amount_currency": ["value_is_mandatory"],
        "pay_in_advance": ["value_is_mandatory"],
    }


# --- subscriptions: the table of lago.md 5.1


def test_a_new_subscription_is_active_and_its_unknown_customer_made_in_silence(
    lago: httpx.Client, sandbox: SandboxClient
) -> None:
    sandbox.set_clock(datetime(2027, 1, 12, 7, tzinfo=UTC))
    made = subscribe(lago, "starter", name="Main").json()["subscription"]
    assert (made["status"], made["plan_code"], made["plan"]["code"]) == ("active", "starter", "starter")
    assert made["started_at"].startswith("2027-01-12T07:00:0")
    assert made["started_at"].endswith("Z")
    assert "." in made["started_at"]
    assert made["current_billing_period_ending_at"] == "2027-01-31T23:59:59Z"
    customer = lago.get("/customers/org_1").json()["customer"]
    assert (customer["currency"], customer["name"]) == ("USD", None)
    assert reasons(sandbox) == [("subscription_create", 1900)]


def test_the_same_plan_again_changes_nothing(lago: httpx.Client, sandbox: SandboxClient) -> None:
    made = subscribe(lago, "starter", name="Main").json()
    assert subscribe(lago, "starter", name="Other", billing_time="anniversary").json() == made
    assert len(sandbox.charges()) == 1


@pytest.mark.parametrize("better", ["professional", "starter_yearly"])
def test_more_or_equal_a_year_is_an_upgrade_now(lago: httpx.Client, sandbox: SandboxClient, better: str) -> None:
    old = subscribe(lago, "starter", name="Main").json()["subscription"]
    new = subscribe(lago, better).json()["subscription"]
    assert new["lago_id"] != old["lago_id"]
    assert (new["status"], new["previous_plan_code"], new["name"]) == ("active", "starter", "")
    assert new["subscription_at"] == old["subscription_at"]
    ended = lago.get("/subscriptions/org_1", params={"status": "terminated"}).json()["subscription"]
    assert (ended["lago_id"], ended["next_plan_code"]) == (old["lago_id"], better)
    assert [reason for reason, _ in reasons(sandbox)] == ["subscription_create", "upgrade_credit", "upgrade"]


def test_days_of_a_period_are_billed_and_credited_as_recorded(lago: httpx.Client, sandbox: SandboxClient) -> None:
    """On 28 November 190, 490 and a credit of 190 for an upgrade; an end credited 327 (webhooks.jsonl)."""
    sandbox.set_clock(datetime(2026, 11, 28, 20, 41, tzinfo=UTC))
    subscribe(lago, "starter")
    subscribe(lago, "professional")
    lago.delete("/subscriptions/org_1")
    assert amounts(sandbox) == [
        ("subscription_create", 190),
        ("upgrade_credit", -190),
        ("upgrade", 490),
        ("termination_credit", -327),
    ]


@pytest.mark.parametrize(
    ("billing_time", "billed", "credited"), [("calendar", 1226, 1103), ("anniversary", 1900, 1777)]
)
def test_a_period_that_has_begun_is_credited_from_the_day_of_an_upgrade(
    lago: httpx.Client, sandbox: SandboxClient, billing_time: str, billed: int, credited: int
) -> None:
    sandbox.set_clock(datetime(2027, 1, 12, 7, tzinfo=UTC))
    subscribe(lago, "starter", billing_time=billing_time)
    sandbox.advance(timedelta(days=2))
    subscribe(lago, "professional")
    (_, first), (_, credit), (_, second) = amounts(sandbox)
    days = 18 if billing_time == "calendar" else 29
    assert (first, credit, second) == (billed, -credited, round(4900 * days / 31))


def test_a_whole_period_is_billed_at_each_renewal_and_the_days_of_it_at_an_end(
    lago: httpx.Client, sandbox: SandboxClient
) -> None:
    lago.post("/plans", json={"plan": {**PLAN, "code": "late", "interval": "monthly", "amount_cents": 3100}})
    late = {**PLAN, "code": "behind", "interval": "monthly", "amount_cents": 3100, "pay_in_advance": False}
    lago.post("/plans", json={"plan": late})
    sandbox.set_clock(datetime(2027, 1, 12, 7, tzinfo=UTC))
    subscribe(lago, "late")
    subscribe(lago, "behind", external_id="other")
    sandbox.set_clock(datetime(2027, 3, 3, 7, tzinfo=UTC))
    lago.delete("/subscriptions/other")
    found = sorted((charge["subscription"], charge["reason"], charge["amount"]) for charge in sandbox.charges())
    assert found == [
        ("org_1", "renewal", 3100),
        ("org_1", "renewal", 3100),
        ("org_1", "subscription_create", 2000),
        ("other", "renewal", 2000),
        ("other", "renewal", 3100),
        ("other", "termination_invoice", 300),
    ]


def test_an_end_between_midnight_and_the_job_credits_nothing(lago: httpx.Client, sandbox: SandboxClient) -> None:
    sandbox.set_clock(datetime(2026, 11, 28, 20, 41, tzinfo=UTC))
    subscribe(lago, "starter")
    sandbox.set_clock(datetime(2026, 12, 1, 0, 5, tzinfo=UTC))
    lago.delete("/subscriptions/org_1")
    assert amounts(sandbox) == [("subscription_create", 190)]


def test_less_a_year_is_a_downgrade_that_waits_for_the_periods_end(lago: httpx.Client, sandbox: SandboxClient) -> None:
    sandbox.set_clock(datetime(2027, 1, 12, 7, tzinfo=UTC))
    current = subscribe(lago, "professional").json()["subscription"]
    answer = subscribe(lago, "starter").json()["subscription"]
    assert (answer["lago_id"], answer["plan_code"], answer["status"]) == (current["lago_id"], "professional", "active")
    assert (answer["next_plan_code"], answer["downgrade_plan_date"]) == ("starter", "2027-02-01")
    assert subscribe(lago, "professional").json()["subscription"]["next_plan_code"] == "starter"
    sandbox.advance(timedelta(days=25))
    switched = lago.get("/subscriptions/org_1").json()["subscription"]
    assert (switched["plan_code"], switched["previous_plan_code"]) == ("starter", "professional")
    assert switched["started_at"] == "2027-02-01T00:10:00.000Z"
    assert reasons(sandbox) == [("subscription_create", 4900), ("downgrade", 1900)]


def test_a_downgrade_waits_for_the_billing_job_and_names_the_next_period_until_then(
    lago: httpx.Client, sandbox: SandboxClient
) -> None:
    """As in stories/downgrade-over-the-month-end.jsonl (lago.md 5.1, B1)."""
    sandbox.set_clock(datetime(2026, 11, 28, 20, 41, tzinfo=UTC))
    subscribe(lago, "professional")
    subscribe(lago, "starter")
    sandbox.set_clock(datetime(2026, 12, 1, 0, 0, 20, tzinfo=UTC))
    waiting = lago.get("/subscriptions/org_1").json()["subscription"]
    assert (waiting["plan_code"], waiting["next_plan_code"]) == ("professional", "starter")
    assert waiting["downgrade_plan_date"] == "2027-01-01"
    assert waiting["current_billing_period_ending_at"] == "2026-12-31T23:59:59Z"
    sandbox.advance(timedelta(minutes=10))
    switched = lago.get("/subscriptions/org_1").json()["subscription"]
    assert (switched["plan_code"], switched["started_at"]) == ("starter", "2026-12-01T00:10:00.000Z")


def test_a_yearly_plan_with_monthly_charges_switches_at_the_months_end(
    lago: httpx.Client, sandbox: SandboxClient
) -> None:
    """Although the date says the year's end (lago.md 5.1, B9). Without a downgrade it renews once a year."""
    sandbox.set_clock(datetime(2026, 11, 28, 20, 41, tzinfo=UTC))
    sandbox.preload_lago_plans(
        {**PLAN, "code": code, "interval": "yearly", "amount_cents": cents, "bill_charges_monthly": True}
        for code, cents in (("much", 60000), ("less", 20000))
    )
    subscribe(lago, "much")
    subscribe(lago, "much", "org_2", external_customer_id="org_2")
    answer = subscribe(lago, "less").json()["subscription"]
    assert (answer["downgrade_plan_date"], answer["current_billing_period_ending_at"]) == (
        "2027-01-01",
        "2026-11-30T23:59:59Z",
    )
    sandbox.set_clock(datetime(2026, 12, 2, tzinfo=UTC))
    assert lago.get("/subscriptions/org_1").json()["subscription"]["plan_code"] == "less"
    sandbox.set_clock(datetime(2027, 1, 2, tzinfo=UTC))
    charged = [(charge["subscription"], charge["reason"], charge["at"][:10]) for charge in sandbox.charges()]
    assert [each for each in charged if each[0] == "org_2"] == [
        ("org_2", "subscription_create", "2026-11-28"),
        ("org_2", "renewal", "2027-01-01"),
    ]


def test_a_pending_downgrade_is_taken_back_only_by_delete_with_status_pending(lago: httpx.Client) -> None:
    subscribe(lago, "professional")
    subscribe(lago, "starter")
    canceled = lago.delete("/subscriptions/org_1", params={"status": "pending"}).json()["subscription"]
    assert (canceled["status"], canceled["plan_code"]) == ("canceled", "starter")
    left = lago.get("/subscriptions/org_1").json()["subscription"]
    assert (left["plan_code"], left["next_plan_code"], left["downgrade_plan_date"]) == ("professional", None, None)
    again = lago.delete("/subscriptions/org_1", params={"status": "pending"})
    assert again.json()["code"] == "subscription_not_found"


def test_a_second_downgrade_replaces_the_first_and_an_upgrade_cancels_it(lago: httpx.Client) -> None:
    subscribe(lago, "professional")
    subscribe(lago, "starter")
    assert subscribe(lago, "free").json()["subscription"]["next_plan_code"] == "free"
    pending = lago.get("/subscriptions", params={"status[]": "pending"}).json()["subscriptions"]
    assert [each["plan_code"] for each in pending] == ["free"]
    lago.post("/plans", json={"plan": {"name": "e", "code": "e", "interval": "monthly", "amount_cents": 9900,
                                       "amount_currency": "USD", "pay_in_advance": True}})  # fmt: skip
    assert subscribe(lago, "e").json()["subscription"]["next_plan_code"] is None
    assert lago.get("/subscriptions", params={"status[]": "pending"}).json()["subscriptions"] == []


def test_a_future_subscription_waits_can_change_plan_in_place_and_starts(
    lago: httpx.Client, sandbox: SandboxClient
) -> None:
    starts = sandbox.clock() + timedelta(days=3)
    made = subscribe(lago, "starter", subscription_at=starts.isoformat()).json()["subscription"]
    assert (made["status"], made["started_at"]) == ("pending", None)
    swapped = subscribe(lago, "professional").json()["subscription"]
    assert (swapped["lago_id"], swapped["plan_code"]) == (made["lago_id"], "professional")
    assert lago.get("/subscriptions/org_1").status_code == 404
    sandbox.advance(timedelta(days=4))
    assert lago.get("/subscriptions/org_1").json()["subscription"]["lago_id"] == made["lago_id"]
    assert reasons(sandbox)[0] == ("subscription_create", 4900)


def test_an_end_date_ends_it(lago: httpx.Client, sandbox: SandboxClient) -> None:
    subscribe(lago, "starter")
    ends = sandbox.clock() + timedelta(days=2)
    answer = lago.put("/subscriptions/org_1", json={"subscription": {"ending_at": ends.isoformat()}})
    assert answer.json()["subscription"]["ending_at"] is not None
    sandbox.advance(timedelta(days=3))
    assert lago.get("/subscriptions/org_1").status_code == 404
    past = lago.put("/subscriptions/org_1", json={"subscription": {"ending_at": "2020-01-01T00:00:00Z"}})
    assert details(past) == {"ending_at": ["invalid_date"]}


def test_put_answers_200_and_leaves_the_plan(lago: httpx.Client) -> None:
    subscribe(lago, "starter")
    answer = lago.put("/subscriptions/org_1", json={"subscription": {"plan_code": "professional", "name": "New"}})
    assert answer.status_code == 200
    assert (answer.json()["subscription"]["plan_code"], answer.json()["subscription"]["name"]) == ("starter", "New")


def test_a_delete_with_a_status_that_is_not_pending_ends_the_active_one(lago: httpx.Client) -> None:
    for status in ("incomplete", "pendign", "terminated"):
        subscribe(lago, "professional")
        subscribe(lago, "starter")
        ended = lago.delete("/subscriptions/org_1", params={"status": status}).json()["subscription"]
        assert (ended["status"], ended["plan_code"]) == ("terminated", "professional")
        assert lago.delete("/subscriptions/org_1", params={"status": status}).status_code == 404


@pytest.mark.parametrize(
    "address",
    [
        *("a..b@x.com", ".a@x.com", "a.@x.com", "a@-x.com", "a@x_y.com", "a(b)@x.com", "a;b@x.com", "a<b>@x.com"),
        *("a@ex\N{LATIN SMALL LETTER A WITH DIAERESIS}mple.com", "a@x.com.", "a@x..com", "a\N{HYPHEN}b@x.com", "a@x"),
    ],
)
def test_an_email_that_lago_refuses_is_refused(lago: httpx.Client, address: str) -> None:
    assert details(upsert(lago, email=address)) == {"email": ["invalid_email_format"]}


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (" A@X.com ", "A@X.com"),
        ("a\N{FIGURE DASH}b\N{MINUS SIGN}c@x.com", "a-b-c@x.com"),
        ("a\N{ZERO WIDTH SPACE}\N{NO-BREAK SPACE}b@x.com", "ab@x.com"),
        ("m\N{LATIN SMALL LETTER U WITH DIAERESIS}ller@x.com, b@x.com", None),
    ],
)
def test_an_email_that_lago_accepts_is_stored_in_its_form(lago: httpx.Client, sent: str, stored: str | None) -> None:
    assert upsert(lago, email=sent).json()["customer"]["email"] == (stored or sent)


def test_termination_works_once_and_frees_the_id(lago: httpx.Client, sandbox: SandboxClient) -> None:
    first = subscribe(lago, "starter").json()["subscription"]
    ended = lago.delete("/subscriptions/org_1").json()["subscription"]
    assert (ended["status"], ended["terminated_at"] is not None) == ("terminated", True)
    assert lago.delete("/subscriptions/org_1").json()["code"] == "subscription_not_found"
    second = subscribe(lago, "starter").json()["subscription"]
    assert second["lago_id"] != first["lago_id"]
    assert second["previous_plan_code"] is None
    lago.delete("/subscriptions/org_1", params={"on_termination_credit_note": "skip"})
    assert [reason for reason, _ in reasons(sandbox)] == [
        "subscription_create",
        "termination_credit",
        "subscription_create",
    ]
    bad = subscribe(lago, "starter") and lago.delete("/subscriptions/org_1?on_termination_credit_note=all")
    assert details(bad) == {"on_termination_credit_note": ["invalid_value"]}


def test_the_subscription_id_of_another_customer_is_refused_but_its_new_customer_stays(lago: httpx.Client) -> None:
    subscribe(lago, "starter")
    answer = subscribe(lago, "starter", external_customer_id="org_2")
    assert details(answer) == {"external_id": ["value_already_exist"]}
    assert lago.get("/customers/org_2").status_code == 200


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"plan_code": "none"}, 404, "plan_not_found"),
        ({"subscription_at": "soon"}, 422, "validation_errors"),
        ({"plan_overrides": {"amount_cents": 1}}, 403, "feature_unavailable"),
        ({"external_customer_id": " "}, 422, "validation_errors"),
        ({"external_id": " "}, 422, "validation_errors"),
        ({"billing_time": "weekly"}, 422, "validation_errors"),
    ],
)
def test_a_wrong_subscription_is_refused(lago: httpx.Client, fields: dict[str, Any], status: int, code: str) -> None:
    body = {"external_customer_id": "org_1", "external_id": "org_1", "plan_code": "starter", **fields}
    answer = lago.post("/subscriptions", json={"subscription": body})
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_ids_are_trimmed_by_subscriptions_and_not_by_customers(lago: httpx.Client) -> None:
    upsert(lago, " org_9 ")
    made = subscribe(lago, "starter", " org_9 ", external_customer_id=" org_9 ").json()["subscription"]
    assert (made["external_id"], made["external_customer_id"]) == ("org_9", "org_9")
    assert lago.get("/customers").json()["meta"]["total_count"] == 2


def test_status_counts_only_with_brackets(lago: httpx.Client) -> None:
    subscribe(lago, "professional")
    subscribe(lago, "starter")

    def codes(query: str) -> list[str]:
        found = lago.get(f"/subscriptions?external_customer_id=org_1&{query}").json()["subscriptions"]
        return sorted(each["plan_code"] for each in found)

    assert codes("") == codes("status=pending") == ["professional"]
    assert codes("status[]=pending") == ["starter"]
    assert (
        codes("status%5B%5D=pending&status%5B%5D=active") == codes("status[]=whatever") == ["professional", "starter"]
    )
    assert codes("status[]=active&plan_code=starter") == []
    assert lago.get("/subscriptions?external_customer_id=nobody").json()["subscriptions"] == []
    assert lago.get("/customers/org_1/subscriptions").json()["meta"]["total_count"] == 1
    assert lago.get("/customers/nobody/subscriptions").json()["code"] == "customer_not_found"


def test_currency_is_locked_up_to_1_51_and_free_later(lago: httpx.Client, sandbox: SandboxClient) -> None:
    upsert(lago, currency="EUR")
    sandbox.settings(lago_currency_locked=True)
    assert details(subscribe(lago, "starter")) == {"currency": ["currencies_does_not_match"]}
    sandbox.settings(lago_currency_locked=False)
    assert subscribe(lago, "starter").status_code == 200
    sandbox.settings(lago_currency_locked=True)
    assert details(upsert(lago, currency="USD")) == {"currency": ["currencies_does_not_match"]}


def test_usage_needs_an_active_subscription(lago: httpx.Client) -> None:
    query = {"external_subscription_id": "org_1"}
    assert lago.get("/customers/org_1/current_usage", params=query).json()["code"] == "resource_not_found"
    upsert(lago)
    refused = lago.get("/customers/org_1/current_usage", params=query)
    assert (refused.status_code, refused.json()["code"]) == (405, "no_active_subscription")
    subscribe(lago, "starter")
    assert lago.get("/customers/org_1/current_usage", params=query).json()["customer_usage"]["amount_cents"] == 0


def test_a_year_renews_in_order(lago: httpx.Client, sandbox: SandboxClient) -> None:
    sandbox.set_clock(datetime(2027, 1, 31, 7, tzinfo=UTC))
    subscribe(lago, "starter", billing_time="anniversary")
    sandbox.advance(timedelta(days=365))
    assert [charge["at"][:10] for charge in sandbox.charges()][:4] == [
        "2027-01-31",
        "2027-02-28",
        "2027-03-31",
        "2027-04-30",
    ]
    assert len(sandbox.charges()) == 13


# --- the SDK


def test_the_official_client_works_against_it(server: Sandbox, sandbox: SandboxClient) -> None:
    client: Any = Client(api_key="lago_key", api_url=server.url)  # its own types are wrong (lago.md 1.4)
    made = client.customers.create(Customer.parse_obj({"external_id": "org_1", "name": "Acme"}))
    assert made is not None
    assert client.customers.find("org_1").lago_id == made.lago_id
    wanted = {"external_customer_id": "org_1", "external_id": "org_1"}
    subscription = client.subscriptions.create(Subscription.parse_obj({**wanted, "plan_code": "professional"}))
    assert subscription is not None
    assert subscription.status == "active"
    client.subscriptions.create(Subscription.parse_obj({**wanted, "plan_code": "starter"}))
    assert client.subscriptions.destroy("org_1", {"status": "pending"}).status == "canceled"
    assert client.plans.find("starter").amount_cents == 1900
    assert [each.external_id for each in client.subscriptions.find_all({})["subscriptions"]] == ["org_1"]
    with pytest.raises(LagoApiError) as error:
        client.customers.find("nobody")
    assert (error.value.status_code, error.value.response["code"]) == (404, "customer_not_found")
    assert sandbox.counters().lago.of("POST /api/v1/subscriptions") == 2


def test_applied_coupons_are_listed_by_customer_status_and_code(sandbox: SandboxClient, lago: httpx.Client) -> None:
    for number in (1, 2):
        sandbox.preload_lago_customers([{"external_id": f"org_{number}"}])
        coupon = {"coupon_code": f"c{number}", "percentage_rate": "20.0"}
        sandbox.create("lago", "applied_coupons", external_customer_id=f"org_{number}", **coupon)
    for path, codes in (
        ("applied_coupons", {"c1", "c2"}),
        ("applied_coupons?external_customer_id=org_1", {"c1"}),
        ("applied_coupons?coupon_code[]=c2", {"c2"}),
        ("applied_coupons?status=terminated", set()),
        ("customers/org_2/applied_coupons", {"c2"}),
    ):
        found = lago.get(f"/{path}").json()["applied_coupons"]
        assert {each["coupon_code"] for each in found} == codes
