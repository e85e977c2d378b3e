"""What somebody changed at a provider stays until an operator decides about it; then the decision is carried out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import select

from core.db.models.billing_links import BillingLink
from core.db.models.events import Event
from core.db.models.providers import ProviderStatus
from core.drift import conflict_resolver
from core.drift.conflict_resolver import CannotResolveError
from core.events.event_types import ChangeContext
from core.organizations import commands as organization_commands
from core.ports.errors import ConflictError, LeaseLostError, RejectedError
from core.ports.spec import PROVIDERS, Provider
from core.reconcile import commands, due_links, lease, outcomes
from core.reconcile.attempt import ApplyResult, SyncAttempt
from core.reconcile.outcomes import FollowUps
from core.reporting import overview
from tests.support.adoption_harness import adopt_known
from tests.support.drift_harness import conflict_resolver_of, price_of
from tests.support.provider_webhooks import check_after_webhook, receive_webhook
from tests.support.sync_world import PAYMENT_PROVIDER_CODE, SyncWorld

Undo = Callable[[SyncWorld, str], object]


def synced(world: SyncWorld, plan_tier: str = "professional") -> str:
    org_id = world.create("Acme", plan_tier)
    world.reconcile_until_idle(org_id)
    world.wait(10)
    return org_id


def check(world: SyncWorld, org_id: str, provider: Provider) -> None:
    """A webhook of the provider arrives and is processed to its end."""
    check_after_webhook(world, org_id, provider)
    world.sandbox.reset_calls()


def change_payer(world: SyncWorld, org_id: str) -> str:
    payer = str(world.sandbox.preload_stripe_customers([{"id": "cus_theirs", "name": "Acme"}])[0]["id"])
    set_payer(world, org_id, payer)
    check(world, org_id, "lago")
    assert_on_hold(world, org_id, "lago")
    return payer


def set_payer(world: SyncWorld, org_id: str, payer: str) -> None:
    configuration = {
        "payment_provider": "stripe",
        "payment_provider_code": PAYMENT_PROVIDER_CODE,
        "provider_customer_id": payer,
    }
    world.sandbox.patch("lago", "customers", org_id, billing_configuration=configuration)


def change_plan_in_lago(world: SyncWorld, org_id: str, plan_code: str) -> None:
    world.sandbox.patch("lago", "subscriptions", org_id, plan_code=plan_code)
    check(world, org_id, "lago")
    assert_on_hold(world, org_id, "lago")


def change_price_in_stripe(world: SyncWorld, tier: str) -> None:
    subscription = next(iter(world.sandbox.state()["stripe"]["subscriptions"]))
    item = {"id": subscription["items"]["data"][0]["id"], "price": price_of(world, tier), "quantity": 1}
    world.sandbox.patch("stripe", "subscriptions", subscription["id"], items=[item])


def assert_on_hold(world: SyncWorld, org_id: str, provider: Provider) -> None:
    link = world.link(org_id, provider)
    assert (link.state, link.error_kind, link.lease_token) == ("on_hold", "conflict", None)


def payer_in_lago(world: SyncWorld) -> object:
    (customer,) = world.lago_objects("customers")
    configuration = customer["billing_configuration"]
    assert isinstance(configuration, dict)
    return configuration.get("provider_customer_id")


def lago_plan(world: SyncWorld) -> object:
    (active,) = [each for each in world.lago_objects("subscriptions") if each["status"] == "active"]
    return active["plan_code"]


def writes(world: SyncWorld, provider_path: str) -> list[str]:
    return [call.operation for call in world.sandbox.calls() if call.method != "GET" and provider_path in call.path]


def retry_by_error(world: SyncWorld, error: str | None) -> None:
    with world.database.read() as session:
        org_ids = overview.organization_ids_to_retry(session, "", 10, error)
    for org_id in org_ids:
        world.change(org_id, commands.retry)


def reach_the_day_of_a_downgrade(world: SyncWorld, org_id: str) -> None:
    world.change_plan(org_id, "starter")
    world.advance_time(days=32)
    due_links.recheck_due_downgrades(world.database, 10, world.now, world.management)


UNRELATED: dict[str, Undo] = {
    "rename": lambda world, org_id: world.rename(org_id, "Acme GmbH"),
    "another plan": lambda world, org_id: world.change_plan(org_id, "enterprise"),
    "a downgrade that is due": reach_the_day_of_a_downgrade,
    "retry ORG": lambda world, org_id: world.change(org_id, commands.retry),
    "retry --all": lambda world, _: retry_by_error(world, None),
    "retry --error conflict": lambda world, _: retry_by_error(world, "conflict"),
    "retry --error CODE": lambda world, _: retry_by_error(world, "payer_changed"),
    "a member": lambda world, org_id: world.add_member(org_id, "user_2"),
    "another webhook": lambda world, org_id: check(world, org_id, "lago"),
}


@pytest.mark.parametrize("unrelated", UNRELATED.values(), ids=UNRELATED)
def test_another_change_or_a_retry_does_not_undo_a_conflict(world: SyncWorld, unrelated: Undo) -> None:
    org_id = synced(world)
    payer = change_payer(world, org_id)
    unrelated(world, org_id)
    world.reconcile_until_idle(org_id)
    world.wait(3600)
    world.reconcile_until_idle(org_id)
    assert_on_hold(world, org_id, "lago")
    assert payer_in_lago(world) == payer
    assert writes(world, "/api/v1/") == []


@pytest.mark.slow
def test_the_other_provider_gets_the_change_meanwhile(world: SyncWorld) -> None:
    org_id = synced(world)
    change_payer(world, org_id)
    world.rename(org_id, "Acme GmbH")
    world.reconcile_until_idle(org_id)
    assert [each["name"] for each in world.stripe_objects("customers") if each["metadata"]] == ["Acme GmbH"]


def test_ours_restores_the_payer_and_sends_what_waited(world: SyncWorld) -> None:
    org_id = synced(world)
    ours = payer_in_lago(world)
    change_payer(world, org_id)
    world.rename(org_id, "Acme GmbH")
    conflict_resolver.keep_ours(world.database, world.clock, org_id, "lago")
    world.reconcile_until_idle(org_id)
    assert (payer_in_lago(world), world.is_in_sync(org_id)) == (ours, True)
    assert [each["name"] for each in world.lago_objects("customers")] == ["Acme GmbH"]


def test_theirs_gives_the_organization_their_payer_who_is_then_adopted(world: SyncWorld) -> None:
    org_id = synced(world)
    payer = change_payer(world, org_id)
    assert conflict_resolver_of(world).take_theirs(org_id, "lago") == [f"Stripe customer {payer}"]
    world.reconcile_until_idle(org_id)
    assert writes(world, "/v1/") == []
    assert adopt_known(world, org_id).kind == "adopted"
    world.reconcile_until_idle(org_id)
    assert (world.link(org_id, "stripe").customer_id, payer_in_lago(world)) == (payer, payer)
    assert world.is_in_sync(org_id)


def test_theirs_gives_the_organization_their_plan_and_writes_no_plan_in_lago(world: SyncWorld) -> None:
    org_id = synced(world)
    change_plan_in_lago(world, org_id, "enterprise")
    charges = world.sandbox.charges()
    assert conflict_resolver_of(world).take_theirs(org_id, "lago") == ["plan enterprise"]
    world.reconcile_until_idle(org_id)
    assert world.organization(org_id).plan_tier == "enterprise"
    assert (lago_plan(world), world.is_in_sync(org_id)) == ("enterprise", True)
    assert writes(world, "/subscriptions") == []
    assert world.sandbox.charges() == charges
    with world.database.read() as session:
        event = session.scalars(select(Event).where(Event.type == "organization.plan_changed")).one()
    assert (event.data, event.actor) == (
        {"from": "professional", "to": "enterprise", "at": "now", "pending": None},
        "operator",
    )


@pytest.mark.slow
def test_theirs_schedules_what_they_scheduled(world: SyncWorld) -> None:
    org_id = synced(world)
    change_plan_in_lago(world, org_id, "starter")
    assert conflict_resolver_of(world).take_theirs(org_id, "lago") == ["scheduled plan starter"]
    world.reconcile_until_idle(org_id)
    organization = world.organization(org_id)
    assert (organization.plan_tier, organization.pending_plan_tier) == ("professional", "starter")
    assert (lago_plan(world), world.is_in_sync(org_id)) == ("professional", True)


@pytest.mark.slow
def test_theirs_schedules_a_plan_that_is_sold_no_longer(world: SyncWorld) -> None:
    org_id = synced(world)
    change_plan_in_lago(world, org_id, "starter")
    starter = world.catalog.plan("starter").model_copy(update={"offered": False})
    world.catalog = world.catalog.model_copy(update={"plans": world.catalog.plans | {"starter": starter}})
    assert conflict_resolver_of(world).take_theirs(org_id, "lago") == ["scheduled plan starter"]
    assert world.organization(org_id).pending_plan_tier == "starter"


@pytest.mark.slow
def test_theirs_cancels_what_they_canceled(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    org_id = synced(world)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    world.wait(10)
    subscription = next(iter(world.sandbox.state()["stripe"]["subscriptions"]))
    item = subscription["items"]["data"][0]
    price = price_of(world, "professional")
    world.sandbox.patch(
        "stripe",
        "subscriptions",
        subscription["id"],
        items=[{"id": item["id"], "price": price, "quantity": 1}],
        metadata={"billing_sync_next_plan": "", "billing_sync_next_plan_at": ""},
    )
    check(world, org_id, "stripe")
    assert_on_hold(world, org_id, "stripe")
    assert conflict_resolver_of(world).take_theirs(org_id, "stripe") == ["no scheduled plan"]
    world.reconcile_until_idle(org_id)
    assert (world.organization(org_id).pending_plan_tier, world.is_in_sync(org_id)) == (None, True)


def end_in_lago(world: SyncWorld, org_id: str) -> None:
    world.sandbox.delete("lago", "subscriptions", org_id)
    check(world, org_id, "lago")


def sell_beside_in_lago(world: SyncWorld, org_id: str) -> None:
    world.sandbox.preload_lago_subscription(org_id, "starter", "by-hand")
    check(world, org_id, "lago")


REFUSED: dict[str, tuple[Callable[[SyncWorld, str], object], str]] = {
    "ended": (end_in_lago, "it was ended in Lago"),
    "a second subscription": (sell_beside_in_lago, "it is never adopted automatically"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("edit", "reason"), REFUSED.values(), ids=REFUSED)
def test_theirs_refuses_what_an_organization_cannot_have_and_changes_nothing(
    world: SyncWorld, edit: Callable[[SyncWorld, str], object], reason: str
) -> None:
    org_id = synced(world)
    edit(world, org_id)
    before = (world.organization(org_id).version, world.sandbox.state())
    with pytest.raises(CannotResolveError, match=reason):
        conflict_resolver_of(world).take_theirs(org_id, "lago")
    world.reconcile_until_idle(org_id)
    assert_on_hold(world, org_id, "lago")
    assert (world.organization(org_id).version, world.sandbox.state()) == before


@pytest.mark.slow
def test_theirs_refuses_a_plan_for_which_the_other_provider_charges(world: SyncWorld) -> None:
    world.set_charging_provider("stripe", "starter")
    org_id = synced(world)
    change_plan_in_lago(world, org_id, "starter")
    with pytest.raises(CannotResolveError, match="Lago does not charge for professional and starter"):
        conflict_resolver_of(world).take_theirs(org_id, "lago")
    assert_on_hold(world, org_id, "lago")


@pytest.mark.slow
def test_theirs_ends_the_hold_when_both_agree_again(world: SyncWorld) -> None:
    org_id = synced(world)
    ours = payer_in_lago(world)
    change_payer(world, org_id)
    set_payer(world, org_id, str(ours))
    assert conflict_resolver_of(world).take_theirs(org_id, "lago") == []
    world.reconcile_until_idle(org_id)
    assert (payer_in_lago(world), world.is_in_sync(org_id)) == (ours, True)


@pytest.mark.slow
def test_theirs_is_refused_if_the_organization_changes_meanwhile(world: SyncWorld) -> None:
    org_id = synced(world)
    change_plan_in_lago(world, org_id, "starter")
    ours = conflict_resolver_of(world)
    slow = ours.provider_reader

    def change_during_the_wait(_seconds: float) -> None:
        world.change_plan(org_id, "enterprise")

    world.sandbox.add_fault("lago", "*", "429")
    racing = replace(ours, provider_reader=replace(slow, sleep=change_during_the_wait))
    with pytest.raises(CannotResolveError, match="changed meanwhile; run the command again"):
        racing.take_theirs(org_id, "lago")
    assert_on_hold(world, org_id, "lago")
    assert world.organization(org_id).plan_tier == "enterprise"


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["stripe", "lago"])
def test_a_link_without_a_conflict_cannot_be_resolved(world: SyncWorld, provider: Provider) -> None:
    org_id = synced(world)
    version = world.organization(org_id).version
    with pytest.raises(CannotResolveError, match=f"`billing-sync status {org_id}` shows its state"):
        conflict_resolver.keep_ours(world.database, world.clock, org_id, provider)
    with pytest.raises(CannotResolveError, match=f"`billing-sync status {org_id}` shows its state"):
        conflict_resolver_of(world).take_theirs(org_id, provider)
    assert world.organization(org_id).version == version


def test_deleting_the_organization_ends_billing_whatever_was_changed(world: SyncWorld) -> None:
    org_id = synced(world)
    change_plan_in_lago(world, org_id, "enterprise")
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert [each["status"] for each in world.lago_objects("subscriptions") if each["status"] == "active"] == []


def test_a_change_during_the_check_does_not_undo_the_conflict_that_it_finds(world: SyncWorld) -> None:
    org_id = synced(world)
    world.sandbox.patch("lago", "subscriptions", org_id, plan_code="enterprise")
    world.rename(org_id, "Acme GmbH")
    world.providers["lago"].after_customer = lambda: world.rename(org_id, "Acme Ltd")
    check(world, org_id, "lago")
    assert_on_hold(world, org_id, "lago")
    assert lago_plan(world) == "enterprise"


def test_an_organization_that_is_deleted_during_the_check_is_not_put_on_hold(world: SyncWorld) -> None:
    org_id = synced(world)
    world.sandbox.patch("lago", "subscriptions", org_id, plan_code="enterprise")
    receive_webhook(world, org_id, "lago")
    attempt = lease.acquire(world.database, world.clock, org_id, "lago")
    assert isinstance(attempt, SyncAttempt)
    world.change_status(org_id, "deleted")
    assert outcomes.put_on_hold(attempt, ConflictError("lago", "changed")) is not None
    world.wait(10)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert [each["status"] for each in world.lago_objects("subscriptions") if each["status"] == "active"] == []


@pytest.mark.slow
@pytest.mark.parametrize("other_attempt_is_done", [True, False])
def test_a_conflict_is_kept_though_the_lease_was_lost_unless_the_check_was_made_again(
    world: SyncWorld, *, other_attempt_is_done: bool
) -> None:
    org_id = synced(world)
    receive_webhook(world, org_id, "lago")
    first = lease.acquire(world.database, world.clock, org_id, "lago")
    world.wait(60)
    second = lease.acquire(world.database, world.clock, org_id, "lago")
    assert isinstance(first, SyncAttempt)
    assert isinstance(second, SyncAttempt)
    if other_attempt_is_done:
        outcomes.complete(second, ApplyResult(), FollowUps(all_checks_done=True))
        with pytest.raises(LeaseLostError):
            outcomes.put_on_hold(first, ConflictError("lago", "changed"))
        assert world.link(org_id, "lago").state == "active"
        return
    assert outcomes.put_on_hold(first, ConflictError("lago", "changed")) is None
    with pytest.raises(LeaseLostError):
        outcomes.complete(second, ApplyResult(), FollowUps(all_checks_done=True))
    outcomes.invalidate_after_lost_lease(second)
    assert_on_hold(world, org_id, "lago")


@pytest.mark.slow
def test_a_change_that_a_webhook_reported_is_compared_before_a_retry_writes_the_plan(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    org_id = synced(world)
    change_price_in_stripe(world, "enterprise")
    receive_webhook(world, org_id, "stripe")
    world.change(org_id, commands.retry)
    world.sandbox.reset_calls()
    world.reconcile_until_idle(org_id)
    assert_on_hold(world, org_id, "stripe")
    assert writes(world, "/subscriptions") == []


def test_a_payer_that_somebody_changed_is_not_overwritten_by_a_rename_also_without_a_webhook(world: SyncWorld) -> None:
    org_id = synced(world)
    payer = str(world.sandbox.preload_stripe_customers([{"id": "cus_theirs", "name": "Acme"}])[0]["id"])
    set_payer(world, org_id, payer)
    world.rename(org_id, "Acme GmbH")
    world.reconcile_until_idle(org_id)
    assert_on_hold(world, org_id, "lago")
    assert (payer_in_lago(world), world.link(org_id, "lago").error_code) == (payer, "payer_changed")


def remove_payer(world: SyncWorld, org_id: str) -> None:
    world.sandbox.patch("lago", "customers", org_id, billing_configuration={"payment_provider": None})


NOTICED: dict[str, Undo] = {
    "a rename": lambda world, org_id: world.rename(org_id, "Acme GmbH"),
    "a remote check": lambda world, org_id: check(world, org_id, "lago"),
    "retry ORG": lambda world, org_id: world.change(org_id, commands.retry),
}


@pytest.mark.parametrize("notice", NOTICED.values(), ids=NOTICED)
def test_a_payer_that_somebody_removed_is_given_again_only_by_a_decision(world: SyncWorld, notice: Undo) -> None:
    org_id = synced(world)
    ours = payer_in_lago(world)
    remove_payer(world, org_id)
    for step in (notice, UNRELATED["rename"], UNRELATED["retry ORG"]):
        step(world, org_id)
        world.reconcile_until_idle(org_id)
        world.wait(10)
        assert_on_hold(world, org_id, "lago")
        assert payer_in_lago(world) is None
    link = world.link(org_id, "lago")
    assert link.error_code == "payer_changed"
    assert f"`billing-sync resolve {org_id} --ours` to let Lago charge" in (link.error_message or "")
    with pytest.raises(CannotResolveError, match="so Lago charges nobody"):
        conflict_resolver_of(world).take_theirs(org_id, "lago")
    conflict_resolver.keep_ours(world.database, world.clock, org_id, "lago")
    world.reconcile_until_idle(org_id)
    assert (payer_in_lago(world), world.is_in_sync(org_id)) == (ours, True)


def test_a_payer_that_is_removed_where_stripe_takes_over_is_no_conflict(world: SyncWorld) -> None:
    org_id = synced(world)
    world.set_charging_provider("stripe")
    world.rename(org_id, "Acme GmbH")
    world.reconcile_until_idle(org_id)
    remove_payer(world, org_id)
    world.change(org_id, commands.retry)
    world.reconcile_until_idle(org_id)
    world.wait(60)
    world.reconcile_until_idle(org_id)
    assert (payer_in_lago(world), world.is_in_sync(org_id)) == (None, True)


def imported(world: SyncWorld, *, has_subscription: bool) -> str:
    """An organization whose customer in Lago was made, and charged, before us and in another way."""
    org_id = world.create("Acme", "professional")
    world.sandbox.preload_lago_customers([{"external_id": org_id, "name": "Acme"}])
    if has_subscription:
        world.sandbox.preload_lago_subscription(org_id, "professional", org_id)
    (customer,) = world.lago_objects("customers")
    world.set_customer_id(org_id, "lago", str(customer["lago_id"]))
    world.reconcile_until_idle(org_id)
    world.wait(60)
    world.reconcile_until_idle(org_id)
    return org_id


@pytest.mark.parametrize("has_subscription", [True, False])
def test_a_customer_without_a_payer_is_observed_and_gets_none_when_it_is_adopted(
    world: SyncWorld, *, has_subscription: bool
) -> None:
    org_id = imported(world, has_subscription=has_subscription)
    assert {world.link(org_id, provider).state for provider in PROVIDERS} == {"observed"}
    assert writes(world, "/v1/") == []
    problem = world.observation(org_id, "lago").problem
    assert (problem is not None) == has_subscription
    assert adopt_known(world, org_id).kind == "adopted"
    world.reconcile_until_idle(org_id)
    assert payer_in_lago(world) is None
    assert world.is_in_sync(org_id)


@pytest.mark.slow
def test_ours_does_not_adopt_their_payer_while_stripe_is_parked(world: SyncWorld) -> None:
    org_id = synced(world)
    ours = payer_in_lago(world)
    change_payer(world, org_id)
    with world.database.write() as session:
        link = session.get_one(BillingLink, (org_id, "stripe"))
        link.state, link.customer_state, link.customer_fingerprint = "parked", "unconfirmed", None
        link.applied_version = link.desired_version - 1
    with world.database.write() as session:  # as while Stripe rejects the customer: nothing makes its link active
        organization = organization_commands.lock(session, org_id)
        assert organization is not None
        commands.end_conflict(ChangeContext(session, world.now), organization, "lago", "ours")
        session.get_one(BillingLink, (org_id, "stripe")).state = "parked"
    world.run(org_id, "lago")
    assert (world.link(org_id, "lago").payer_id, payer_in_lago(world)) == (ours, ours)
    with world.database.write() as session:
        session.get_one(BillingLink, (org_id, "stripe")).state = "active"
    world.wait(10)
    world.reconcile_until_idle(org_id)
    assert (payer_in_lago(world), world.is_in_sync(org_id)) == (ours, True)


@pytest.mark.slow
def test_ours_does_not_end_the_subscription_of_a_plan_whose_setting_was_lost(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    org_id = synced(world)
    change_price_in_stripe(world, "enterprise")
    check(world, org_id, "stripe")
    assert_on_hold(world, org_id, "stripe")
    world.set_charging_provider("lago")
    conflict_resolver.keep_ours(world.database, world.clock, org_id, "stripe")
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "stripe").error_code == "double_charging"
    assert [each["status"] for each in world.stripe_objects("subscriptions")] == ["active"]


@pytest.mark.slow
def test_theirs_refuses_a_payer_that_belongs_to_another_organization(world: SyncWorld) -> None:
    org_id = synced(world)
    ours = world.link(org_id, "stripe").customer_id
    world.sandbox.preload_stripe_customers(
        [{"id": "cus_theirs", "name": "Acme", "metadata": {"billing_sync_org_id": "org_other"}}]
    )
    set_payer(world, org_id, "cus_theirs")
    check(world, org_id, "lago")
    assert_on_hold(world, org_id, "lago")
    with pytest.raises(CannotResolveError, match="Stripe has no customer cus_theirs that is free"):
        conflict_resolver_of(world).take_theirs(org_id, "lago")
    assert_on_hold(world, org_id, "lago")
    assert world.link(org_id, "stripe").customer_id == ours


@pytest.mark.slow
def test_a_wait_for_the_payer_begins_again_after_an_error(world: SyncWorld) -> None:
    org_id = world.create()
    attempt = lease.acquire(world.database, world.clock, org_id, "lago")
    assert isinstance(attempt, SyncAttempt)
    outcomes.defer_for_payer(attempt, world.now + world.policy.payer_wait)
    assert world.link(org_id, "lago").waiting_since == world.now
    world.wait(60)
    attempt = lease.acquire(world.database, world.clock, org_id, "lago")
    assert isinstance(attempt, SyncAttempt)
    outcomes.park(attempt, RejectedError("lago", "no"))
    assert world.link(org_id, "lago").waiting_since is None


@pytest.mark.slow
def test_a_link_that_is_free_again_shows_no_cooldown_that_has_passed(world: SyncWorld) -> None:
    org_id = synced(world)
    world.rename(org_id, "Acme GmbH")
    attempt = lease.acquire(world.database, world.clock, org_id, "lago")
    assert isinstance(attempt, SyncAttempt)
    outcomes.park(attempt, RejectedError("lago", "no"))
    world.advance_time(days=3)
    world.rename(org_id, "Acme Ltd")
    assert world.link(org_id, "lago").not_before is None


def stripe_charges(world: SyncWorld) -> list[object]:
    return [charge for charge in world.sandbox.charges() if charge["provider"] == "stripe"]


def set_quantity(world: SyncWorld, quantity: int, tier: str = "professional") -> None:
    (subscription,) = world.sandbox.state()["stripe"]["subscriptions"]
    item = {"id": subscription["items"]["data"][0]["id"], "price": price_of(world, tier)}
    world.sandbox.patch("stripe", "subscriptions", subscription["id"], items=[{**item, "quantity": quantity}])


def import_with_subscription_by_hand(world: SyncWorld, quantity: int, tier: str = "professional") -> str:
    """An organization whose customer we made, and somebody charges already, on a subscription that carries its id."""
    world.set_charging_provider("stripe")
    org_id = world.create("Acme", "professional")
    with world.database.read() as session:
        database_id = session.get_one(ProviderStatus, "stripe").database_id
    marks = {"billing_sync_org_id": org_id, "billing_sync_database_id": database_id}
    customer = {"id": "cus_old", "name": "Acme", "email": "pay@acme.test", "metadata": marks}
    world.sandbox.preload_stripe_customers([customer])
    world.set_customer_id(org_id, "stripe", "cus_old")
    world.sandbox.preload_stripe_subscription(
        "cus_old", price_of(world, "professional"), metadata={"billing_sync_org_id": org_id}
    )
    set_quantity(world, quantity, tier)
    world.reconcile_until_idle(org_id)
    world.wait(10)
    return org_id


def test_a_subscription_on_other_terms_is_on_hold_and_no_rename_or_retry_changes_its_price(world: SyncWorld) -> None:
    org_id = import_with_subscription_by_hand(world, 3)
    assert_on_hold(world, org_id, "stripe")
    before = world.stripe_objects("subscriptions")
    world.rename(org_id, "Acme GmbH")
    world.reconcile_until_idle(org_id)
    assert world.stripe_objects("subscriptions") == before
    assert_on_hold(world, org_id, "stripe")
    with pytest.raises(CannotResolveError, match="or end the subscription in Stripe"):
        conflict_resolver_of(world).take_theirs(org_id, "stripe")
    conflict_resolver.keep_ours(world.database, world.clock, org_id, "stripe")
    world.reconcile_until_idle(org_id)
    assert world.stripe_objects("subscriptions") == before
    assert_on_hold(world, org_id, "stripe")
    set_quantity(world, 1)
    conflict_resolver.keep_ours(world.database, world.clock, org_id, "stripe")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert world.link(org_id, "stripe").subscription_id == before[0]["id"]


def test_the_plan_that_somebody_pays_already_is_adopted_without_a_charge(world: SyncWorld) -> None:
    org_id = import_with_subscription_by_hand(world, 1, "enterprise")
    assert_on_hold(world, org_id, "stripe")
    charges = stripe_charges(world)
    world.change_plan(org_id, "enterprise")
    conflict_resolver.keep_ours(world.database, world.clock, org_id, "stripe")
    world.reconcile_until_idle(org_id)
    assert (world.organization(org_id).plan_tier, world.is_in_sync(org_id)) == ("enterprise", True)
    assert stripe_charges(world) == charges


@pytest.mark.parametrize("decided", [False, True])
def test_lago_charges_nobody_who_pays_on_other_terms_in_stripe(world: SyncWorld, *, decided: bool) -> None:
    org_id = import_with_subscription_by_hand(world, 3)
    world.set_charging_provider("lago")
    world.change_plan(org_id, "enterprise")
    if decided:
        conflict_resolver.keep_ours(world.database, world.clock, org_id, "stripe")
    for _ in range(3):
        world.wait(60)
        world.reconcile_until_idle(org_id)
    assert world.link(org_id, "lago").payer_id is None
    assert world.link(org_id, "stripe").state in {"parked", "on_hold"}
    (customer,) = world.sandbox.state()["lago"]["customers"]
    assert customer["billing_configuration"]["payment_provider"] is None
    assert world.stripe_objects("subscriptions")[0]["status"] == "active"
