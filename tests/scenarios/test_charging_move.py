"""Who charges is changed by `charging move`: the old provider stops first, also where the worker is killed."""

from __future__ import annotations

from functools import partial

import httpx
import pytest

from core.db.models.billing_links import BillingLink
from core.flow_control.payment_brake import PaymentLimit
from core.ports.spec import PROVIDERS, Provider
from core.reconcile import charging_moves, commands
from core.reconcile.charging_moves import MoveRules
from tests.support.charging_moves import refunding
from tests.support.former_codes import NEW, give_new_code
from tests.support.sync_world import PAYMENT_PROVIDER_CODE, SyncWorld, WorkerDiedError, do_nothing, kill_worker

KILLS_TO_STRIPE: list[tuple[Provider, str]] = [
    ("lago", "after_end"),
    ("lago", "after_payer"),
    ("lago", "before_customer"),
    ("lago", "after_customer"),
    ("lago", "after_subscription"),
    ("stripe", "before_subscription"),
    ("stripe", "after_subscription"),
]
KILLS_TO_LAGO: list[tuple[Provider, str]] = [
    ("stripe", "after_end"),
    ("lago", "before_customer"),
    ("lago", "after_customer"),
]


def begin(world: SyncWorld, org_id: str, to: Provider, *, is_expected: bool = False) -> None:
    rules = MoveRules(catalog=refunding(world.catalog), to=to, installation=world.management)
    with world.database.write() as session:
        moves = charging_moves.list_moves(session, rules)
        assert [(each.org_id, each.state) for each in moves if each.org_id == org_id] == [(org_id, "can_move")]
    world.change(
        org_id,
        lambda change, organization: charging_moves.begin(
            change, organization, world.catalog, to, is_expected=is_expected
        ),
    )


def payer(world: SyncWorld, org_id: str) -> object:
    customer = next(each for each in world.lago_objects("customers") if each["external_id"] == org_id)
    configuration = customer["billing_configuration"]
    assert isinstance(configuration, dict)
    return configuration.get("provider_customer_id")


def active_in_stripe(world: SyncWorld, org_id: str) -> list[object]:
    customer_id = world.link(org_id, "stripe").customer_id
    found = world.stripe_objects("subscriptions")
    return [each["id"] for each in found if each["customer"] == customer_id and each["status"] == "active"]


def check_one_charges(world: SyncWorld, org_id: str) -> None:
    assert not (payer(world, org_id) is not None and active_in_stripe(world, org_id))


def finish(world: SyncWorld, org_id: str) -> None:
    """As a worker goes on, with a look at both providers after each attempt."""
    for _ in range(12):
        for provider in ("lago", "stripe"):
            world.run(org_id, provider)
            check_one_charges(world, org_id)
        if world.is_in_sync(org_id):
            return
        world.wait(61)
    message = f"{org_id} does not come in sync"
    raise AssertionError(message)


def charged_by_lago(world: SyncWorld, name: str = "Acme") -> str:
    org_id = world.create(name)
    world.reconcile_until_idle(org_id)
    assert payer(world, org_id) == world.link(org_id, "stripe").customer_id
    return org_id


def test_an_organization_moves_to_stripe_and_back(world: SyncWorld) -> None:
    org_id = charged_by_lago(world)
    world.set_charging_provider("stripe")
    world.wait(100)
    begin(world, org_id, "stripe")
    finish(world, org_id)
    assert payer(world, org_id) is None
    assert len(active_in_stripe(world, org_id)) == 1
    world.set_charging_provider("lago")
    world.wait(100)
    begin(world, org_id, "lago")
    finish(world, org_id)
    assert payer(world, org_id) == world.link(org_id, "stripe").customer_id
    assert active_in_stripe(world, org_id) == []


