"""An observed organization is read and compared. What would be done is planned, and nothing is written anywhere."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import func, select

from core.adoption import release
from core.db.models.billing_links import BillingLink, MarksState
from core.db.models.events import Event
from core.db.models.history import LinkHistory
from core.drift.repairer import OBSERVED_REASON
from core.ports.planned import PlannedStep
from core.ports.spec import PROVIDERS, Provider
from core.reconcile import due_links
from core.reporting import metrics, overview, problems
from core.reporting.observed import ObservedOrganization, observed_organizations
from tests.support.adopted import PAYER, Adopted, adopt_at_lago, adopt_at_stripe
from tests.support.drift_harness import DriftHarness, price_of
from tests.support.sync_world import CREATE_CUSTOMER_REQUEST, SyncWorld

both = pytest.mark.parametrize("provider", PROVIDERS)


def writes(world: SyncWorld) -> list[str]:
    counters = world.sandbox.counters()
    operations = {**counters.stripe.operations, **counters.lago.operations}
    return [name for name, count in operations.items() if count and not name.startswith("GET ")]


def kinds(world: SyncWorld, org_id: str, provider: Provider) -> list[str]:
    return [step.kind for step in world.observation(org_id, provider).steps]


def the_step(world: SyncWorld, org_id: str, provider: Provider) -> PlannedStep:
    (step,) = world.observation(org_id, provider).steps
    return step


def code(world: SyncWorld, tier: str, provider: Provider) -> str:
    return world.catalog.plan(tier).code(provider)


def synced(world: SyncWorld, plan_tier: str = "professional", name: str = "Acme") -> str:
    org_id = world.create(name, plan_tier)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    world.wait(10)
    world.sandbox.reset_calls()
    return org_id


def observed(world: SyncWorld, org_id: str) -> None:
    world.reconcile_until_idle(org_id)
    assert {world.link(org_id, each).state for each in PROVIDERS} == {"observed"}
    assert writes(world) == []


def test_a_new_organization_is_planned_at_both_providers_and_nothing_is_written(world: SyncWorld) -> None:
    world.management = "observe"
    org_id = world.create()
    observed(world, org_id)
    assert kinds(world, org_id, "stripe") == ["create_customer"]
    assert kinds(world, org_id, "lago") == ["create_customer", "set_payer", "create_subscription"]
    assert world.link(org_id, "stripe").intent is None
    with world.database.read() as session:
        assert session.scalar(select(func.count()).select_from(LinkHistory)) == 0
        types = set(session.scalars(select(Event.type)))
    assert "organization.synced" not in types


def test_a_new_organization_that_stripe_charges_is_planned_with_its_amount(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    world.management = "observe"
    org_id = world.create()
    observed(world, org_id)
    create, subscribe = world.observation(org_id, "stripe").steps
    assert create.kind == "create_customer"
    assert (subscribe.kind, subscribe.after) == ("create_subscription", code(world, "professional", "stripe"))
    assert subscribe.price_after is not None
    plan = world.catalog.plan("professional")
    assert (subscribe.price_after.amount, subscribe.price_after.currency) == (plan.amount, plan.currency)


@both
def test_an_organization_in_sync_would_not_change(world: SyncWorld, provider: Provider) -> None:
    world.set_charging_provider(provider)
    org_id = synced(world)
    world.set_mode(org_id, "observe")
    observed(world, org_id)
    for each in PROVIDERS:
        assert world.observation(org_id, each).steps == ()
        assert world.observation(org_id, each).problem is None


@both
def test_a_rename_is_planned_with_its_field(world: SyncWorld, provider: Provider) -> None:
    world.set_charging_provider(provider)
    org_id = synced(world)
    world.set_mode(org_id, "observe")
    world.rename(org_id, "Acme GmbH")
    observed(world, org_id)
    for each in PROVIDERS:
        step = the_step(world, org_id, each)
        assert (step.kind, step.fields) == ("update_customer", ("name",))
        assert step.object_id == world.link(org_id, each).customer_id


@both
def test_an_upgrade_is_planned_with_both_amounts(world: SyncWorld, provider: Provider) -> None:
    world.set_charging_provider(provider)
    org_id = synced(world)
    world.set_mode(org_id, "observe")
    world.change_plan(org_id, "enterprise")
    observed(world, org_id)
    step = the_step(world, org_id, provider)
    assert (step.kind, step.before, step.after, step.at_period_end) == (
        "change_plan",
        code(world, "professional", provider),
        code(world, "enterprise", provider),
        False,
    )
    old, new = world.catalog.plan("professional"), world.catalog.plan("enterprise")
    assert step.price_before is not None
    assert step.price_after is not None
    assert (step.price_before.amount, step.price_after.amount) == (old.amount, new.amount)


@both
def test_a_downgrade_is_planned_for_the_end_of_the_period(world: SyncWorld, provider: Provider) -> None:
    world.set_charging_provider(provider)
    org_id = synced(world)
    world.set_mode(org_id, "observe")
    world.change_plan(org_id, "starter")
    observed(world, org_id)
    step = the_step(world, org_id, provider)
    assert (step.kind, step.before, step.after, step.at_period_end) == (
        "schedule_plan",
        code(world, "professional", provider),
        code(world, "starter", provider),
        True,
    )
    assert step.effective_at is not None


@both
def test_a_downgrade_taken_back_is_planned_as_that(world: SyncWorld, provider: Provider) -> None:
    world.set_charging_provider(provider)
    org_id = synced(world)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    world.wait(10)
    world.sandbox.reset_calls()
    world.set_mode(org_id, "observe")
    world.change_plan(org_id, "professional")
    observed(world, org_id)
    step = the_step(world, org_id, provider)
    assert (step.kind, step.before, step.after) == (
        "cancel_scheduled_plan",
        code(world, "starter", provider),
        code(world, "professional", provider),
    )


@both
def test_an_end_is_planned(world: SyncWorld, provider: Provider) -> None:
    world.set_charging_provider(provider)
    org_id = synced(world)
    world.set_mode(org_id, "observe")
    world.change_status(org_id, "deleted")
    observed(world, org_id)
    assert kinds(world, org_id, provider)[0] == "end_subscription"


@both
def test_what_was_observed_is_done_once_it_is_managed(world: SyncWorld, provider: Provider) -> None:
    world.set_charging_provider(provider)
    world.management = "observe"
    org_id = world.create()
    observed(world, org_id)
    world.wait(10)
    world.set_mode(org_id, "manage")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert {world.link(org_id, each).state for each in PROVIDERS} == {"active"}


# What is not ours, and our marks on what was adopted.


def at_stripe(world: SyncWorld, customer_id: str) -> dict[str, object]:
    return next(each for each in world.stripe_objects("customers") if each["id"] == customer_id)


def test_marks_that_are_due_are_written_once_it_is_managed(world: SyncWorld) -> None:
    org_id = adopt_at_lago(world, Adopted(marks="due"))
    world.set_mode(org_id, "observe")
    observed(world, org_id)
    step = the_step(world, org_id, "stripe")
    assert (step.kind, step.object_id) == ("write_marks", PAYER)
    assert world.link(org_id, "stripe").marks == "due"
    world.wait(10)
    world.set_mode(org_id, "manage")
    world.reconcile_until_idle(org_id)
    assert writes(world) == ["POST /v1/customers/{id}"]
    assert at_stripe(world, PAYER)["metadata"] != {}
    assert world.link(org_id, "stripe").marks == "ours"
    assert world.is_in_sync(org_id)


def test_marks_are_removed_and_then_it_is_theirs_and_observed(world: SyncWorld) -> None:
    org_id = adopt_at_lago(world, Adopted(marks="due"))
    before = at_stripe(world, PAYER)
    world.set_mode(org_id, "manage")
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "stripe").marks == "ours"
    world.wait(10)
    world.change(org_id, release.release)
    world.reconcile_until_idle(org_id)
    assert at_stripe(world, PAYER) == before
    for provider in PROVIDERS:
        link = world.link(org_id, provider)
        assert (link.ownership, link.marks, link.state) == ("theirs", "due", "observed")
    assert kinds(world, org_id, "lago") == []
    # What a reconcile would do, if it were ours.
    assert the_step(world, org_id, "stripe").fields == ("metadata",)


def test_an_organization_is_observed_while_one_half_of_it_is_not_ours(world: SyncWorld) -> None:
    org_id = adopt_at_lago(world, Adopted(marks="due"))
    with world.database.write() as session:
        session.get_one(BillingLink, (org_id, "stripe")).ownership = "theirs"
    world.rename(org_id, "Umbra Laboratories")
    observed(world, org_id)
    assert kinds(world, org_id, "lago") == ["update_customer"]
    world.wait(10)
    world.set_mode(org_id, "manage")
    observed(world, org_id)


# How it changes.


def test_a_changed_mode_is_recorded_and_ends_what_runs(world: SyncWorld) -> None:
    org_id = world.create()
    world.providers["stripe"].before_customer = lambda: world.set_mode(org_id, "observe")
    result = world.run(org_id, "stripe")
    assert result.reason in {"leased", "lease_lost"}
    assert writes(world) == []
    observed(world, org_id)
    with world.database.read() as session:
        assert session.scalar(select(func.count()).where(Event.type == "organization.management_changed")) == 1


def stripe_charges(world: SyncWorld) -> str:
    """A new organization."""
    world.set_charging_provider("stripe")
    return world.create()


def test_an_id_that_is_set_at_lago_ends_what_runs_at_stripe(world: SyncWorld) -> None:
    """Whoever has that id pays already."""
    org_id = stripe_charges(world)
    world.providers["stripe"].before_subscription = lambda: world.set_customer_id(org_id, "lago", "theirs")
    assert world.run(org_id, "stripe").reason == "lease_lost"
    assert world.stripe_objects("subscriptions") == []
    world.expire_lease()
    world.reconcile_until_idle(org_id)
    assert world.stripe_objects("subscriptions") == []
    assert {world.link(org_id, each).state for each in PROVIDERS} == {"observed"}


def test_nobody_begins_to_charge_who_sees_under_the_lock_that_the_other_half_is_not_ours(world: SyncWorld) -> None:
    org_id = stripe_charges(world)

    def lago_becomes_theirs() -> None:
        with world.database.write() as session:
            session.get_one(BillingLink, (org_id, "lago")).ownership = "theirs"

    world.providers["stripe"].before_subscription = lago_becomes_theirs
    assert world.run(org_id, "stripe").reason == "lease_lost"
    assert world.stripe_objects("subscriptions") == []


def half_adopted(world: SyncWorld, marks: MarksState) -> str:
    """At Stripe, which charges. The customer in Lago is ours."""
    world.set_charging_provider("stripe")
    return adopt_at_stripe(world, Adopted(marks=marks), price_of(world, "professional"))


def test_a_release_ends_what_runs_at_the_provider_where_nothing_was_adopted(world: SyncWorld) -> None:
    org_id = half_adopted(world, "none")
    world.rename(org_id, "Umbra Laboratories")
    world.providers["lago"].before_customer = lambda: world.change(org_id, release.release)
    world.run(org_id, "lago")
    world.expire_lease()
    observed(world, org_id)


def test_a_release_while_the_marks_are_being_written_removes_them(world: SyncWorld) -> None:
    org_id = adopt_at_lago(world, Adopted(marks="due"))
    before = at_stripe(world, PAYER)
    world.rename(org_id, "Umbra Laboratories")
    world.providers["stripe"].after_marks = lambda: world.change(org_id, release.release)
    assert world.run(org_id, "stripe").reason == "lease_lost"
    assert world.link(org_id, "stripe").marks == "removal"
    world.expire_lease()
    world.reconcile_until_idle(org_id)
    assert at_stripe(world, PAYER)["metadata"] == before["metadata"]
    assert {world.link(org_id, each).ownership for each in PROVIDERS} == {"theirs"}


def test_a_mode_that_it_has_already_changes_nothing(world: SyncWorld) -> None:
    org_id = world.create()
    world.set_mode(org_id, "observe")
    version = world.organization(org_id).version
    world.set_mode(org_id, "observe")
    assert world.organization(org_id).version == version


def test_its_own_mode_wins_over_that_of_the_installation(world: SyncWorld) -> None:
    world.management = "observe"
    org_id = world.create()
    world.set_mode(org_id, "manage")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)


def test_an_installation_that_is_managed_again_goes_on_with_what_it_observed(world: SyncWorld) -> None:
    world.management = "observe"
    org_id, other = world.create(), world.create("Beta")
    world.set_mode(other, "observe")
    for each in (org_id, other):
        observed(world, each)
    world.wait(10)
    world.management = "manage"
    with world.database.write() as session:
        assert due_links.resume_managed(session, 10, world.now) == 2
    with world.database.write() as session:
        assert due_links.resume_managed(session, 10, world.now) == 0
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert world.link(other, "stripe").state == "observed"


def test_an_installation_that_observes_now_reads_what_was_in_sync(world: SyncWorld) -> None:
    org_id, managed = synced(world), synced(world, name="Managed")
    world.set_mode(managed, "manage")
    world.reconcile_until_idle(managed)
    world.management = "observe"
    with world.database.write() as session:
        first = due_links.request_first_observations(session, 1, world.now)
    assert first == (1, org_id)
    with world.database.write() as session:
        assert due_links.request_first_observations(session, 10, world.now, first.next_org_id) == (1, "")
    world.sandbox.reset_calls()
    observed(world, org_id)
    assert world.is_in_sync(managed)
    for provider in PROVIDERS:
        assert world.observation(org_id, provider).steps == ()
    with world.database.write() as session:
        assert due_links.request_first_observations(session, 10, world.now) == (0, "")


@both
def test_a_downgrade_that_took_effect_is_read_again_without_a_new_version(world: SyncWorld, provider: Provider) -> None:
    """Its organization keeps the plan while it is observed, so the downgrade stays due."""
    world.set_charging_provider(provider)
    org_id = synced(world)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    world.set_mode(org_id, "observe")
    world.sandbox.reset_calls()
    observed(world, org_id)
    version = world.organization(org_id).version
    world.advance_time(days=45)
    for _ in range(3):
        before = {each: world.link(org_id, each).observed_at for each in PROVIDERS}
        assert due_links.recheck_due_downgrades(world.database, 10, world.now, world.management) == 1
        observed(world, org_id)
        assert world.organization(org_id).version == version
        read = {each for each in PROVIDERS if world.link(org_id, each).observed_at != before[each]}
        assert read == {provider}
        world.advance_time(hours=2)


def test_a_request_that_has_no_answer_is_kept_and_not_sent_again(world: SyncWorld) -> None:
    org_id = world.create()
    world.sandbox.add_fault("stripe", CREATE_CUSTOMER_REQUEST, "lost_answer", times=3)
    world.run(org_id, "stripe")
    intent = world.link(org_id, "stripe").intent
    assert intent is not None
    world.sandbox.reset_calls()
    world.set_mode(org_id, "observe")
    world.wait(3600)
    observed(world, org_id)
    step = the_step(world, org_id, "stripe")
    assert (step.kind, step.is_repeat) == ("create_customer", True)
    assert world.link(org_id, "stripe").intent == intent
    world.wait(10)
    world.set_mode(org_id, "manage")
    world.reconcile_until_idle(org_id)
    assert len(world.stripe_objects("customers")) == 1


def test_what_would_park_the_link_is_told_and_parks_nothing(world: SyncWorld) -> None:
    org_id = synced(world)
    world.set_mode(org_id, "observe")
    customer_id = world.link(org_id, "stripe").customer_id
    assert customer_id is not None
    world.sandbox.delete("stripe", "customers", customer_id)
    world.rename(org_id, "Acme GmbH")
    observed(world, org_id)
    problem = world.observation(org_id, "stripe").problem
    assert problem is not None
    assert (problem.kind, problem.code) == ("rejected", "customer_deleted")
    assert "was deleted in Stripe" in problem.message


@both
def test_a_routine_check_reads_an_observed_link_again(world: SyncWorld, provider: Provider) -> None:
    """Also one that has no subscription; a managed one is not read at Stripe."""
    synced(world, name="Managed")
    org_id = synced(world)
    world.set_mode(org_id, "observe")
    observed(world, org_id)
    first = world.link(org_id, provider).observed_at
    world.wait(3600)
    with world.database.write() as session:
        requested = due_links.request_routine_checks(session, provider, timedelta(0), 10, world.now, only_observed=True)
    assert requested == 1
    observed(world, org_id)
    second = world.link(org_id, provider).observed_at
    assert first is not None
    assert second is not None
    assert second > first


def test_drift_lists_what_differs_and_repairs_nothing(world: SyncWorld) -> None:
    org_id = synced(world)
    world.set_mode(org_id, "observe")
    customer_id = world.link(org_id, "stripe").customer_id
    assert customer_id is not None
    world.sandbox.patch("stripe", "customers", customer_id, name="Mallory")
    observed(world, org_id)
    harness = DriftHarness(world)
    report = harness.check()
    (drift,) = harness.drifts(report)
    (finding,) = drift.findings
    assert (finding.field, finding.theirs, finding.repairable) == ("name", "Mallory", False)
    assert f"billing-sync management report {org_id}" in finding.advice
    assert (report.counts.repairable, report.counts.parked_or_on_hold) == (0, 0)
    harness.repair(report)
    assert writes(world) == []


def test_a_report_that_was_made_before_repairs_nothing_either(world: SyncWorld) -> None:
    org_id = synced(world)
    customer_id = world.link(org_id, "stripe").customer_id
    assert customer_id is not None
    world.sandbox.patch("stripe", "customers", customer_id, name="Mallory")
    harness = DriftHarness(world)
    report = harness.check()
    assert report.counts.repairable == 1
    world.management = "observe"
    (not_repaired,) = harness.repair(report).not_repaired
    assert (not_repaired.parked, not_repaired.reason) == (False, OBSERVED_REASON)
    assert writes(world) == []


# What is reported.


def report_of(world: SyncWorld, org_id: str) -> ObservedOrganization:
    (found,) = observed_organizations(world.database, world.management, world.now, [org_id])
    return found


@both
def test_what_was_read_is_reported_until_an_attempt_while_it_is_managed(world: SyncWorld, provider: Provider) -> None:
    world.management = "observe"
    org_id = world.create()
    observed(world, org_id)
    before = report_of(world, org_id)
    world.wait(3600)
    world.rename(org_id, "Acme GmbH")
    waiting = report_of(world, org_id)
    assert waiting.observations == before.observations
    assert waiting.observations[provider] is not None
    assert (waiting.links[provider].status, waiting.links[provider].observed_at) == (
        "queued",
        before.links[provider].observed_at,
    )
    world.set_mode(org_id, "manage")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    link = world.link(org_id, provider)
    assert (link.observation, link.observed_at) == (None, None)


@pytest.mark.parametrize("ends", ["completed", "failed", "parked"])
def test_an_attempt_while_it_is_managed_ends_what_was_observed(world: SyncWorld, ends: str) -> None:
    org_id = synced(world)
    world.set_mode(org_id, "observe")
    observed(world, org_id)
    customer_id = world.link(org_id, "stripe").customer_id
    assert customer_id is not None
    world.wait(10)
    world.set_mode(org_id, "manage")
    world.rename(org_id, "Acme GmbH")
    if ends == "failed":
        world.sandbox.add_fault("stripe", "POST /v1/customers/{id}", "500_before", times=9)
    if ends == "parked":
        world.sandbox.delete("stripe", "customers", customer_id)
    world.run(org_id, "stripe")
    link = world.link(org_id, "stripe")
    assert (link.state, link.error_kind is None) == ("parked" if ends == "parked" else "active", ends == "completed")
    assert (link.observation, link.observed_at) == (None, None)


def test_a_link_that_could_not_be_read_again_says_why_beside_what_was_read(world: SyncWorld) -> None:
    org_id = synced(world)
    world.set_mode(org_id, "observe")
    observed(world, org_id)
    world.wait(10)
    world.rename(org_id, "Acme GmbH")
    world.sandbox.add_fault("stripe", "GET /v1/customers/{id}", "500_before", times=9)
    world.run(org_id, "stripe")
    found = report_of(world, org_id)
    assert found.observations["stripe"] is not None
    assert found.links["stripe"].status == "retrying"
    assert found.links["stripe"].error_message is not None


def test_a_deleted_organization_without_work_is_not_listed(world: SyncWorld) -> None:
    ended = synced(world)
    world.change_status(ended, "deleted")
    world.reconcile_until_idle(ended)
    paying = synced(world, name="Beta")
    world.management = "observe"
    world.change_status(paying, "deleted")
    world.reconcile_until_idle(paying)
    listed = [each.org_id for each in observed_organizations(world.database, "observe", world.now)]
    assert listed == [paying]
    assert report_of(world, ended).status == "deleted"


def test_a_link_that_is_read_again_is_not_behind_since_the_change_that_was_observed(world: SyncWorld) -> None:
    world.management = "observe"
    org_id = world.create()
    observed(world, org_id)
    world.wait(86400)
    with world.database.write() as session:
        for provider in PROVIDERS:
            due_links.request_routine_checks(session, provider, timedelta(0), 10, world.now, only_observed=True)
    for provider in PROVIDERS:
        assert world.link(org_id, provider).state == "active"
    with world.database.read() as session:
        found, measured = overview.summarize(session), metrics.read(session, world.now)
        behind = overview.list_organizations(session, world.now, plan=None, search=None, limit=9, links=["behind"])
    assert behind.total == 0
    for provider in PROVIDERS:
        summary, at_provider = found.providers[provider], measured.links[provider]
        assert (summary.in_sync, summary.behind, summary.behind_since, summary.observed) == (0, 0, None, 1)
        assert (at_provider.behind, at_provider.behind_since) == (0, None)


def test_it_is_neither_behind_nor_parked_in_what_is_reported(world: SyncWorld) -> None:
    world.management = "observe"
    org_id = world.create()
    observed(world, org_id)
    with world.database.read() as session:
        found = overview.summarize(session)
        assert problems.read(session, world.now).waiting_links == 0
        assert overview.parked_links(session, world.now, 10) == ([], 0)
        measured = metrics.read(session, world.now)
    for provider in PROVIDERS:
        summary = found.providers[provider]
        assert (summary.in_sync, summary.behind, summary.parked, summary.observed) == (0, 0, 0, 1)
        at_provider = measured.links[provider]
        assert (at_provider.behind, at_provider.parked, at_provider.on_hold) == (0, 0, 0)
    assert not found.in_sync
