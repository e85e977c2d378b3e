"""The sweep: what the broker forgot or never heard of is handed to it again; downgrades whose day came are looked at.

It needs only rows. Two schedulers do the work once (a database lease). A biller is handed as many links as its quota
takes within a few seconds and no more, oldest first but for a quarter of the latest: a backlog drains at the allowed
rate, and waits in the rows.
"""

from __future__ import annotations

import structlog
from celery import shared_task

from core.db import job_locks
from core.emails import queue
from core.flow_control import circuit_breaker
from core.ports.spec import PROVIDERS, Provider
from core.reconcile import due_links
from tasks import provider_webhooks, webhook_deliveries
from tasks import queue as task_queue
from tasks.base import BillingApp, BillingTask
from tasks.routing import SWEEP, SYNC_TASK_BY_PROVIDER, SyncRequest

log = structlog.get_logger()

SWEEP_JOB_SECONDS = 4.0
MAX_DOWNGRADES_PER_SWEEP = 200
# Twice as long as until the next sweep, so that the quota is used in full even when one comes late.
SWEEP_AHEAD_SECONDS = 10.0


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
        if not job_locks.acquire(session, SWEEP, SWEEP_JOB_SECONDS, now):
            return 0
    due_links.recheck_due_downgrades(runtime.database, MAX_DOWNGRADES_PER_SWEEP, now)
    provider_webhooks.sweep(app)
    dispatched = sum(_dispatch_due_links(app, provider) for provider in PROVIDERS)
    # Last: what holds it up, a large endpoint that is being removed above all, keeps no biller waiting.
    webhook_deliveries.sweep(app)
    with runtime.database.write() as session:
        queue.delete_old(session, now)
    return dispatched


def _dispatch_due_links(app: BillingApp, provider: Provider) -> int:
    """A biller that is slow has a long queue of its own; it takes no room from the other's. One that is stopped is
    rung once, when its probe is due.
    """
    runtime = app.runtime
    rate = runtime.reconciler.request_gates.rate_limiter.expected_rate(provider)
    max_in_flight = int(rate * SWEEP_AHEAD_SECONDS)
    with runtime.database.write() as session:
        now = runtime.clock()
        in_flight = due_links.count_in_flight(session, provider, max_in_flight, now)
        # One at least: what is in hand must not keep a probe of a stopped biller back.
        free = max(1, max_in_flight - in_flight)
        capacity = circuit_breaker.free_capacity(session, provider, free, now)
        org_ids = due_links.dispatch(session, provider, capacity, now)
    # Each when those before it are done, so that it finds the way free; a probe at once.
    first_position = in_flight if capacity == free else 0
    requests = [
        SyncRequest(SYNC_TASK_BY_PROVIDER[provider], org_id, bulk=True, delay_seconds=position / rate)
        for position, org_id in enumerate(org_ids, first_position)
    ]
    task_queue.publish(app, requests)
    if org_ids:
        log.info("links_swept", provider=provider, links=len(org_ids))
    return len(org_ids)
