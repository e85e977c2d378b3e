"""What was adopted, once it is managed: a price that an operator gave it, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from core.adoption import release
from core.db.models.organizations import Management
from core.db.models.providers import ProviderStatus
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.ports.spec import PROVIDERS
from sandbox.server import Sandbox
from tests.support.adoption_harness import AdoptionHarness, adopt_known
from tests.support.sync_world import SyncWorld


@pytest.fixture
def theirs(world: SyncWorld, sandbox_server: Sandbox) -> Iterator[AdoptionHarness]:
    harness = AdoptionHarness(world=world, url=sandbox_server.url)
    yield harness
    harness.close()


def subscribe_at(theirs: AdoptionHarness, amount: int, **fields: Any) -> str:  # noqa: ANN401 - JSON
    """A Stripe customer with a subscription at a price that the catalog does not know."""
    theirs.world.set_charging_provider("stripe")
    sandbox, stripe = theirs.world.sandbox, theirs.stripe_customer()
    product = sandbox.create("stripe", "products", name="Old")
    price = {"product": product["id"], "unit_amount": amount, "currency": "usd", "recurring": {"interval": "month"}}
    sandbox.preload_stripe_subscription(stripe, str(sandbox.preload_stripe_prices([price])[0]["id"]), **fields)
    return stripe


def price_and_quantity(theirs: AdoptionHarness) -> tuple[object, object]:
    (subscription,) = theirs.world.stripe_objects("subscriptions")
    items: Any = subscription["items"]
    (item,) = items["data"]
    return item["price"]["unit_amount"], item["quantity"]


@pytest.mark.parametrize(("amount", "quantity"), [(4000, 1), (6000, 1), (4000, 3)])
def test_the_price_changes_to_the_catalogs_only_once_it_is_managed(
    theirs: AdoptionHarness, amount: int, quantity: int
) -> None:
    theirs.world.management = "observe"
    row = replace(theirs.row(stripe=subscribe_at(theirs, amount, quantity=quantity)), action="change-to-catalog")
    org_id = str(theirs.adopt(row).org_id)
    theirs.world.reconcile_until_idle(org_id)
    assert theirs.writes() == []
    (step, *_) = [each for each in theirs.world.observation(org_id, "stripe").steps if each.kind == "change_plan"]
    prices = [each.amount for each in (step.price_before, step.price_after) if each is not None]
    assert prices == [amount * quantity, 4900 * quantity]
    theirs.world.set_mode(org_id, "manage")
    theirs.world.reconcile_until_idle(org_id)
    assert price_and_quantity(theirs) == (4900, quantity)
    assert theirs.world.is_in_sync(org_id)


def test_a_price_that_is_kept_stays_also_in_manage_mode(theirs: AdoptionHarness) -> None:
    row = replace(theirs.row(stripe=subscribe_at(theirs, 4000, quantity=3)), action="adopt-keep-price")
    org_id = str(theirs.adopt(row).org_id)
    theirs.world.reconcile_until_idle(org_id)
    assert price_and_quantity(theirs) == (4000, 3)
    assert theirs.world.is_in_sync(org_id)


def test_what_was_seen_while_it_was_observed_is_read_again_once_it_is_managed(theirs: AdoptionHarness) -> None:
    """Of credit and of failed payments a webhook tells once."""
    world, stripe = theirs.world, subscribe_at(theirs, 4900)
    org_id = world.create("Acme at Stripe", "professional")
    world.set_customer_id(org_id, "stripe", stripe)
    world.sandbox.patch("stripe", "customers", stripe, balance=-500)
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "stripe").credit_amount is None
    world.wait(10)
    assert adopt_known(world, org_id).kind == "adopted"
    for provider in PROVIDERS:
        assert (link := world.link(org_id, provider)).checks_done < link.checks_requested
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "stripe").credit_amount == 500
    assert world.is_in_sync(org_id)


def metadata(theirs: AdoptionHarness) -> list[dict[str, str]]:
    objects: list[Any] = [*theirs.world.stripe_objects("customers"), *theirs.world.stripe_objects("subscriptions")]
    return [each["metadata"] for each in objects]


def give_back(theirs: AdoptionHarness, org_id: str) -> release.Release:
    with theirs.world.database.write() as session:
        organization = commands.lock(session, org_id)
        assert organization is not None
        return release.release(ChangeContext(session, theirs.world.now), organization)


def test_a_release_removes_our_metadata_and_nothing_else(theirs: AdoptionHarness) -> None:
    stripe = subscribe_at(theirs, 4900)
    theirs.world.sandbox.patch("stripe", "customers", stripe, metadata={"their_key": "their value"})
    row = replace(theirs.row(stripe=stripe), action="adopt-keep-price")
    before = [theirs.world.sandbox.state()["stripe"][each] for each in ("customers", "subscriptions")]
    org_id = str(theirs.adopt(row).org_id)
    theirs.world.reconcile_until_idle(org_id)
    assert all("billing_sync_org_id" in each for each in metadata(theirs))
    theirs.world.wait(10)
    assert give_back(theirs, org_id) == "removes_marks"
    assert give_back(theirs, org_id) == "removes_marks"
    theirs.world.reconcile_until_idle(org_id)
    assert [theirs.world.sandbox.state()["stripe"][each] for each in ("customers", "subscriptions")] == before
    assert give_back(theirs, org_id) == "released_before"
    theirs.world.sandbox.reset_calls()
    theirs.world.rename(org_id, "Ours now")
    theirs.world.reconcile_until_idle(org_id)
    assert theirs.writes() == []
    assert theirs.world.link(org_id, "stripe").ownership == "theirs"


def test_a_release_in_observe_mode_needs_no_write(theirs: AdoptionHarness) -> None:
    theirs.world.management = "observe"
    stripe, lago = theirs.stripe_customer(), theirs.lago_customer(plan="professional")
    org_id = str(theirs.adopt(theirs.row(stripe=stripe, lago=lago)).org_id)
    theirs.world.reconcile_until_idle(org_id)
    assert give_back(theirs, org_id) == "released"
    assert {theirs.world.link(org_id, each).ownership for each in PROVIDERS} == {"theirs"}
    theirs.world.management = "manage"
    theirs.world.wait(10)
    theirs.world.reconcile_until_idle(org_id)
    assert theirs.writes() == []
    assert theirs.adopt(theirs.row(stripe=stripe, lago=lago, org_id=org_id)).kind == "adopted"


@pytest.mark.parametrize("mode", ["manage", "observe"])
def test_while_our_metadata_is_removed_nothing_else_is_written_at_either_provider(
    theirs: AdoptionHarness, mode: Management
) -> None:
    stripe, lago = theirs.stripe_customer(), theirs.lago_customer(plan="professional")
    org_id = str(theirs.adopt(theirs.row(stripe=stripe, lago=lago)).org_id)
    theirs.world.reconcile_until_idle(org_id)
    theirs.world.wait(10)
    assert give_back(theirs, org_id) == "removes_marks"
    theirs.world.sandbox.reset_calls()
    theirs.world.rename(org_id, "Ours now")
    theirs.world.set_mode(org_id, mode)
    theirs.world.reconciler.run(org_id, "lago")
    assert theirs.writes() == []
    assert theirs.world.link(org_id, "lago").state == "observed"
    theirs.world.reconcile_until_idle(org_id)
    written = {call.path for call in theirs.writes()}
    assert written == (set() if mode == "observe" else {f"/v1/customers/{stripe}"})
    assert metadata(theirs)[0] == ({} if mode == "manage" else metadata(theirs)[0])


def test_a_release_that_waits_for_a_scheduled_plan_goes_on_when_that_is_cancelled(theirs: AdoptionHarness) -> None:
    row = replace(theirs.row(stripe=subscribe_at(theirs, 4000, quantity=3)), action="adopt-keep-price")
    org_id = str(theirs.adopt(row).org_id)
    theirs.world.reconcile_until_idle(org_id)
    theirs.world.change_plan(org_id, "starter")
    theirs.world.wait(10)
    theirs.world.reconcile_until_idle(org_id)
    theirs.world.wait(10)
    assert give_back(theirs, org_id) == "removes_marks"
    theirs.world.reconcile_until_idle(org_id)
    link = theirs.world.link(org_id, "stripe")
    assert (link.state, link.error_code) == ("parked", "scheduled_plan_needs_marks")
    assert f"`billing-sync set {org_id} --plan …` and its current plan" in str(link.error_message)
    theirs.world.wait(10)
    theirs.world.change_plan(org_id, "professional")
    theirs.world.reconcile_until_idle(org_id)
    assert {theirs.world.link(org_id, each).ownership for each in PROVIDERS} <= {"theirs", "ours"}
    assert theirs.world.link(org_id, "stripe").ownership == "theirs"
    assert price_and_quantity(theirs) == (4000, 3)
    assert metadata(theirs) == [{}, {}]


def waits_for_a_scheduled_plan(theirs: AdoptionHarness) -> str:
    """It is given back while a lower plan is scheduled, so its link is parked."""
    row = replace(theirs.row(stripe=subscribe_at(theirs, 4000, quantity=3)), action="adopt-keep-price")
    org_id = str(theirs.adopt(row).org_id)
    theirs.world.reconcile_until_idle(org_id)
    theirs.world.change_plan(org_id, "starter")
    theirs.world.wait(10)
    theirs.world.reconcile_until_idle(org_id)
    theirs.world.wait(10)
    assert give_back(theirs, org_id) == "removes_marks"
    theirs.world.reconcile_until_idle(org_id)
    assert theirs.world.link(org_id, "stripe").error_code == "scheduled_plan_needs_marks"
    theirs.world.wait(10)
    return org_id


def test_what_is_planned_for_a_release_goes_on_after_the_scheduled_plan_is_cancelled(theirs: AdoptionHarness) -> None:
    org_id = waits_for_a_scheduled_plan(theirs)
    theirs.world.set_mode(org_id, "observe")
    theirs.world.change_plan(org_id, "professional")
    theirs.world.sandbox.reset_calls()
    theirs.world.reconcile_until_idle(org_id)
    assert theirs.writes() == []
    planned = theirs.world.observation(org_id, "stripe")
    assert [step.kind for step in planned.steps] == ["cancel_scheduled_plan", "remove_marks", "remove_marks"]
    assert planned.problem is None
    theirs.world.set_mode(org_id, "manage")
    theirs.world.reconcile_until_idle(org_id)
    assert metadata(theirs) == [{}, {}]


def test_a_release_goes_on_although_the_request_that_cancels_the_plan_failed(theirs: AdoptionHarness) -> None:
    world, org_id = theirs.world, waits_for_a_scheduled_plan(theirs)
    world.sandbox.add_fault("stripe", "POST /v1/subscriptions/{id}", "500_before", times=3)
    world.change_plan(org_id, "professional")
    world.run(org_id, "stripe")
    world.wait(600)
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "stripe").error_message is None
    assert world.link(org_id, "stripe").ownership == "theirs"
    assert price_and_quantity(theirs) == (4000, 3)
    assert metadata(theirs) == [{}, {}]


@pytest.mark.parametrize("with_marks", [True, False])
def test_metadata_of_ours_that_was_there_before_is_removed_by_a_release(
    theirs: AdoptionHarness, *, with_marks: bool
) -> None:
    """As in a database that was restored. Left there, the organization would be managed again by itself."""
    theirs.world.management = "observe"
    org_id = theirs.world.create("Acme")
    with theirs.world.database.read() as session:
        database_id = session.get_one(ProviderStatus, "stripe").database_id
    marks = {"billing_sync_org_id": org_id, "billing_sync_database_id": database_id}
    stripe, lago = theirs.stripe_customer(metadata=marks), theirs.lago_customer(plan="professional")
    assert theirs.adopt(theirs.row(stripe=stripe, lago=lago, org_id=org_id), with_marks=with_marks).kind == "adopted"
    assert give_back(theirs, org_id) == "removes_marks"
    theirs.world.management = "manage"
    theirs.world.reconcile_until_idle(org_id)
    assert metadata(theirs) == [{}]
    assert {theirs.world.link(org_id, each).ownership for each in PROVIDERS} == {"theirs"}


def test_without_marks_no_metadata_is_written_and_none_is_removed(theirs: AdoptionHarness) -> None:
    stripe, lago = theirs.stripe_customer(), theirs.lago_customer(plan="professional")
    org_id = str(theirs.adopt(theirs.row(stripe=stripe, lago=lago), with_marks=False).org_id)
    theirs.world.reconcile_until_idle(org_id)
    theirs.world.wait(10)
    assert give_back(theirs, org_id) == "released"
    theirs.world.reconcile_until_idle(org_id)
    assert theirs.writes() == []
