"""The log lines of a link: each tells what was committed, and which change and which requests it is about."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from sqlalchemy import select
from structlog.testing import capture_logs

from core.db.models.billing_links import BillingLink
from core.db.models.events import Event
from core.db.models.history import LinkHistory
from core.events.event_types import Cause, ChangeContext
from core.organizations import commands
from core.ports.spec import Provider
from core.reconcile import commands as reconcile_commands
from core.reconcile.attempt import MAX_REPORTED_REQUESTS, SyncAttempt
from core.reconcile.lease import acquire
from core.reconcile.reconciler import MAX_UNEXPECTED_ATTEMPTS
from sandbox.server import Sandbox
from tests.support.strange_error import StrangeError
from tests.support.sync_world import SyncWorld

REFUSAL = '{"status":422,"code":"validation_errors"}'


def of_lago(logged: list[Any], name: str) -> list[dict[str, Any]]:
    return [line for line in logged if line["event"] == name and line["provider"] == "lago"]


def synced(world: SyncWorld) -> str:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    world.wait(10)
    return org_id


def rename_by_request(world: SyncWorld, org_id: str, name: str, request_id: str) -> str:
    """Rename it as an API request does; returns the id of the event."""
    with world.database.write() as session:
        organization = commands.lock(session, org_id)
        assert organization is not None
        cause = Cause(actor="user", source="api", caused_by=f"request:{request_id}")
        commands.rename(ChangeContext(session, world.now, cause), organization, name)
        return str(session.scalar(select(Event.id).order_by(Event.seq.desc()).limit(1)))


def request_check(world: SyncWorld, org_id: str, provider: Provider) -> None:
    with world.database.write() as session:
        session.get_one(BillingLink, (org_id, provider)).checks_requested += 1


def park_in_lago(world: SyncWorld, org_id: str) -> None:
    world.sandbox.add_fault("lago", "*", "status", status=422, body=REFUSAL)
    world.rename(org_id, "Wrong")
    assert world.run(org_id, "lago").kind == "parked"
    world.wait(10)


def test_a_sync_names_its_requests_and_the_newest_change_that_it_serves(world: SyncWorld) -> None:
    org_id = synced(world)
    rename_by_request(world, org_id, "First", "request-1")
    event_id = rename_by_request(world, org_id, "Second", "request-2")
    world.add_member(org_id, "user_1")  # newer, and no provider sees it
    with capture_logs() as logged:
        assert world.run(org_id, "lago").kind == "synced"
        world.run(org_id, "lago")
    (line,) = of_lago(logged, "link_synced")
    assert (line["log_level"], line["org_id"]) == ("info", org_id)
    assert line["version"] == world.organization(org_id).version
    assert (line["event_id"], line["request_id"], line["previous_error"]) == (event_id, "request-2", None)
    assert line["requests"] == len(line["provider_request_ids"]) == 1


def test_a_remote_check_is_logged_as_one(world: SyncWorld) -> None:
    org_id = synced(world)
    request_check(world, org_id, "lago")
    with capture_logs() as logged:
        assert world.run(org_id, "lago").kind == "synced"
    assert of_lago(logged, "link_synced") == []
    (line,) = of_lago(logged, "link_checked")
    assert line["requests"] == len(line["provider_request_ids"]) > 0


def test_a_parked_link_is_logged_once_with_the_code_and_id_of_the_provider(world: SyncWorld) -> None:
    org_id = synced(world)
    with capture_logs() as logged:
        park_in_lago(world, org_id)
        world.run(org_id, "lago")
    (line,) = of_lago(logged, "link_parked")
    assert (line["log_level"], line["org_id"], line["error_kind"]) == ("warning", org_id, "rejected")
    assert line["error_code"] == "validation_errors"
    assert line["message"] == world.link(org_id, "lago").error_message
    assert "Wrong" not in str(line)


def test_a_link_that_got_a_new_version_meanwhile_is_not_parked_and_not_logged(world: SyncWorld) -> None:
    org_id = synced(world)
    world.sandbox.add_fault("lago", "*", "status", status=422, body=REFUSAL)
    world.rename(org_id, "Wrong")
    world.providers["lago"].before_customer = lambda: world.rename(org_id, "Right")
    with capture_logs() as logged:
        assert world.run(org_id, "lago").kind == "retry"
    assert of_lago(logged, "link_parked") == []


def test_a_change_frees_a_parked_link_once(world: SyncWorld) -> None:
    org_id = synced(world)
    park_in_lago(world, org_id)
    with capture_logs() as logged:
        rename_by_request(world, org_id, "Right", "request-9")
        world.rename(org_id, "Righter")
        world.reconcile_until_idle(org_id)
    freed = [line for line in logged if line["event"] == "link_freed"]
    assert [(line["provider"], line["by"], line["request_id"]) for line in freed] == [("lago", "change", "request-9")]
    (line,) = of_lago(logged, "link_synced")
    assert line["previous_error"] == "validation_errors"
    assert world.is_in_sync(org_id)


@pytest.mark.parametrize(("status", "by"), [("suspended", []), ("deleted", ["deletion"])])
def test_only_a_status_that_ends_billing_frees_a_parked_link(world: SyncWorld, status: str, by: list[str]) -> None:
    org_id = synced(world)
    park_in_lago(world, org_id)
    with capture_logs() as logged:
        world.change_status(org_id, status)
    assert [line["by"] for line in of_lago(logged, "link_freed")] == by


def test_a_retry_frees_what_is_parked_and_nothing_else(world: SyncWorld) -> None:
    org_id = synced(world)
    park_in_lago(world, org_id)
    with capture_logs() as logged:
        world.change(org_id, reconcile_commands.retry)
        world.change(org_id, reconcile_commands.retry)
    assert [(line["provider"], line["by"]) for line in logged if line["event"] == "link_freed"] == [("lago", "retry")]


def test_a_new_customer_id_frees_a_parked_link(world: SyncWorld) -> None:
    org_id = synced(world)
    park_in_lago(world, org_id)
    with capture_logs() as logged:
        world.set_customer_id(org_id, "lago", "64d8d040-8b72-4cfa-b76f-eb96b34e02ee")
    assert [line["by"] for line in of_lago(logged, "link_freed")] == ["set-customer-id"]


def test_a_conflict_is_logged_when_it_is_found_and_when_it_is_decided(world: SyncWorld) -> None:
    org_id = synced(world)
    customer_id = str(world.link(org_id, "stripe").customer_id)
    world.sandbox.delete("stripe", "customers", customer_id)
    request_check(world, org_id, "stripe")
    with capture_logs() as logged:
        assert world.run(org_id, "stripe").kind == "on_hold"
        world.run(org_id, "stripe")
        world.rename(org_id, "Other")
        world.keep_ours(org_id)
    names = [line["event"] for line in logged if line["event"] in {"link_on_hold", "link_freed"}]
    assert names == ["link_on_hold", "link_freed"]
    assert next(line["by"] for line in logged if line["event"] == "link_freed") == "resolve"


def test_only_the_last_request_ids_are_reported_and_none_that_is_no_id(world: SyncWorld) -> None:
    attempt = acquire(world.database, world.clock, world.create(), "stripe")
    assert isinstance(attempt, SyncAttempt)
    for number in range(MAX_REPORTED_REQUESTS + 5):
        attempt.after_response(f"req_{number}")
    for unusable in (None, "", "two words", "zelda@confidential.test", "x" * 101):
        attempt.after_response(unusable)
    assert list(attempt.provider_request_ids) == [f"req_{number}" for number in range(5, MAX_REPORTED_REQUESTS + 5)]


def test_what_parked_a_plan_change_is_read_again_when_the_change_is_taken_back(
    world: SyncWorld, sandbox_server: Sandbox
) -> None:
    """The attempt that parked sent nothing. It read that the stored plan is not what Stripe has."""
    world.set_charging_provider("stripe")
    org_id = synced(world)
    subscription_id = world.link(org_id, "stripe").subscription_id
    url = f"{sandbox_server.url}/v1/subscriptions/{subscription_id}"
    httpx.delete(url, headers={"Authorization": "Bearer sk_test_hand"}).raise_for_status()
    for tier in ("enterprise", "professional"):
        world.change_plan(org_id, tier)
        world.wait(60)
        world.run(org_id, "stripe")
        assert world.link(org_id, "stripe").state != "active", tier
        assert not world.is_in_sync(org_id)


def test_a_write_that_lost_its_lease_before_it_was_sent_is_not_in_the_history(world: SyncWorld) -> None:
    org_id = synced(world)
    world.rename(org_id, "Second")

    def take_over() -> None:
        world.expire_lease()
        assert isinstance(acquire(world.database, world.clock, org_id, "lago"), SyncAttempt)

    world.providers["lago"].before_customer = take_over
    world.sandbox.reset_calls()
    assert world.run(org_id, "lago").kind == "waiting"
    assert world.sandbox.calls("lago") == []
    with world.database.read() as session:
        rows = session.scalars(
            select(LinkHistory.data).where(LinkHistory.org_id == org_id, LinkHistory.kind == "attempt")
        )
        sent = [request for data in rows for request in data["requests"]]
    assert all(request["request_id"] is not None for request in sent), sent


def run_unexpectedly(world: SyncWorld, org_id: str, provider: Provider) -> BillingLink:
    """One attempt in which the program fails; the link after it, when its wait is over."""

    def fail() -> None:
        raise StrangeError

    world.providers[provider].before_customer = fail
    world.run(org_id, provider)
    world.wait(901)
    return world.link(org_id, provider)


def test_an_outage_before_it_does_not_park_what_failed_unexpectedly_twice(world: SyncWorld) -> None:
    org_id = world.create()
    world.sandbox.add_fault("stripe", "*", "500_before", times=999)
    for _ in range(20):
        world.run(org_id, "stripe")
        world.wait(901)
    world.sandbox.clear_faults()
    assert world.link(org_id, "stripe").attempts == 20
    for tries in range(1, MAX_UNEXPECTED_ATTEMPTS + 1):
        link = run_unexpectedly(world, org_id, "stripe")
        assert (link.error_kind, link.attempts) == ("unexpected", tries)
        assert link.state == ("active" if tries < MAX_UNEXPECTED_ATTEMPTS else "parked")


def test_a_lago_link_that_fails_unexpectedly_after_its_wait_does_not_wait_again_and_is_parked(world: SyncWorld) -> None:
    org_id = world.create()
    assert world.run(org_id, "lago").reason == "payer"
    world.wait(30.1)
    states = [run_unexpectedly(world, org_id, "lago").state for _ in range(MAX_UNEXPECTED_ATTEMPTS)]
    assert states == ["active"] * (MAX_UNEXPECTED_ATTEMPTS - 1) + ["parked"]
