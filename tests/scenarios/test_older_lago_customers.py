"""A customer that Lago had under the organization's id before our link is theirs: observed, until it is adopted.

The id of such an organization came from outside: from an event, from a caller, or from an import without a Lago id.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from core.compare.desired_state import PayerPolicy
from core.db.models.billing_links import BillingLink
from core.events.event_types import ChangeContext
from core.flow_control import circuit_breaker
from core.organizations import commands
from core.organizations.commands import NewOrganization
from core.ports.spec import PROVIDERS, LastKnown, SubscriptionSpec
from core.reconcile import commands as reconcile_commands
from core.reconcile import lease, outcomes
from core.reconcile.attempt import SyncAttempt
from core.reconcile.link_status import link_report
from core.reconcile.observation import ObservedProblem
from tests.support.adoption_harness import adopt_known
from tests.support.in_memory_attempt import InMemoryAttempt
from tests.support.sync_world import PAYMENT_PROVIDER_CODE, SyncWorld, kill_worker

ORG = "org_from-outside"
OLD_PAYER = "cus_old"
OWN_PRICE = 7_900
REFUSED = '{"status":422,"code":"validation_errors"}'


@pytest.fixture(autouse=True)
def old_payer(world: SyncWorld) -> None:
    world.sandbox.preload_stripe_customers([{"id": OLD_PAYER, "name": "Acme before"}])


def create_with_id(world: SyncWorld, tier: str = "professional") -> None:
    new = NewOrganization(name="Acme", plan_tier=tier, billing_email="ap@acme.test", org_id=ORG)
    with world.database.write() as session:
        commands.create(ChangeContext(session, world.now), new, world.catalog)


def lago_has_customer(
    world: SyncWorld, *, plan: str | None = None, payer: str | None = OLD_PAYER, currency: str | None = None
) -> None:
    """With a subscription on ``plan``, sold a month ago."""
    configuration = {
        "payment_provider": "stripe",
        "payment_provider_code": PAYMENT_PROVIDER_CODE,
        "provider_customer_id": payer,
    }
    customer = {
        "external_id": ORG,
        "name": "Acme before",
        "currency": currency,
        "billing_configuration": configuration if payer else {},
    }
    world.sandbox.preload_lago_customers([customer])
    if plan is not None:
        world.sandbox.preload_lago_subscription(ORG, plan, external_id=ORG)
        world.sandbox.patch("lago", "subscriptions", ORG, plan_overrides={"amount_cents": OWN_PRICE})
    world.advance_time(days=31)
    world.sandbox.reset_calls()


def schedule_in_lago(world: SyncWorld, plan: str) -> None:
    """Somebody ordered the lower plan in Lago."""
    lago = world.providers["lago"]
    known = LastKnown(customer_id=str(world.lago_objects("customers")[0]["lago_id"]), confirmed=True)
    spec = SubscriptionSpec(
        org_id=ORG, customer_id=str(known.customer_id), plan_code="professional", next_plan_code=plan
    )
    lago.ensure_subscription(spec, known, InMemoryAttempt())
    world.sandbox.reset_calls()


def writes_to_lago(world: SyncWorld) -> list[str]:
    return [call.operation for call in world.sandbox.calls("lago") if call.method != "GET"]


def price_in_lago(world: SyncWorld) -> object:
    (subscription,) = world.lago_objects("subscriptions")
    return subscription["plan_amount_cents"]


def payer_in_lago(world: SyncWorld) -> object:
    (customer,) = world.sandbox.state()["lago"]["customers"]
    return customer["billing_configuration"].get("provider_customer_id")


def observed_problem(world: SyncWorld) -> str:
    """What keeps a reconcile of the Lago link from going on. Empty: nothing does."""
    links = {provider: world.link(ORG, provider) for provider in PROVIDERS}
    assert {link.state for link in links.values()} == {"observed"}
    assert links["lago"].ownership == "theirs"
    problem = world.observation(ORG, "lago").problem
    return problem.message if problem is not None else ""


def test_another_payer_is_kept_and_named_and_nothing_is_written(world: SyncWorld) -> None:
    lago_has_customer(world, plan="professional")
    create_with_id(world)
    world.reconcile_until_idle(ORG)
    assert f"Lago charges {OLD_PAYER}" in observed_problem(world)
    assert writes_to_lago(world) == []
    assert payer_in_lago(world) == OLD_PAYER


def test_with_the_same_payer_it_is_adopted_at_the_price_that_it_pays(world: SyncWorld) -> None:
    lago_has_customer(world, plan="professional")
    create_with_id(world)
    world.set_customer_id(ORG, "stripe", OLD_PAYER)
    world.reconcile_until_idle(ORG)
    assert observed_problem(world) == ""
    assert adopt_known(world, ORG).kind == "adopted"
    world.reconcile_until_idle(ORG)
    assert world.is_in_sync(ORG)
    assert writes_to_lago(world) == []
    assert price_in_lago(world) == OWN_PRICE


def test_on_another_plan_both_are_named_and_nothing_that_we_do_changes_what_is_paid(world: SyncWorld) -> None:
    """On a real Lago an import that said starter scheduled a downgrade of an enterprise subscription."""
    lago_has_customer(world, plan="enterprise")
    create_with_id(world, tier="starter")
    world.set_customer_id(ORG, "stripe", OLD_PAYER)
    world.reconcile_until_idle(ORG)
    assert "enterprise at 79.00 USD, not on starter" in observed_problem(world)
    assert adopt_known(world, ORG).kind == "rejected"
    world.rename(ORG, "Globex")
    world.change_plan(ORG, "professional")
    world.change(ORG, reconcile_commands.retry)
    world.reconcile_until_idle(ORG)
    assert observed_problem(world)
    assert {call.method for call in world.sandbox.calls()} == {"GET"}
    assert [each["plan_code"] for each in world.lago_objects("subscriptions")] == ["enterprise"]


def test_it_is_adopted_once_the_organization_has_the_plan_that_it_pays(world: SyncWorld) -> None:
    lago_has_customer(world, plan="starter")
    create_with_id(world)
    world.set_customer_id(ORG, "stripe", OLD_PAYER)
    world.reconcile_until_idle(ORG)
    world.change_plan(ORG, "starter")
    assert adopt_known(world, ORG).kind == "adopted"
    world.reconcile_until_idle(ORG)
    assert world.is_in_sync(ORG)
    assert (world.organization(ORG).plan_tier, price_in_lago(world)) == ("starter", OWN_PRICE)
    assert writes_to_lago(world) == []


def test_one_without_a_payer_is_adopted_and_gets_none(world: SyncWorld) -> None:
    lago_has_customer(world, plan="professional", payer=None)
    create_with_id(world)
    world.reconcile_until_idle(ORG)
    assert world.observation(ORG, "lago").problem == ObservedProblem(
        kind="conflict", code="payer_changed", message=observed_problem(world)
    )
    assert adopt_known(world, ORG).kind == "adopted"
    world.reconcile_until_idle(ORG)
    assert world.is_in_sync(ORG)
    assert writes_to_lago(world) == []
    assert payer_in_lago(world) is None
    assert price_in_lago(world) == OWN_PRICE


def test_a_plan_that_somebody_scheduled_is_taken_over_and_stays_scheduled(world: SyncWorld) -> None:
    lago_has_customer(world, plan="professional")
    schedule_in_lago(world, "starter")
    create_with_id(world)
    world.set_customer_id(ORG, "stripe", OLD_PAYER)
    world.reconcile_until_idle(ORG)
    assert "then starter" in observed_problem(world)
    assert adopt_known(world, ORG).kind == "adopted"
    world.reconcile_until_idle(ORG)
    organization = world.organization(ORG)
    assert (organization.plan_tier, organization.pending_plan_tier) == ("professional", "starter")
    assert world.is_in_sync(ORG)
    assert {each["plan_code"] for each in world.lago_objects("subscriptions")} == {"professional", "starter"}
    assert writes_to_lago(world) == []


def test_what_somebody_sold_after_our_link_and_before_our_first_write_is_not_ours_either(world: SyncWorld) -> None:
    """An import may wait, for a person or behind others."""
    create_with_id(world)
    world.advance_time(days=1)
    lago_has_customer(world, plan="starter", payer=None)
    world.reconcile_until_idle(ORG)
    assert observed_problem(world)
    assert writes_to_lago(world) == []


def test_a_read_that_fails_proves_nothing(world: SyncWorld) -> None:
    create_with_id(world)
    lago_has_customer(world, plan="starter")
    world.sandbox.add_fault("lago", "GET /api/v1/customers/{id}", "500_before", times=10, seconds=0)
    world.run(ORG, "stripe")
    assert world.run(ORG, "lago").kind == "retry"
    assert world.link(ORG, "lago").maybe_older
    world.sandbox.clear_faults()
    world.reconcile_until_idle(ORG)
    assert observed_problem(world)
    assert writes_to_lago(world) == []


def test_a_customer_that_pays_in_another_currency_gets_no_plan_in_ours(world: SyncWorld) -> None:
    lago_has_customer(world, currency="EUR")
    create_with_id(world)
    world.set_customer_id(ORG, "stripe", OLD_PAYER)
    world.reconcile_until_idle(ORG)
    assert "it pays in EUR in Lago, and its plan costs USD" in observed_problem(world)
    assert world.lago_objects("subscriptions") == []


@pytest.mark.parametrize("kind", ["lost_answer", "500_after", "hang", "reset"])
def test_a_create_of_our_own_whose_answer_is_lost_is_not_taken_for_somebody_elses(world: SyncWorld, kind: str) -> None:
    create_with_id(world)
    world.run(ORG, "stripe")
    world.sandbox.add_fault("lago", "POST /api/v1/customers", kind, seconds=0.3)
    world.reconcile_until_idle(ORG)
    assert not world.sandbox.faults()
    assert world.is_in_sync(ORG)
    assert (world.link(ORG, "lago").ownership, len(world.lago_objects("customers"))) == ("ours", 1)


def test_a_create_of_our_own_by_a_killed_worker_is_not_taken_for_somebody_elses(world: SyncWorld) -> None:
    create_with_id(world)
    world.run(ORG, "stripe")
    world.providers["lago"].after_customer = kill_worker
    world.run_until_killed(ORG, "lago")
    assert (world.link(ORG, "lago").customer_id, len(world.lago_objects("customers"))) == (None, 1)
    world.expire_lease()
    world.reconcile_until_idle(ORG)
    assert world.is_in_sync(ORG)
    assert world.link(ORG, "lago").ownership == "ours"


def test_a_create_that_was_not_sent_leaves_the_customer_to_be_read_again(world: SyncWorld) -> None:
    """Somebody creates it after our read. It is theirs, because nothing of ours was on its way."""
    create_with_id(world)
    world.run(ORG, "stripe")
    world.providers["lago"].before_customer = kill_worker
    world.run_until_killed(ORG, "lago")
    lago_has_customer(world, plan="professional")
    world.expire_lease()
    world.reconcile_until_idle(ORG)
    assert world.link(ORG, "lago").ownership == "theirs"
    assert writes_to_lago(world) == []


def test_an_attempt_at_stripe_goes_on_with_nothing_once_lago_shows_that_the_customer_is_theirs(
    world: SyncWorld,
) -> None:
    world.policy = PayerPolicy()  # Lago does not wait for a payer
    lago_has_customer(world, plan="professional")
    create_with_id(world)

    def lago_is_read() -> None:
        assert world.run(ORG, "lago").kind == "observed"

    world.providers["stripe"].after_customer = lago_is_read
    assert world.run(ORG, "stripe").reason == "lease_lost"
    world.expire_lease()
    world.reconcile_until_idle(ORG)
    assert world.link(ORG, "stripe").state == "observed"


def lago_is_down(world: SyncWorld) -> None:
    world.sandbox.add_fault("lago", "GET /api/v1/customers/{id}", "500_before", times=1000, seconds=0)


def test_stripe_charges_nobody_while_lago_cannot_say_who_pays_there_already(world: SyncWorld) -> None:
    """Nobody waits longer than a quarter of an hour between two looks, and whoever reads Lago ends the wait."""
    world.set_charging_provider("stripe")
    lago_has_customer(world, plan="professional")
    create_with_id(world)
    lago_is_down(world)
    waits = []
    for _ in range(12):
        result = world.run(ORG, "stripe")
        assert (result.kind, result.reason) == ("waiting", "lago_unread")
        waits.append(round(result.requeue_after or 0))
        world.wait((result.requeue_after or 0) + 1)
        world.run(ORG, "lago")
    assert (waits[0], max(waits), waits[-1]) == (30, 900, 900)
    assert waits == sorted(waits)
    world.run(ORG, "stripe")
    report = link_report(world.link(ORG, "stripe"), world.now)
    assert (report.status, report.error_kind, report.next_at) == ("waiting", None, world.now + timedelta(minutes=15))
    assert {call.method for call in world.sandbox.calls()} == {"GET"}
    world.sandbox.clear_faults()
    with world.database.write() as session:
        circuit_breaker.record_success(session, "lago", world.now, is_probe=False)
        session.get_one(BillingLink, (ORG, "lago")).not_before = None
    assert world.run(ORG, "lago").also_requeue == ("stripe",)
    assert world.run(ORG, "stripe").kind == "observed"
    assert {call.method for call in world.sandbox.calls()} == {"GET"}


def test_stripe_charges_as_soon_as_lago_has_shown_that_nobody_pays_there(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    create_with_id(world)
    assert world.run(ORG, "stripe").reason == "lago_unread"
    assert world.stripe_objects("subscriptions") == []
    assert world.run(ORG, "lago").also_requeue == ("stripe",)
    assert world.run(ORG, "stripe").kind == "synced"
    assert world.is_in_sync(ORG)
    assert len(world.stripe_objects("subscriptions")) == 1


def test_stripe_does_not_begin_to_wait_when_lago_was_read_meanwhile(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    create_with_id(world)
    attempt = lease.acquire(world.database, world.clock, ORG, "stripe")
    assert isinstance(attempt, SyncAttempt)
    assert world.run(ORG, "lago").kind == "synced"
    assert outcomes.defer_for_lago(attempt) == 0.0
    assert world.run(ORG, "stripe").kind == "synced"


def test_an_end_at_stripe_waits_for_no_lago(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    create_with_id(world)
    lago_is_down(world)
    assert world.run(ORG, "stripe").reason == "lago_unread"
    world.change_status(ORG, "deleted")
    assert world.run(ORG, "stripe").kind == "synced"


def test_a_new_customer_costs_one_read_more_and_one_with_our_own_id_none(world: SyncWorld) -> None:
    create_with_id(world)
    world.reconcile_until_idle(ORG)
    assert world.is_in_sync(ORG)
    assert world.count_requests()[1] == 3
    own_id = world.create(name="Globex")
    world.reconcile_until_idle(own_id)
    assert world.count_requests()[1] == 2


def test_a_subscription_that_a_killed_worker_created_is_ours(world: SyncWorld) -> None:
    """The plan is changed before the next attempt, so it is not on the plan of the organization either."""
    create_with_id(world)
    world.run(ORG, "stripe")
    world.providers["lago"].after_subscription = kill_worker
    world.run_until_killed(ORG, "lago")
    world.change_plan(ORG, "enterprise")
    world.expire_lease()
    world.reconcile_until_idle(ORG)
    assert world.is_in_sync(ORG)


@pytest.mark.parametrize("is_answered", [False, True])
def test_a_rename_gives_back_no_payer_that_somebody_removed(world: SyncWorld, *, is_answered: bool) -> None:
    """Not even after a write that was refused or not answered, after which the customer in Lago is not known."""
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    if not is_answered:
        world.sandbox.add_fault("lago", "POST /api/v1/customers", "status", status=422, body=REFUSED)
        world.rename(org_id, "Globex")
        world.reconcile_until_idle(org_id)
    world.sandbox.patch("lago", "customers", org_id, billing_configuration={"payment_provider": None})
    world.rename(org_id, "Initech")
    world.reconcile_until_idle(org_id)
    assert payer_in_lago(world) is None
    assert world.link(org_id, "lago").error_code == "payer_changed"
