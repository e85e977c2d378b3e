"""The sweep: what the broker forgot or never heard of is handed to it again; downgrades whose day came are looked at.

It needs only rows. Two schedulers do the work once (a database lease), and a queue that is long already is left alone.
"""

from __future__ import annotations

import structlog
from celery import shared_task

from core import due
from core.gateways import PROVIDERS, Provider
from tasks import broker
from tasks.base import QUEUE_IS_FULL, BillingApp, BillingTask
from tasks.routing import QUEUE_OF, SWEEP, TASK_OF, Ring

log = structlog.get_logger()

JOB_SECONDS = 4.0
DOWNGRADES_AT_ONCE = 200


@shared_task(bind=True, base=BillingTask, name=SWEEP)
def sweep(self: BillingTask) -> None:
    app = self.app
    if isinstance(app, BillingApp):
        run(app)


def run(app: BillingApp) -> int:
    """One sweep; returns how many links were handed over. Raises what the broker raises: the rows come due again."""
    runtime = app.runtime
    now = runtime.clock()
    with runtime.database.write() as session:
        if not due.take_job(session, SWEEP, JOB_SECONDS, now):
            return 0
    due.downgrades(runtime.database, DOWNGRADES_AT_ONCE, now)
    return sum(_top_up(app, provider) for provider in PROVIDERS)


def _top_up(app: BillingApp, provider: Provider) -> int:
    """A biller that is slow has a long queue of its own; it takes no room from the other's."""
    room = QUEUE_IS_FULL - broker.length(app, QUEUE_OF[TASK_OF[provider]])
    if room <= 0:
        return 0
    with app.runtime.database.write() as session:
        org_ids = due.links(session, provider, room, app.runtime.clock())
    broker.publish(app, [Ring(TASK_OF[provider], org_id) for org_id in org_ids])
    if org_ids:
        log.info("swept", provider=provider, links=len(org_ids))
    return len(org_ids)
