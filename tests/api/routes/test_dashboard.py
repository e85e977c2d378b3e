"""The dashboard: everything of the caller's organizations at a glance, and usage that is never made up."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from sqlalchemy import update

from api.provider_queries import ProviderQueries
from api.usage import LocalCache
from core.catalog.plans import Catalog
from core.db.models.billing_links import BillingLink
from core.flow_control import circuit_breaker
from sandbox.server import Sandbox
from tests.support.api_client import Api
from tests.support.provider_queries import open_provider_queries
from tests.support.sync_world import SyncWorld
from worker.shared.cache import RedisCache


@pytest.fixture
def provider_queries(sandbox_server: Sandbox, plans: Catalog) -> Iterator[ProviderQueries]:
    with open_provider_queries(sandbox_server, plans) as opened:
        yield opened


one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

OPERATION = "GET /api/v1/customers/{id}/current_usage"
METRIC = {"lago_id": "m1", "name": "API calls", "code": "api_calls", "aggregation_type": "sum_agg"}
CHARGE = {
    "units": "12.0",
    "total_aggregated_units": "12.0",
    "events_count": 7,
    "amount_cents": 1200,
    "amount_currency": "USD",
    "charge": {"lago_id": "c1", "charge_model": "standard"},
    "billable_metric": METRIC,
    "filters": [],
    "grouped_usage": [],
}
USED = {
    "from_datetime": "2026-11-01T00:00:00Z",
    "to_datetime": "2026-11-30T23:59:59Z",
    "issuing_date": "2026-11-30",
    "currency": "USD",
    "amount_cents": 1200,
    "total_amount_cents": 1428,
    "taxes_amount_cents": 228,
    "charges_usage": [CHARGE],
}


def synced(api: Api, world: SyncWorld) -> str:
    org_id = api.organization("starter", u1="owner")
    world.reconcile_until_idle(org_id)
    world.count_requests()
    return org_id


def dashboard(api: Api, user_id: str = "u1", **headers: str) -> dict[str, Any]:
    answer = api.get("/api/dashboard", api.as_(user_id) | headers)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def test_it_counts_who_has_not_paid_and_whose_credit_is_left(api: Api) -> None:
    unpaid, left, charged = (api.organization(u1="owner") for _ in range(3))
    api.organization(u1="owner")
    values: dict[str, dict[str, object]] = {
        unpaid: {"payment_status": "failed"},
        left: {"credit_amount": 3206, "credit_currency": "USD"},
        charged: {"credit_amount": 500, "credit_currency": "USD", "subscription_id": "sub_1"},
    }
    with api.database.write() as session:
        for org_id, changed in values.items():
            link = (BillingLink.org_id == org_id, BillingLink.provider == "stripe")
            session.execute(update(BillingLink).where(*link).values(changed))
    shown = dashboard(api)
    assert (shown["count"], shown["unpaid"], shown["credit_left"]) == (4, 1, 1)


def test_it_shows_role_team_plan_what_waits_and_whether_both_billers_know(api: Api, world: SyncWorld) -> None:
    org_id = api.organization("professional", u1="owner", u2="member")
    world.reconcile_until_idle(org_id)
    api.send("PATCH", f"/api/organizations/{org_id}/plan", api.as_("u1"), {"plan_tier": "starter"})
    shown = dashboard(api, "u2")
    (row,) = shown["organizations"]
    assert (row["role"], row["team_size"], row["plan"], row["pending_plan"]) == ("member", 2, "professional", "starter")
    assert (row["sync"]["in_sync"], shown["current"]) == (False, org_id)
    world.reconcile_until_idle(org_id)
    (row,) = dashboard(api, "u2")["organizations"]
    assert (row["sync"]["in_sync"], row["plan_effective_at"] is not None) == (True, True)


@one_database
def test_usage_is_lagos_word_and_asked_for_once_in_a_while(api: Api, world: SyncWorld) -> None:
    synced(api, world)
    body = json.dumps({"customer_usage": USED})
    world.sandbox.add_fault("lago", OPERATION, "status", times=0, status=200, body=body)
    first, second = dashboard(api)["usage"], dashboard(api)["usage"]
    assert first == second
    assert (first["state"], first["currency"], first["amount"], first["reason"]) == ("known", "USD", 1200, None)
    assert first["metrics"] == [{"code": "api_calls", "name": "API calls", "units": "12.0", "amount": 1200}]
    assert world.count_requests() == (0, 1)


@one_database
def test_of_several_organizations_it_is_the_current_ones(api: Api, world: SyncWorld) -> None:
    synced(api, world)
    second, third = api.organization("starter", u1="billing_admin"), api.organization("starter", u1="member")
    assert dashboard(api)["usage"]["state"] == "known"
    assert dashboard(api, **{"X-Organization-ID": third})["usage"] is None
    assert dashboard(api, **{"X-Organization-ID": second})["usage"]["state"] == "none"
    assert dashboard(api, "nobody's")["usage"] is None


@one_database
def test_a_lago_that_is_away_is_said_to_be_away_and_holds_nobody_up(api: Api, world: SyncWorld) -> None:
    synced(api, world)
    world.sandbox.add_fault("lago", OPERATION, "hang", times=0, seconds=20)
    began = time.monotonic()
    usage = dashboard(api)["usage"]
    assert time.monotonic() - began < 10  # Lago would take 20
    assert (usage["state"], usage["amount"], usage["currency"], usage["metrics"]) == ("unavailable", None, None, [])
    assert usage["reason"] == "Lago, which measures usage, cannot be reached now."
    world.count_requests()
    assert dashboard(api)["usage"] == usage
    assert world.count_requests() == (0, 0)


@one_database
@pytest.mark.parametrize("kind", ["500_before", "401", "html_502", "429", "status"])
def test_whatever_lago_answers_the_dashboard_answers(api: Api, world: SyncWorld, kind: str) -> None:
    synced(api, world)
    world.sandbox.add_fault("lago", OPERATION, kind, times=0, status=200, body="{}")
    assert (dashboard(api)["usage"]["state"], dashboard(api)["count"]) == ("unavailable", 1)


@one_database
def test_a_lago_that_is_stopped_is_not_asked(api: Api, world: SyncWorld) -> None:
    synced(api, world)
    with world.database.write() as session:
        circuit_breaker.open_for_wrong_account(session, "lago", "the key is of another account", world.now)
    assert dashboard(api)["usage"]["state"] == "unavailable"
    assert world.count_requests() == (0, 0)


def test_a_shelf_keeps_for_its_time_and_no_more_than_it_holds() -> None:
    moment = [0.0]
    cache = LocalCache(lambda: moment[0], max_entries=2)
    for key in ("a", "b", "c"):
        cache.put(key, key, 10)
    assert [cache.get(key) for key in ("a", "b", "c")] == [None, "b", "c"]
    moment[0] = 10
    assert cache.get("c") is None


def test_a_shared_shelf_is_seen_by_all_and_does_without_redis(redis_url: str) -> None:
    first, second = RedisCache(redis_url, "test"), RedisCache(redis_url, "test")
    first.put("a", "1", 10)
    assert (second.get("a"), second.get("b")) == ("1", None)
    with redis.Redis.from_url(redis_url) as client:
        assert 9000 < client.pttl("billing-sync:test:a") <= 10000
    first.close()
    second.close()
    alone = RedisCache("redis://127.0.0.1:1/0", "test")
    began = time.monotonic()
    alone.put("a", "2", 10)
    assert alone.get("a") == "2"
    assert time.monotonic() - began < 2
    alone.close()
