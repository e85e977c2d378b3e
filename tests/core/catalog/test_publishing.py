"""The catalog against what the billers sell: the missing is put on sale once, what exists is never changed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.catalog import publishing
from core.catalog.plans import Catalog
from core.ports.errors import ProviderError
from tests.support.sync_world import SyncWorld


def test_a_pushed_catalog_is_sold_as_it_says_and_pushing_again_makes_nothing(world: SyncWorld) -> None:
    providers = world.providers.values()
    assert all(offering.problem is None for offering in publishing.check(world.catalog, providers))
    before = world.sandbox.state()
    assert not any(offering.added for offering in publishing.publish(world.catalog, providers))
    assert world.sandbox.state() == before


def test_stripe_sells_only_what_it_charges_for(world: SyncWorld) -> None:
    assert world.stripe_objects("prices") == []
    world.set_charging_provider("stripe", "enterprise")
    assert [price["lookup_key"] for price in world.stripe_objects("prices")] == ["enterprise_monthly_usd"]


def test_lago_gets_a_plan_of_amount_0_where_stripe_charges(world: SyncWorld) -> None:
    starter = world.catalog.plan("starter").model_copy(update={"lago_usage_plan_code": "starter_usage"})
    world.catalog = world.catalog.model_copy(update={"plans": {**world.catalog.plans, "starter": starter}})
    publishing.publish(world.catalog, world.providers.values())
    assert "starter_usage" not in [each["code"] for each in world.lago_objects("plans")]
    world.set_charging_provider("stripe")
    (made,) = [each for each in world.lago_objects("plans") if each["code"] == "starter_usage"]
    assert (made["amount_cents"], made["amount_currency"], made["interval"]) == (0, "USD", "monthly")
    assert all(each.problem is None for each in publishing.check(world.catalog, world.providers.values()))
    world.sandbox.patch("lago", "plans", "starter_usage", amount_cents=100)
    (found,) = [
        each for each in publishing.check(world.catalog, world.providers.values()) if each.code == "starter_usage"
    ]
    assert (found.tier, found.problem) == ("starter", "amount is 100 at the provider but 0 in the catalog")


def test_what_is_missing_is_named_before_and_made_by_a_push(world: SyncWorld) -> None:
    world.sandbox.reset()
    found = publishing.check(world.catalog, world.providers.values())
    assert {(each.provider, each.missing, each.problem) for each in found} == {
        ("lago", True, "no such price at the provider")
    }
    assert [each.tier for each in found] == world.catalog.tiers()
    publishing.publish(world.catalog, world.providers.values())
    assert all(each.problem is None for each in publishing.check(world.catalog, world.providers.values()))


def test_a_price_that_differs_is_named_and_left_alone(world: SyncWorld) -> None:
    dearer = world.catalog.plan("starter").model_copy(update={"amount": 2900, "currency": "EUR"})
    wanted = world.catalog.model_copy(update={"plans": {**world.catalog.plans, "starter": dearer}})
    before = world.sandbox.state()
    (starter,) = [each for each in publishing.publish(wanted, world.providers.values()) if each.tier == "starter"]
    assert starter.problem == (
        "amount is 1900 at the provider but 2900 in the catalog; currency is USD at the provider but EUR in the catalog"
    )
    assert not starter.missing
    assert world.sandbox.state() == before


def test_a_biller_that_cannot_be_asked_is_never_taken_for_missing(world: SyncWorld) -> None:
    world.sandbox.add_fault("lago", "*", "500_before", times=0)
    with pytest.raises(ProviderError):
        publishing.check(world.catalog, world.providers.values())
    asked = world.count_requests()
    statuses = publishing.publish(world.catalog, world.providers.values())
    assert not any(each.added or each.missing or each.problem is None for each in statuses)
    assert {each.provider for each in statuses if each.unknown} == {"lago"}
    assert world.count_requests() == asked, "it is asked for one plan, and not for each"
    world.sandbox.clear_faults()
    posts = [call for call in world.sandbox.calls("lago") if call.method == "POST"]
    assert posts == []


def test_a_price_that_is_refused_does_not_keep_the_others_from_being_made(world: SyncWorld) -> None:
    world.sandbox.reset()
    refused = (
        '{"status": 422, "error": "Unprocessable", "code": "validation_errors", "error_details": {"name": ["no"]}}'
    )
    world.sandbox.add_fault("lago", "POST /api/v1/plans", "status", status=422, body=refused)
    statuses = publishing.publish(world.catalog, world.providers.values())
    assert [each.added for each in statuses] == [False, *[True] * (len(statuses) - 1)]
    assert statuses[0].missing
    assert statuses[0].problem is not None
    assert next(each.added for each in publishing.publish(world.catalog, world.providers.values()))


def test_a_lookup_key_of_an_archived_price_is_named_with_the_price(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    (price,) = [row for row in world.stripe_objects("prices") if row["lookup_key"] == "starter_monthly_usd"]
    world.sandbox.patch("stripe", "prices", str(price["id"]), active=False)
    found = publishing.publish(world.catalog, world.providers.values())
    (starter,) = [each for each in found if each.code == "starter_monthly_usd"]
    assert starter.problem == (
        f"the archived price {price['id']} has the lookup key starter_monthly_usd; remove it there in Stripe"
    )


def not_offered(world: SyncWorld, tier: str) -> Catalog:
    plan = world.catalog.plan(tier).model_copy(update={"offered": False})
    return world.catalog.model_copy(update={"plans": {**world.catalog.plans, tier: plan}})


def test_what_is_sold_no_longer_need_not_be_there_and_is_not_made(world: SyncWorld) -> None:
    catalog = not_offered(world, "starter")
    world.sandbox.reset()
    published = publishing.publish(catalog, world.providers.values())
    assert [each.tier for each in published if each.sold_no_longer] == ["starter"]
    assert all(each.problem is None for each in published)
    assert "starter" not in {row["code"] for row in world.lago_objects("plans")}
    assert publishing.check(catalog, world.providers.values()) == [replace(each, added=False) for each in published]


def test_what_is_sold_no_longer_and_differs_is_named(world: SyncWorld) -> None:
    catalog = not_offered(world, "starter")
    world.sandbox.patch("lago", "plans", "starter", amount_cents=2900)
    (starter,) = [each for each in publishing.check(catalog, world.providers.values()) if each.tier == "starter"]
    assert starter.problem == "amount is 2900 at the provider but 1900 in the catalog"


def test_lago_gets_the_plan_of_a_price_that_stripe_sells_no_longer(world: SyncWorld) -> None:
    """Organizations stay on it, and each has a subscription in Lago that charges nobody."""
    world.set_charging_provider("stripe", "starter")
    catalog = not_offered(world, "starter")
    world.sandbox.reset()
    publishing.publish(catalog, world.providers.values())
    assert "starter" in {row["code"] for row in world.lago_objects("plans")}
    assert "starter_monthly_usd" not in {row["lookup_key"] for row in world.stripe_objects("prices")}
