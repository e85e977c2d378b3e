"""A downgrade where Stripe charges: Stripe's period ends on any day, and Lago's on the first of the month."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from core.reconcile import due_links
from tests.support.sync_world import SyncWorld

SOLD_AT = datetime(2031, 3, 10, 12, tzinfo=UTC)
ENDS_AT = datetime(2031, 4, 10, 12, 5, tzinfo=UTC)
BEFORE_LAGOS_MONTH_ENDS = datetime(2031, 3, 20, tzinfo=UTC)
AFTER_LAGOS_MONTH_ENDED = datetime(2031, 4, 5, tzinfo=UTC)


def move_clock(world: SyncWorld, moment: datetime) -> None:
    world.advance_time(seconds=(moment - world.now).total_seconds())


@pytest.mark.parametrize(
    "asked_at",
    [
        BEFORE_LAGOS_MONTH_ENDS,
        pytest.param(
            AFTER_LAGOS_MONTH_ENDED,
            marks=pytest.mark.xfail(
                strict=True, reason="Lago would carry it out a month later, and its link is parked"
            ),
        ),
    ],
    ids=["before Lago's month ends", "after it ended"],
)
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
    due_links.recheck_due_downgrades(world.database, 10, world.now)
    world.reconcile_until_idle(org_id)
    assert world.organization(org_id).plan_tier == "starter"
    world.wait(30)
    world.reconcile_until_idle(org_id)
    assert [world.link(org_id, provider).state for provider in ("stripe", "lago")] == ["active", "active"]
