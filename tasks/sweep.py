"""The sweep: sends a sync request for each due link, and rechecks downgrades that are due.

It needs only rows, so it finds whatever the broker lost or never got. A job lock makes two schedulers do the work once.
Each provider gets no more links than its rate limit allows within a few seconds: the oldest first, and up to a quarter
of the newest. A backlog thus drains at the allowed rate, and waits in the rows.
"""

from __future__ import annotations

import structlog
from celery import shared_task

from core.access import limits
from core.adoption import discovery_store
from core.db import job_locks
from core.emails import operations_digest
from core.emails import queue as email_queue
from core.events import link_history
from core.flow_control import circuit_breaker, payment_brake
from core.ports.spec import PROVIDERS, Provider
from core.price_moves.due import DuePriceMoves
from core.reconcile import due_links
from tasks import provider_webhooks, webhook_deliveries
from tasks import queue as task_queue
from tasks.base import BillingApp, BillingTask
from tasks.routing import SWEEP, SYNC_TASK_BY_PROVIDER, SyncRequest

log = structlog.get_logger()

SWEEP_JOB_SECONDS = 4.0
MAX_DOWNGRADES_PER_SWEEP = 200
MAX_PRICE_MOVES_PER_SWEEP = 100
FOLLOW_MODE_JOB = "billing.follow_mode"
FOLLOW_MODE_SECONDS = 60.0
MAX_LINKS_OF_OTHER_MODE = 1_000  # of each run; the next one goes on
# Twice the interval of the sweep, so that the rate limit is used in full even if a sweep is late.
SWEEP_AHEAD_SECONDS = 10.0


@shared_task(bind=True, base=BillingTask, name=SWEEP)
def sweep(self: BillingTask) -> None:
    app = self.app
    if isinstance(app, BillingApp):
        run(app)


def run(app: BillingApp) -> int:
    """One sweep; returns how many links were dispatched. Raises the errors of the broker: the rows become due again."""
    runtime = app.runtime
    now = runtime.clock()
    with runtime.database.write() as session:
        if not job_locks.acquire(session, SWEEP, SWEEP_JOB_SECONDS, now):
            return 0
    due_links.recheck_due_downgrades(runtime.database, MAX_DOWNGRADES_PER_SWEEP, now, runtime.reconciler.management)
    DuePriceMoves(
        database=runtime.database,
        catalog=runtime.catalog,
        installation=runtime.reconciler.management,
        clock=runtime.clock,
    ).run(MAX_PRICE_MOVES_PER_SWEEP)
    provider_webhooks.sweep(app)
    dispatched = sum(_dispatch_due_links(app, provider) for provider in PROVIDERS)
    # Last, because it may take long, above all while a large endpoint is removed. No provider waits for it.
    webhook_deliveries.sweep(app)
    operations_digest.enqueue_due(runtime.database, runtime.operations_email, now)
    with runtime.database.write() as session:
        email_queue.delete_expired(session, now)
        limits.delete_expired(session, now)
        link_history.delete_expired(session, now - runtime.history_retention)
        discovery_store.delete_expired(session, now)
        payment_brake.delete_expired(session, now)
    _follow_mode(app)
    return dispatched


def _follow_mode(app: BillingApp) -> None:
    """Make links due whose last attempt had the other MANAGEMENT. Only commands change an organization's own mode, and
    they see to its links.

    Not only after a start: while a new worker has the new setting, an old one still goes by the old one.
    """
    runtime = app.runtime
    now = runtime.clock()
    with runtime.database.write() as session:
        if not job_locks.acquire(session, FOLLOW_MODE_JOB, FOLLOW_MODE_SECONDS, now):
            return
        if runtime.reconciler.management == "observe":
            walked = due_links.request_first_observations(
                session, MAX_LINKS_OF_OTHER_MODE, now, app.next_org_to_observe
            )
            app.next_org_to_observe = walked.next_org_id
        else:
            due_links.resume_managed(session, MAX_LINKS_OF_OTHER_MODE, now)


def _dispatch_due_links(app: BillingApp, provider: Provider) -> int:
    """A slow provider fills its own queue and takes no capacity from the other. While its circuit breaker is open, one
    link is dispatched when the probe is due.
    """
    runtime = app.runtime
    rate = runtime.reconciler.request_gates.rate_limiter.expected_rate(provider)
    max_in_flight = int(rate * SWEEP_AHEAD_SECONDS)
    with runtime.database.write() as session:
        now = runtime.clock()
        in_flight = due_links.count_in_flight(session, provider, max_in_flight, now)
        # At least one: links in flight must not hold back the probe of an open circuit breaker.
        free = max(1, max_in_flight - in_flight)
        capacity = circuit_breaker.free_capacity(session, provider, free, now)
        org_ids = due_links.dispatch(session, provider, capacity, now)
    # Each is due when those before it are done, so that it need not wait for a permit. A probe is due at once.
    first_position = in_flight if capacity == free else 0
    requests = [
        SyncRequest(SYNC_TASK_BY_PROVIDER[provider], org_id, bulk=True, delay_seconds=position / rate)
        for position, org_id in enumerate(org_ids, first_position)
    ]
    task_queue.publish(app, requests)
    if org_ids:
        log.info("links_swept", provider=provider, links=len(org_ids))
    return len(org_ids)