def run_killed(world: SyncWorld, org_id: str, kill: tuple[Provider, str] | None) -> None:
    """One attempt after the other; the worker is killed once, at the hook, and another one goes on."""
    if kill is not None:
        setattr(world.providers[kill[0]], kill[1], kill_worker)
    for _ in range(20):
        for provider in ("lago", "stripe"):
            try:
                world.run(org_id, provider)
            except WorkerDiedError:
                world.expire_lease()
            check_one_charges(world, org_id)
        if world.is_in_sync(org_id):
            break
        world.wait(61)
    assert world.is_in_sync(org_id)
    if kill is not None:
        assert getattr(world.providers[kill[0]], kill[1]) is do_nothing, f"no kill at {kill}"


def move_there_and_back(world: SyncWorld, org_id: str, there: tuple[Provider, str], back: tuple[Provider, str]) -> None:
    """The sandbox's clock stands still, so what was paid for the period is credited as a whole, but for seconds."""
    world.set_charging_provider("stripe")
    world.wait(100)
    begin(world, org_id, "stripe")
    run_killed(world, org_id, there)
    assert payer(world, org_id) is None
    assert len(active_in_stripe(world, org_id)) == 1
    world.set_charging_provider("lago")
    world.wait(100)
    begin(world, org_id, "lago")
    run_killed(world, org_id, back)
    assert payer(world, org_id) == world.link(org_id, "stripe").customer_id
    assert active_in_stripe(world, org_id) == []
    assert [each.charging_move for each in map(partial(world.link, org_id), PROVIDERS)] == [None, None]


@pytest.mark.parametrize("number", range(len(KILLS_TO_STRIPE)))
def test_a_kill_at_each_step_leaves_one_who_charges(world: SyncWorld, number: int) -> None:
    back = KILLS_TO_LAGO[number % len(KILLS_TO_LAGO)]
    move_there_and_back(world, charged_by_lago(world), KILLS_TO_STRIPE[number], back)


def test_over_the_limit_nothing_has_stopped(world: SyncWorld) -> None:
    org_ids = [charged_by_lago(world, f"Acme {number}") for number in range(3)]
    world.set_charging_provider("stripe")
    world.payment_limit = PaymentLimit(changes=1)
    for org_id in org_ids:
        world.wait(100)
        begin(world, org_id, "stripe")
        for _ in range(3):
            world.run(org_id, "lago")
            world.wait(61)
    moved = [org_id for org_id in org_ids if payer(world, org_id) is None]
    assert moved == org_ids[:1]
    active = [each["external_id"] for each in world.lago_objects("subscriptions") if each["status"] == "active"]
    assert set(org_ids[1:]) <= set(active)
    assert [world.link(org_id, "lago").error_code for org_id in org_ids[1:]] == ["end_on_hold", "end_on_hold"]


def test_moves_that_are_expected_take_no_place_of_the_hour(world: SyncWorld) -> None:
    org_ids = [charged_by_lago(world, f"Acme {number}") for number in range(2)]
    world.set_charging_provider("stripe")
    world.payment_limit = PaymentLimit(changes=0)
    for org_id in org_ids:
        world.wait(100)
        begin(world, org_id, "stripe", is_expected=True)
        finish(world, org_id)
    assert [payer(world, org_id) for org_id in org_ids] == [None, None]


def test_the_payer_stays_until_the_last_invoice_was_collected(world: SyncWorld) -> None:
    org_id = charged_by_lago(world)
    world.set_charging_provider("stripe")
    world.wait(100)
    begin(world, org_id, "stripe")
    invoice = world.sandbox.create("lago", "invoices", external_customer_id=org_id, payment_status="pending")
    for _ in range(4):
        world.run(org_id, "lago")
        world.wait(61)
    assert payer(world, org_id) is not None
    assert world.link(org_id, "lago").error_code == "last_invoice_unpaid"
    world.sandbox.patch("lago", "invoices", str(invoice["lago_id"]), payment_status="succeeded")
    finish(world, org_id)
    assert payer(world, org_id) is None


