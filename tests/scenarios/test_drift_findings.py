"""Each way to drift: made by hand in the sandbox, found by one plan, and repaired or left to a person."""

from __future__ import annotations

import httpx
import pytest

from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import links
from core.ports.spec import Provider
from sandbox.server import Sandbox
from tests.support.drift_harness import (
    DriftHarness,
    assert_needs_an_operator,
    assert_repaired,
    price_of,
    synced_organization,
)
from tests.support.provider_webhooks import check_after_webhook
from tests.support.sync_world import SyncWorld

pytestmark = pytest.mark.slow  # many cases of one kind


def test_nothing_has_drifted_where_nobody_touched_anything(world: SyncWorld, drift_harness: DriftHarness) -> None:
    synced_organization(world)
    plan = drift_harness.check()
    assert plan.counts.compared == 1
    assert drift_harness.drifts(plan) == []


def test_a_customer_renamed_in_stripe_is_renamed_back(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced_organization(world, email="pay@acme.test")
    customer = str(world.link(org_id, "stripe").customer_id)
    world.sandbox.patch("stripe", "customers", customer, name="Mallory", email="else@where.test")
    plan = drift_harness.check()
    (drift,) = drift_harness.drifts(plan)
    assert [(each.kind, each.ours, each.theirs) for each in drift.findings] == [
        ("renamed", "Acme", "Mallory"),
        ("email", "pay@acme.test", "else@where.test"),
    ]
    assert drift.findings[0].their_write is not None
    assert drift.findings[0].their_write.by == "not us"
    listed = [call for each in drift.repairs for call in each.calls]
    world.sandbox.reset_calls()
    applied = drift_harness.repair(plan)
    assert (applied.organizations, applied.not_repaired) == (1, [])
    assert drift_harness.sent_writes() == listed == [f"POST /v1/customers/{customer}"]
    assert drift_harness.findings() == []


def test_a_customer_renamed_in_lago_is_renamed_back(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced_organization(world)
    world.sandbox.settings(lago_writes_to_stripe=False)
    world.sandbox.patch("lago", "customers", org_id, name="Mallory")
    finding = assert_repaired(world, drift_harness)
    assert (finding.kind, finding.provider, finding.theirs) == ("renamed", "lago", "Mallory")
    assert finding.their_write is not None
    assert finding.their_write.by == "not us"


def test_a_mark_that_was_cleared_in_stripe_is_set_again(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced_organization(world)
    customer = str(world.link(org_id, "stripe").customer_id)
    world.sandbox.patch("stripe", "customers", customer, metadata={"billing_sync_org_id": None})
    assert assert_repaired(world, drift_harness).kind == "back_link"


def test_a_mark_of_another_organization_is_for_a_person(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced_organization(world)
    customer = str(world.link(org_id, "stripe").customer_id)
    world.sandbox.patch("stripe", "customers", customer, metadata={"billing_sync_org_id": "shop-17"})
    finding = assert_needs_an_operator(world, drift_harness)
    assert (finding.kind, finding.theirs) == ("back_link", "shop-17")


def test_a_customer_deleted_in_stripe_is_for_a_person(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced_organization(world)
    customer = str(world.link(org_id, "stripe").customer_id)
    world.sandbox.delete("stripe", "customers", customer)
    finding = assert_needs_an_operator(world, drift_harness)
    assert (finding.kind, finding.ours, finding.theirs) == ("deleted", customer, None)
    assert finding.their_write is not None


def test_a_customer_that_stripe_does_not_know_is_missing_and_one_that_bears_our_mark_is_named(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    org_id = synced_organization(world)
    marked = str(world.link(org_id, "stripe").customer_id)
    with world.database.write() as session:
        session.get_one(BillingLink, (org_id, "stripe")).customer_id = "cus_restored"
    world.sandbox.settings(lago_writes_to_stripe=False)
    world.sandbox.patch("lago", "customers", org_id, billing_configuration={"provider_customer_id": "cus_restored"})
    finding = assert_needs_an_operator(world, drift_harness)
    assert (finding.kind, finding.ours, finding.theirs) == ("missing", "cus_restored", marked)
    world.sandbox.patch("stripe", "customers", marked, metadata={"billing_sync_org_id": None})
    finding = assert_needs_an_operator(world, drift_harness)
    assert (finding.kind, finding.theirs) == ("missing", None)
    assert "another account" in finding.advice


def test_a_customer_deleted_in_lago_is_for_a_person(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced_organization(world)
    world.sandbox.delete("lago", "customers", org_id)
    assert assert_needs_an_operator(world, drift_harness).kind == "missing"


def test_a_customer_made_anew_in_lago_is_not_taken_for_ours(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced_organization(world)
    world.sandbox.delete("lago", "customers", org_id)
    (anew,) = world.sandbox.preload_lago_customers([{"external_id": org_id, "name": "Acme"}])
    finding = assert_needs_an_operator(world, drift_harness)
    assert (finding.kind, finding.theirs) == ("deleted", anew["lago_id"])


def test_two_customers_with_our_mark_are_for_a_person(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced_organization(world)
    world.sandbox.preload_stripe_customers(
        [{"id": "cus_twin", "name": "Acme", "metadata": {"billing_sync_org_id": org_id}}]
    )
    finding = assert_needs_an_operator(world, drift_harness)
    assert (finding.kind, finding.object_id) == ("duplicate", "cus_twin")
    assert str(world.link(org_id, "stripe").customer_id) in finding.advice


def test_a_known_customer_with_the_key_of_an_earlier_version_has_not_drifted(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    org_id = synced_organization(world)
    customer = str(world.link(org_id, "stripe").customer_id)
    earlier = {"billing_sync_org_id": None, "billing_sync_database_id": None, "org_id": org_id}
    world.sandbox.patch("stripe", "customers", customer, metadata=earlier)
    assert drift_harness.findings() == []


@pytest.mark.parametrize(
    ("wrote", "sentence"), [("ours", "this database wrote it"), ("x", "another database wrote it")]
)
def test_a_report_says_whether_this_database_wrote_an_unknown_customer(
    world: SyncWorld, drift_harness: DriftHarness, wrote: str, sentence: str
) -> None:
    org_id = synced_organization(world)
    (customer,) = world.stripe_objects("customers")
    marks = customer["metadata"]
    assert isinstance(marks, dict)
    assert marks["billing_sync_org_id"] == org_id
    metadata = {**marks, "billing_sync_org_id": "org_that_was_lost"}
    metadata |= {} if wrote == "ours" else {"billing_sync_database_id": wrote}
    world.sandbox.preload_stripe_customers([{"id": "cus_lost", "metadata": metadata}])
    (finding,) = drift_harness.findings()
    assert (finding.kind, finding.object_id) == ("unknown_customer", "cus_lost")
    assert sentence in finding.advice


@pytest.mark.parametrize("provider", ["stripe", "lago"])
def test_a_customer_of_an_organization_that_is_not_here_is_told(
    world: SyncWorld, drift_harness: DriftHarness, provider: Provider
) -> None:
    synced_organization(world)
    other_org_id = "org_of_another_deployment"
    if provider == "stripe":
        world.sandbox.preload_stripe_customers([{"id": "cus_1", "metadata": {"billing_sync_org_id": other_org_id}}])
    else:
        world.sandbox.preload_lago_customers([{"external_id": other_org_id, "lago_id": "cus_1"}])
    finding = assert_needs_an_operator(world, drift_harness)
    assert (finding.kind, finding.provider, finding.object_id) == ("unknown_customer", provider, "cus_1")
    assert finding.theirs == other_org_id


def test_customers_of_another_deployment_cost_no_request_each(world: SyncWorld, drift_harness: DriftHarness) -> None:
    """R2: seven organizations among ninety such took 174 calls."""
    synced_organization(world)
    world.count_requests()
    alone = drift_harness.check()
    requests_alone = sum(world.count_requests())
    others = [f"org_other_{number}" for number in range(60)]
    world.sandbox.preload_stripe_customers(
        [{"id": f"cus_{each}", "metadata": {"billing_sync_org_id": each}} for each in others]
    )
    world.sandbox.preload_lago_customers([{"external_id": each} for each in others])
    found = drift_harness.check()
    assert sum(world.count_requests()) <= requests_alone + 3  # one page more of Stripe, and who wrote them
    assert (alone.counts.drifted, found.counts.kinds) == (0, {"unknown_customer": 120})


def test_an_organization_that_waits_for_a_decision_is_listed_and_not_repaired(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    """R3: what somebody changed is in the report, also if the webhook that came first put the link on hold."""
    org_id = synced_organization(world)
    world.sandbox.patch("lago", "subscriptions", org_id, plan_code="enterprise")
    check_after_webhook(world, org_id, "lago")
    assert world.link(org_id, "lago").state == "on_hold"
    report = drift_harness.check()
    (finding,) = [finding for drift in drift_harness.drifts(report) for finding in drift.findings]
    assert (finding.kind, finding.ours, finding.theirs) == ("wrong_plan", "professional", "enterprise")
    assert (finding.is_on_hold, finding.repairable, report.counts.repairable) == (True, False, 0)
    assert f"billing-sync resolve {org_id}" in finding.advice


def test_customers_of_others_in_the_same_account_are_none_of_our_business(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    synced_organization(world)
    world.sandbox.preload_stripe_customers(
        [{"name": "another shop"}, {"metadata": {"billing_sync_org_id": "shop-17"}}, {"metadata": {"org_id": "org_42"}}]
    )
    world.sandbox.preload_lago_customers([{"external_id": "shop-17"}])
    assert drift_harness.findings() == []


def test_a_payer_that_somebody_removed_in_lago_is_for_a_person(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced_organization(world)
    world.sandbox.patch("lago", "customers", org_id, billing_configuration={"payment_provider": None})
    finding = assert_needs_an_operator(world, drift_harness)
    assert (finding.kind, finding.ours) == ("broken_link", world.link(org_id, "stripe").customer_id)
    world.sandbox.patch("lago", "customers", org_id, name="Mallory")
    # A repair of the name would write the payer, too.
    assert [each.repairable for each in drift_harness.findings()] == [False, False]


def test_another_payer_at_lago_is_for_a_person(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced_organization(world)
    world.sandbox.settings(lago_writes_to_stripe=False)
    world.sandbox.patch("lago", "customers", org_id, billing_configuration={"provider_customer_id": "cus_other"})
    finding = assert_needs_an_operator(world, drift_harness)
    assert (finding.kind, finding.theirs) == ("broken_link", "cus_other")


def test_a_cheaper_plan_set_in_lago_is_put_right(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced_organization(world, plan_tier="starter")
    world.sandbox.delete("lago", "subscriptions", org_id)
    world.sandbox.preload_lago_subscription(org_id, "founders_friend", org_id)
    finding = assert_repaired(world, drift_harness)
    assert (finding.kind, finding.ours, finding.theirs) == ("wrong_plan", "starter", "founders_friend")


def test_a_dearer_plan_set_in_lago_is_lowered_by_no_machine(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced_organization(world, plan_tier="starter")
    world.sandbox.patch("lago", "subscriptions", org_id, plan_code="enterprise")
    finding = assert_needs_an_operator(world, drift_harness)
    assert (finding.kind, finding.ours, finding.theirs) == ("wrong_plan", "starter", "enterprise")


def test_a_plan_that_is_not_in_the_catalog_is_for_a_person(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced_organization(world)
    world.sandbox.preload_lago_plans(
        [
            {
                "name": "Special",
                "code": "special",
                "interval": "monthly",
                "amount_cents": 99_999,
                "amount_currency": "USD",
                "pay_in_advance": True,
            }
        ]
    )
    world.sandbox.patch("lago", "subscriptions", org_id, plan_code="special")
    assert assert_needs_an_operator(world, drift_harness).theirs == "special"


def test_a_downgrade_that_somebody_scheduled_is_taken_back(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced_organization(world)
    world.sandbox.patch("lago", "subscriptions", org_id, plan_code="starter")
    finding = assert_repaired(world, drift_harness)
    assert (finding.field, finding.ours, finding.theirs) == ("next_plan", None, "starter")


def test_a_downgrade_that_somebody_took_back_is_scheduled_again(
    world: SyncWorld, drift_harness: DriftHarness, sandbox_server: Sandbox
) -> None:
    org_id = synced_organization(world)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    world.advance_time(minutes=5)
    pending = f"{sandbox_server.url}/api/v1/subscriptions/{org_id}?status=pending"
    httpx.delete(pending, headers={"Authorization": "Bearer sandbox"}, trust_env=False).raise_for_status()
    finding = assert_repaired(world, drift_harness)
    assert (finding.field, finding.ours, finding.theirs) == ("next_plan", "starter", None)


def test_a_subscription_ended_in_lago_is_made_again(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced_organization(world)
    world.sandbox.delete("lago", "subscriptions", org_id)
    finding = assert_repaired(world, drift_harness)
    assert (finding.kind, finding.field) == ("missing", "subscription")


def test_a_subscription_beside_ours_in_lago_is_for_a_person(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced_organization(world)
    world.sandbox.preload_lago_subscription(org_id, "starter", "made-by-hand")
    finding = assert_needs_an_operator(world, drift_harness)
    assert (finding.kind, finding.theirs) == ("foreign_subscription", "starter")


def test_a_stripe_subscription_where_lago_charges_is_a_second_payer(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    org_id = synced_organization(world)
    world.sandbox.preload_stripe_subscription(str(world.link(org_id, "stripe").customer_id), price_of(world, "starter"))
    assert assert_needs_an_operator(world, drift_harness).kind == "double_charging"


def test_a_deleted_organization_that_is_charged_is_told(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced_organization(world)
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    world.advance_time(minutes=5)
    assert drift_harness.findings() == []
    world.sandbox.preload_lago_subscription(org_id, "starter", org_id)
    finding = assert_needs_an_operator(world, drift_harness)
    assert finding.kind == "foreign_subscription"
    assert "deleted" in finding.advice


def test_what_is_behind_or_at_work_is_not_drift(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = synced_organization(world)
    world.rename(org_id, "Acme GmbH")
    plan = drift_harness.check()
    assert (plan.counts.in_flux, plan.counts.compared, plan.counts.drifted) == (1, 0, 0)


def test_of_a_parked_organization_only_what_may_cost_money_is_told(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    org_id = synced_organization(world)
    with world.database.write() as session:
        session.get_one(BillingLink, (org_id, "lago")).state = "parked"
    world.sandbox.settings(lago_writes_to_stripe=False)
    world.sandbox.patch("lago", "customers", org_id, name="Mallory")
    assert drift_harness.findings() == []
    world.sandbox.preload_lago_subscription(org_id, "starter", "made-by-hand")
    plan = drift_harness.check()
    assert (plan.counts.parked_or_on_hold, plan.counts.kinds) == (1, {"foreign_subscription": 1})


def test_a_customer_whose_making_was_parked_without_an_answer_is_learnt_by_its_round_and_not_told(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    org_id = world.create(plan_tier="professional")
    world.run(org_id, "stripe")
    world.sandbox.add_fault("lago", "POST /api/v1/customers", "500_after")
    world.run(org_id, "lago")
    world.set_charging_provider("stripe", "starter")
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "lago").state == "parked"
    assert drift_harness.findings() == []
    world.change_plan(org_id, "professional")
    world.wait(10)
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "lago").customer_id == world.lago_objects("customers")[0]["lago_id"]


def test_a_customer_in_lago_whose_making_had_no_answer_before_the_organization_was_deleted_is_not_told(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    org_id = world.create()
    world.run(org_id, "stripe")
    world.sandbox.add_fault("lago", "POST /api/v1/customers", "lost_answer")
    world.run(org_id, "lago")
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "lago").customer_id is None
    assert drift_harness.findings() == []
    world.change_status(org_id, "active")
    world.wait(10)
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "lago").customer_id == world.lago_objects("customers")[0]["lago_id"]


@pytest.mark.parametrize("provider", ["stripe", "lago"])
@pytest.mark.parametrize("why", ["unknown plan", "two chargers"])
def test_a_subscription_beside_ours_is_told_also_while_a_person_is_waited_for(
    world: SyncWorld, drift_harness: DriftHarness, provider: Provider, why: str
) -> None:
    world.set_charging_provider("stripe", "enterprise")
    org_id = synced_organization(world)
    if why == "unknown plan":
        world.change(org_id, lose_the_plan)
    else:
        world.change_plan(org_id, "enterprise")
    world.reconcile_until_idle(org_id)
    assert {world.link(org_id, each).state for each in ("stripe", "lago")} == {"parked"}
    if provider == "stripe":
        customer = str(world.link(org_id, "stripe").customer_id)
        rogue = world.sandbox.preload_stripe_subscription(customer, price_of(world, "enterprise"))["id"]
    else:
        rogue = world.sandbox.preload_lago_subscription(org_id, "starter", "made-by-hand")["lago_id"]
    (finding,) = drift_harness.findings()
    assert (finding.kind, finding.object_id) == ("foreign_subscription", rogue)


def lose_the_plan(change: ChangeContext, organization: Organization) -> None:
    organization.plan_tier = "legacy"
    links.mark_for_sync(change, organization)
