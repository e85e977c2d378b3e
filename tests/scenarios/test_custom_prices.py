"""A subscription at a price of its own in Lago: another plan under the same code. No request sets it to the list price.

Lago calls it an override. Its plan is a hidden child of the catalog's, and a POST of the code is a plan change.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from core.catalog import publishing
from core.catalog.plans import FormerCodes
from core.compare.findings import DriftItem
from core.reconcile import commands
from tests.support.drift_harness import DriftHarness
from tests.support.provider_webhooks import check_after_webhook
from tests.support.sync_world import SyncWorld, kill_worker

OWN_PRICE = 2900


@pytest.fixture
def org_id(world: SyncWorld) -> str:
    """On professional at a price of its own, below the list price: a POST of its code would be an upgrade at once."""
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    override(world, org_id)
    return org_id


def override(world: SyncWorld, org_id: str, amount: int = OWN_PRICE) -> None:
    world.sandbox.patch("lago", "subscriptions", org_id, plan_overrides={"amount_cents": amount})
    world.sandbox.reset_calls()
    world.wait(10)


def price_and_plans(world: SyncWorld, org_id: str) -> tuple[object, str | None, str | None]:
    """What Lago bills, and the plans that we read there."""
    (active,) = [
        row for row in world.lago_objects("subscriptions") if row["external_id"] == org_id and row["status"] == "active"
    ]
    (found,) = world.providers["lago"].reader.read(org_id, [str(world.link(org_id, "lago").customer_id)]).subscriptions
    return active["plan_amount_cents"], found.plan_code, found.next_plan_code


def retry(world: SyncWorld, org_id: str) -> None:
    world.change(org_id, commands.retry)


def rename(world: SyncWorld, org_id: str) -> None:
    world.rename(org_id, "Globex")


def schedule_and_cancel(world: SyncWorld, org_id: str) -> None:
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    assert price_and_plans(world, org_id) == (OWN_PRICE, "professional", "starter")
    world.wait(10)
    world.change_plan(org_id, "professional")


def die_in_a_downgrade_and_cancel_it(world: SyncWorld, org_id: str) -> None:
    world.change_plan(org_id, "starter")
    world.providers["lago"].before_subscription = kill_worker
    world.run_until_killed(org_id, "lago")
    world.expire_lease()
    world.change_plan(org_id, "professional")


@pytest.mark.parametrize("change", [rename, retry, schedule_and_cancel, die_in_a_downgrade_and_cancel_it])
def test_a_price_of_its_own_stays(world: SyncWorld, org_id: str, change: Callable[[SyncWorld, str], None]) -> None:
    charged = world.sandbox.charges()
    change(world, org_id)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert price_and_plans(world, org_id) == (OWN_PRICE, "professional", None)
    assert world.sandbox.charges() == charged


def test_a_plan_that_somebody_gave_it_at_a_price_of_its_own_is_not_ordered_again(world: SyncWorld) -> None:
    """Sales moves it to enterprise at its own price in Lago, and then changes the plan here."""
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    world.sandbox.patch("lago", "subscriptions", org_id, plan_code="enterprise")
    override(world, org_id)
    charged = world.sandbox.charges()
    world.change_plan(org_id, "enterprise")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert price_and_plans(world, org_id) == (OWN_PRICE, "enterprise", None)
    assert world.sandbox.charges() == charged


def test_a_lower_plan_that_somebody_gave_it_at_a_price_of_its_own_is_not_ordered_again(world: SyncWorld) -> None:
    org_id = world.create(plan_tier="enterprise")
    world.reconcile_until_idle(org_id)
    world.sandbox.patch("lago", "subscriptions", org_id, plan_code="professional")
    world.advance_time(days=32)
    override(world, org_id)
    charged = world.sandbox.charges()
    world.change_plan(org_id, "professional")
    world.reconcile_until_idle(org_id)
    assert world.organization(org_id).plan_tier == "professional"
    assert price_and_plans(world, org_id) == (OWN_PRICE, "professional", None)
    assert world.sandbox.charges() == charged


def test_a_downgrade_to_a_plan_above_its_own_price_sends_nothing_and_is_parked(world: SyncWorld, org_id: str) -> None:
    override(world, org_id, amount=900)
    charged = world.sandbox.charges()
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    assert world.sandbox.charges() == charged
    assert price_and_plans(world, org_id)[0] == 900
    link = world.link(org_id, "lago")
    assert link.state == "parked"
    assert "it pays 9.00 USD for professional in Lago, no more than for starter" in str(link.error_message)


def test_a_price_of_its_own_has_not_drifted(world: SyncWorld, org_id: str, drift_harness: DriftHarness) -> None:
    world.advance_time(minutes=5)
    report: list[DriftItem] = drift_harness.drifts(drift_harness.check())
    assert [each for each in report if each.findings] == []
    assert price_and_plans(world, org_id)[0] == OWN_PRICE


def pass_the_switch(world: SyncWorld, org_id: str) -> None:
    day = world.organization(org_id).plan_effective_at
    assert day is not None
    world.advance_time(seconds=(day - world.now).total_seconds() + 720)  # Lago's job is at ten past
    assert price_and_plans(world, org_id)[1] == "starter"


def take_back_after_the_switch(world: SyncWorld, org_id: str) -> None:
    """The downgrade took effect in Lago, and nobody here knows: no webhook came, and the link was not checked yet."""
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    pass_the_switch(world, org_id)
    world.change_plan(org_id, "professional")
    world.reconcile_until_idle(org_id)


def test_a_downgrade_taken_back_too_late_does_not_sell_the_list_price_without_a_word(world: SyncWorld) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    override(world, org_id)
    world.rename(org_id, "Globex")  # the link learns the price
    world.reconcile_until_idle(org_id)
    take_back_after_the_switch(world, org_id)
    link = world.link(org_id, "lago")
    assert (link.state, link.error_code) == ("on_hold", "other_terms")
    assert "29.00 USD" in str(link.error_message)
    assert "49.00 USD" in str(link.error_message)
    assert price_and_plans(world, org_id)[1] == "starter"
    world.keep_ours(org_id)
    world.wait(10)
    world.reconcile_until_idle(org_id)
    assert price_and_plans(world, org_id) == (4900, "professional", None)
    assert world.is_in_sync(org_id)


def test_a_downgrade_from_the_list_price_that_is_taken_back_too_late_is_an_upgrade(world: SyncWorld) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    take_back_after_the_switch(world, org_id)
    assert price_and_plans(world, org_id) == (4900, "professional", None)
    assert world.is_in_sync(org_id)


def test_the_price_of_a_former_code_is_the_one_that_lago_has(world: SyncWorld) -> None:
    """The plan was sold under a code that is not sold any more, at a price of its own."""
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    override(world, org_id)
    world.rename(org_id, "Globex")
    world.reconcile_until_idle(org_id)
    plan = world.catalog.plan("professional")
    renamed = plan.model_copy(
        update={"lago_plan_code": "professional_2027", "former_codes": FormerCodes(lago=["professional"])}
    )
    world.catalog = world.catalog.model_copy(update={"plans": {**world.catalog.plans, "professional": renamed}})
    publishing.publish(world.catalog, world.providers.values())
    take_back_after_the_switch(world, org_id)
    assert (world.link(org_id, "lago").error_code, price_and_plans(world, org_id)[1]) == ("other_terms", "starter")


def test_a_plan_whose_price_was_changed_in_lago_is_not_sold_again_without_a_word(world: SyncWorld) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    pass_the_switch(world, org_id)
    world.sandbox.patch("lago", "plans", "professional", amount_cents=5900)
    world.change_plan(org_id, "professional")
    world.reconcile_until_idle(org_id)
    link = world.link(org_id, "lago")
    assert (link.error_code, price_and_plans(world, org_id)[1]) == ("other_terms", "starter")
    assert "it paid 49.00 USD for professional" in str(link.error_message)
    assert "costs 59.00 USD" in str(link.error_message)


def test_a_price_of_its_own_after_the_downgrade_was_scheduled_is_learned_by_a_check(world: SyncWorld) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    override(world, org_id)
    check_after_webhook(world, org_id, "lago")
    pass_the_switch(world, org_id)
    world.change_plan(org_id, "professional")
    world.reconcile_until_idle(org_id)
    assert (world.link(org_id, "lago").error_code, price_and_plans(world, org_id)[1]) == ("other_terms", "starter")