def test_a_lost_setting_moves_nobody(world: SyncWorld) -> None:
    org_id = charged_by_lago(world)
    world.set_charging_provider("stripe")
    world.wait(100)
    world.rename(org_id, "Renamed")
    world.reconcile_until_idle(org_id)
    assert payer(world, org_id) is not None
    assert active_in_stripe(world, org_id) == []
    assert "charging move" in (world.link(org_id, "lago").error_message or "")
    begin(world, org_id, "stripe")
    finish(world, org_id)
    assert payer(world, org_id) is None


def test_another_payer_is_left_in_lago_until_somebody_takes_it_out(world: SyncWorld) -> None:
    org_id = charged_by_lago(world)
    world.sandbox.preload_stripe_customers([{"id": "cus_theirs", "name": "Acme"}])
    world.set_charging_provider("stripe")
    world.wait(100)
    begin(world, org_id, "stripe")
    world.run(org_id, "lago")
    set_payer_by_hand(world, org_id, "cus_theirs")
    world.wait(100)
    world.run(org_id, "lago")
    link = world.link(org_id, "lago")
    assert (link.state, link.error_code) == ("parked", "payer_is_not_ours")
    assert payer(world, org_id) == "cus_theirs"
    assert active_in_stripe(world, org_id) == []
    set_payer_by_hand(world, org_id, None)
    world.change(org_id, commands.retry)
    finish(world, org_id)
    assert len(active_in_stripe(world, org_id)) == 1


def test_a_payer_that_may_be_out_is_sent_again_if_lago_charges_after_all(world: SyncWorld) -> None:
    org_id = charged_by_lago(world)
    world.set_charging_provider("stripe")
    world.wait(100)
    begin(world, org_id, "stripe")
    world.run(org_id, "lago")
    world.wait(100)
    world.providers["lago"].after_payer = kill_worker
    with pytest.raises(WorkerDiedError):
        world.run(org_id, "lago")
    assert payer(world, org_id) is None
    world.expire_lease()
    world.set_charging_provider("lago")
    finish(world, org_id)
    assert payer(world, org_id) == world.link(org_id, "stripe").customer_id


def test_who_has_a_former_code_in_lago_is_not_moved_there_at_the_price_of_that(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    give_new_code(world)
    with world.database.write() as session:
        session.get_one(BillingLink, (org_id, "stripe")).sold_plan = NEW
    world.set_charging_provider("lago")
    with world.database.read() as session:
        (listed,) = charging_moves.list_moves(session, MoveRules(catalog=world.catalog, to="lago"))
    assert (listed.state, listed.amount) == ("left", 5400)
    assert "it has professional in Lago" in str(listed.reason)


def test_an_attempt_under_way_does_not_end_a_move_that_it_did_not_see(world: SyncWorld) -> None:
    org_id = charged_by_lago(world)
    world.set_charging_provider("stripe")
    world.wait(100)
    world.rename(org_id, "Acme Two")

    def begin_meanwhile() -> None:
        world.providers["lago"].before_customer = do_nothing
        begin(world, org_id, "stripe")

    world.providers["lago"].before_customer = begin_meanwhile
    world.run(org_id, "lago")
    assert world.link(org_id, "lago").charging_move is not None
    finish(world, org_id)
    assert (payer(world, org_id), len(active_in_stripe(world, org_id))) == (None, 1)


def set_payer_by_hand(world: SyncWorld, org_id: str, payer_id: str | None) -> None:
    linked = {
        "payment_provider": "stripe",
        "payment_provider_code": PAYMENT_PROVIDER_CODE,
        "provider_customer_id": payer_id,
    }
    configuration = linked if payer_id is not None else {"payment_provider": None}
    body = {"customer": {"external_id": org_id, "billing_configuration": configuration}}
    sent = httpx.post(f"{world.url}/api/v1/customers", json=body, headers={"Authorization": "Bearer by-hand"})
    sent.raise_for_status()
