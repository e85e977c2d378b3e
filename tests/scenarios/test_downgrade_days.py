"""Downgrades on the days on which a period ends, at the provider that charges and at the other one.

Stripe's period ends on any day, and Lago's on the first of the month.
"""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from core.catalog.plans import ChargingProvider
from core.reconcile import due_links
from tests.support.provider_webhooks import check_after_webhook
from tests.support.sync_world import SyncWorld

SOLD_AT = datetime(2031, 3, 10, 12, tzinfo=UTC)
ENDS_AT = datetime(2031, 4, 10, 12, 5, tzinfo=UTC)
BEFORE_LAGOS_MONTH_ENDS = datetime(2031, 3, 20, tzinfo=UTC)
AFTER_LAGOS_MONTH_ENDED = datetime(2031, 4, 5, tzinfo=UTC)


def move_clock(world: SyncWorld, moment: datetime) -> None:
    world.advance_time(seconds=(moment - world.now).total_seconds())


@pytest.mark.parametrize("asked_at", [BEFORE_LAGOS_MONTH_ENDS, AFTER_LAGOS_MONTH_ENDED])
def test_a_downgrade_in_stripe_parks_no_link(world: SyncWorld, asked_at: datetime) -> None:
    world.now = SOLD_AT
    world.sandbox.set_clock(SOLD_AT)
    world.set_charging_provider("stripe")
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    move_clock(world, asked_at)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    move_clock(world, ENDS_AT)
    due_links.recheck_due_downgrades(world.database, 10, world.now, world.management)
    world.reconcile_until_idle(org_id)
    assert world.organization(org_id).plan_tier == "starter"
    world.wait(30)
    world.reconcile_until_idle(org_id)
    assert [world.link(org_id, provider).state for provider in ("stripe", "lago")] == ["active", "active"]


def test_a_second_downgrade_while_lago_has_not_made_the_first_parks_no_link(world: SyncWorld) -> None:
    world.now = SOLD_AT
    world.sandbox.set_clock(SOLD_AT)
    world.set_charging_provider("stripe")
    org_id = world.create(plan_tier="enterprise")
    world.reconcile_until_idle(org_id)
    move_clock(world, AFTER_LAGOS_MONTH_ENDED)
    world.change_plan(org_id, "professional")
    world.reconcile_until_idle(org_id)
    move_clock(world, ENDS_AT)
    due_links.recheck_due_downgrades(world.database, 10, world.now, world.management)
    world.reconcile_until_idle(org_id)
    assert world.organization(org_id).plan_tier == "professional"
    world.wait(60)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    assert [world.link(org_id, provider).error_message for provider in ("stripe", "lago")] == [None, None]
    assert world.is_in_sync(org_id)
    world.sandbox.reset_calls()
    check_after_webhook(world, org_id, "lago")
    world.rename(org_id, "Globex")
    world.reconcile_until_idle(org_id)
    assert [world.link(org_id, provider).error_message for provider in ("stripe", "lago")] == [None, None]
    assert "POST /api/v1/subscriptions" not in [call.operation for call in world.sandbox.calls("lago")]
    move_clock(world, datetime(2031, 5, 11, 12, tzinfo=UTC))
    due_links.recheck_due_downgrades(world.database, 10, world.now, world.management)
    world.reconcile_until_idle(org_id)
    assert world.organization(org_id).plan_tier == "starter"
    assert [world.link(org_id, provider).error_message for provider in ("stripe", "lago")] == [None, None]
    (active,) = [each for each in world.lago_objects("subscriptions") if each["status"] == "active"]
    assert active["plan_code"] == "starter"


@pytest.mark.parametrize("charges", ["stripe", "lago"])
def test_a_plan_that_is_asked_after_the_period_ended_applies_now_if_it_is_above_the_one_that_began(
    world: SyncWorld, charges: ChargingProvider
) -> None:
    """The row does not know yet that the free plan has begun, so it takes the other one for a downgrade, too."""
    world.now = SOLD_AT
    world.sandbox.set_clock(SOLD_AT)
    world.set_charging_provider(charges)
    org_id = world.create(plan_tier="enterprise")
    world.reconcile_until_idle(org_id)
    world.change_plan(org_id, "founders_friend")
    world.reconcile_until_idle(org_id)
    move_clock(world, ENDS_AT)
    world.change_plan(org_id, "professional")
    assert world.organization(org_id).pending_plan_tier == "professional"
    for _ in range(3):
        world.reconcile_until_idle(org_id)
        world.wait(60)
        due_links.recheck_due_downgrades(world.database, 10, world.now, world.management)
    organization = world.organization(org_id)
    assert (organization.plan_tier, organization.pending_plan_tier) == ("professional", None)
    assert [world.link(org_id, provider).error_message for provider in ("stripe", "lago")] == [None, None]
    assert world.is_in_sync(org_id)
