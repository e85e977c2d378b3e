"""``provider_webhooks.process``: counts stored provider webhooks on their links, and sends each link a sync request.

The message contains nothing: its worker handles whatever is stored. One message therefore serves any number of
webhooks, and a lost, late or repeated one does no harm. The sync requests are bulk, so that single changes go first.
"""

from __future__ import annotations

from typing import Final

import structlog
from celery import Celery, shared_task

from core.inbox import provider_webhooks
from tasks import queue
from tasks.base import BillingApp, BillingTask
from tasks.routing import PROCESS_PROVIDER_WEBHOOKS, QUEUE_BY_TASK, SYNC_TASK_BY_PROVIDER, SyncRequest

log = structlog.get_logger()

WEBHOOK_BATCHES_PER_RUN: Final = 10  # what is left then becomes due again automatically


@shared_task(bind=True, base=BillingTask, name=PROCESS_PROVIDER_WEBHOOKS)
def handle(self: BillingTask) -> None:
    app = self.app
    if isinstance(app, BillingApp):
        with self.with_database_retry():
            run(app)


def enqueue(app: Celery) -> None:
    """Notify the workers that webhooks are stored."""
    app.send_task(PROCESS_PROVIDER_WEBHOOKS, queue=QUEUE_BY_TASK[PROCESS_PROVIDER_WEBHOOKS])


def run(app: BillingApp) -> None:
    """Raises the errors of the broker; the sweep then finds the links due."""
    runtime = app.runtime
    for _ in range(WEBHOOK_BATCHES_PER_RUN):
        count, links = provider_webhooks.process(runtime.database, runtime.clock)
        if count:
            log.info("provider_webhooks_handled", webhooks=count, links=len(links))
        queue.publish(
            app, [SyncRequest(SYNC_TASK_BY_PROVIDER[link.provider], link.org_id, bulk=True) for link in links]
        )
        if count < provider_webhooks.PROVIDER_WEBHOOK_BATCH_SIZE:
            return


def sweep(app: BillingApp) -> None:
    """Handle webhooks whose message was lost, and delete old ones."""
    runtime = app.runtime
    now = runtime.clock()
    with runtime.database.read() as session:
        has_due, has_expired = provider_webhooks.any_due(session, now), provider_webhooks.any_expired(session, now)
    if has_due:
        run(app)
    if has_expired:
        provider_webhooks.delete_expired(runtime.database, runtime.clock)
