"""``webhooks.deliver``: sends an endpoint its due deliveries. The relay enqueues it for new ones, the sweep for others.

A lost, late or repeated message does no harm, because what is due is stored in the rows. A run is short and enqueues
the next one for the rest, so an endpoint with many deliveries does not hold up the others.
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
# By then the sweep has enqueued it again.
DELIVERY_MESSAGE_EXPIRES_SECONDS: Final = 60.0
MAX_DELETE_BATCHES_PER_SWEEP: Final = 20  # of ``deliveries.delete_expired``; the next sweep goes on


@shared_task(bind=True, base=BillingTask, name=DELIVER_WEBHOOKS)
def deliver(self: BillingTask, endpoint_id: str) -> None:
    app = self.app
    if isinstance(app, BillingApp):
        with self.with_database_retry():
            has_more = run(app, endpoint_id)
        if has_more:
            enqueue(app, {endpoint_id: 1})


def run(app: BillingApp, endpoint_id: str) -> bool:
    """Send for a few seconds. Returns whether there may be more."""
    dispatcher = app.runtime.webhook_dispatcher
    if dispatcher is None:
        log.warning(
            "webhook_delivery_not_configured", reason="WEBHOOK_SIGNING_SECRET is not set, so webhooks cannot be signed"
        )
        return False
    return dispatcher.run(endpoint_id, DELIVERY_SLICE_SECONDS)


def enqueue(app: Celery, pending_counts: Mapping[str, int]) -> None:
    """``pending_counts``: deliveries by endpoint. One message for each, up to the limit of concurrent sends."""
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
    """Enqueue what is due, and delete what has expired."""
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
