"""A plan gets a new code: what was sold under the former one stays until the tier changes or an operator moves it."""

from __future__ import annotations

import pytest

from core.catalog.plans import ChargingProvider, FormerCodes
from core.reconcile import commands
from core.reporting import plan_preview
from tests.support.drift_harness import DriftHarness, conflict_resolver_of
from tests.support.former_codes import NEW, SOLD, give_new_code, plans_at, sold, subscription_at
from tests.support.sync_world import SyncWorld, kill_worker

pytestmark = pytest.mark.slow  # many cases of one kind

SOLD_STARTER: dict[ChargingProvider, str] = {"lago": "starter", "stripe": "starter_monthly_usd"}


@pytest.fixture(params=["lago", "stripe"])
def charges(request: pytest.FixtureRequest, world: SyncWorld) -> ChargingProvider:
    provider: ChargingProvider = request.param
    if provider == "stripe":
        world.set_charging_provider("stripe")
    return provider


def list_former_codes(world: SyncWorld) -> None:
    plan = world.catalog.plan("professional")
    former = FormerCodes(lago=[SOLD["lago"]], stripe=[SOLD["stripe"]])
    listed = plan.model_copy(update={"former_codes": former})
    world.catalog = world.catalog.model_copy(update={"plans": {**world.catalog.plans, "professional": listed}})


def retry(world: SyncWorld, org_id: str) -> None:
    world.change(org_id, commands.retry)
    world.reconcile_until_idle(org_id)


def test_a_rename_sends_the_name_and_changes_no_plan(world: SyncWorld, charges: ChargingProvider) -> None:
    org_id = sold(world)
    before = world.sandbox.charges()
    give_new_code(world)
    world.rename(org_id, "Globex")
    world.reconcile_until_idle(org_id)
    assert world.count_requests() == (1, 1)
    assert world.is_in_sync(org_id)
    assert plans_at(world, org_id, charges) == (SOLD[charges], None)
    assert world.sandbox.charges() == before


def test_a_retry_reads_what_was_sold_and_keeps_it(world: SyncWorld, charges: ChargingProvider) -> None:
    org_id = sold(world)
    before = world.sandbox.charges()
    give_new_code(world)
    retry(world, org_id)
    assert world.link(org_id, charges).applied_plan == SOLD[charges]
    assert plans_at(world, org_id, charges) == (SOLD[charges], None)
    assert world.sandbox.charges() == before
    assert world.organization(org_id).plan_tier == "professional"


def test_what_was_sold_is_found_also_if_no_code_is_stored(world: SyncWorld, charges: ChargingProvider) -> None:
    """As after an import: the provider alone shows under which code it was sold."""
    org_id = sold(world)
    before = world.sandbox.charges()
    give_new_code(world)
    with world.database.write() as session:
        link = session.get_one(type(world.link(org_id, charges)), (org_id, charges))
        link.sold_plan = None
    retry(world, org_id)
    assert world.link(org_id, charges).sold_plan == SOLD[charges]
    assert world.sandbox.charges() == before
    assert world.organization(org_id).plan_tier == "professional"


def test_a_former_code_has_not_drifted(
    world: SyncWorld, charges: ChargingProvider, drift_harness: DriftHarness
) -> None:
    org_id = sold(world)
    give_new_code(world)
    world.advance_time(minutes=5)
    assert drift_harness.findings() == []
    assert plans_at(world, org_id, charges) == (SOLD[charges], None)


def test_a_downgrade_that_is_taken_back_returns_to_the_code_that_was_sold(
    world: SyncWorld, charges: ChargingProvider
) -> None:
    org_id = sold(world)
    give_new_code(world)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    assert plans_at(world, org_id, charges) == (SOLD[charges], SOLD_STARTER[charges])
    world.change_plan(org_id, "professional")
    world.reconcile_until_idle(org_id)
    assert plans_at(world, org_id, charges) == (SOLD[charges], None)
    assert world.link(org_id, charges).applied_plan == SOLD[charges]


def test_a_scheduled_plan_that_gets_a_new_code_takes_effect_as_it_was_scheduled(
    world: SyncWorld, charges: ChargingProvider, drift_harness: DriftHarness
) -> None:
    org_id = sold(world)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    give_new_code(world, "starter")
    world.rename(org_id, "Globex")
    world.reconcile_until_idle(org_id)
    assert plans_at(world, org_id, charges) == (SOLD[charges], SOLD_STARTER[charges])
    world.advance_time(days=32)
    retry(world, org_id)
    assert world.organization(org_id).plan_tier == "starter"
    assert world.link(org_id, charges).applied_plan == SOLD_STARTER[charges]
    world.advance_time(minutes=5)
    assert drift_harness.findings() == []


