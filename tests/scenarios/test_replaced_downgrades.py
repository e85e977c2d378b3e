"""A scheduled plan that is replaced by another one before the provider answered: it is still known as ours."""

from __future__ import annotations

import pytest

from core.catalog.plans import ChargingProvider
from tests.support.sync_world import SyncWorld

WRITE: dict[ChargingProvider, str] = {"lago": "POST /api/v1/subscriptions", "stripe": "POST /v1/subscriptions/{id}"}


@pytest.mark.parametrize("charges", ["lago", "stripe"])
@pytest.mark.parametrize("fault", ["500_before", "lost_answer"])
def test_what_we_scheduled_before_an_unanswered_write_is_not_taken_for_somebody_elses(
    world: SyncWorld, charges: ChargingProvider, fault: str
) -> None:
    world.set_charging_provider(charges)
    org_id = world.create(plan_tier="starter")
    world.reconcile_until_idle(org_id)
    world.change_plan(org_id, "founders_friend")
    world.reconcile_until_idle(org_id)
    for tier in ("professional", "starter", "founders_friend"):
        world.change_plan(org_id, "enterprise")
        world.change_plan(org_id, tier)
        world.sandbox.add_fault(charges, WRITE[charges], fault, times=3)
        world.run(org_id, charges)
        world.wait(60)
        world.sandbox.clear_faults()
    world.reconcile_until_idle(org_id)
    organization = world.organization(org_id)
    assert (organization.plan_tier, organization.pending_plan_tier) == ("enterprise", "founders_friend")
    assert [world.link(org_id, provider).error_message for provider in ("stripe", "lago")] == [None, None]
    assert world.is_in_sync(org_id)
