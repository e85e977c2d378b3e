"""The payment brake: a limited number of changes of what is paid goes out in an hour, and the rest waits for a word."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
from sqlalchemy import select

from core.catalog.plans import FormerCodes
from core.common.validation import InvalidChangeError
from core.compare.desired_state import PayerPolicy
from core.db.models.billing_links import BillingLink
from core.db.models.payments import ExpectedPaymentChanges
from core.events.event_types import ChangeContext
from core.flow_control import payment_brake
from core.flow_control.payment_brake import PaymentLimit
from core.organizations import commands
from core.ports.errors import LeaseLostError
from core.ports.planned import PaymentChange
from core.reconcile import commands as reconcile_commands
from core.reconcile import lease, payment_holds
from core.reconcile.attempt import SyncAttempt
from tests.support.sync_world import SyncWorld

LIMIT = 3


@pytest.fixture
def braked(world: SyncWorld) -> SyncWorld:
    world.payment_limit = PaymentLimit(changes=LIMIT)
    return world


def synced(world: SyncWorld, count: int, tier: str = "professional") -> list[str]:
    org_ids = [world.create(f"Org {number}", tier, email=f"{number}@acme.test") for number in range(count)]
    for org_id in org_ids:
        world.reconcile_until_idle(org_id)
        assert world.is_in_sync(org_id)
    return org_ids


def upgrade_all(world: SyncWorld, org_ids: list[str]) -> None:
    for org_id in org_ids:
        world.change_plan(org_id, "enterprise")
    for org_id in org_ids:
        world.reconcile_until_idle(org_id)


def plans_in_lago(world: SyncWorld) -> list[str]:
    active = [each for each in world.lago_objects("subscriptions") if each["status"] == "active"]
    return sorted(str(each["plan_code"]) for each in active)


def waiting(world: SyncWorld) -> list[str]:
    with world.database.read() as session:
        return [each.org_id for each in payment_holds.list_on_hold(session, 100)]


def release(world: SyncWorld, org_ids: list[str]) -> None:
    for org_id in org_ids:
        world.change(
            org_id, lambda change, organization: payment_holds.release(change, organization, world.catalog, "planned")
        )


def test_exactly_the_limit_is_sent_and_released_exactly_the_rest(braked: SyncWorld) -> None:
    org_ids = synced(braked, 5)
    upgrade_all(braked, org_ids)
    assert plans_in_lago(braked) == ["enterprise"] * LIMIT + ["professional"] * 2
    assert len(waiting(braked)) == 2
    braked.advance_time(hours=2)
    for org_id in org_ids:  # time alone lets nothing go, and neither does a change of something else
        braked.rename(org_id, f"{org_id} renamed")
        braked.reconcile_until_idle(org_id)
    assert len(waiting(braked)) == 2
    release(braked, waiting(braked)[:1])
    for org_id in org_ids:
        braked.reconcile_until_idle(org_id)
    assert plans_in_lago(braked) == ["enterprise"] * 4 + ["professional"]
    release(braked, waiting(braked))
    for org_id in org_ids:
        braked.reconcile_until_idle(org_id)
    assert plans_in_lago(braked) == ["enterprise"] * 5
    assert all(braked.is_in_sync(org_id) for org_id in org_ids)


def test_nothing_of_a_change_on_hold_is_sent_and_the_link_says_so(braked: SyncWorld) -> None:
    org_ids = synced(braked, LIMIT + 1)
    upgrade_all(braked, org_ids[:LIMIT])
    braked.sandbox.reset_calls()
    upgrade_all(braked, org_ids[LIMIT:])
    writes = [each.operation for each in braked.sandbox.calls() if not each.operation.startswith("GET ")]
    assert writes == []
    link = braked.link(org_ids[-1], "lago")
    assert (link.state, link.error_kind, link.error_code) == ("on_hold", "payment_brake", "plan_change_on_hold")
    assert link.error_message is not None
    assert "from professional to enterprise" in link.error_message
    assert "billing-sync brake release" in link.error_message


def test_dropped_nothing_is_sent_and_the_rows_stay(braked: SyncWorld) -> None:
    org_ids = synced(braked, 5)
    upgrade_all(braked, org_ids)
    dropped = waiting(braked)
    for org_id in dropped:
        braked.change(org_id, lambda change, organization: payment_holds.drop(change, organization, "a wrong import"))
    braked.advance_time(hours=2)
    for org_id in org_ids:
        braked.reconcile_until_idle(org_id)
    assert plans_in_lago(braked) == ["enterprise"] * LIMIT + ["professional"] * 2
    assert [braked.organization(org_id).plan_tier for org_id in dropped] == ["enterprise"] * 2
    with braked.database.read() as session:
        assert payment_holds.count_on_hold(session) == {}
    assert waiting(braked) == dropped


def test_what_was_dropped_is_in_sync_once_its_organization_is_corrected(braked: SyncWorld) -> None:
    org_ids = synced(braked, LIMIT + 1)
    upgrade_all(braked, org_ids)
    (org_id,) = waiting(braked)
    braked.change(org_id, lambda change, organization: payment_holds.drop(change, organization, "a wrong import"))
    with braked.database.write() as session:
        organization = commands.lock(session, org_id)
        assert organization is not None
        organization.plan_tier, organization.pending_plan_tier = "professional", None
    release(braked, [org_id])
    braked.reconcile_until_idle(org_id)
    assert braked.is_in_sync(org_id)
    assert "professional" in plans_in_lago(braked)


@pytest.mark.parametrize("dropped", [False, True])
def test_a_retry_frees_nothing(braked: SyncWorld, *, dropped: bool) -> None:
    org_ids = synced(braked, LIMIT + 1)
    upgrade_all(braked, org_ids)
    (org_id,) = waiting(braked)
    if dropped:
        braked.change(org_id, lambda change, organization: payment_holds.drop(change, organization, "a wrong import"))
    braked.advance_time(hours=2)
    braked.change(org_id, reconcile_commands.retry)
    braked.reconcile_until_idle(org_id)
    assert braked.link(org_id, "lago").state == "on_hold"
    assert "professional" in plans_in_lago(braked)


def test_an_end_of_a_deleted_organization_is_not_dropped(braked: SyncWorld) -> None:
    org_ids = synced(braked, LIMIT + 1)
    upgrade_all(braked, org_ids[:LIMIT])
    braked.change_status(org_ids[-1], "deleted")
    braked.reconcile_until_idle(org_ids[-1])
    braked.change(org_ids[-1], lambda change, organization: payment_holds.drop(change, organization, "a wrong import"))
    with braked.database.read() as session:
        assert payment_holds.count_on_hold(session) == {"end_on_hold": 1}


def test_another_payer_takes_a_place_also_after_an_interrupted_attempt(braked: SyncWorld) -> None:
    braked.policy = PayerPolicy(sends_payer_to_lago=True)
    (org_id,) = synced(braked, 1)
    braked.payment_limit = PaymentLimit(changes=0)
    with braked.database.write() as session:
        link = session.get_one(BillingLink, (org_id, "stripe"))
        link.customer_id = "cus_other"
    for _ in range(2):
        braked.rename(org_id, "Globex")
        braked.wait(5)
        braked.run(org_id, "lago")
        link = braked.link(org_id, "lago")
        assert (link.state, link.error_code) == ("on_hold", "payer_change_on_hold")
        assert link.payer_id != "cus_other"


def test_release_lets_the_payer_go_that_the_list_shows_and_no_later_one(braked: SyncWorld) -> None:
    org_ids = synced(braked, LIMIT + 1)
    upgrade_all(braked, org_ids)
    (org_id,) = waiting(braked)
    payer = braked.link(org_id, "lago").payer_id
    for other, shown in ((None, (None, None)), ("cus_other", (payer, "cus_other"))):
        if other is not None:
            set_payer(braked, org_id, other)
        with braked.database.read() as session:
            (found,) = payment_holds.list_on_hold(session, 10)
        assert (found.payer_before, found.payer_after) == shown
    braked.payment_limit = PaymentLimit(changes=0)
    release(braked, [org_id])
    braked.reconcile_until_idle(org_id)
    assert braked.is_in_sync(org_id)
    assert braked.link(org_id, "lago").payer_id == "cus_other"
    set_payer(braked, org_id, "cus_third")
    braked.rename(org_id, "Globex")
    braked.reconcile_until_idle(org_id)
    assert braked.link(org_id, "lago").error_code == "payer_change_on_hold"


def set_payer(world: SyncWorld, org_id: str, customer_id: str) -> None:
    """As an operator brings another Stripe customer, which Stripe has already."""
    world.sandbox.preload_stripe_customers([{"id": customer_id, "email": "ap@acme.test"}])
    with world.database.write() as session:
        session.get_one(BillingLink, (org_id, "stripe")).customer_id = customer_id


@pytest.mark.parametrize("dropped", [False, True])
def test_another_customer_id_lets_nothing_go(braked: SyncWorld, *, dropped: bool) -> None:
    org_ids = synced(braked, LIMIT + 1)
    upgrade_all(braked, org_ids)
    (org_id,) = waiting(braked)
    if dropped:
        braked.change(org_id, lambda change, organization: payment_holds.drop(change, organization, "a wrong import"))
    before = braked.link(org_id, "lago")
    with pytest.raises(InvalidChangeError, match="lago_id cannot change while the payment brake holds a change of"):
        braked.set_customer_id(org_id, "lago", "another")
    assert before.customer_id is not None
    braked.set_customer_id(org_id, "lago", before.customer_id)
    after = braked.link(org_id, "lago")
    assert (after.state, after.error_code) == ("on_hold", before.error_code)


def test_an_end_that_was_begun_is_finished_though_the_hour_is_full(braked: SyncWorld) -> None:
    (org_id,) = synced(braked, 1)
    braked.change_status(org_id, "deleted")
    braked.sandbox.add_fault("lago", "DELETE /api/v1/subscriptions/{id}", "500_before")
    braked.wait(5)
    braked.run(org_id, "lago")
    assert braked.link(org_id, "lago").plan_state == "ending"
    braked.payment_limit = PaymentLimit(changes=0)
    braked.advance_time(days=8)
    braked.reconcile_until_idle(org_id)
    assert braked.is_in_sync(org_id)


def test_an_end_waits_and_is_named_first_and_a_rename_does_not_wait(braked: SyncWorld) -> None:
    org_ids = synced(braked, LIMIT + 2)
    upgrade_all(braked, org_ids[: LIMIT + 1])
    leaving, upgraded = org_ids[-1], org_ids[LIMIT]
    braked.change_status(leaving, "deleted")
    braked.reconcile_until_idle(leaving)
    assert braked.link(leaving, "lago").error_code == "end_on_hold"
    assert waiting(braked) == [leaving, upgraded]
    renamed = org_ids[0]
    braked.rename(renamed, "Globex")
    braked.reconcile_until_idle(renamed)
    assert braked.is_in_sync(renamed)


def test_who_is_on_hold_and_then_deleted_ends_with_a_place_of_the_end(braked: SyncWorld) -> None:
    org_ids = synced(braked, LIMIT + 1)
    upgrade_all(braked, org_ids)
    (org_id,) = waiting(braked)
    braked.advance_time(hours=1, minutes=1)
    braked.change_status(org_id, "deleted")
    braked.reconcile_until_idle(org_id)
    assert braked.is_in_sync(org_id)
    assert waiting(braked) == []
    assert len(plans_in_lago(braked)) == LIMIT


@pytest.mark.parametrize("sold", ["at the catalog's price", "under a former code", "at a price of its own"])
def test_an_end_of_a_free_plan_takes_no_place_and_one_that_may_have_cost_something_does(
    braked: SyncWorld, sold: str
) -> None:
    (org_id,) = synced(braked, 1, "founders_friend")
    braked.payment_limit = PaymentLimit(changes=0)
    plan = braked.catalog.plan("founders_friend")
    if sold == "under a former code":
        new = {"lago_plan_code": "free_2027", "former_codes": FormerCodes(lago=[plan.code("lago")])}
        plans = braked.catalog.plans | {"founders_friend": plan.model_copy(update=new)}
        braked.catalog = braked.catalog.model_copy(update={"plans": plans})
    elif sold == "at a price of its own":
        with braked.database.write() as session:
            session.get_one(BillingLink, (org_id, "lago")).ownership = "adopted"
    braked.change_status(org_id, "deleted")
    braked.reconcile_until_idle(org_id)
    expected = None if sold == "at the catalog's price" else "end_on_hold"
    assert braked.link(org_id, "lago").error_code == expected


def test_who_comes_back_and_is_deleted_again_takes_another_place(braked: SyncWorld) -> None:
    (org_id,) = synced(braked, 1)
    for status in ("deleted", "active"):
        braked.change_status(org_id, status)
        braked.reconcile_until_idle(org_id)
        assert braked.is_in_sync(org_id)
    braked.payment_limit = PaymentLimit(changes=0)
    braked.change_status(org_id, "deleted")
    braked.reconcile_until_idle(org_id)
    assert braked.link(org_id, "lago").error_code == "end_on_hold"


def test_the_places_of_the_last_hour_are_counted_and_a_repeated_attempt_takes_no_second_one(
    braked: SyncWorld,
) -> None:
    first, *others = synced(braked, LIMIT)
    braked.sandbox.add_fault("lago", "POST /api/v1/subscriptions", "500_after")
    braked.change_plan(first, "enterprise")
    braked.wait(5)
    braked.run(first, "lago")
    assert braked.link(first, "lago").error_kind == "unavailable"
    braked.wait(60)
    braked.reconcile_until_idle(first)
    assert braked.is_in_sync(first)
    with braked.database.read() as session:
        assert payment_brake.count_places(session, braked.now) == 1
    upgrade_all(braked, others)
    assert waiting(braked) == []
    with braked.database.read() as session:
        assert payment_brake.count_places(session, braked.now) <= LIMIT
        assert payment_brake.count_places(session, braked.now + timedelta(hours=1)) == 0


def test_of_many_workers_at_once_exactly_the_limit_sends(braked: SyncWorld) -> None:
    org_ids = synced(braked, 8)
    for org_id in org_ids:
        braked.change_plan(org_id, "enterprise")
    braked.wait(5)
    gate, reconciler = threading.Barrier(len(org_ids)), braked.reconciler

    def run(org_id: str) -> None:
        gate.wait(timeout=30)
        reconciler.run(org_id, "lago")

    threads = [threading.Thread(target=run, args=(org_id,)) for org_id in org_ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for org_id in org_ids:  # some waited for a permit
        braked.reconcile_until_idle(org_id)
    assert len(waiting(braked)) == len(org_ids) - LIMIT
    with braked.database.read() as session:
        assert payment_brake.count_places(session, braked.now) == LIMIT


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_deletion_at_the_moment_of_the_hold_leaves_an_end_and_no_other_hold(braked: SyncWorld) -> None:
    """Each pair goes on in the order that the locks give; then one deletion commits while the attempt waits for it."""
    org_ids = synced(braked, 8)
    braked.payment_limit = PaymentLimit(changes=0)
    for org_id in org_ids:
        braked.change_plan(org_id, "enterprise")
    braked.wait(5)
    *raced, last = org_ids
    for org_id in raced:
        together = threading.Barrier(2)
        deletion = threading.Thread(target=delete_together, args=(braked, org_id, together))
        deletion.start()
        together.wait(timeout=30)
        braked.run(org_id, "lago")
        deletion.join(timeout=30)
    is_locked, commits = threading.Event(), threading.Thread(target=lambda: None)

    def delete_before_the_hold() -> None:
        nonlocal commits
        commits = threading.Thread(target=delete_slowly, args=(braked, last, is_locked))
        commits.start()
        assert is_locked.wait(timeout=30)

    braked.providers["lago"].before_subscription = delete_before_the_hold
    braked.run(last, "lago")
    commits.join(timeout=30)
    for org_id in org_ids:
        braked.reconcile_until_idle(org_id)
        assert braked.link(org_id, "lago").error_code == "end_on_hold"
    assert sorted(waiting(braked)) == sorted(org_ids)
    release(braked, org_ids)
    for org_id in org_ids:
        braked.reconcile_until_idle(org_id)
    assert plans_in_lago(braked) == []


def delete_together(world: SyncWorld, org_id: str, together: threading.Barrier) -> None:
    together.wait(timeout=30)
    world.change_status(org_id, "deleted")


def delete_slowly(world: SyncWorld, org_id: str, is_locked: threading.Event) -> None:
    """Commit a moment after the organization and its links are locked."""
    with world.database.write() as session:
        organization = commands.lock(session, org_id)
        assert organization is not None
        commands.change_status(ChangeContext(session, world.now), organization, "deleted")
        is_locked.set()
        time.sleep(0.3)


def test_a_worker_that_lost_its_lease_takes_no_place(braked: SyncWorld) -> None:
    (org_id,) = synced(braked, 1)
    braked.change_plan(org_id, "enterprise")
    braked.wait(5)
    stale = lease.acquire(braked.database, braked.clock, org_id, "lago")
    assert isinstance(stale, SyncAttempt)
    stale.payment_limit = braked.payment_limit
    braked.expire_lease()
    assert isinstance(lease.acquire(braked.database, braked.clock, org_id, "lago"), SyncAttempt)
    with pytest.raises(LeaseLostError):
        stale.before_change(list, PaymentChange(kind="plan"))
    with braked.database.read() as session:
        assert payment_brake.count_places(session, braked.now) == 0


def test_new_customers_take_no_place(braked: SyncWorld) -> None:
    synced(braked, LIMIT + 2)
    with braked.database.read() as session:
        assert payment_brake.count_places(session, braked.now) == 0


def test_what_is_expected_goes_beyond_the_limit_and_leaves_the_hour_its_places(braked: SyncWorld) -> None:
    org_ids = synced(braked, 6)
    with braked.database.write() as session:
        payment_holds.expect(ChangeContext(session, braked.now), 2, timedelta(hours=3), "a launch")
    upgrade_all(braked, org_ids)
    assert plans_in_lago(braked) == ["enterprise"] * 5 + ["professional"]
    assert len(waiting(braked)) == 1


def test_an_expectation_ends(braked: SyncWorld) -> None:
    org_ids = synced(braked, LIMIT + 1)
    with braked.database.write() as session:
        payment_holds.expect(ChangeContext(session, braked.now), 2, timedelta(hours=3), "a launch")
    braked.advance_time(hours=3)
    upgrade_all(braked, org_ids)
    assert len(waiting(braked)) == 1


def test_an_expectation_is_withdrawn_and_deleted_some_days_later(braked: SyncWorld) -> None:
    org_ids = synced(braked, LIMIT + 2)
    with braked.database.write() as session:
        expectation = payment_holds.expect(ChangeContext(session, braked.now), 2, timedelta(hours=3), "a launch")
        expectation_id = expectation.id
    upgrade_all(braked, org_ids[:1])
    with braked.database.write() as session:
        withdrawn = payment_holds.withdraw(session, expectation_id, braked.now)
        assert withdrawn is not None
        assert withdrawn.used == 1
        assert payment_holds.withdraw(session, expectation_id, braked.now) is None
    upgrade_all(braked, org_ids[1:])
    assert len(waiting(braked)) == 1
    for days, left in ((6, 1), (2, 0)):
        braked.advance_time(days=days)
        with braked.database.write() as session:
            payment_brake.delete_expired(session, braked.now)
        with braked.database.read() as session:
            assert len(list(session.scalars(select(ExpectedPaymentChanges)))) == left


def test_where_stripe_charges_lago_takes_no_place_of_its_own(braked: SyncWorld) -> None:
    braked.set_charging_provider("stripe")
    org_ids = synced(braked, LIMIT + 1)
    upgrade_all(braked, org_ids)
    (org_id,) = waiting(braked)
    assert braked.link(org_id, "stripe").error_code == "plan_change_on_hold"
    release(braked, [org_id])
    braked.reconcile_until_idle(org_id)
    assert all(braked.is_in_sync(each) for each in org_ids)


@pytest.mark.parametrize(
    ("given", "limit"),
    [("50 or 2%", PaymentLimit(changes=50, percent=2)), ("7", PaymentLimit(changes=7)), ("off", None)],
)
def test_a_limit_is_a_number_a_share_or_off(given: str, limit: PaymentLimit | None) -> None:
    assert PaymentLimit.parse(given) == limit


@pytest.mark.parametrize("given", ["", "2%", "50 or 101%", "-1", "many", "50 or"])
def test_another_limit_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="no limit"):
        PaymentLimit.parse(given)


def test_a_share_of_all_links_counts_where_it_is_more(braked: SyncWorld) -> None:
    synced(braked, 5)
    assert PaymentLimit(changes=2, percent=50).of(braked.database) == 5
    assert PaymentLimit(changes=20, percent=50).of(braked.database) == 20
