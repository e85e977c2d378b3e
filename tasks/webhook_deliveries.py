"""``webhooks.deliver``: send one endpoint what is due there. The relay rings for what is new, the sweep for the rest.

A ring that is lost, late or doubled does no harm: what is due stands in the rows. A run is short and rings again for
what it left, so an endpoint with much to be told stands in line with the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog
from celery import Celery, shared_task

from core.webhooks import deliveries
from tasks.base import BillingApp, BillingTask
from tasks.routing import DELIVER_WEBHOOKS, QUEUE_BY_TASK

log = structlog.get_logger()

DELIVERY_SLICE_SECONDS: Final = 5.0
# By then the sweep has rung again.
DELIVERY_MESSAGE_EXPIRES_SECONDS: Final = 60.0  # seconds
MAX_DELETE_BATCHES_PER_SWEEP: Final = 20  # times ``deliveries.clear``; the next sweep goes on


@shared_task(bind=True, base=BillingTask, name=DELIVER_WEBHOOKS)
def deliver(self: BillingTask, endpoint_id: str) -> None:
    app = self.app
    if isinstance(app, BillingApp):
        with self.with_database_retry():
            has_more = run(app, endpoint_id)
        if has_more:
            enqueue(app, {endpoint_id: 1})


def run(app: BillingApp, endpoint_id: str) -> bool:
    """A few seconds of sending; whether there may be more."""
    dispatcher = app.runtime.webhook_dispatcher
    if dispatcher is None:
        log.warning(
            "webhook_delivery_not_configured", reason="WEBHOOK_SIGNING_SECRET is not set: nothing can be signed"
        )
        return False
    return dispatcher.run(endpoint_id, DELIVERY_SLICE_SECONDS)


def enqueue(app: Celery, pending_counts: Mapping[str, int]) -> None:
    """``waiting``: how much there is for each endpoint; as many workers as may be there at once are called."""
    for endpoint_id, count in pending_counts.items():
        for _ in range(min(count, deliveries.MAX_CONCURRENT_PER_ENDPOINT)):
            app.send_task(
                DELIVER_WEBHOOKS,
                args=[endpoint_id],
                argsrepr="()",
                queue=QUEUE_BY_TASK[DELIVER_WEBHOOKS],
                expires=DELIVERY_MESSAGE_EXPIRES_SECONDS,
            )


def sweep(app: BillingApp) -> None:
    """Ring for what is due, and away with what is old."""
    runtime = app.runtime
    with runtime.database.read() as session:
        due_endpoints, expired_endpoints = (
            deliveries.due_endpoints(session, runtime.clock()),
            deliveries.endpoints_with_expired(session, runtime.clock()),
        )
    enqueue(app, dict.fromkeys(due_endpoints, 1))
    for endpoint_id in expired_endpoints:
        for _ in range(MAX_DELETE_BATCHES_PER_SWEEP):
            with runtime.database.write() as session:
                if not deliveries.delete_expired(session, endpoint_id, runtime.clock()):
                    break
