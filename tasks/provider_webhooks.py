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
from tasks.routing import HANDLE_WEBHOOKS, QUEUE_OF, TASK_OF, Ring

log = structlog.get_logger()

BATCHES: Final = 10  # for one ring; what is left then comes due again by itself


@shared_task(bind=True, base=BillingTask, name=HANDLE_WEBHOOKS)
def handle(self: BillingTask) -> None:
    app = self.app
    if isinstance(app, BillingApp):
        with self.outlasting_the_database():
            run(app)


def ring(app: Celery) -> None:
    """Tell the workers that something is stored."""
    app.send_task(HANDLE_WEBHOOKS, queue=QUEUE_OF[HANDLE_WEBHOOKS])


def run(app: BillingApp) -> None:
    """Raises what the broker raises: the links come due by the sweep then."""
    runtime = app.runtime
    for _ in range(BATCHES):
        count, about = provider_webhooks.take(runtime.database, runtime.clock)
        if count:
            log.info("webhooks_handled", webhooks=count, links=len(about))
        queue.publish(app, [Ring(TASK_OF[link.provider], link.org_id, bulk=True) for link in about])
        if count < provider_webhooks.AT_ONCE:
            return


def sweep(app: BillingApp) -> None:
    """Those whose ring was lost, and away with the old ones."""
    runtime = app.runtime
    now = runtime.clock()
    with runtime.database.read() as session:
        overdue, old = provider_webhooks.any_due(session, now), provider_webhooks.any_old(session, now)
    if overdue:
        run(app)
    if old:
        provider_webhooks.drop_old(runtime.database, runtime.clock)
