"""The history of an organization: what the sandbox received is in it, also what a killed worker sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from core.events import link_history
from core.events.event_types import Cause, ChangeContext
from core.organizations import commands, provider_ids
from core.ports.spec import PROVIDERS
from core.reconcile import commands as reconcile_commands
from core.reporting import history
from core.reporting.history import HistoryEntry, PastState
from tests.support.drift_harness import DriftHarness
from tests.support.provider_webhooks import check_after_webhook
from tests.support.sync_world import SyncWorld, kill_worker


def entries(world: SyncWorld, org_id: str, subject: str | None = None) -> list[HistoryEntry]:
    """Newest first."""
    with world.database.read() as session:
        found = history.entries(session, org_id, history.MAX_ENTRIES)
    return [each for each in found if subject in {None, each.subject}]


def past(world: SyncWorld, org_id: str, at: datetime) -> PastState | None:
    with world.database.read() as session:
        return history.state_at(session, org_id, at)


def requests(world: SyncWorld, org_id: str) -> list[tuple[str, str | None]]:
    """What the history has of the writes that were sent, oldest first."""
    found = []
    for entry in reversed(entries(world, org_id, "sync")):
        sent = entry.details["requests"]
        assert isinstance(sent, list)
        found += [(str(each["operation"]), each["request_id"]) for each in sent if isinstance(each, dict)]
    return [(operation, str(request_id) if request_id is not None else None) for operation, request_id in found]


def received(world: SyncWorld) -> Counter[str]:
    calls = [call for provider in PROVIDERS for call in world.sandbox.calls(provider)]
    return Counter(call.operation for call in calls if call.method != "GET")


def test_each_write_that_the_providers_received_is_in_it_with_their_request_id(world: SyncWorld) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    for tier in ("enterprise", "starter"):
        world.change_plan(org_id, tier)
        world.reconcile_until_idle(org_id)
    world.rename(org_id, "Globex")
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    sent = requests(world, org_id)
    assert Counter(operation for operation, _ in sent) == received(world)
    assert all(request_id is not None for _, request_id in sent)
    assert {each.kind for each in entries(world, org_id, "sync")} == {"synced"}


def test_a_write_whose_answer_was_lost_is_in_it_without_a_request_id(world: SyncWorld) -> None:
    org_id = world.create()
    world.sandbox.add_fault("lago", "POST /api/v1/customers", "lost_answer", times=1)
    world.reconcile_until_idle(org_id)
    sent = requests(world, org_id)
    assert Counter(operation for operation, _ in sent) == received(world)
    assert ("POST /api/v1/customers", None) in sent


@pytest.mark.parametrize("moment", ["after_customer", "after_subscription"])
def test_what_a_killed_worker_sent_is_in_it_as_not_ended(world: SyncWorld, moment: str) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    world.rename(org_id, "Globex")
    world.change_plan(org_id, "enterprise")
    world.wait(10)
    setattr(world.providers["lago"], moment, kill_worker)
    world.run_until_killed(org_id, "lago")
    assert Counter(operation for operation, _ in requests(world, org_id)) == received(world)
    assert entries(world, org_id, "sync")[0].kind == "not_ended"


def test_a_parked_link_a_retry_and_a_decision_are_in_it_with_who_made_them(world: SyncWorld) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    world.sandbox.patch("lago", "subscriptions", org_id, plan_code="enterprise")
    check_after_webhook(world, org_id, "lago")
    assert entries(world, org_id, "sync")[0].kind == "on_hold"
    with world.database.write() as session:
        organization = commands.lock(session, org_id)
        assert organization is not None
        alice = ChangeContext(session, world.now, Cause(actor="operator:alice", source="billing-sync resolve"))
        assert reconcile_commands.end_conflict(alice, organization, "lago", "ours")
        reconcile_commands.retry(alice, organization)
    found = entries(world, org_id, "action")
    assert {(each.kind, each.provider, each.by) for each in found} == {
        ("resolved", "lago", "operator:alice (billing-sync resolve)"),
        ("retried", "lago", "operator:alice (billing-sync resolve)"),
        ("retried", "stripe", "operator:alice (billing-sync resolve)"),
    }
    assert [each.details for each in found if each.kind == "resolved"] == [{"decision": "ours"}]


def test_a_corrected_id_and_a_repaired_drift_are_in_it(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    world.sandbox.patch("lago", "customers", org_id, name="Mallory")
    drift_harness.repair(drift_harness.check())
    world.sandbox.preload_stripe_customers([{"id": "cus_other", "name": "Other"}])
    with world.database.write() as session:
        organization = commands.lock(session, org_id)
        assert organization is not None
        provider_ids.set_customer_ids(ChangeContext(session, world.now), organization, {"stripe": "cus_other"})
    assert {each.kind for each in entries(world, org_id, "action")} == {"drift_repaired", "customer_id_set"}
    assert [each.details["kinds"] for each in entries(world, org_id, "drift")] == [
        ["renamed", "renamed"]
    ]  # Lago renames its payer
    (set_id,) = [each for each in entries(world, org_id, "action") if each.kind == "customer_id_set"]
    assert set_id.details == {"customer_id": "cus_other"}


def test_names_and_addresses_are_not_in_it(world: SyncWorld) -> None:
    org_id = world.create(name="Secretive Ltd", email="bills@secretive.test")
    world.reconcile_until_idle(org_id)
    world.rename(org_id, "Hidden Inc")
    world.reconcile_until_idle(org_id)
    text = repr(entries(world, org_id))
    assert "ecretive" not in text
    assert "Hidden" not in text


def test_plan_status_and_links_are_shown_as_they_were(world: SyncWorld) -> None:
    org_id = world.create(plan_tier="professional")
    moments = []
    changes: list[Callable[[], None]] = [
        lambda: None,
        lambda: world.change_plan(org_id, "starter"),
        lambda: world.change_plan(org_id, "enterprise"),
        lambda: world.change_status(org_id, "deleted"),
    ]
    for change in changes:
        change()
        world.reconcile_until_idle(org_id)
        world.wait(60)
        moments.append(world.now)
        world.wait(60)
    seen = [past(world, org_id, moment) for moment in moments]
    assert [each and (each.plan_tier, each.pending_plan_tier, each.status) for each in seen] == [
        ("professional", None, "active"),
        ("professional", "starter", "active"),
        ("enterprise", None, "active"),
        ("enterprise", None, "deleted"),
    ]
    lago = [each.links["lago"] if each is not None else None for each in seen]
    assert [each and (each.plan_code, each.next_plan_code) for each in lago] == [
        ("professional", None),
        ("professional", "starter"),
        ("enterprise", None),
        (None, None),
    ]
    assert past(world, org_id, moments[0] - timedelta(days=400)) is None


def test_old_rows_are_deleted_in_batches(world: SyncWorld) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    assert requests(world, org_id)
    with world.database.write() as session:
        assert link_history.delete_expired(session, world.now - timedelta(days=1)) == 0
        assert link_history.delete_expired(session, world.now + timedelta(days=1)) > 0
    assert requests(world, org_id) == []
    assert entries(world, org_id, "change")
