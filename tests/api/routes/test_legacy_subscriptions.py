"""The older paths of plans: the organization of the header, the caller's words, and each way only for what it is."""

from __future__ import annotations

import pytest

from tests.support.api_client import Api

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

PREFIX = "/api/v1/subscriptions"


def test_plans_are_told_with_amounts_in_minor_units_lowest_first(api: Api) -> None:
    plans = api.get(f"{PREFIX}/plans", api.as_("u1")).json()["plans"]
    assert [(plan["tier_code"], plan["amount"], plan["currency"]) for plan in plans] == [
        ("founders_friend", 0, "USD"),
        ("starter", 1900, "USD"),
        ("professional", 4900, "USD"),
        ("enterprise", 9900, "USD"),
    ]


def test_each_way_takes_only_what_it_is(api: Api) -> None:
    org_id = api.organization("professional", u1="billing_admin")
    mine = api.as_("u1")
    for way, tier, kind in (
        ("upgrade", "professional", "not-an-upgrade"),
        ("upgrade", "starter", "not-an-upgrade"),
        ("downgrade", "enterprise", "not-a-downgrade"),
        ("downgrade", "professional", "not-a-downgrade"),
    ):
        refused = api.post(f"{PREFIX}/{way}", {"target_tier": tier}, mine)
        assert (refused.status_code, refused.json()["type"].rsplit(":", 1)[1]) == (409, kind), (way, tier)
    assert api.get(f"/api/organizations/{org_id}/sync", mine).json()["latest_version"] == 1
    down = api.post(f"{PREFIX}/downgrade", {"target_tier": "starter"}, mine).json()
    assert (down["success"], down["current_tier"], down["target_tier"]) == (True, "professional", "starter")
    assert down["effective_date"] is None
    told = api.get(f"{PREFIX}/current", mine).json()
    assert (told["tier"], told["pending_tier"], told["has_subscription"]) == ("professional", "starter", False)
    up = api.post(f"{PREFIX}/upgrade", {"target_tier": "enterprise"}, mine).json()
    assert (up["sync"], up["effective_date"] is not None) == ({"version": 3}, True)
    back = api.post(f"{PREFIX}/change", {"target_tier": "starter"}, mine).json()
    assert back["message"] == "The plan applies at the end of the period"


def test_a_change_asked_for_twice_under_one_key_is_made_once(api: Api) -> None:
    api.organization("starter", u1="owner")
    first, again = (
        api.post(f"{PREFIX}/upgrade", {"target_tier": "enterprise"}, api.as_("u1"), key="k1") for _ in range(2)
    )
    assert first.json() == again.json()


def test_a_key_is_not_taken_for_another_organization_of_the_header(api: Api) -> None:
    first, second = api.organization("starter", u1="owner"), api.organization("starter", u1="owner")
    answers = [
        api.post(
            f"{PREFIX}/upgrade", {"target_tier": "enterprise"}, api.as_("u1") | {"X-Organization-ID": each}, key="k"
        )
        for each in (first, second, first)
    ]
    assert [answer.status_code for answer in answers] == [200, 422, 200]
    assert answers[0].content == answers[2].content
    assert api.get(f"/api/organizations/{second}/sync", api.as_("u1")).json()["latest_version"] == 1


def test_the_header_names_the_organization_and_a_service_must_send_it(api: Api) -> None:
    api.organization("starter", u1="owner")
    second = api.organization("professional", u1="member")
    named = {"X-Organization-ID": second}
    assert api.get(f"{PREFIX}/current", api.as_("u1")).json()["tier"] == "starter"
    assert api.get(f"{PREFIX}/current", api.as_("u1") | named).json()["tier"] == "professional"
    assert api.post(f"{PREFIX}/change", {"target_tier": "starter"}, api.as_("u1") | named).status_code == 403
    service = api.as_service()
    unnamed = api.get(f"{PREFIX}/current", service)
    assert (unnamed.status_code, "header X-Organization-ID" in unnamed.json()["detail"]) == (404, True)
    homeless = api.get(f"{PREFIX}/current", api.as_("of no organization"))
    assert homeless.status_code == 404
    assert homeless.json()["detail"].startswith("You are not a member of any organization.")
    assert api.get(f"{PREFIX}/current", service | named).json()["tier"] == "professional"


def test_a_preview_says_the_same_as_the_newer_path(api: Api) -> None:
    org_id = api.organization("professional", u1="owner")
    old = api.get(f"{PREFIX}/preview-change", api.as_("u1"), target_tier="starter").json()
    new = api.post(f"/api/organizations/{org_id}/plan/preview", {"plan_tier": "starter"}, api.as_("u1")).json()
    assert (old["old_tier"], old["new_tier"], old["is_upgrade"]) == ("professional", "starter", False)
    assert old["preview"] == new
