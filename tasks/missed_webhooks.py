"""``provider_webhooks.find_missed``: what happened at the providers though no webhook came.

Every few minutes Stripe's events are compared with the inbox, and some links in Lago are read in turn. A payment that
failed or a subscription that ended is thus seen within ``FIND_MISSED_SECONDS`` and a minute at Stripe, and within
LAGO_CHECK_EVERY_HOURS at Lago, or as fast as a tenth of its rate limit allows.
"""

from __future__ import annotations

from typing import Final

import structlog
from celery import shared_task

from core.db import job_locks
from core.inbox import missed_webhooks
from core.ports.errors import MustWaitError, ProviderError
from core.ports.spec import Provider
from core.reconcile import due_links
from tasks import provider_webhooks
from tasks.base import BillingApp, BillingTask
from tasks.routing import FIND_MISSED_WEBHOOKS

log = structlog.get_logger()

FIND_MISSED_SECONDS: Final = 300.0
# Of Lago's rate limit. An attempt is counted as two requests there, and a check makes four.
SHARE_OF_RATE_LIMIT: Final = 0.1
ATTEMPTS_OF_A_CHECK: Final = 2


@shared_task(bind=True, base=BillingTask, name=FIND_MISSED_WEBHOOKS)
def find_missed(self: BillingTask) -> None:
    app = self.app
    if isinstance(app, BillingApp):
        with self.with_database_retry():
            run(app)


def run(app: BillingApp) -> None:
    """Raises the errors of the broker; the sweep then finds the links due."""
    runtime = app.runtime
    now = runtime.clock()
    with runtime.database.write() as session:
        # A little shorter than the interval, so that no run is skipped.
        if not job_locks.acquire(session, FIND_MISSED_WEBHOOKS, FIND_MISSED_SECONDS * 0.9, now):
            return
    _read_stripe_events(app)
    _request_routine_checks(app, "lago")
    _request_routine_checks(app, "stripe")


def _request_routine_checks(app: BillingApp, provider: Provider) -> None:
    """In Stripe only of observed links: its events show everything else."""
    runtime = app.runtime
    rate = runtime.reconciler.request_gates.rate_limiter.expected_rate(provider)
    most = max(1, int(rate * FIND_MISSED_SECONDS * SHARE_OF_RATE_LIMIT / ATTEMPTS_OF_A_CHECK))
    with runtime.database.write() as session:
        count = due_links.request_routine_checks(
            session, provider, runtime.check_lago_every, most, runtime.clock(), only_observed=provider == "stripe"
        )
    if count == most:
        log.warning("routine_checks_behind", provider=provider, links=count)
    elif count:
        log.debug("routine_checks_requested", provider=provider, links=count)


def _read_stripe_events(app: BillingApp) -> None:
    runtime = app.runtime
    gates = runtime.reconciler.request_gates
    try:
        runtime.reconciler.account_guard.fetch("stripe")
        count = missed_webhooks.read_missed(runtime.database, runtime.clock, runtime.event_reader, gates)
    except MustWaitError:
        return
    except ProviderError as error:
        log.warning("stripe_events_unread", error=type(error).__name__, code=error.code)
        return
    if count:
        log.warning("missed_webhooks_found", provider="stripe", webhooks=count)
        provider_webhooks.run(app)