def test_a_worker_that_dies_in_a_change_leaves_what_was_sold(world: SyncWorld, charges: ChargingProvider) -> None:
    org_id = sold(world)
    give_new_code(world)
    world.wait(10)
    world.change_plan(org_id, "starter")
    world.providers[charges].after_subscription = kill_worker
    world.run_until_killed(org_id, charges)
    assert world.link(org_id, charges).applied_plan is None
    world.expire_lease()
    world.reconcile_until_idle(org_id)
    assert plans_at(world, org_id, charges) == (SOLD[charges], SOLD_STARTER[charges])


def test_another_tier_is_sold_under_the_code_of_today(world: SyncWorld, charges: ChargingProvider) -> None:
    org_id = sold(world, "starter")
    give_new_code(world)
    give_new_code(world, "starter")
    world.change_plan(org_id, "professional")
    world.reconcile_until_idle(org_id)
    assert plans_at(world, org_id, charges) == (NEW, None)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    assert plans_at(world, org_id, charges) == (NEW, "starter_2027")


def test_a_new_organization_is_sold_the_code_of_today(world: SyncWorld, charges: ChargingProvider) -> None:
    give_new_code(world)
    assert plans_at(world, sold(world), charges) == (NEW, None)


def test_a_code_that_no_plan_lists_is_parked_and_moves_nobody(world: SyncWorld, charges: ChargingProvider) -> None:
    org_id = sold(world)
    before = world.sandbox.charges()
    give_new_code(world, listed=False)
    for _ in range(2):
        retry(world, org_id)
        link = world.link(org_id, charges)
        assert (link.state, link.error_code) == ("parked", "sold_code_not_in_catalog")
        assert f"`former_codes.{charges}`" in str(link.error_message)
    world.rename(org_id, "Globex")
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, charges).state == "parked"
    assert plans_at(world, org_id, charges) == (SOLD[charges], None)
    list_former_codes(world)
    retry(world, org_id)
    assert world.is_in_sync(org_id)
    assert plans_at(world, org_id, charges) == (SOLD[charges], None)
    assert world.sandbox.charges() == before


def test_an_organization_is_deleted_although_no_plan_lists_its_code(
    world: SyncWorld, charges: ChargingProvider
) -> None:
    org_id = sold(world)
    give_new_code(world, listed=False)
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert world.link(org_id, charges).sold_plan is None


def test_a_setting_that_was_lost_ends_no_subscription_under_a_former_code(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    org_id = sold(world)
    give_new_code(world)
    world.set_charging_provider("lago")
    world.wait(10)
    world.rename(org_id, "Globex")
    world.run(org_id, "stripe")
    assert world.link(org_id, "stripe").error_code == "double_charging"
    assert plans_at(world, org_id, "stripe") == (SOLD["stripe"], None)


def test_an_operator_who_moved_it_at_the_provider_is_believed(world: SyncWorld, charges: ChargingProvider) -> None:
    """The remote check puts it on hold, and ``resolve --theirs`` takes what is there."""
    org_id = sold(world)
    give_new_code(world)
    world.advance_time(minutes=5)
    move_by_hand(world, org_id, charges, NEW)
    request_check(world, org_id, charges)
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, charges).is_conflict
    conflict_resolver_of(world).take_theirs(org_id, charges)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert world.link(org_id, charges).sold_plan == NEW
    assert world.organization(org_id).plan_tier == "professional"


def test_ours_is_the_code_that_was_sold(world: SyncWorld, charges: ChargingProvider) -> None:
    give_new_code(world)
    org_id = sold(world)
    world.advance_time(minutes=5)
    move_by_hand(world, org_id, charges, SOLD[charges])
    request_check(world, org_id, charges)
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, charges).is_conflict
    world.keep_ours(org_id)
    world.reconcile_until_idle(org_id)
    assert plans_at(world, org_id, charges) == (NEW, None)


def test_no_repair_moves_it_between_two_codes_of_its_plan(
    world: SyncWorld, charges: ChargingProvider, drift_harness: DriftHarness
) -> None:
    org_id = sold(world)
    give_new_code(world)
    world.advance_time(minutes=5)
    move_by_hand(world, org_id, charges, NEW)
    findings = drift_harness.findings()
    assert [(each.kind, each.ours, each.theirs, each.repairable) for each in findings] == [
        ("wrong_plan", SOLD[charges], NEW, False)
    ]


def test_a_preview_names_no_price_that_the_catalog_does_not_have(world: SyncWorld, charges: ChargingProvider) -> None:
    org_id = sold(world)
    give_new_code(world)
    with world.database.read() as session:
        preview = plan_preview.preview_change(session, world.organization(org_id), "professional", world.catalog)
    assert preview.query is not None
    assert preview.query.spec.plan_code == SOLD[charges]
    assert preview.query.list_price is None


