"""Sync makes both billers match at the price that is promised, through crashes, races and changes of mind."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.pool import QueuePool

from core.common import validation
from core.common.clock import utc_now
from core.compare.desired_state import PayerPolicy
from core.db.models.billing_links import BillingLink
from core.events.event_types import ChangeContext
from core.flow_control import circuit_breaker
from core.organizations import commands as organization_commands
from core.organizations import links, plan_changes, provider_ids
from core.ports.errors import LeaseLostError, ThrottledError, UnavailableError
from core.ports.spec import Provider
from core.reconcile import attempt, backoff, commands, due_links, lease
from core.reconcile import outcomes as reconcile_outcomes
from core.reconcile.reconciler import ReconcileResult
from tests.support.adoption_harness import adopt_known
from tests.support.sync_world import CREATE_CUSTOMER_REQUEST, SyncWorld, kill_worker, with_policy

BOTH_PROVIDERS: tuple[Provider, ...] = ("stripe", "lago")
both = pytest.mark.parametrize("provider", BOTH_PROVIDERS)
CREATE_SUBSCRIPTION = "POST /v1/subscriptions"


def synced(world: SyncWorld, plan_tier: str = "professional", name: str = "Acme") -> str:
    org_id = world.create(name, plan_tier)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    world.wait(10)
    world.count_requests()
    return org_id


# The price of each change.


def test_a_new_organization_costs_one_call_to_stripe_and_two_to_lago(world: SyncWorld) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    assert world.count_requests() == (1, 2)
    assert world.is_in_sync(org_id)
    (customer,) = world.stripe_objects("customers")
    (theirs,) = world.lago_objects("customers")
    assert world.link(org_id, "stripe").customer_id == customer["id"]
    assert world.link(org_id, "lago").customer_id == theirs["lago_id"]
    assert world.link(org_id, "lago").payer_id == customer["id"]


def test_a_new_organization_that_stripe_charges_has_one_subscription_there_and_no_payer_in_lago(
    world: SyncWorld,
) -> None:
    world.set_charging_provider("stripe")
    org_id = synced_after_create(world)
    (subscription,) = world.stripe_objects("subscriptions")
    assert world.link(org_id, "stripe").subscription_id == subscription["id"]
    assert world.link(org_id, "lago").payer_id is None
    assert world.link(org_id, "lago").subscription_id is not None


def synced_after_create(world: SyncWorld) -> str:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    stripe, lago = world.count_requests()
    # Customer, list (nothing there), price, subscription.
    assert (stripe, lago) == (4, 2)
    return org_id


@pytest.mark.parametrize(("tier", "calls"), [("enterprise", (0, 2)), ("starter", (0, 2))])
def test_a_plan_change_reads_and_changes_in_lago_where_lago_charges(
    world: SyncWorld, tier: str, calls: tuple[int, int]
) -> None:
    org_id = synced(world)
    world.change_plan(org_id, tier)
    world.reconcile_until_idle(org_id)
    assert world.count_requests() == calls
    assert world.is_in_sync(org_id)


def test_a_missing_billing_email_parks_where_stripe_charges_until_one_is_set(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    org_id = world.create(email=None)
    world.reconcile_until_idle(org_id)
    link = world.link(org_id, "stripe")
    assert (link.state, link.error_code, link.intent) == ("parked", "no_billing_email", None)
    world.change(
        org_id,
        lambda change, organization: organization_commands.change_billing_details(
            change, organization, world.catalog, billing_email="ap@acme.test"
        ),
    )
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert len(world.stripe_objects("subscriptions")) == 1


def test_a_free_plan_needs_no_billing_email_where_stripe_charges(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    org_id = world.create(plan_tier="founders_friend", email=None)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)


def test_a_plan_change_where_stripe_charges_reads_and_changes_at_both(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    org_id = synced(world)
    world.change_plan(org_id, "enterprise")
    world.reconcile_until_idle(org_id)
    stripe, lago = world.count_requests()
    assert lago == 2
    assert stripe <= 3  # read, price (kept for a while), change
    assert world.link(org_id, "stripe").applied_plan == "enterprise_monthly_usd"


def test_a_rename_costs_one_call_each(world: SyncWorld) -> None:
    org_id = synced(world)
    world.rename(org_id, "Acme GmbH")
    world.reconcile_until_idle(org_id)
    assert world.count_requests() == (1, 1)
    assert [world.stripe_objects("customers")[0]["name"], world.lago_objects("customers")[0]["name"]] == [
        "Acme GmbH",
        "Acme GmbH",
    ]


def test_members_and_suspension_cost_nothing(world: SyncWorld) -> None:
    org_id = synced(world)
    world.add_member(org_id, "user_1")
    world.change_status(org_id, "suspended")
    assert {outcome.kind for outcome in world.reconcile_until_idle(org_id)} == {"idle"}
    assert world.count_requests() == (0, 0)


def test_messages_without_a_change_cost_nothing(world: SyncWorld) -> None:
    org_id = synced(world)
    for _ in range(5):
        assert world.run(org_id, "stripe").kind == world.run(org_id, "lago").kind == "idle"
    world.rename(org_id, "Acme")
    assert world.run("org_unknown", "lago").kind == "idle"
    assert world.count_requests() == (0, 0)


def test_a_change_that_was_taken_back_before_its_turn_costs_nothing(world: SyncWorld) -> None:
    org_id = synced(world)
    world.rename(org_id, "Acme GmbH")
    world.rename(org_id, "Acme")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert world.count_requests() == (0, 0)


@pytest.mark.slow
@both
def test_a_hundred_changes_in_a_burst_cost_at_most_two_rounds(world: SyncWorld, provider: Provider) -> None:
    org_id = synced(world)
    for number in range(100):
        world.rename(org_id, f"Acme {number}")
        world.run(org_id, provider)
        world.wait(0.01)
    world.reconcile_until_idle(org_id)
    stripe, lago = world.count_requests()
    assert (stripe if provider == "stripe" else lago) == 2
    assert world.is_in_sync(org_id)
    assert world.stripe_objects("customers")[0]["name"] == world.lago_objects("customers")[0]["name"] == "Acme 99"


# The payer.


def test_lago_asked_first_waits_for_its_payer_and_costs_no_more(world: SyncWorld) -> None:
    org_id = world.create()
    outcome = world.run(org_id, "lago")
    assert (outcome.kind, outcome.requeue_after) == ("waiting", 30.0)
    assert world.policy.payer_wait.total_seconds() > backoff.MAX_QUEUE_DELAY_SECONDS  # so it is the sweep's
    assert world.link(org_id, "lago").attempts == 0
    world.reconcile_until_idle(org_id)
    assert world.count_requests() == (1, 2)


def test_lago_goes_ahead_without_a_payer_after_thirty_seconds_and_is_linked_by_one_more_call(world: SyncWorld) -> None:
    org_id = world.create()
    world.run(org_id, "lago")
    world.wait(29)
    assert world.run(org_id, "lago").kind == "waiting"
    world.wait(1.1)
    assert world.run(org_id, "lago").kind == "synced"
    assert world.count_requests() == (0, 2)
    world.wait(5)
    outcome = world.run(org_id, "stripe")
    assert outcome.also_requeue == ("lago",)
    assert world.run(org_id, "lago").kind == "synced"
    assert world.count_requests() == (1, 1)
    assert world.link(org_id, "lago").payer_id == world.link(org_id, "stripe").customer_id
    assert world.is_in_sync(org_id)


def test_a_payer_that_comes_while_lago_decides_to_wait_is_not_waited_for(world: SyncWorld) -> None:
    org_id = world.create()
    lago_attempt = lease.acquire(world.database, world.clock, org_id, "lago")
    assert isinstance(lago_attempt, attempt.SyncAttempt)
    assert world.run(org_id, "stripe").also_requeue == ("lago",)
    assert reconcile_outcomes.defer_for_payer(lago_attempt, world.now + world.policy.payer_wait) == 0.0
    assert world.run(org_id, "lago").kind == "synced"


def test_a_lago_that_fails_after_the_wait_does_not_wait_for_the_payer_again(world: SyncWorld) -> None:
    org_id = world.create()
    world.run(org_id, "lago")
    world.wait(30.1)
    world.sandbox.add_fault("lago", "*", "500_before")
    failed = world.run(org_id, "lago")
    assert failed.kind == "retry"
    assert failed.requeue_after is not None
    world.wait(failed.requeue_after)
    assert world.run(org_id, "lago").kind == "synced"


@pytest.mark.parametrize("first", BOTH_PROVIDERS)
def test_lago_is_told_a_payer_that_a_person_replaced_whoever_comes_first(world: SyncWorld, first: Provider) -> None:
    org_id = synced(world)
    world.sandbox.preload_stripe_customers([{"id": "cus_new", "name": "Acme"}])
    world.set_customer_id(org_id, "stripe", "cus_new")
    world.run(org_id, first)
    assert adopt_known(world, org_id).kind == "adopted"
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert world.link(org_id, "lago").payer_id == "cus_new"
    assert payers(world, org_id) == ["cus_new"]


# Crashes and lost answers.


@pytest.mark.parametrize("fault", ["lost_answer", "500_after", "500_before", "500_stored", "hang", "reset", "html_502"])
@pytest.mark.parametrize("operation", [CREATE_CUSTOMER_REQUEST, "POST /api/v1/customers", "POST /api/v1/subscriptions"])
def test_a_create_that_goes_wrong_ends_with_one_customer_and_the_right_ids(
    world: SyncWorld, fault: str, operation: str
) -> None:
    provider: Provider = "stripe" if operation == CREATE_CUSTOMER_REQUEST else "lago"
    world.sandbox.add_fault(provider, operation, fault, seconds=0.3)
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    assert not world.sandbox.faults()
    assert_one_of_each(world, org_id)


def assert_one_of_each(world: SyncWorld, org_id: str) -> None:
    assert world.is_in_sync(org_id)
    (customer,) = world.stripe_objects("customers")
    (theirs,) = world.lago_objects("customers")
    running = [found for found in world.lago_objects("subscriptions") if found["status"] == "active"]
    assert world.link(org_id, "stripe").customer_id == customer["id"]
    assert world.link(org_id, "lago").customer_id == theirs["lago_id"]
    assert [found["lago_id"] for found in running] == [world.link(org_id, "lago").subscription_id]


@pytest.mark.parametrize("fault", ["lost_answer", "500_after", "500_stored", "reset"])
def test_a_stripe_subscription_whose_create_goes_wrong_is_there_once(world: SyncWorld, fault: str) -> None:
    world.set_charging_provider("stripe")
    world.sandbox.add_fault("stripe", CREATE_SUBSCRIPTION, fault)
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    (subscription,) = world.stripe_objects("subscriptions")
    assert world.link(org_id, "stripe").subscription_id == subscription["id"]


def test_a_stored_create_is_sent_again_unchanged_after_a_rename(world: SyncWorld) -> None:
    world.sandbox.add_fault("stripe", CREATE_CUSTOMER_REQUEST, "lost_answer")
    org_id = world.create("Acme")
    assert world.run(org_id, "stripe").kind == "retry"
    world.rename(org_id, "Acme GmbH")
    world.reconcile_until_idle(org_id)
    creates = [call for call in world.sandbox.calls("stripe") if call.operation == CREATE_CUSTOMER_REQUEST]
    assert len(creates) == 2
    assert len({(call.idempotency_key, call.body) for call in creates}) == 1
    assert creates[1].replayed
    (customer,) = world.stripe_objects("customers")
    assert customer["name"] == "Acme GmbH"


def test_a_create_that_was_left_for_a_day_is_looked_for_before_another_is_sent(world: SyncWorld) -> None:
    world.sandbox.add_fault("stripe", CREATE_CUSTOMER_REQUEST, "lost_answer")
    org_id = world.create()
    world.run(org_id, "stripe")
    world.advance_time(hours=30)
    world.run(org_id, "stripe")
    assert len(world.stripe_objects("customers")) == 1
    assert world.link(org_id, "stripe").customer_id == world.stripe_objects("customers")[0]["id"]


@pytest.mark.parametrize("moment", ["before_customer", "after_customer", "before_subscription", "after_subscription"])
def test_a_worker_that_dies_anywhere_is_followed_by_another_after_its_lease(world: SyncWorld, moment: str) -> None:
    org_id = world.create()
    world.run(org_id, "stripe")
    setattr(world.providers["lago"], moment, kill_worker)
    world.run_until_killed(org_id, "lago")
    refused = world.run(org_id, "lago")
    assert (refused.kind, refused.reason, refused.requeue_after) == ("waiting", "leased", None)
    world.expire_lease()
    with world.database.write() as session:
        assert due_links.dispatch(session, "lago", 10, world.now + links.SWEEP_GRACE) == [org_id]
    world.reconcile_until_idle(org_id)
    assert_one_of_each(world, org_id)


@both
def test_a_rename_that_was_sent_by_a_dying_worker_and_taken_back_does_not_stay(
    world: SyncWorld, provider: Provider
) -> None:
    org_id = synced(world)
    world.rename(org_id, "Misspelt")
    world.providers[provider].after_customer = kill_worker
    world.run_until_killed(org_id, provider)
    world.rename(org_id, "Acme")
    world.expire_lease()
    world.reconcile_until_idle(org_id)
    assert world.stripe_objects("customers")[0]["name"] == world.lago_objects("customers")[0]["name"] == "Acme"


@both
def test_a_rename_whose_answer_was_lost_and_that_was_taken_back_does_not_stay(
    world: SyncWorld, provider: Provider
) -> None:
    org_id = synced(world)
    world.rename(org_id, "Misspelt")
    world.sandbox.add_fault(provider, "*", "lost_answer")
    assert world.run(org_id, provider).kind == "retry"
    world.rename(org_id, "Acme")
    world.reconcile_until_idle(org_id)
    assert world.stripe_objects("customers")[0]["name"] == world.lago_objects("customers")[0]["name"] == "Acme"


@pytest.mark.parametrize("how", ["dies", "lost_answer"])
def test_a_downgrade_that_was_sent_without_an_answer_and_taken_back_does_not_come(world: SyncWorld, how: str) -> None:
    org_id = synced(world)
    world.change_plan(org_id, "starter")
    if how == "dies":
        world.providers["lago"].after_subscription = kill_worker
        world.run_until_killed(org_id, "lago")
        world.expire_lease()
    else:
        world.sandbox.add_fault("lago", "POST /api/v1/subscriptions", "lost_answer")
        assert world.run(org_id, "lago").kind == "retry"
    world.change_plan(org_id, "professional")
    world.reconcile_until_idle(org_id)
    world.advance_time(days=40)
    running = [found for found in world.lago_objects("subscriptions") if found["status"] == "active"]
    assert [found["plan_code"] for found in running] == ["professional"]


def test_an_upgrade_after_a_downgrade_whose_answer_was_lost_goes_through(world: SyncWorld) -> None:
    org_id = synced(world)
    world.change_plan(org_id, "starter")
    world.sandbox.add_fault("lago", "POST /api/v1/subscriptions", "lost_answer")
    world.run(org_id, "lago")
    world.change_plan(org_id, "enterprise")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert world.link(org_id, "lago").applied_plan == "enterprise"


def test_a_late_turn_that_lost_its_lease_changes_nothing_and_has_everything_made_again(world: SyncWorld) -> None:
    org_id = synced(world)
    world.rename(org_id, "Late")
    late = lease.acquire(world.database, world.clock, org_id, "lago")
    assert isinstance(late, attempt.SyncAttempt)
    late.before_request("POST /v1/customers")
    world.expire_lease()
    world.rename(org_id, "Acme GmbH")
    world.reconcile_until_idle(org_id)
    world.count_requests()
    before = world.link(org_id, "lago")
    with pytest.raises(LeaseLostError):
        late.before_request("POST /v1/customers")
    with pytest.raises(LeaseLostError):
        reconcile_outcomes.complete(late, attempt.ApplyResult(), reconcile_outcomes.FollowUps())
    after = world.link(org_id, "lago")
    assert (after.applied_version, after.customer_fingerprint) == (before.applied_version, before.customer_fingerprint)
    reconcile_outcomes.invalidate_after_lost_lease(late)
    assert not world.is_in_sync(org_id)
    world.wait(5)
    world.reconcile_until_idle(org_id)
    assert world.count_requests() == (0, 2)  # the customer is told again, the subscription is read
    assert world.is_in_sync(org_id)


@both
def test_a_worker_that_is_held_up_in_its_call_past_its_lease_leaves_the_last_word_to_the_rows(
    world: SyncWorld, provider: Provider
) -> None:
    org_id = synced(world)
    world.rename(org_id, "Late")

    def held_up() -> None:
        world.expire_lease()
        world.rename(org_id, "Acme GmbH")
        world.reconcile_until_idle(org_id)

    world.providers[provider].after_customer = held_up
    assert world.run(org_id, provider).kind == "waiting"
    world.wait(5)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert world.stripe_objects("customers")[0]["name"] == world.lago_objects("customers")[0]["name"] == "Acme GmbH"


def test_two_messages_for_one_organization_at_once_are_one_turn(world: SyncWorld) -> None:
    org_id = world.create()
    outcomes: list[ReconcileResult] = []
    gate = threading.Barrier(8)

    def run() -> None:
        gate.wait()
        outcomes.append(world.run(org_id, "stripe"))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome.kind for outcome in outcomes).count("synced") == 1
    assert {outcome.reason for outcome in outcomes} <= {None, "leased", "in_sync"}
    assert world.count_requests()[0] == 1


def test_with_the_broker_wiped_the_sweep_alone_brings_everything_home(world: SyncWorld) -> None:
    org_ids = [world.create(f"Acme {number}") for number in range(5)]
    for _ in range(5):
        world.wait(links.SWEEP_GRACE.total_seconds() + 1)
        for provider in BOTH_PROVIDERS:
            with world.database.write() as session:
                swept = due_links.dispatch(session, provider, 100, world.now)
            for org_id in swept:
                world.run(org_id, provider)
    assert all(world.is_in_sync(org_id) for org_id in org_ids)
    assert len(world.stripe_objects("customers")) == len(world.lago_objects("customers")) == 5
    assert world.count_requests()[0] == 5


# Changes in the middle of a turn.


@both
def test_a_change_in_mid_turn_is_seen_by_one_more_round(world: SyncWorld, provider: Provider) -> None:
    org_id = synced(world)
    world.rename(org_id, "Acme 1")
    world.providers[provider].after_customer = lambda: world.rename(org_id, "Acme 2")
    outcome = world.run(org_id, provider)
    assert (outcome.kind, outcome.requeue_after) == ("synced", backoff.COOLDOWN_AFTER_CONCURRENT_CHANGE.total_seconds())
    world.wait(2.1)
    world.reconcile_until_idle(org_id)
    assert world.stripe_objects("customers")[0]["name"] == world.lago_objects("customers")[0]["name"] == "Acme 2"


def test_data_that_was_corrected_in_mid_turn_is_not_parked_for_what_was_wrong_before(world: SyncWorld) -> None:
    org_id = synced(world)
    world.sandbox.add_fault("lago", "*", "status", status=422, body='{"status":422,"code":"validation_errors"}')
    world.rename(org_id, "Wrong")
    world.providers["lago"].before_customer = lambda: world.rename(org_id, "Right")
    outcome = world.run(org_id, "lago")
    assert (outcome.kind, outcome.requeue_after) == ("retry", backoff.LINK_COOLDOWN.total_seconds())
    assert world.link(org_id, "lago").state == "active"
    world.wait(2.1)
    world.reconcile_until_idle(org_id)
    assert world.lago_objects("customers")[0]["name"] == "Right"


def test_what_the_biller_refuses_is_parked_with_a_sentence_and_freed_by_a_change(world: SyncWorld) -> None:
    org_id = synced(world)
    world.sandbox.add_fault("lago", "*", "status", status=422, body='{"status":422,"code":"validation_errors"}')
    world.rename(org_id, "Wrong")
    assert world.run(org_id, "lago").kind == "parked"
    link = world.link(org_id, "lago")
    assert (link.state, link.error_kind, link.error_code) == ("parked", "rejected", "validation_errors")
    assert link.error_message
    refused = world.run(org_id, "lago")
    assert (refused.kind, refused.error) == ("parked", None)
    world.rename(org_id, "Right")
    world.wait(5)
    world.reconcile_until_idle(org_id)
    link = world.link(org_id, "lago")
    assert (link.state, link.error_kind, link.error_message) == ("active", None, None)


@both
def test_ids_that_a_person_changes_in_mid_turn_win(world: SyncWorld, provider: Provider) -> None:
    org_id = synced(world)
    world.sandbox.preload_stripe_customers([{"id": "cus_right", "name": "Acme"}])
    lago_id = world.link(org_id, "lago").customer_id
    right = {"stripe": "cus_right", "lago": org_id}[provider]
    world.rename(org_id, "Acme GmbH")
    world.providers[provider].after_customer = lambda: world.set_customer_id(org_id, provider, right)
    assert world.run(org_id, provider).kind == "waiting"
    world.expire_lease()
    assert adopt_known(world, org_id).kind == "adopted"
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert world.link(org_id, provider).customer_id == {"stripe": "cus_right", "lago": lago_id}[provider]


@pytest.mark.parametrize("moment", ["before_customer", "after_customer", "before_subscription", "after_subscription"])
@pytest.mark.parametrize("charged_by", BOTH_PROVIDERS)
def test_an_organization_that_is_deleted_while_it_is_made_ends_without_a_subscription(
    world: SyncWorld, moment: str, charged_by: Provider
) -> None:
    world.set_charging_provider(charged_by)
    org_id = world.create()
    provider: Provider = charged_by
    world.run(org_id, "stripe") if provider == "lago" else None
    setattr(world.providers[provider], moment, lambda: world.change_status(org_id, "deleted"))
    world.run(org_id, provider)
    world.wait(3)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert living(world) == []


def living(world: SyncWorld) -> list[object]:
    stripe = [found["id"] for found in world.stripe_objects("subscriptions") if found["status"] != "canceled"]
    return stripe + [found["lago_id"] for found in world.lago_objects("subscriptions") if found["status"] == "active"]


@pytest.mark.parametrize("charged_by", BOTH_PROVIDERS)
def test_deleting_after_a_subscription_whose_answer_was_lost_ends_it(world: SyncWorld, charged_by: Provider) -> None:
    world.set_charging_provider(charged_by)
    operation = CREATE_SUBSCRIPTION if charged_by == "stripe" else "POST /api/v1/subscriptions"
    world.sandbox.add_fault(charged_by, operation, "lost_answer")
    org_id = world.create()
    for provider in BOTH_PROVIDERS:
        world.run(org_id, provider)
    assert len(living(world)) >= 1
    world.change(org_id, commands.retry)
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    assert living(world) == []
    assert len(world.stripe_objects("customers")) == 1


@pytest.mark.parametrize("charged_by", BOTH_PROVIDERS)
def test_deleted_keeps_the_customers_and_restored_subscribes_them_again(world: SyncWorld, charged_by: Provider) -> None:
    world.set_charging_provider(charged_by)
    org_id = synced(world)
    customers = {provider: world.link(org_id, provider).customer_id for provider in BOTH_PROVIDERS}
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    assert living(world) == []
    world.wait(5)
    world.change_status(org_id, "active")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert len(living(world)) == (1 if charged_by == "lago" else 2)
    assert {provider: world.link(org_id, provider).customer_id for provider in BOTH_PROVIDERS} == customers


def test_an_end_whose_answer_was_lost_and_that_was_taken_back_is_made_good(world: SyncWorld) -> None:
    org_id = synced(world)
    world.change_status(org_id, "deleted")
    world.sandbox.add_fault("lago", "*", "lost_answer")
    assert world.run(org_id, "lago").kind == "retry"
    world.change_status(org_id, "active")
    world.reconcile_until_idle(org_id)
    assert len(living(world)) == 1


# Downgrades.


@pytest.mark.parametrize("charged_by", BOTH_PROVIDERS)
def test_a_downgrade_takes_effect_here_when_the_charger_says_so(world: SyncWorld, charged_by: Provider) -> None:
    world.set_charging_provider(charged_by)
    org_id = synced(world)
    downgrade(world, org_id)
    assert world.organization(org_id).plan_tier == "professional"
    take_effect(world, org_id)
    organization = world.organization(org_id)
    assert (organization.plan_tier, organization.pending_plan_tier) == ("starter", None)
    assert organization.plan_effective_at is None


def downgrade(world: SyncWorld, org_id: str) -> None:
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    assert world.organization(org_id).plan_effective_at is not None


def take_effect(world: SyncWorld, org_id: str) -> None:
    world.advance_time(days=45)
    assert due_links.recheck_due_downgrades(world.database, 10, world.now, world.management) == 1
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)


def test_a_downgrade_that_is_asked_for_before_lagos_job_ran_is_found_minutes_after_it(world: SyncWorld) -> None:
    """Just after midnight Lago has the old plan and names the end of the next period (lago.md 5.1, B1)."""
    world.now = datetime(2027, 1, 28, 20, 41, tzinfo=UTC)
    world.sandbox.set_clock(world.now)
    org_id = synced(world)
    downgrade(world, org_id)
    day = world.organization(org_id).plan_effective_at
    assert day == datetime(2027, 2, 1, tzinfo=UTC)
    world.advance_time(hours=1)
    assert due_links.recheck_due_downgrades(world.database, 10, world.now, world.management) == 1
    world.reconcile_until_idle(org_id)
    for minutes in (1, 6, 26):
        world.now = day + timedelta(minutes=minutes)
        world.sandbox.set_clock(world.now)
        # Somebody asks before the job has run, and the sweep when it is over.
        took_effect = minutes > 10
        if not took_effect:
            world.change(org_id, commands.retry)
        assert due_links.recheck_due_downgrades(world.database, 10, world.now, world.management) == took_effect
        world.reconcile_until_idle(org_id)
        organization = world.organization(org_id)
        assert (organization.plan_tier == "starter") == took_effect
        assert organization.plan_effective_at == (None if took_effect else day)


def test_a_downgrade_ordered_before_lagos_job_of_a_first_day_is_found_after_that_job(world: SyncWorld) -> None:
    """Lago names the end of the next period, and switches in the job of ten past (lago.md 5.1, B17)."""
    world.now = datetime(2027, 1, 28, 20, 41, tzinfo=UTC)
    world.sandbox.set_clock(world.now)
    org_id = synced(world)
    world.now = datetime(2027, 2, 1, 0, 0, 20, tzinfo=UTC)
    world.sandbox.set_clock(world.now)
    downgrade(world, org_id)
    assert world.organization(org_id).plan_effective_at == datetime(2027, 3, 1, tzinfo=UTC)
    world.now = datetime(2027, 2, 1, 0, 26, tzinfo=UTC)
    world.sandbox.set_clock(world.now)
    assert due_links.recheck_due_downgrades(world.database, 10, world.now, world.management) == 1
    world.reconcile_until_idle(org_id)
    organization = world.organization(org_id)
    assert (organization.plan_tier, organization.plan_effective_at) == ("starter", None)


def test_a_downgrade_at_lago_is_read_after_the_next_billing_run_and_then_on_its_day(world: SyncWorld) -> None:
    world.advance_time(days=40 - world.now.day)  # about the tenth, so that no month ends in the next hours
    org_id = synced(world)
    downgrade(world, org_id)
    day = world.organization(org_id).plan_effective_at
    assert day is not None
    before = world.lago_objects("subscriptions")
    world.advance_time(hours=2)
    assert due_links.recheck_due_downgrades(world.database, 10, world.now, world.management) == 1
    world.reconcile_until_idle(org_id)
    assert world.lago_objects("subscriptions") == before
    assert world.organization(org_id).plan_effective_at == day
    world.advance_time(hours=2)
    assert due_links.recheck_due_downgrades(world.database, 10, world.now, world.management) == 0
    checked_at = world.organization(org_id).downgrade_recheck_at
    assert checked_at is not None
    assert timedelta(minutes=15) <= checked_at - day < timedelta(minutes=25)


@pytest.mark.parametrize("charged_by", BOTH_PROVIDERS)
def test_a_downgrade_that_is_taken_back_before_does_not_come(world: SyncWorld, charged_by: Provider) -> None:
    world.set_charging_provider(charged_by)
    org_id = synced(world)
    downgrade(world, org_id)
    world.change_plan(org_id, "professional")
    world.wait(5)
    world.reconcile_until_idle(org_id)
    world.advance_time(days=45)
    assert due_links.recheck_due_downgrades(world.database, 10, world.now, world.management) == 0
    world.rename(org_id, "Acme GmbH")
    world.reconcile_until_idle(org_id)
    assert world.organization(org_id).plan_tier == "professional"
    assert world.link(org_id, "lago").applied_plan == "professional"


def test_the_day_of_a_downgrade_is_learned_also_when_a_rename_comes_in_mid_turn(world: SyncWorld) -> None:
    org_id = synced(world)
    world.change_plan(org_id, "starter")
    world.providers["lago"].after_subscription = lambda: world.rename(org_id, "Acme GmbH")
    world.reconcile_until_idle(org_id)
    assert world.organization(org_id).plan_effective_at is not None


def test_the_day_of_a_downgrade_is_learned_again_when_it_was_taken_back_for_a_moment(world: SyncWorld) -> None:
    org_id = synced(world)
    downgrade(world, org_id)
    world.change_plan(org_id, "professional")
    world.change_plan(org_id, "starter")
    world.wait(5)
    world.reconcile_until_idle(org_id)
    assert world.organization(org_id).plan_effective_at is not None
    take_effect(world, org_id)
    assert world.organization(org_id).plan_tier == "starter"


@pytest.mark.parametrize("charged_by", BOTH_PROVIDERS)
def test_a_downgrade_that_came_is_not_undone_by_a_rename_in_mid_turn(world: SyncWorld, charged_by: Provider) -> None:
    world.set_charging_provider(charged_by)
    org_id = synced(world)
    downgrade(world, org_id)
    world.advance_time(days=45)
    due_links.recheck_due_downgrades(world.database, 10, world.now, world.management)
    charges = len(world.sandbox.charges())
    world.providers[charged_by].after_subscription = lambda: world.rename(org_id, "Acme GmbH")
    world.reconcile_until_idle(org_id)
    assert world.organization(org_id).plan_tier == "starter"
    assert world.link(org_id, charged_by).applied_plan in {"starter", "starter_monthly_usd"}
    assert len(world.sandbox.charges()) == charges


def test_a_plan_that_stripe_already_ended_is_left_to_come_in_lago_on_its_own_day(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    org_id = synced(world)
    downgrade(world, org_id)
    with world.database.write() as session:
        organization = organization_commands.lock(session, org_id)
        assert organization is not None
        plan_changes.record_scheduled_plan_took_effect(ChangeContext(session, world.now), organization, "starter")
    world.rename(org_id, "Acme GmbH")
    world.wait(5)
    world.run(org_id, "lago")
    link = world.link(org_id, "lago")
    assert (link.state, link.applied_plan, link.applied_next_plan) == ("active", "professional", "starter")


def test_a_downgrade_that_lago_carried_out_before_stripe_is_not_undone_there(world: SyncWorld) -> None:
    """Lago's month ends before Stripe's period. The organization keeps its plan until Stripe charges the lower one."""
    world.set_charging_provider("stripe")
    world.now = datetime(2027, 1, 20, 12, tzinfo=UTC)
    world.sandbox.set_clock(world.now)
    org_id = synced(world)
    downgrade(world, org_id)
    world.now = datetime(2027, 2, 3, 12, tzinfo=UTC)
    world.sandbox.set_clock(world.now)
    before = world.lago_objects("subscriptions")
    # The first retry learns that the lower plan is active; what comes after it knows the subscription.
    for change in ("retry", "Acme GmbH", "retry"):
        if change == "retry":
            world.change(org_id, commands.retry)
        else:
            world.rename(org_id, change)
        world.wait(10)
        world.reconcile_until_idle(org_id)
        assert world.lago_objects("subscriptions") == before
    assert world.organization(org_id).pending_plan_tier == "starter"
    world.now = datetime(2027, 2, 20, 13, tzinfo=UTC)
    world.sandbox.set_clock(world.now)
    assert due_links.recheck_due_downgrades(world.database, 10, world.now, world.management) == 1
    world.reconcile_until_idle(org_id)
    assert world.organization(org_id).plan_tier == "starter"
    assert world.lago_objects("subscriptions") == before


# Who charges.


def test_an_unknown_plan_is_parked_at_both_and_never_free(world: SyncWorld) -> None:
    org_id = world.create()
    with world.database.write() as session:
        organization = organization_commands.lock(session, org_id)
        assert organization is not None
        organization.plan_tier = "legacy"
    for provider in BOTH_PROVIDERS:
        assert world.run(org_id, provider).kind == "parked"
        assert world.link(org_id, provider).error_code == "unknown_plan"
    assert world.count_requests() == (0, 0)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)


def payers(world: SyncWorld, org_id: str) -> list[str]:
    """Who charges the organization, by what the billers hold."""
    stripe = [str(found["id"]) for found in world.stripe_objects("subscriptions") if found["status"] != "canceled"]
    shown = [found.get("billing_configuration") for found in world.lago_objects("customers")]
    configurations = [each for each in shown if isinstance(each, dict)]
    linked = [str(each["provider_customer_id"]) for each in configurations if each.get("provider_customer_id")]
    assert org_id
    return stripe + linked


def test_a_plan_that_moves_to_stripe_waits_until_lago_charges_nobody(world: SyncWorld) -> None:
    world.set_charging_provider("stripe", "enterprise")
    org_id = synced(world)
    world.change_plan(org_id, "enterprise")
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "stripe").error_code == "double_charging"
    assert len(payers(world, org_id)) == 1
    world.sandbox.patch("lago", "customers", org_id, billing_configuration={"payment_provider": None})
    world.change(org_id, commands.retry)
    world.wait(5)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert payers(world, org_id) == [world.link(org_id, "stripe").subscription_id]


def test_a_plan_that_moves_to_lago_ends_the_stripe_subscription_before_lago_charges(world: SyncWorld) -> None:
    world.set_charging_provider("stripe", "professional")
    org_id = synced(world)
    world.change_plan(org_id, "enterprise")
    world.run(org_id, "lago")
    assert len(payers(world, org_id)) == 1
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert payers(world, org_id) == [world.link(org_id, "stripe").customer_id]
    assert world.link(org_id, "stripe").subscription_id is None


def test_a_setting_that_flips_to_lago_ends_nothing_until_a_person_retries(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    org_id = synced(world)
    subscription = world.link(org_id, "stripe").subscription_id
    world.set_charging_provider("lago")
    world.rename(org_id, "Acme GmbH")
    world.reconcile_until_idle(org_id)
    assert payers(world, org_id) == [subscription]
    assert {world.link(org_id, provider).error_code for provider in BOTH_PROVIDERS} == {"double_charging"}
    message = world.link(org_id, "stripe").error_message or ""
    assert "charged_by in plans.toml, or CHARGED_BY" in message
    assert f"{subscription} and goes on charging" in message
    assert "run `billing-sync charging move --to lago --out FILE`" in message
    assert f"or `billing-sync retry {org_id}` for this one, which ends the Stripe subscription" in message
    world.change(org_id, commands.retry)
    world.wait(5)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert payers(world, org_id) == [world.link(org_id, "stripe").customer_id]


def test_who_decides_about_a_move_to_lago_is_told_before_that_nothing_will_be_credited(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    credited, uncredited = synced(world), synced(world, name="Beta")
    world.set_charging_provider("lago")
    world.rename(credited, "Acme GmbH")
    world.reconcile_until_idle(credited)
    ending = world.catalog.ending.model_copy(update={"stripe_prorate": False})
    world.catalog = world.catalog.model_copy(update={"ending": ending})
    world.rename(uncredited, "Beta GmbH")
    world.reconcile_until_idle(uncredited)
    said = "which ends the Stripe subscription and credits no paid time that is left (stripe_prorate)"
    assert said in (world.link(uncredited, "stripe").error_message or "")
    assert "credits" not in (world.link(credited, "stripe").error_message or "")


def test_a_setting_that_flips_to_lago_and_back_changes_nothing(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    org_id = synced(world)
    subscription = world.link(org_id, "stripe").subscription_id
    world.set_charging_provider("lago")
    world.rename(org_id, "Acme GmbH")
    world.reconcile_until_idle(org_id)
    world.set_charging_provider("stripe")
    world.change(org_id, commands.retry)
    world.wait(5)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert payers(world, org_id) == [subscription]


def test_a_lost_stripe_subscription_is_not_forgotten_when_the_plan_moves_to_lago(world: SyncWorld) -> None:
    world.set_charging_provider("stripe", "professional")
    world.sandbox.add_fault("stripe", CREATE_SUBSCRIPTION, "lost_answer")
    org_id = world.create()
    assert world.run(org_id, "stripe").kind == "retry"
    world.change_plan(org_id, "enterprise")
    world.reconcile_until_idle(org_id)
    world.change(org_id, commands.retry)
    world.wait(5)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert payers(world, org_id) == [world.link(org_id, "stripe").customer_id]


@pytest.mark.parametrize("first", BOTH_PROVIDERS)
def test_two_workers_that_see_different_plans_cannot_both_begin_to_charge(world: SyncWorld, first: Provider) -> None:
    """One began its turn on a plan that Lago charges, the other on the plan that Stripe charges and that came since."""
    other: Provider = "stripe" if first == "lago" else "lago"
    world.set_charging_provider("stripe", "enterprise")
    world.policy = replace(world.policy, payer_wait=world.policy.payer_wait)
    org_id = world.create(plan_tier="professional" if first == "lago" else "enterprise")
    if first == "lago":
        world.run(org_id, "stripe")

    def other_plan() -> None:
        with world.database.write() as session:
            organization = organization_commands.lock(session, org_id)
            assert organization is not None
            organization.plan_tier = "enterprise" if first == "lago" else "professional"
            links.mark_for_sync(ChangeContext(session, world.now), organization)
        world.wait(40)
        world.run(org_id, other)

    before = "before_customer" if first == "lago" else "before_subscription"
    setattr(world.providers[first], before, other_plan)
    world.run(org_id, first)
    assert len(payers(world, org_id)) <= 1


def test_a_downgrade_that_would_change_the_charger_is_parked_and_can_be_taken_back(world: SyncWorld) -> None:
    world.set_charging_provider("stripe", "enterprise")
    org_id = synced(world, "enterprise")
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    assert {world.link(org_id, provider).error_code for provider in BOTH_PROVIDERS} == {
        "charging_provider_would_change"
    }
    world.change_plan(org_id, "enterprise")
    world.wait(5)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)


def test_without_a_stripe_connection_lago_waits_for_nobody(world: SyncWorld) -> None:
    unlinked = with_policy(world, PayerPolicy(sends_payer_to_lago=False))
    org_id = unlinked.create()
    assert unlinked.run(org_id, "lago").kind == "synced"
    assert unlinked.run(org_id, "stripe").kind == "synced"
    assert unlinked.is_in_sync(org_id)


# What is brought from outside, and the database's own word.


def test_a_customer_id_that_another_organization_names_parks_and_does_not_crash(world: SyncWorld) -> None:
    world.sandbox.add_fault("stripe", CREATE_CUSTOMER_REQUEST, "lost_answer")
    org_id = world.create()
    world.run(org_id, "stripe")
    made = str(world.stripe_objects("customers")[0]["id"])
    thief = world.create("Thief")
    world.set_customer_id(thief, "stripe", made)
    world.wait(60)
    assert world.run(org_id, "stripe").kind == "parked"
    assert world.link(org_id, "stripe").error_code == "customer_id_in_use"


def test_a_customer_whose_id_was_set_is_read_and_not_written_before_it_is_adopted(world: SyncWorld) -> None:
    world.sandbox.preload_stripe_customers([{"id": "cus_old", "name": "Acme"}])
    org_id = world.create()
    world.set_customer_id(org_id, "stripe", "cus_old")
    world.reconcile_until_idle(org_id)
    assert {call.method for call in world.sandbox.calls()} == {"GET"}
    assert {world.link(org_id, provider).state for provider in BOTH_PROVIDERS} == {"observed"}
    assert adopt_known(world, org_id).kind == "adopted"
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert len(world.stripe_objects("customers")) == 1


def test_a_customer_with_our_complete_marks_is_ours_without_an_adoption(world: SyncWorld) -> None:
    org_id = synced(world)
    customer_id = str(world.link(org_id, "stripe").customer_id)
    world.sandbox.preload_stripe_customers([{"id": "cus_other", "name": "Acme"}])
    world.set_customer_id(org_id, "stripe", "cus_other")
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "stripe").ownership == "theirs"
    world.set_customer_id(org_id, "stripe", customer_id)
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "stripe").ownership == "ours"
    world.rename(org_id, "Globex")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert payers(world, org_id) == [customer_id]


@pytest.mark.parametrize("wrong", ["billing_sync_org_id", "billing_sync_database_id"])
def test_half_of_our_marks_or_those_of_another_database_make_no_customer_ours(world: SyncWorld, wrong: str) -> None:
    org_id = synced(world)
    customer_id = str(world.link(org_id, "stripe").customer_id)
    (metadata,) = [row["metadata"] for row in world.stripe_objects("customers") if row["id"] == customer_id]
    assert isinstance(metadata, dict)
    world.sandbox.preload_stripe_customers([{"id": "cus_theirs", "metadata": {**metadata, wrong: "another"}}])
    world.set_customer_id(org_id, "stripe", "cus_theirs")
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "stripe").ownership == "theirs"


def test_an_id_that_the_biller_does_not_know_is_observed_and_never_replaced(world: SyncWorld) -> None:
    org_id = world.create()
    world.set_customer_id(org_id, "stripe", "cus_nowhere")
    assert world.run(org_id, "stripe").kind == "observed"
    problem = world.observation(org_id, "stripe").problem
    assert problem is not None
    assert "cus_nowhere" in problem.message
    assert world.link(org_id, "stripe").customer_id == "cus_nowhere"
    assert world.stripe_objects("customers") == []


def test_ids_cannot_be_changed_while_a_subscription_may_be_in_the_making(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    world.sandbox.add_fault("stripe", CREATE_SUBSCRIPTION, "lost_answer")
    org_id = world.create()
    world.run(org_id, "stripe")
    with pytest.raises(validation.InvalidChangeError, match="being created"):
        world.set_customer_id(org_id, "stripe", "cus_other")


def test_throttling_names_its_wait_and_a_long_wait_is_left_to_the_sweep(world: SyncWorld) -> None:
    org_id = synced(world)
    world.rename(org_id, "Acme GmbH")
    world.sandbox.add_fault("stripe", "*", "429", retry_after=120)
    outcome = world.run(org_id, "stripe")
    assert outcome.kind == "retry"
    assert outcome.requeue_after is not None
    assert 120 <= outcome.requeue_after <= 121
    link = world.link(org_id, "stripe")
    assert link.next_sweep_at == link.not_before
    assert world.run(org_id, "stripe").kind == "waiting"


def test_a_key_that_is_refused_waits_and_is_never_parked(world: SyncWorld) -> None:
    org_id = synced(world)
    world.rename(org_id, "Acme GmbH")
    world.sandbox.add_fault("lago", "*", "401")
    outcome = world.run(org_id, "lago")
    assert outcome.kind == "retry"
    assert outcome.requeue_after is not None
    assert outcome.requeue_after >= backoff.MISCONFIGURED_BACKOFF_SECONDS
    link = world.link(org_id, "lago")
    assert link.error_kind == "misconfigured"
    assert link.next_sweep_at == link.not_before  # no worker holds such a wait in its memory


@pytest.mark.parametrize("operation", ["GET /v1/invoices", "GET /v1/credit_notes", "POST /v1/credit_notes"])
def test_a_right_that_the_key_lacks_for_credits_parks_only_who_leaves(world: SyncWorld, operation: str) -> None:
    """The restricted key was made before credits were given. Everybody else is served."""
    world.set_charging_provider("stripe")
    leaving, staying = synced(world), synced(world, name="Beta")
    world.advance_time(days=2)
    world.sandbox.add_fault("stripe", operation, "403", reason="rak_credit_note_write", times=0)
    world.change_status(leaving, "deleted")
    world.rename(staying, "Beta GmbH")
    world.reconcile_until_idle(leaving)
    world.reconcile_until_idle(staying)
    link = world.link(leaving, "stripe")
    assert (link.state, link.error_code) == ("parked", "missing_permission")
    assert "rak_credit_note_write" in (link.error_message or "")
    assert world.is_in_sync(staying)
    with world.database.read() as session:
        assert circuit_breaker.open_breakers(session) == {}
    world.sandbox.clear_faults()
    world.change(leaving, commands.retry)
    world.wait(5)
    world.reconcile_until_idle(leaving)
    assert world.is_in_sync(leaving)
    notes = [call.status for call in world.sandbox.calls("stripe") if call.operation == "POST /v1/credit_notes"]
    assert notes.count(200) == 1


def test_errors_and_rows_hold_no_name_and_no_email(world: SyncWorld) -> None:
    org_id = world.create("Very Secret Ltd", email="boss@secret.test")
    world.sandbox.add_fault("*", "*", "500_before", times=0)
    outcomes = [world.run(org_id, "stripe")]
    world.wait(31)
    outcomes += [world.run(org_id, "lago")]
    world.wait(31)
    outcomes += [world.run(org_id, "lago")]
    kept = [world.link(org_id, provider).error_message for provider in BOTH_PROVIDERS]
    assert all(kept)
    assert "ecret" not in f"{outcomes}{kept}"


def test_no_transaction_is_open_while_a_biller_is_asked(world: SyncWorld) -> None:
    org_id = world.create()
    seen: list[int] = []

    def look() -> None:
        pool = world.database.engine.pool
        assert isinstance(pool, QueuePool)
        seen.append(pool.checkedout())

    for provider in world.providers.values():
        provider.before_customer = provider.after_customer = provider.before_subscription = look
    world.reconcile_until_idle(org_id)
    assert seen
    assert set(seen) == {0}


def test_the_jitter_is_full_and_bounded() -> None:
    error = UnavailableError("lago", "down")
    assert backoff.retry_delay(error, 1, lambda _low, high: high) == 2.0
    assert backoff.retry_delay(error, 10_000, lambda _low, high: high) == backoff.MAX_BACKOFF_SECONDS
    assert backoff.retry_delay(error, 5, lambda low, _high: low) == 0.2
    assert backoff.retry_delay(ThrottledError("lago", "slow", None, None, 7.0), 1, lambda low, _high: low) == 7.0


def test_replacing_an_id_is_an_event_that_wakes_the_billers(world: SyncWorld) -> None:
    org_id = synced(world)
    world.sandbox.preload_stripe_customers([{"id": "cus_new", "name": "Acme"}])
    world.change(
        org_id, lambda change, org: provider_ids.set_customer_ids(change, org, {"stripe": "cus_new", "lago": None})
    )
    with world.database.read() as session:
        events = session.connection().exec_driver_sql("SELECT type FROM events ORDER BY seq DESC LIMIT 1").scalar()
    assert events == "organization.billing_details_changed"
    assert world.link(org_id, "stripe").desired_version > world.link(org_id, "stripe").applied_version
    assert isinstance(world.link(org_id, "stripe"), BillingLink)
    assert utc_now().tzinfo is not None
