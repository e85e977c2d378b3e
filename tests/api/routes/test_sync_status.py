"""Receipts over HTTP: in sync only when both billers hold the change; a wait ends as soon as they do."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import update

from core.common.clock import utc_now
from core.db.models.billing_links import BillingLink
from core.db.models.providers import BreakerReason, ProviderStatus
from tests.support.api_client import Api
from tests.support.waiting import PATIENCE_SECONDS


def mark_synced(api: Api, org_id: str, provider: str, version: int) -> None:
    """What a finished round leaves in the link's row."""
    with api.database.write() as session:
        session.execute(
            update(BillingLink)
            .where(BillingLink.org_id == org_id, BillingLink.provider == provider)
            .values(applied_version=version, customer_state="applied", synced_at=utc_now(), attempts=0)
        )


def test_a_receipt_is_in_sync_when_both_billers_hold_the_change(api: Api) -> None:
    org_id = api.organization(u1="member")
    path = f"/api/organizations/{org_id}/sync"
    queued = api.get(path, api.as_("u1"), version=1).json()
    assert (queued["latest_version"], queued["version"], queued["in_sync"]) == (1, 1, False)
    assert {each["status"] for each in queued["providers"].values()} == {"queued"}
    mark_synced(api, org_id, "stripe", 1)
    half = api.get(path, api.as_("u1")).json()
    assert (half["in_sync"], half["providers"]["stripe"]["in_sync"]) == (False, True)
    assert half["providers"]["stripe"]["since"] is not None
    assert half["providers"]["lago"]["next_step"] is not None
    mark_synced(api, org_id, "lago", 1)
    assert api.get(path, api.as_("u1"), version=1).json()["in_sync"] is True


@pytest.mark.parametrize(("subscription_id", "is_left"), [(None, True), ("sub_1", False)])
def test_credit_is_shown_with_whether_an_invoice_will_use_it(
    api: Api, subscription_id: str | None, *, is_left: bool
) -> None:
    org_id = api.organization(u1="owner", u2="member")
    mark_synced(api, org_id, "lago", 1)
    with api.database.write() as session:
        session.execute(
            update(BillingLink)
            .where(BillingLink.org_id == org_id, BillingLink.provider == "stripe")
            .values(credit_amount=3206, credit_currency="USD", credit_since=utc_now(), subscription_id=subscription_id)
        )
    providers = api.get(f"/api/organizations/{org_id}/sync", api.as_("u1")).json()["providers"]
    shown = providers["stripe"]["credit"]
    assert (shown.pop("since") is not None, shown) == (True, {"amount": 3206, "currency": "USD", "is_left": is_left})
    assert providers["lago"]["credit"] is None
    to_member = api.get(f"/api/organizations/{org_id}/sync", api.as_("u2")).json()["providers"]["stripe"]
    assert (to_member["credit"], to_member["payment"]) == (None, None)


def test_a_wait_ends_as_soon_as_both_hold_it(api: Api) -> None:
    org_id = api.organization(u1="owner")
    mark_synced(api, org_id, "stripe", 1)
    later = threading.Timer(0.5, mark_synced, (api, org_id, "lago", 1))
    began = time.monotonic()
    later.start()
    answer = api.get(f"/api/organizations/{org_id}/sync", api.as_("u1"), version=1, wait="30s")
    later.join()
    assert answer.json()["in_sync"] is True
    assert 0.4 < time.monotonic() - began < 15


def test_a_wait_ends_as_soon_as_the_organization_was_observed(api: Api) -> None:
    """Nothing more comes by itself, so nobody waits for it."""
    org_id = api.organization(u1="member")

    def observe() -> None:
        time.sleep(0.3)
        with api.database.write() as session:
            session.execute(update(BillingLink).where(BillingLink.org_id == org_id).values(state="observed"))

    thread = threading.Thread(target=observe)
    thread.start()
    began = time.monotonic()
    answer = api.get(f"/api/organizations/{org_id}/sync", api.as_("u1"), version=1, wait="30s").json()
    thread.join()
    assert time.monotonic() - began < PATIENCE_SECONDS
    assert answer["in_sync"] is False
    at_stripe = answer["providers"]["stripe"]
    assert (at_stripe["status"], at_stripe["reason"]) == (
        "observed",
        "The organization is observed: nothing is written at Stripe.",
    )


