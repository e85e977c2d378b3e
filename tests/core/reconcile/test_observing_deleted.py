"""A deleted organization that is not ours as a whole: what is ours is ended, and who else pays is named until then."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from core.adoption import release
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Management
from core.ports.spec import PROVIDER_NAMES, PROVIDERS, Provider
from core.reconcile import due_links
from core.reporting.observed import observed_organizations
from tests.support.adopted import Adopted, adopt_at_lago
from tests.support.sync_world import SyncWorld

both = pytest.mark.parametrize("provider", PROVIDERS)


def other(provider: Provider) -> Provider:
    return "lago" if provider == "stripe" else "stripe"


def charged_by(world: SyncWorld, provider: Provider, *theirs: Provider) -> str:
    """We made both customers. Those of ``theirs`` count as somebody else's, without our marks."""
    world.set_charging_provider(provider)
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    make_theirs(world, org_id, *theirs)
    return org_id


def make_theirs(world: SyncWorld, org_id: str, *theirs: Provider) -> None:
    if "stripe" in theirs:
        customer_id = str(world.link(org_id, "stripe").customer_id)
        world.sandbox.patch("stripe", "customers", customer_id, metadata={"billing_sync_org_id": None})
    with world.database.write() as session:
        for each in theirs:
            session.get_one(BillingLink, (org_id, each)).ownership = "theirs"
    world.wait(10)
    world.sandbox.reset_calls()


def writes(world: SyncWorld, provider: Provider) -> list[str]:
    counters = world.sandbox.counters()
    operations = (counters.stripe if provider == "stripe" else counters.lago).operations
    return [name for name, count in operations.items() if count and not name.startswith("GET ")]


def living(world: SyncWorld, provider: Provider) -> list[dict[str, Any]]:
    found = (world.stripe_objects if provider == "stripe" else world.lago_objects)("subscriptions")
    return [each for each in found if each["status"] == "active"]


def read_again(world: SyncWorld, org_id: str) -> None:
    """As a routine check does."""
    world.wait(86400)
    with world.database.write() as session:
        for each in PROVIDERS:
            due_links.request_routine_checks(session, each, timedelta(0), 10, world.now, only_observed=True)
    world.reconcile_until_idle(org_id)


def resume(world: SyncWorld) -> int:
    with world.database.write() as session:
        return due_links.resume_managed(session, 10, world.now)


def listed(world: SyncWorld) -> list[str]:
    return [each.org_id for each in observed_organizations(world.database, world.management, world.now)]


@both
def test_what_is_ours_is_ended_although_the_other_half_is_not(world: SyncWorld, provider: Provider) -> None:
    org_id = charged_by(world, provider, other(provider))
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    assert living(world, provider) == []
    assert writes(world, other(provider)) == []
    link, theirs = world.link(org_id, provider), world.link(org_id, other(provider))
    assert (link.state, link.applied_version == link.desired_version) == ("active", True)
    assert (theirs.state, theirs.ownership) == ("observed", "theirs")


@both
@pytest.mark.parametrize("mode", ["its own", "the installation's"])
def test_in_observe_mode_nothing_of_it_is_ended(world: SyncWorld, provider: Provider, mode: str) -> None:
    """Until that is managed. What is not ours stays as it is then, too."""
    org_id = charged_by(world, provider, other(provider))
    observe: Management = "observe"
    if mode == "its own":
        world.set_mode(org_id, observe)
    else:
        world.management = observe
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    assert [writes(world, each) for each in PROVIDERS] == [[], []]
    assert world.observation(org_id, provider).steps[0].kind == "end_subscription"
    world.wait(10)
    if mode == "its own":
        assert resume(world) == 0
        world.set_mode(org_id, "manage")
    else:
        world.management = "manage"
        assert resume(world) == 1
        assert resume(world) == 0
    world.reconcile_until_idle(org_id)
    assert living(world, provider) == []
    assert writes(world, other(provider)) == []


def test_what_was_adopted_is_ended_although_the_other_half_is_not_ours(world: SyncWorld) -> None:
    org_id = adopt_at_lago(world, Adopted(marks="none"))
    make_theirs(world, org_id, "stripe")
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    assert living(world, "lago") == []
    assert writes(world, "stripe") == []


def test_what_is_given_back_is_not_ended(world: SyncWorld) -> None:
    """While our metadata is removed in Stripe, Lago's half is adopted as before."""
    org_id = adopt_at_lago(world, Adopted(marks="due"))
    world.set_mode(org_id, "manage")
    world.reconcile_until_idle(org_id)
    world.wait(10)
    world.change(org_id, release.release)
    assert world.link(org_id, "stripe").marks == "removal"
    world.change_status(org_id, "deleted")
    world.run(org_id, "lago")
    assert world.link(org_id, "lago").state == "observed"
    assert resume(world) == 0
    world.reconcile_until_idle(org_id)
    assert {world.link(org_id, each).ownership for each in PROVIDERS} == {"theirs"}
    assert len(living(world, "lago")) == 1


@both
def test_who_still_pays_is_named_until_that_is_ended(world: SyncWorld, provider: Provider) -> None:
    org_id = charged_by(world, provider, *PROVIDERS)
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    problem = world.observation(org_id, provider).problem
    assert problem is not None
    assert (problem.code, problem.is_about_theirs) == ("customer_not_ours", True)
    customer_id, name = world.link(org_id, provider).customer_id, PROVIDER_NAMES[provider]
    assert f"customer {customer_id} in {name} is not ours and may still pay" in problem.message
    assert listed(world) == [org_id]
    for each in PROVIDERS:
        for subscription in living(world, each):
            world.sandbox.delete(each, "subscriptions", subscription["id" if each == "stripe" else "external_id"])
    read_again(world, org_id)
    for each in PROVIDERS:
        observation = world.observation(org_id, each)
        assert (observation.steps, observation.problem) == ((), None)
    assert listed(world) == []
    assert [writes(world, each) for each in PROVIDERS] == [[], []]


@pytest.mark.parametrize("is_known", [True, False])
def test_a_customer_that_lago_does_not_find_is_named_unless_its_external_id_is_known(
    world: SyncWorld, *, is_known: bool
) -> None:
    """An id of Lago's own finds nothing, and the customer may be under another external id."""
    org_id = world.create()
    world.set_customer_id(org_id, "lago", "3f0b8f64-0000-4000-8000-000000000000")
    if is_known:
        with world.database.write() as session:
            session.get_one(BillingLink, (org_id, "lago")).external_customer_id = "acme"
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    problem = world.observation(org_id, "lago").problem
    assert (problem is None) == is_known
    assert problem is None or "under our id, so this cannot be checked" in problem.message


def test_a_customer_that_stripe_does_not_have_pays_nothing(world: SyncWorld) -> None:
    org_id = world.create()
    world.set_customer_id(org_id, "stripe", "cus_gone")
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    assert world.observation(org_id, "stripe").problem is None
