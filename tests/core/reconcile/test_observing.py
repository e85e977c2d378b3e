"""An observed organization is read and compared. What would be done is planned, and nothing is written anywhere."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from core.db.models.events import Event
from core.db.models.history import LinkHistory
from core.ports.planned import PlannedStep
from core.ports.spec import PROVIDERS, Provider
from tests.support.sync_world import SyncWorld

both = pytest.mark.parametrize("provider", PROVIDERS)


def writes(world: SyncWorld) -> list[str]:
    counters = world.sandbox.counters()
    operations = {**counters.stripe.operations, **counters.lago.operations}
    return [name for name, count in operations.items() if count and not name.startswith("GET ")]


def kinds(world: SyncWorld, org_id: str, provider: Provider) -> list[str]:
    return [step.kind for step in world.observation(org_id, provider).steps]


def the_step(world: SyncWorld, org_id: str, provider: Provider) -> PlannedStep:
    (step,) = world.observation(org_id, provider).steps
    return step


def code(world: SyncWorld, tier: str, provider: Provider) -> str:
    return world.catalog.plan(tier).code(provider)


def synced(world: SyncWorld, plan_tier: str = "professional") -> str:
    org_id = world.create(plan_tier=plan_tier)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    world.wait(10)
    world.sandbox.reset_calls()
    return org_id


def observed(world: SyncWorld, org_id: str) -> None:
    world.reconcile_until_idle(org_id)
    assert {world.link(org_id, each).state for each in PROVIDERS} == {"observed"}
    assert writes(world) == []


def test_a_new_organization_is_planned_at_both_providers_and_nothing_is_written(world: SyncWorld) -> None:
    world.management = "observe"
    org_id = world.create()
    observed(world, org_id)
    assert kinds(world, org_id, "stripe") == ["create_customer"]
    assert kinds(world, org_id, "lago") == ["create_customer", "set_payer", "create_subscription"]
    assert world.link(org_id, "stripe").intent is None
    with world.database.read() as session:
        assert session.scalar(select(func.count()).select_from(LinkHistory)) == 0
        types = set(session.scalars(select(Event.type)))
    assert "organization.synced" not in types


def test_a_new_organization_that_stripe_charges_is_planned_with_its_amount(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    world.management = "observe"
    org_id = world.create()
    observed(world, org_id)
    create, subscribe = world.observation(org_id, "stripe").steps
    assert create.kind == "create_customer"
    assert (subscribe.kind, subscribe.after) == ("create_subscription", code(world, "professional", "stripe"))
    assert subscribe.price_after is not None
    plan = world.catalog.plan("professional")
    assert (subscribe.price_after.amount, subscribe.price_after.currency) == (plan.amount, plan.currency)


@both
def test_an_organization_in_sync_would_not_change(world: SyncWorld, provider: Provider) -> None:
    world.set_charging_provider(provider)
    org_id = synced(world)
    world.set_mode(org_id, "observe")
    observed(world, org_id)
    for each in PROVIDERS:
        assert world.observation(org_id, each).steps == ()
        assert world.observation(org_id, each).problem is None


@both
def test_a_rename_is_planned_with_its_field(world: SyncWorld, provider: Provider) -> None:
    world.set_charging_provider(provider)
    org_id = synced(world)
    world.set_mode(org_id, "observe")
    world.rename(org_id, "Acme GmbH")
    observed(world, org_id)
    for each in PROVIDERS:
        step = the_step(world, org_id, each)
        assert (step.kind, step.fields) == ("update_customer", ("name",))
        assert step.object_id == world.link(org_id, each).customer_id


@both
def test_an_upgrade_is_planned_with_both_amounts(world: SyncWorld, provider: Provider) -> None:
    world.set_charging_provider(provider)
    org_id = synced(world)
    world.set_mode(org_id, "observe")
    world.change_plan(org_id, "enterprise")
    observed(world, org_id)
    step = the_step(world, org_id, provider)
    assert (step.kind, step.before, step.after, step.at_period_end) == (
        "change_plan",
        code(world, "professional", provider),
        code(world, "enterprise", provider),
        False,
    )
    old, new = world.catalog.plan("professional"), world.catalog.plan("enterprise")
    assert step.price_before is not None
    assert step.price_after is not None
    assert (step.price_before.amount, step.price_after.amount) == (old.amount, new.amount)


@both
def test_a_downgrade_is_planned_for_the_end_of_the_period(world: SyncWorld, provider: Provider) -> None:
    world.set_charging_provider(provider)
    org_id = synced(world)
    world.set_mode(org_id, "observe")
    world.change_plan(org_id, "starter")
    observed(world, org_id)
    step = the_step(world, org_id, provider)
    assert (step.kind, step.before, step.after, step.at_period_end) == (
        "schedule_plan",
        code(world, "professional", provider),
        code(world, "starter", provider),
        True,
    )
    assert step.effective_at is not None


@both
def test_a_downgrade_taken_back_is_planned_as_that(world: SyncWorld, provider: Provider) -> None:
    world.set_charging_provider(provider)
    org_id = synced(world)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    world.wait(10)
    world.sandbox.reset_calls()
    world.set_mode(org_id, "observe")
    world.change_plan(org_id, "professional")
    observed(world, org_id)
    step = the_step(world, org_id, provider)
    assert (step.kind, step.before, step.after) == (
        "cancel_scheduled_plan",
        code(world, "starter", provider),
        code(world, "professional", provider),
    )


@both
def test_an_end_is_planned(world: SyncWorld, provider: Provider) -> None:
    world.set_charging_provider(provider)
    org_id = synced(world)
    world.set_mode(org_id, "observe")
    world.change_status(org_id, "deleted")
    observed(world, org_id)
    assert kinds(world, org_id, provider)[0] == "end_subscription"


@both
def test_what_was_observed_is_done_once_it_is_managed(world: SyncWorld, provider: Provider) -> None:
    world.set_charging_provider(provider)
    world.management = "observe"
    org_id = world.create()
    observed(world, org_id)
    world.wait(10)
    world.set_mode(org_id, "manage")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert {world.link(org_id, each).state for each in PROVIDERS} == {"active"}