def test_a_wait_ends_when_its_time_is_over(api: Api) -> None:
    org_id = api.organization(u1="owner")
    began = time.monotonic()
    answer = api.get(f"/api/organizations/{org_id}/sync", api.as_("u1"), wait="1s")
    assert answer.json()["in_sync"] is False
    assert time.monotonic() - began >= 1


@pytest.mark.slow
def test_many_who_wait_keep_nobody_from_being_answered(api: Api) -> None:
    org_id = api.organization(u1="owner")
    headers = api.as_("u1")
    waiting = [
        threading.Thread(
            target=api.get, args=(f"/api/organizations/{org_id}/sync", headers), kwargs={"wait": "30s"}, daemon=True
        )
        for _ in range(60)
    ]
    for each in waiting:
        each.start()
    time.sleep(0.5)
    began = time.monotonic()
    assert api.get("/healthz").is_success
    assert api.get(f"/api/organizations/{org_id}", headers).is_success
    assert time.monotonic() - began < 15
    for provider in ("stripe", "lago"):
        mark_synced(api, org_id, provider, 1)
    for each in waiting:
        each.join(PATIENCE_SECONDS)


def test_a_change_that_is_not_there_yet_and_a_wait_without_end_are_refused(api: Api) -> None:
    org_id = api.organization(u1="owner")
    nonsense = [("version", "2"), ("version", "0"), ("version", "x"), ("wait", "31s"), ("wait", "1h"), ("wait", "-1")]
    for name, word in nonsense:
        params = {name: word}
        assert api.get(f"/api/organizations/{org_id}/sync", api.as_("u1"), **params).status_code == 422, params


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_person_reads_why_and_a_service_the_billers_own_words_too(api: Api) -> None:
    org_id = api.organization(u1="owner")
    secret = "customer of org_somebody_else"
    with api.database.write() as session:
        session.execute(
            update(BillingLink).values(
                state="parked", error_kind="rejected", error_code="customer_id_in_use", error_message=secret
            )
        )
    path = f"/api/organizations/{org_id}/sync"
    response = api.get(path, api.as_("u1"))
    stripe = response.json()["providers"]["stripe"]
    assert (stripe["status"], stripe["reason"]) == ("parked", "The sync with Stripe cannot continue automatically.")
    assert (stripe["error"]["code"], stripe["error"]["message"]) == ("customer_id_in_use", None)
    assert secret not in response.text
    assert secret in api.get(path, api.as_service()).text


@pytest.mark.parametrize(
    ("reason", "why", "step"),
    [
        ("unavailable", "Stripe does not respond.", "It resumes automatically once Stripe responds."),
        (
            "misconfigured",
            "Stripe rejects our API key or settings.",
            "An operator must correct the setting. Then it resumes automatically.",
        ),
        (
            "wrong_account",
            "Our API key belongs to another Stripe account.",
            "An operator must set the right API key. Nothing is sent before.",
        ),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_user_reads_whether_the_provider_or_an_operator_must_act(
    api: Api, reason: BreakerReason, why: str, step: str
) -> None:
    org_id = api.organization(u1="owner")
    with api.database.write() as session:
        row = session.get_one(ProviderStatus, "stripe")
        row.breaker_reason, row.breaker_message, row.open_since = reason, "no", utc_now()
    stripe = api.get(f"/api/organizations/{org_id}/sync", api.as_("u1")).json()["providers"]["stripe"]
    assert (stripe["status"], stripe["reason"], stripe["next_step"]) == ("provider_down", why, step)
