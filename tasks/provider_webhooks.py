"""``webhooks.handle``: what billers told by webhook is counted on its links, and those are rung to look.

The message names nothing: whoever gets it takes what is stored, so one ring does for any number of webhooks, and one
that is lost, late or doubled does no harm. A link is rung as one that nobody waits for: fresh changes go first.
"""

from __future__ import annotations

from typing import Final

import structlog
from celery import Celery, shared_task

from core.inbox import provider_webhooks
from tasks import queue
from tasks.base import BillingApp, BillingTask
from tasks.routing import HANDLE_PROVIDER_WEBHOOKS, QUEUE_BY_TASK, SYNC_TASK_BY_PROVIDER, SyncRequest

log = structlog.get_logger()

WEBHOOK_BATCHES_PER_RUN: Final = 10  # for one ring; what is left then comes due again by itself


@shared_task(bind=True, base=BillingTask, name=HANDLE_PROVIDER_WEBHOOKS)
def handle(self: BillingTask) -> None:
    app = self.app
    if isinstance(app, BillingApp):
        with self.with_database_retry():
            run(app)


def enqueue(app: Celery) -> None:
    """Tell the workers that something is stored."""
    app.send_task(HANDLE_PROVIDER_WEBHOOKS, queue=QUEUE_BY_TASK[HANDLE_PROVIDER_WEBHOOKS])


def run(app: BillingApp) -> None:
    """Raises what the broker raises: the links come due by the sweep then."""
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
    """Those whose ring was lost, and away with the old ones."""
    runtime = app.runtime
    now = runtime.clock()
    with runtime.database.read() as session:
        has_due, has_old = provider_webhooks.any_due(session, now), provider_webhooks.any_old(session, now)
    if has_due:
        run(app)
    if has_old:
        provider_webhooks.delete_old(runtime.database, runtime.clock)
