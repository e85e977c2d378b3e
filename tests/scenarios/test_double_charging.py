"""Never two who charge, never a customer too many, whatever was there before us, was lost or was forgotten."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import httpx
import pytest
from sqlalchemy import update

from core.common.validation import InvalidChangeError
from core.compare.desired_state import PayerPolicy
from core.db.models.billing_links import BillingLink
from core.db.models.providers import ProviderStatus
from core.ports.spec import Provider
from core.reconcile import attempt, backoff, commands, due_links, lease, outcomes
from providers.lago.provider import LagoProvider
from providers.stripe.provider import StripeProvider
from sandbox.server import Sandbox
from tests.support.adoption_harness import adopt_known
from tests.support.sync_world import PAYMENT_PROVIDER_CODE, HookedProvider, SyncWorld, kill_worker, with_policy
from tests.support.waiting import until

OLD_PRICE = {
    "lookup_key": "old",
    "currency": "usd",
    "unit_amount": 4900,
    "recurring": {"interval": "month"},
    "product_data": {"name": "Old"},
}


def with_old_subscription(world: SyncWorld) -> str:
    """A customer at Stripe who pays for something that we did not make."""
    world.sandbox.preload_stripe_customers([{"id": "cus_old", "name": "Acme", "email": "ap@acme.test"}])
    price = world.sandbox.preload_stripe_prices([OLD_PRICE])[0]
    return str(world.sandbox.preload_stripe_subscription("cus_old", price["id"])["id"])


def with_payer_in_lago(world: SyncWorld, org_id: str) -> str:
    """A customer at Lago who is charged through ``cus_theirs``; returns its ``lago_id``."""
    world.sandbox.preload_stripe_customers([{"id": "cus_theirs", "name": "Acme"}])
    configuration = {
        "payment_provider": "stripe",
        "payment_provider_code": PAYMENT_PROVIDER_CODE,
        "provider_customer_id": "cus_theirs",
    }
    theirs = {"external_id": org_id, "name": "Acme", "billing_configuration": configuration}
    return str(world.sandbox.preload_lago_customers([theirs])[0]["lago_id"])


def payers_in_lago(world: SyncWorld) -> list[object]:
    customers = world.sandbox.state()["lago"]["customers"]
    return [customer["billing_configuration"].get("provider_customer_id") for customer in customers]


def charging_in_stripe(world: SyncWorld) -> list[object]:
    return [each["id"] for each in world.stripe_objects("subscriptions") if each["status"] == "active"]


def test_a_customer_that_pays_for_something_else_in_stripe_is_not_charged_by_lago_too(world: SyncWorld) -> None:
    theirs = with_old_subscription(world)
    org_id = world.create()
    world.set_customer_id(org_id, "stripe", "cus_old")
    world.reconcile_until_idle(org_id)
    problem = world.observation(org_id, "stripe").problem
    assert problem is not None
    assert problem.code == "double_charging"
    assert theirs in problem.message
    assert payers_in_lago(world) in ([], [None])
    assert charging_in_stripe(world) == [theirs]


def test_once_that_has_ended_it_is_adopted_and_charged_by_lago(world: SyncWorld, sandbox_server: Sandbox) -> None:
    theirs = with_old_subscription(world)
    org_id = world.create()
    world.set_customer_id(org_id, "stripe", "cus_old")
    world.reconcile_until_idle(org_id)
    httpx.delete(f"{sandbox_server.url}/v1/subscriptions/{theirs}", headers={"Authorization": "Bearer sk_test_hand"})
    assert adopt_known(world, org_id).kind == "adopted"
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert payers_in_lago(world) == ["cus_old"]


@pytest.mark.parametrize("its_id", ["known", "not known"])
@pytest.mark.parametrize("stripe", ["in time", "late"])
def test_a_payer_that_lago_charges_already_is_never_replaced(world: SyncWorld, its_id: str, stripe: str) -> None:
    org_id = world.create()
    world.advance_time(days=2)
    lago_id = with_payer_in_lago(world, org_id)
    if its_id == "known":
        world.set_customer_id(org_id, "lago", lago_id)
    if stripe == "late":
        world.sandbox.add_fault("stripe", "*", "500_before", times=0)
        world.run(org_id, "stripe")
        world.run(org_id, "lago")
        world.wait(31)
        world.run(org_id, "lago")
        world.sandbox.clear_faults()
        world.wait(backoff.MAX_BACKOFF_SECONDS)
    world.reconcile_until_idle(org_id)
    link = world.link(org_id, "lago")
    assert link.state == ("observed" if its_id == "known" else "parked")
    problem = world.observation(org_id, "lago").problem if its_id == "known" else None
    assert "cus_theirs" in (problem.message if problem is not None else link.error_message or "")
    assert payers_in_lago(world) == ["cus_theirs"]


def test_a_payer_that_lago_showed_is_not_forgotten_when_the_next_call_fails(
    world: SyncWorld, sandbox_server: Sandbox
) -> None:
    links_nobody = LagoProvider(sandbox_server.url, "sandbox", payment_provider_code=None, ending=world.catalog.ending)
    world = replace(
        with_policy(world, PayerPolicy()), providers={**world.providers, "lago": HookedProvider(links_nobody)}
    )
    org_id = world.create(plan_tier="starter")
    world.set_customer_id(org_id, "lago", with_payer_in_lago(world, org_id))
    # As a link was before adoptions: one whose payer is not the Stripe customer in the row is not adopted.
    with world.database.write() as session:
        session.get_one(BillingLink, (org_id, "lago")).ownership = "adopted"
    world.sandbox.add_fault("lago", "POST /api/v1/subscriptions", "500_before")
    world.reconcile_until_idle(org_id)
    world.set_charging_provider("stripe", "enterprise")
    world.wait(100)
    world.change_plan(org_id, "enterprise")
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "stripe").error_code == "double_charging"
    assert charging_in_stripe(world) == []
    links_nobody.close()


@pytest.mark.slow
def test_an_organization_that_is_deleted_while_a_create_is_under_way_pays_for_nothing(
    world: SyncWorld, sandbox_server: Sandbox
) -> None:
    world.set_charging_provider("stripe")
    org_id = world.create()
    world.sandbox.add_fault("stripe", "POST /v1/subscriptions", "slow", seconds=4.0)
    hasty = StripeProvider(
        "sk_test_sandbox", sandbox_server.url, ending=world.catalog.ending, timeout=2.0, clock=world.clock
    )
    replace(world, providers={**world.providers, "stripe": HookedProvider(hasty)}).run(org_id, "stripe")
    hasty.close()
    world.change_status(org_id, "deleted")
    world.run(org_id, "stripe")
    assert not world.is_in_sync(org_id), "nothing there yet proves nothing"
    assert charging_in_stripe(world) == []
    until(lambda: charging_in_stripe(world), "it is there in the end")
    world.wait(300)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert [each["status"] for each in world.stripe_objects("subscriptions")] == ["canceled"]


def test_one_that_a_late_worker_made_for_a_deleted_organization_is_ended(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    org_id = world.create()
    world.providers["stripe"].before_subscription = kill_worker
    world.run_until_killed(org_id, "stripe")
    world.expire_lease()
    late = lease.acquire(world.database, world.clock, org_id, "stripe")
    assert isinstance(late, attempt.SyncAttempt)
    world.expire_lease()
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    price = next(each for each in world.stripe_objects("prices") if each["lookup_key"] == "professional_monthly_usd")
    customer = str(world.link(org_id, "stripe").customer_id)
    world.sandbox.preload_stripe_subscription(customer, str(price["id"]), metadata={"billing_sync_org_id": org_id})
    outcomes.invalidate_after_lost_lease(late)
    world.wait(5)
    world.reconcile_until_idle(org_id)
    assert charging_in_stripe(world) == []
    assert len(world.stripe_objects("subscriptions")) == 1


@pytest.mark.parametrize("how", ["lost_answer", "killed"])
def test_an_organization_that_comes_back_after_an_end_without_an_answer_is_charged_again(
    world: SyncWorld, how: str
) -> None:
    world.set_charging_provider("stripe")
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    world.wait(10)
    world.change_status(org_id, "deleted")
    if how == "lost_answer":
        world.sandbox.add_fault("stripe", "DELETE /v1/subscriptions/{id}", "lost_answer")
        world.run(org_id, "stripe")
    else:
        world.providers["stripe"].after_end = kill_worker
        world.run_until_killed(org_id, "stripe")
        world.expire_lease()
    assert charging_in_stripe(world) == []
    world.change_status(org_id, "active")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert len(charging_in_stripe(world)) == 1


@pytest.mark.parametrize("charged_by", ["lago", "stripe"])
def test_a_downgrade_that_came_is_not_undone_by_another_chosen_in_mid_turn(
    world: SyncWorld, charged_by: Provider
) -> None:
    world.set_charging_provider(charged_by)
    org_id = world.create(plan_tier="professional")
    world.reconcile_until_idle(org_id)
    world.wait(10)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    world.advance_time(days=40)
    due_links.recheck_due_downgrades(world.database, 100, world.now, world.management)
    world.providers[charged_by].after_subscription = lambda: world.change_plan(org_id, "founders_friend")
    world.reconcile_until_idle(org_id)
    organization = world.organization(org_id)
    assert (organization.plan_tier, organization.pending_plan_tier) == ("starter", "founders_friend")
    active = [each["plan_code"] for each in world.lago_objects("subscriptions") if each["status"] == "active"]
    assert active == [world.catalog.plan("starter").lago_plan_code]


@pytest.mark.parametrize("search", ["allowed", "refused"])
def test_a_restored_database_finds_the_customer_that_it_forgot(world: SyncWorld, search: str) -> None:
    """Stripe lets no merchant in India search."""
    world.sandbox.settings(stripe_search_refused=search == "refused")
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    (customer,) = [each["id"] for each in world.stripe_objects("customers")]
    forget(world, org_id, linked_at=world.organization(org_id).created_at)
    world.advance_time(hours=30)
    world.reconcile_until_idle(org_id)
    assert [each["id"] for each in world.stripe_objects("customers")] == [customer]
    assert payers_in_lago(world) == [customer]
    assert world.is_in_sync(org_id)


def test_the_customer_of_an_imported_organization_may_be_older_than_its_link(world: SyncWorld) -> None:
    """The database was lost and filled again from a file, and was not reconciled for more than a day."""
    world.sandbox.settings(stripe_search_refused=True)
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    (customer,) = [each["id"] for each in world.stripe_objects("customers")]
    world.advance_time(hours=30)
    forget(world, org_id, linked_at=world.now, maybe_older=True)
    world.advance_time(hours=30)
    world.reconcile_until_idle(org_id)
    assert [each["id"] for each in world.stripe_objects("customers")] == [customer]
    assert world.link(org_id, "lago").ownership == "theirs"
    assert adopt_known(world, org_id).kind == "adopted"
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)


@pytest.mark.parametrize("name", ["Acme", "Another"])
def test_who_starts_over_within_a_day_gets_a_new_customer_for_the_one_that_was_deleted(
    world: SyncWorld, name: str
) -> None:
    """A new database with the same ids uses the same keys. Stripe replays what they created, or refuses."""
    org_id = world.create()
    world.run(org_id, "stripe")
    former = str(world.link(org_id, "stripe").customer_id)
    world.sandbox.delete("stripe", "customers", former)
    world.advance_time(hours=2)
    forget(world, org_id, linked_at=world.now, database_id="another")
    world.rename(org_id, name)
    world.reconcile_until_idle(org_id)
    customer_id = world.link(org_id, "stripe").customer_id
    assert world.is_in_sync(org_id)
    assert customer_id not in {None, former}


def test_a_database_that_was_lost_and_filled_again_within_a_day_finds_its_customer(world: SyncWorld) -> None:
    org_id = world.create()
    world.run(org_id, "stripe")
    former = world.link(org_id, "stripe").customer_id
    world.advance_time(hours=2)
    forget(world, org_id, linked_at=world.now, database_id="another")
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "stripe").customer_id == former
    assert len(world.stripe_objects("customers")) == 1


def test_a_customer_that_this_database_created_and_somebody_deleted_is_not_created_again(world: SyncWorld) -> None:
    org_id = world.create()
    world.run(org_id, "stripe")
    world.sandbox.delete("stripe", "customers", str(world.link(org_id, "stripe").customer_id))
    world.advance_time(hours=2)
    forget(world, org_id, linked_at=world.organization(org_id).created_at)
    world.run(org_id, "stripe")
    assert world.link(org_id, "stripe").error_code == "customer_deleted"


def forget(
    world: SyncWorld, org_id: str, linked_at: datetime, *, maybe_older: bool = False, database_id: str | None = None
) -> None:
    """As in a database that was filled anew at that time. ``database_id``: if it is not the same database."""
    made = (
        "customer_id",
        "subscription_id",
        "payer_id",
        "customer_fingerprint",
        "applied_plan",
        "intent",
        "not_before",
    )
    with world.database.write() as session:
        session.execute(
            update(BillingLink)
            .where(BillingLink.org_id == org_id)
            .values(
                **dict.fromkeys(made),
                applied_version=0,
                generation=0,
                customer_state="absent",
                plan_state="unknown",
                created_at=linked_at,
                maybe_older=maybe_older,
            )
        )
        if database_id is not None:
            session.execute(update(ProviderStatus).values(database_id=database_id))


def test_an_id_cannot_be_brought_while_a_customer_is_in_the_making(world: SyncWorld) -> None:
    org_id = world.create()
    world.sandbox.preload_stripe_customers([{"id": "cus_mine", "name": "Acme"}])
    world.sandbox.add_fault("stripe", "POST /v1/customers", "lost_answer")
    world.run(org_id, "stripe")
    with pytest.raises(InvalidChangeError, match="being created"):
        world.set_customer_id(org_id, "stripe", "cus_mine")
    world.reconcile_until_idle(org_id)
    world.set_customer_id(org_id, "stripe", "cus_mine")


@pytest.mark.parametrize("plan_says", ["first", "not"])
def test_a_deleted_customer_that_paid_in_stripe_is_replaced_by_a_person_and_pays_anew(
    world: SyncWorld, plan_says: str
) -> None:
    """Its subscription ended with it, so nothing of it stands in the way."""
    world.set_charging_provider("stripe")
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    world.sandbox.delete("stripe", "customers", str(world.link(org_id, "stripe").customer_id))
    world.wait(60)
    if plan_says == "first":
        # Nothing of ours has met it yet: a plan told the person.
        world.sandbox.preload_stripe_customers([{"id": "cus_new", "name": "Acme", "email": "ap@acme.test"}])
        with pytest.raises(InvalidChangeError, match=f"retry {org_id}"):
            world.set_customer_id(org_id, "stripe", "cus_new")
        world.change(org_id, commands.retry)
    else:
        world.rename(org_id, "Acme GmbH")
        world.sandbox.preload_stripe_customers([{"id": "cus_new", "name": "Acme", "email": "ap@acme.test"}])
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "stripe").error_code == "customer_deleted"
    world.set_customer_id(org_id, "stripe", "cus_new")
    assert adopt_known(world, org_id).kind == "adopted"
    world.sandbox.add_fault("stripe", "POST /v1/subscriptions", "lost_answer")
    world.wait(5)
    world.run(org_id, "stripe")
    with pytest.raises(InvalidChangeError, match="being created"):
        world.set_customer_id(org_id, "stripe", "cus_other")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    (charged,) = [each for each in world.stripe_objects("subscriptions") if each["status"] == "active"]
    assert (charged["id"], charged["customer"]) == (world.link(org_id, "stripe").subscription_id, "cus_new")


@pytest.mark.parametrize("first", ["lago", "stripe"])
def test_a_retry_of_what_is_right_leaves_it_right_whichever_biller_comes_first(
    world: SyncWorld, first: Provider
) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    world.wait(60)
    world.change(org_id, commands.retry)
    world.run(org_id, first)
    world.reconcile_until_idle(org_id)
    assert [world.link(org_id, provider).state for provider in ("stripe", "lago")] == ["active", "active"]
    assert world.is_in_sync(org_id)
    assert payers_in_lago(world) == [world.link(org_id, "stripe").customer_id]
