"""A subscription with an activation rule is incomplete until its first payment, as lago.md 5.4 has it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import pytest

from sandbox.client import SandboxClient

RULE = [{"type": "payment", "timeout_hours": 24}]


@pytest.fixture(autouse=True)
def customer(sandbox: SandboxClient) -> None:
    shared = {"name": "Plan", "interval": "monthly", "amount_currency": "USD", "pay_in_advance": True}
    sandbox.preload_lago_plans(
        [
            {**shared, "code": "starter", "amount_cents": 1900},
            {**shared, "code": "pro", "amount_cents": 4900},
            {**shared, "code": "late", "amount_cents": 9900, "pay_in_advance": False},
        ]
    )
    sandbox.preload_stripe_customers([{"id": "cus_1", "name": "Acme"}])
    link = {"payment_provider": "stripe", "payment_provider_code": "stripe_main", "provider_customer_id": "cus_1"}
    sandbox.preload_lago_customers([{"external_id": "org_1", "name": "Acme", "billing_configuration": link}])


def subscribe(lago: httpx.Client, plan_code: str, **fields: object) -> httpx.Response:
    body = {"external_customer_id": "org_1", "external_id": "org_1", "plan_code": plan_code, **fields}
    return lago.post("/subscriptions", json={"subscription": body})


def gate(lago: httpx.Client, plan_code: str = "pro", **fields: object) -> dict[str, Any]:
    made: dict[str, Any] = subscribe(lago, plan_code, activation_rules=RULE, **fields).json()["subscription"]
    return made


def statuses(sandbox: SandboxClient) -> list[tuple[str, str]]:
    rows = sorted(sandbox.state()["lago"]["subscriptions"], key=lambda row: str(row["plan_code"]), reverse=True)
    return [(row["plan_code"], row["status"]) for row in rows]


def pay(sandbox: SandboxClient, status: str) -> None:
    sandbox.patch("lago", "subscriptions", "org_1", first_payment=status)


def test_no_usual_list_has_it_and_no_request_ends_or_changes_it(lago: httpx.Client, sandbox: SandboxClient) -> None:
    made = gate(lago)
    assert (made["status"], made["activated_at"], made["started_at"] is not None) == ("incomplete", None, True)
    assert [rule["status"] for rule in made["activation_rules"]] == ["pending"]
    assert lago.get("/subscriptions/org_1").status_code == 404
    found = lago.get("/subscriptions/org_1", params={"status": "incomplete"}).json()["subscription"]
    assert found["lago_id"] == made["lago_id"]
    usual = lago.get("/subscriptions", params={"status[]": ["active", "pending"]}).json()["subscriptions"]
    assert usual == []
    listed = lago.get("/subscriptions", params={"status[]": ["active", "incomplete"]}).json()["subscriptions"]
    assert [row["lago_id"] for row in listed] == [made["lago_id"]]
    for query in ({}, {"status": "pending"}, {"status": "incomplete"}):
        assert lago.delete("/subscriptions/org_1", params=query).json()["code"] == "subscription_not_found"
    changed = lago.put("/subscriptions/org_1", json={"subscription": {"name": "Main"}})
    assert (changed.status_code, changed.json()["code"]) == (405, "subscription_incomplete")
    for plan_code in ("pro", "starter"):
        answer = subscribe(lago, plan_code)
        assert answer.json()["error_details"] == {"subscription": ["subscription_incomplete"]}
    assert (statuses(sandbox), sandbox.charges()) == ([("pro", "incomplete")], [])


def test_the_first_payment_activates_it_and_a_failed_one_cancels_it(lago: httpx.Client, sandbox: SandboxClient) -> None:
    gate(lago)
    pay(sandbox, "failed")
    canceled = lago.get("/subscriptions/org_1", params={"status": "canceled"}).json()["subscription"]
    assert canceled["cancellation_reason"] == "payment_failed"
    gate(lago)
    pay(sandbox, "succeeded")
    active = lago.get("/subscriptions/org_1").json()["subscription"]
    assert [rule["status"] for rule in active["activation_rules"]] == ["satisfied"]
    assert [charge["reason"] for charge in sandbox.charges()] == ["subscription_create"]


def test_the_old_plan_goes_on_until_a_gated_upgrade_is_paid(lago: httpx.Client, sandbox: SandboxClient) -> None:
    subscribe(lago, "starter")
    gate(lago)
    assert statuses(sandbox) == [("starter", "active"), ("pro", "incomplete")]
    active = lago.get("/subscriptions/org_1").json()["subscription"]
    assert (active["plan_code"], active["next_plan_code"], active["downgrade_plan_date"]) == ("starter", "pro", None)
    ended = lago.delete("/subscriptions/org_1")
    assert ended.json()["error_details"] == {"base": ["next_subscription_incomplete"]}
    pay(sandbox, "succeeded")
    assert statuses(sandbox) == [("starter", "terminated"), ("pro", "active")]
    assert [charge["reason"] for charge in sandbox.charges()] == ["subscription_create", "upgrade_credit", "upgrade"]
    assert lago.delete("/subscriptions/org_1").json()["subscription"]["status"] == "terminated"


def test_a_rule_expires_in_the_next_job_after_its_timeout(lago: httpx.Client, sandbox: SandboxClient) -> None:
    subscribe(lago, "starter")
    gate(lago)
    sandbox.advance(timedelta(hours=23))
    assert statuses(sandbox) == [("starter", "active"), ("pro", "incomplete")]
    sandbox.advance(timedelta(hours=2))
    assert statuses(sandbox) == [("starter", "active"), ("pro", "canceled")]
    canceled = lago.get("/subscriptions/org_1", params={"status": "canceled"}).json()["subscription"]
    assert canceled["cancellation_reason"] == "timeout"
    assert lago.get("/subscriptions/org_1").json()["subscription"]["next_plan_code"] is None


def test_a_gated_downgrade_waits_at_the_periods_end(lago: httpx.Client, sandbox: SandboxClient) -> None:
    subscribe(lago, "pro")
    assert gate(lago, "starter")["next_plan_code"] == "starter"
    assert statuses(sandbox) == [("starter", "pending"), ("pro", "active")]
    sandbox.advance(timedelta(days=35))
    assert statuses(sandbox) == [("starter", "canceled"), ("pro", "active")]


def test_a_rule_does_not_apply_to_a_plan_that_is_paid_in_arrears(lago: httpx.Client) -> None:
    made = gate(lago, "late")
    assert (made["status"], made["activation_rules"][0]["status"]) == ("active", "not_applicable")


@pytest.mark.parametrize(
    ("fields", "details"),
    [
        ({"activation_rules": [{"type": "approval"}]}, {"activation_rules": ["invalid_type"]}),
        (
            {"activation_rules": [{"type": "payment", "timeout_hours": -1}]},
            {"timeout_hours": ["value_must_be_positive_or_zero"]},
        ),
        (
            {"activation_rules": RULE, "payment_method": {"payment_method_type": "manual"}},
            {"customer": ["manual_payment_method_invalid_for_payment_activation_rules"]},
        ),
        (
            {"activation_rules": RULE, "external_customer_id": "org_2"},
            {"customer": ["no_linked_payment_provider"]},
        ),
    ],
)
def test_a_rule_that_cannot_work_is_refused(
    lago: httpx.Client, fields: dict[str, Any], details: dict[str, list[str]]
) -> None:
    assert subscribe(lago, "pro", **fields).json()["error_details"] == details


def test_a_plan_change_does_not_keep_how_it_is_paid(lago: httpx.Client) -> None:
    manual = {"payment_method": {"payment_method_type": "manual"}}
    assert subscribe(lago, "starter", **manual).json()["subscription"]["payment_method"] == {
        "payment_method_id": None,
        "payment_method_type": "manual",
    }
    upgraded = subscribe(lago, "pro").json()["subscription"]
    assert upgraded["payment_method"]["payment_method_type"] == "provider"
    kept = lago.put("/subscriptions/org_1", json={"subscription": manual}).json()["subscription"]
    assert kept["payment_method"]["payment_method_type"] == "manual"
