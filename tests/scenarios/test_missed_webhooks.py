"""What happens at a provider is seen within a stated time though no webhook came."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from core.db.models.billing_links import BillingLink
from core.db.models.providers import ProviderStatus
from core.flow_control.request_gate import RequestGates
from core.inbox import missed_webhooks, provider_webhooks
from core.inbox.provider_webhooks import ParsedWebhook
from core.ports.errors import UnavailableError
from core.ports.provider import RequestPermits
from core.reconcile import due_links
from providers.stripe.provider import StripeProvider
from sandbox.server import Sandbox
from tests.support.drift_harness import price_of
from tests.support.sync_world import SyncWorld

DAY = timedelta(days=1)


@pytest.fixture
def stripe(world: SyncWorld, sandbox_server: Sandbox) -> Iterator[StripeProvider]:
    opened = StripeProvider("sk_test_reads_events", sandbox_server.url, ending=world.catalog.ending)
    yield opened
    opened.close()


def find_missed(world: SyncWorld, stripe: StripeProvider) -> int:
    """As the periodic task does, some minutes after what happened; then the workers do what is due."""
    world.advance_time(minutes=6)
    found = missed_webhooks.read_missed(world.database, world.clock, stripe.event_reader, RequestGates())
    provider_webhooks.process(world.database, world.clock)
    return found


def synced(world: SyncWorld) -> str:
    world.set_charging_provider("stripe")
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    return org_id


def subscription_id(world: SyncWorld) -> str:
    (subscription,) = world.stripe_objects("subscriptions")
    return str(subscription["id"])


def test_a_subscription_that_somebody_ended_in_stripe_is_seen_without_a_webhook(
    world: SyncWorld, stripe: StripeProvider
) -> None:
    org_id = synced(world)
    find_missed(world, stripe)
    world.reconcile_until_idle(org_id)
    world.sandbox.delete("stripe", "subscriptions", subscription_id(world))
    assert find_missed(world, stripe) > 0
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "stripe").state == "on_hold"


def test_what_came_as_a_webhook_is_not_stored_again(world: SyncWorld, stripe: StripeProvider) -> None:
    org_id = synced(world)
    find_missed(world, stripe)
    (subscription,) = world.sandbox.state()["stripe"]["subscriptions"]
    item = subscription["items"]["data"][0]["id"]
    items = [{"id": item, "price": price_of(world, "enterprise")}]
    world.sandbox.patch("stripe", "subscriptions", subscription_id(world), items=items)
    assert find_missed(world, stripe) == 1
    with world.database.write() as session:
        session.get_one(ProviderStatus, "stripe").events_read_until = world.now - DAY
    assert find_missed(world, stripe) == 0
    assert world.link(org_id, "stripe").checks_requested == 1


def test_our_own_writes_are_no_missed_webhooks(world: SyncWorld, stripe: StripeProvider) -> None:
    org_id = synced(world)
    world.change_plan(org_id, "enterprise")
    world.reconcile_until_idle(org_id)
    find_missed(world, stripe)
    assert world.link(org_id, "stripe").checks_requested == 0


def test_nothing_is_skipped_while_stripe_cannot_be_read(world: SyncWorld, stripe: StripeProvider) -> None:
    org_id = synced(world)
    find_missed(world, stripe)
    world.sandbox.delete("stripe", "subscriptions", subscription_id(world))
    fault = world.sandbox.add_fault("stripe", "GET /v1/events", "500_before", times=99, seconds=0)
    for _ in range(3):
        with pytest.raises(UnavailableError):
            find_missed(world, stripe)
    assert fault is not None
    world.sandbox.clear_faults()
    assert find_missed(world, stripe) > 0
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "stripe").state == "on_hold"


class BusyStripe:
    """It lists one event a minute, and reads ten at most."""

    def __init__(self, started: datetime) -> None:
        self.started = started

    def read(self, since: datetime, until: datetime, permits: RequestPermits) -> list[ParsedWebhook] | None:  # noqa: ARG002
        minutes = [self.started + timedelta(minutes=number) for number in range(60)]
        found = [each for each in minutes if since <= each <= until]
        return [webhook(each) for each in found] if len(found) <= 10 else None


def webhook(at: datetime) -> ParsedWebhook:
    return ParsedWebhook(provider="stripe", id=f"evt_{at:%H%M}", type="invoice.paid", effect="check")


def test_more_events_than_are_read_at_once_are_all_read(world: SyncWorld) -> None:
    started = world.now
    with world.database.write() as session:
        session.get_one(ProviderStatus, "stripe").events_read_until = started
    world.advance_time(minutes=61)
    busy, gates = BusyStripe(started), RequestGates()
    assert missed_webhooks.read_missed(world.database, world.clock, busy, gates) == 60
    assert missed_webhooks.read_missed(world.database, world.clock, busy, gates) == 0


class LateStripe:
    """It lists one event, at first not yet."""

    def __init__(self, at: datetime) -> None:
        self.at = at
        self.is_listed = False

    def read(self, since: datetime, until: datetime, permits: RequestPermits) -> list[ParsedWebhook] | None:  # noqa: ARG002
        return [webhook(self.at)] if self.is_listed and since <= self.at <= until else []


def test_an_event_that_is_listed_late_is_not_skipped(world: SyncWorld) -> None:
    late, gates = LateStripe(world.now - timedelta(seconds=61)), RequestGates()
    assert missed_webhooks.read_missed(world.database, world.clock, late, gates) == 0
    late.is_listed = True
    world.advance_time(minutes=5)
    assert missed_webhooks.read_missed(world.database, world.clock, late, gates) == 1
    assert missed_webhooks.read_missed(world.database, world.clock, late, gates) == 0


def test_nothing_is_read_while_the_circuit_breaker_is_open(world: SyncWorld) -> None:
    """The key may be another account's: its events say nothing about ours."""
    late, gates = LateStripe(world.now - timedelta(minutes=2)), RequestGates()
    late.is_listed = True
    with world.database.write() as session:
        session.get_one(ProviderStatus, "stripe").breaker_reason = "wrong_account"
    assert missed_webhooks.read_missed(world.database, world.clock, late, gates) == 0
    with world.database.write() as session:
        session.get_one(ProviderStatus, "stripe").breaker_reason = None
    assert missed_webhooks.read_missed(world.database, world.clock, late, gates) == 1