@pytest.mark.parametrize("other_key", [None, "professional_old"], ids=["transferred", "renamed"])
def test_a_lookup_key_that_moved_to_another_price_moves_nobody(
    world: SyncWorld, drift_harness: DriftHarness, other_key: str | None
) -> None:
    world.set_charging_provider("stripe")
    org_id = sold(world)
    price_id = price_at_stripe(world, org_id)
    assert world.link(org_id, "stripe").sold_price_id == price_id
    before = world.sandbox.charges()
    move_lookup_key(world, price_id, other_key)
    world.rename(org_id, "Globex")
    world.reconcile_until_idle(org_id)
    retry(world, org_id)
    world.advance_time(minutes=5)
    assert drift_harness.findings() == []
    request_check(world, org_id, "stripe")
    world.reconcile_until_idle(org_id)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    world.wait(10)
    world.change_plan(org_id, "professional")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert (price_at_stripe(world, org_id), world.link(org_id, "stripe").sold_price_id) == (price_id, price_id)
    assert [each for each in world.sandbox.charges() if each["amount"]] == before


def test_another_tier_is_another_price_that_was_sold(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    org_id = sold(world)
    before = price_at_stripe(world, org_id)
    world.change_plan(org_id, "enterprise")
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "stripe").sold_price_id == price_at_stripe(world, org_id) != before


def price_at_stripe(world: SyncWorld, org_id: str) -> str:
    """The price on the item."""
    subscription_id = world.link(org_id, "stripe").subscription_id
    (found,) = [each for each in world.stripe_objects("subscriptions") if each["id"] == subscription_id]
    items = found["items"]
    assert isinstance(items, dict)
    price = items["data"][0]["price"]
    return str(price["id"] if isinstance(price, dict) else price)


def move_lookup_key(world: SyncWorld, price_id: str, other_key: str | None) -> str:
    """A higher price takes the key; returns its id. ``other_key``: what the price that was sold is called from then."""
    if other_key is not None:
        world.sandbox.patch("stripe", "prices", price_id, lookup_key=other_key)
    (made,) = world.sandbox.preload_stripe_prices(
        [
            {
                "lookup_key": SOLD["stripe"],
                "transfer_lookup_key": True,
                "currency": "usd",
                "unit_amount": 7900,
                "recurring": {"interval": "month"},
                "product_data": {"name": "Professional 2027"},
            }
        ]
    )
    return str(made["id"])


def move_by_hand(world: SyncWorld, org_id: str, provider: ChargingProvider, code: str) -> None:
    if provider == "lago":
        world.sandbox.patch("lago", "subscriptions", org_id, plan_code=code)
        return
    (price,) = [each for each in world.stripe_objects("prices") if each["lookup_key"] == code]
    subscription_id = str(world.link(org_id, "stripe").subscription_id)
    (found,) = [each for each in world.stripe_objects("subscriptions") if each["id"] == subscription_id]
    items = found["items"]
    assert isinstance(items, dict)
    item = {"id": items["data"][0]["id"], "price": price["id"], "quantity": 1}
    world.sandbox.patch("stripe", "subscriptions", subscription_id, items=[item])


def request_check(world: SyncWorld, org_id: str, provider: ChargingProvider) -> None:
    with world.database.write() as session:
        link = session.get_one(type(world.link(org_id, provider)), (org_id, provider))
        link.checks_requested += 1


def test_a_downgrade_taken_back_too_late_returns_to_the_price_that_was_sold(world: SyncWorld) -> None:
    """In Stripe the lower plan has begun, and nobody here knows yet. The key of the old price is another price's."""
    world.set_charging_provider("stripe")
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    price = price_in_stripe(world)
    world.sandbox.create(
        "stripe",
        "prices",
        lookup_key="professional_monthly_usd",
        transfer_lookup_key=True,
        currency="usd",
        unit_amount=7900,
        recurring={"interval": "month"},
        product=price["product"],
    )
    world.restart()
    world.wait(10)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    day = world.organization(org_id).plan_effective_at
    assert day is not None
    world.advance_time(seconds=(day - world.now).total_seconds() + 540)
    world.change_plan(org_id, "professional")
    world.reconcile_until_idle(org_id)
    assert price_in_stripe(world)["id"] == price["id"]


def price_in_stripe(world: SyncWorld) -> dict[str, object]:
    (subscription,) = world.sandbox.state()["stripe"]["subscriptions"]
    return dict(subscription["items"]["data"][0]["price"])


def test_a_price_that_was_archived_in_stripe_is_asked_for(world: SyncWorld) -> None:
    """Taken back, a downgrade returns to the price that was paid, which Stripe sells to nobody while it is archived."""
    world.set_charging_provider("stripe")
    org_id = sold(world)
    paid = subscription_at(world, org_id, "stripe").price_id
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    give_new_code(world)
    world.sandbox.patch("stripe", "prices", str(paid), active=False)
    world.change_plan(org_id, "professional")
    world.reconcile_until_idle(org_id)
    link = world.link(org_id, "stripe")
    assert (link.state, link.error_code) == ("parked", "inactive_price")
    assert "make it active there, then run" in str(link.error_message)
    world.sandbox.patch("stripe", "prices", str(paid), active=True)
    retry(world, org_id)
    assert world.is_in_sync(org_id)
    assert subscription_at(world, org_id, "stripe").price_id == paid
