"""What an operator must act on is an event of its own: one for each transition, for the endpoints that ask for it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from core.catalog.plans import Catalog
from core.db.database import Database
from core.db.models.events import Event
from core.db.models.webhooks import WebhookDelivery
from core.events.event_types import ChangeContext
from core.ports.errors import RejectedError
from core.reconcile import operator_events
from core.webhooks import payloads
from tests.support.clocks import SetClock
from tests.support.delivery_harness import DeliveryHarness
from tests.support.sync_world import CREATE_CUSTOMER_REQUEST, SyncWorld

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
SANDBOX_KEY = "sk_test_sandbox"
REFUSED = '{"error": {"type": "invalid_request_error", "code": "email_invalid", "message": "Acme has a wrong address"}}'


def recorded(database: Database, event_type: str) -> list[tuple[str, dict[str, Any]]]:
    with database.read() as session:
        rows = session.execute(select(Event.org_id, Event.data).where(Event.type == event_type).order_by(Event.seq))
        return [(org_id, dict(data)) for org_id, data in rows]


def test_a_link_that_is_parked_is_one_event_without_a_name_or_an_address(world: SyncWorld) -> None:
    org_id = world.create()
    world.sandbox.add_fault("stripe", CREATE_CUSTOMER_REQUEST, "status", status=400, body=REFUSED)
    world.run(org_id, "stripe")
    assert world.link(org_id, "stripe").state == "parked"
    world.wait(100)
    world.run(org_id, "stripe")
    parked = [(org_id, {"provider": "stripe", "kind": "rejected", "code": world.link(org_id, "stripe").error_code})]
    assert recorded(world.database, "link.parked") == parked
    assert "acme" not in str(parked).lower()
    # Twice: the stored request is sent again, refused, and then sent anew.
    world.sandbox.add_fault("stripe", CREATE_CUSTOMER_REQUEST, "status", status=400, body=REFUSED, times=2)
    world.rename(org_id, "Globex")
    world.run(org_id, "stripe")
    assert recorded(world.database, "link.parked") == parked * 2


def test_a_breaker_that_opens_is_one_event_however_many_organizations_find_it(world: SyncWorld) -> None:
    first, second = world.create("First"), world.create("Second")
    world.sandbox.settings(revoked_keys=[SANDBOX_KEY])
    world.restart()
    for _ in range(3):
        world.run(first, "stripe")
        world.run(second, "stripe")
        world.wait(61)
    opened = [("", {"provider": "stripe", "reason": "misconfigured"})]
    assert recorded(world.database, "provider.unavailable") == opened
    world.sandbox.settings(revoked_keys=[])
    world.run(first, "stripe")
    assert world.link(first, "stripe").customer_id is not None
    world.sandbox.settings(revoked_keys=[SANDBOX_KEY])
    world.run(second, "stripe")
    assert recorded(world.database, "provider.unavailable") == opened * 2


def test_only_an_endpoint_that_asks_for_it_gets_it(database: Database, plans: Catalog, clock: SetClock) -> None:
    harness = DeliveryHarness(database, plans, clock)
    harness.endpoint()
    harness.endpoint("organization.created")
    asks = harness.endpoint("link.parked", "provider.unavailable")
    with database.write() as session:
        change = ChangeContext(session, clock())
        operator_events.record_parked(change, "org_1", RejectedError("stripe", "text of ours", "card_declined"))
        operator_events.record_unavailable(change, "lago", "unavailable")
        operator_events.record_unavailable(change, "lago", None)
    harness.relay()
    with database.read() as session:
        deliveries = [tuple(row) for row in session.execute(select(WebhookDelivery.endpoint_id, WebhookDelivery.type))]
        events = session.scalars(select(Event).order_by(Event.seq)).all()
        sent = [payloads.build(event, event.type).model_dump(mode="json") for event in events]
    assert sorted(deliveries) == [(asks, "link.parked"), (asks, "provider.unavailable")]
    assert [each["subject"] for each in sent] == ["org_1", "lago"]
    parked = {"provider": "stripe", "kind": "rejected", "code": "card_declined"}
    assert sent[0]["data"] == {"org_id": "org_1", "sequence": events[0].seq} | parked
    opened = {"provider": "lago", "reason": "unavailable"}
    assert sent[1]["data"] == {"org_id": None, "sequence": events[1].seq} | opened