def test_a_routine_check_does_not_end_the_wait_of_a_link_with_work(world: SyncWorld) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    world.advance_time(hours=25)
    world.rename(org_id, "Globex")
    with world.database.write() as session:
        link = session.get_one(BillingLink, (org_id, "lago"))
        link.not_before = link.next_sweep_at = world.now + timedelta(hours=1)
        link.not_before_reason = "object_limit"
    with world.database.write() as session:
        assert due_links.request_routine_checks(session, "lago", DAY, 5, world.now) == 0
        assert due_links.dispatch(session, "lago", 10, world.now) == []


def test_each_link_in_lago_is_read_once_within_its_time(world: SyncWorld) -> None:
    org_ids = [world.create(f"Acme {number}") for number in range(3)]
    for org_id in org_ids:
        world.reconcile_until_idle(org_id)

    def request() -> int:
        with world.database.write() as session:
            return due_links.request_routine_checks(session, "lago", DAY, 2, world.now)

    assert request() == 0
    world.advance_time(hours=25)
    world.sandbox.delete("lago", "subscriptions", org_ids[0])
    assert [request(), request(), request()] == [2, 1, 0]
    for org_id in org_ids:
        world.reconcile_until_idle(org_id)
    assert [world.link(org_id, "lago").state for org_id in org_ids] == ["on_hold", "active", "active"]
    world.advance_time(hours=23)
    assert request() == 0
