"""Webhook deliveries over one database, without a network."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import select

from core.catalog.plans import Catalog
from core.db.database import Database
from core.db.models.organizations import Organization
from core.db.models.webhooks import WebhookDelivery, WebhookEndpoint
from core.events import outbox
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.organizations.commands import NewOrganization
from core.webhooks import deliveries, endpoints
from core.webhooks.deliveries import (
    DeliveryAttempt,
    WebhookResponse,
)
from core.webhooks.endpoints import NewEndpoint
from tests.support.clocks import SetClock

URL = "https://hooks.example.com/billing?token=secret"
ACCEPTED_RESPONSE = WebhookResponse(status=200)


class DeliveryHarness:
    """A database in which a test makes changes, relays their events, and records delivery attempts."""

    def __init__(self, database: Database, plans: Catalog, clock: SetClock) -> None:
        self.database, self.plans, self.clock = database, plans, clock
        self.made = 0

    def endpoint(self, *events: str) -> str:
        with self.database.write() as session:
            return endpoints.add(session, NewEndpoint(url=URL, events=events), self.clock(), allow_private=False).id

    def create(self) -> str:
        self.made += 1
        new = NewOrganization(
            name=f"Personal Name {self.made}", plan_tier="professional", billing_email="secret@mail.test"
        )
        with self.database.write() as session:
            return commands.create(ChangeContext(session, self.clock()), new, self.plans).id

    def change(self, org_id: str, change: Callable[[ChangeContext, Organization], object]) -> None:
        with self.database.write() as session:
            organization = commands.lock(session, org_id)
            assert organization is not None
            change(ChangeContext(session, self.clock()), organization)

    def relay(self) -> int:
        """Publish the events as the relay does; returns how many deliveries this created."""
        with self.database.write() as session:
            token, _ = outbox.lease_batch(session, 500, self.clock())
        with self.database.write() as session:
            published = outbox.mark_published(session, token, self.clock())
            return deliveries.create_for_events(session, published, self.clock()).total()

    def publish_event(self) -> str:
        org_id = self.create()
        self.relay()
        return org_id

    def lease_next(self, endpoint_id: str) -> DeliveryAttempt | None:
        with self.database.write() as session:
            return deliveries.lease_next(session, endpoint_id, self.clock())

    def record_attempt(self, tried: DeliveryAttempt, answer: WebhookResponse) -> None:
        with self.database.write() as session:
            deliveries.record_attempt(session, tried, answer, self.clock())

    def send(self, endpoint_id: str, answer: WebhookResponse = ACCEPTED_RESPONSE) -> DeliveryAttempt:
        tried = self.lease_next(endpoint_id)
        assert tried is not None
        self.record_attempt(tried, answer)
        return tried

    def rows(self, endpoint_id: str) -> list[WebhookDelivery]:
        with self.database.read() as session:
            found = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint_id)
            return list(session.scalars(found.order_by(WebhookDelivery.event_seq)))

    def states(self, endpoint_id: str) -> list[str]:
        return [row.state for row in self.rows(endpoint_id)]

    def row(self, endpoint_id: str) -> WebhookEndpoint:
        with self.database.read() as session:
            return session.get_one(WebhookEndpoint, endpoint_id)

    def due(self) -> list[str]:
        with self.database.read() as session:
            return deliveries.due_endpoints(session, self.clock())

    def replay(self, endpoint_id: str, event_id: str | None = None, **back: float) -> int | None:
        since = self.clock() - timedelta(**back) if back else None
        with self.database.write() as session:
            return deliveries.replay(session, endpoint_id, self.clock(), since, event_id)
