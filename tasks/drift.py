"""``drift.check``: the drift check on a schedule, a few seconds at a time, so that no thread is busy for long.

Its result is a stored report, from which an operator can start a repair, and one log line that a monitor can count.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Final

import structlog
from celery import shared_task

from core.db import job_locks
from core.drift import report_store
from core.drift.detector import DriftDetector
from core.drift.report_store import DriftReport, DriftRunTakenOverError
from core.ports.errors import ProviderError
from tasks.base import BillingApp, BillingTask
from tasks.routing import CHECK_DRIFT

log = structlog.get_logger()

DRIFT_SLICE_SECONDS: Final = 20.0
DRIFT_TICK_SECONDS: Final = 30.0


@shared_task(bind=True, base=BillingTask, name=CHECK_DRIFT)
def check(self: BillingTask, interval_seconds: float) -> None:
    """``interval_seconds``: from the start of one drift check to the start of the next."""
    app = self.app
    if isinstance(app, BillingApp):
        with self.with_database_retry():
            run(app, timedelta(seconds=interval_seconds))


def run(app: BillingApp, interval: timedelta) -> DriftReport | None:
    """Run one slice if the check is due. Returns the report if that completes it; after an error it goes on later."""
    runtime = app.runtime
    now = runtime.clock()
    with runtime.database.write() as session:
        if not job_locks.acquire(session, CHECK_DRIFT, DRIFT_SLICE_SECONDS, now) or not report_store.is_due(
            session, interval, now
        ):
            return None
    try:
        report = DriftDetector.for_reconciler(runtime.reconciler).run_for(DRIFT_SLICE_SECONDS)
    except DriftRunTakenOverError:
        return None
    except ProviderError as error:
        log.warning("drift_check_interrupted", provider=error.provider, error=type(error).__name__, code=error.code)
        return None
    if report is not None:
        log_event = log.warning if report.counts.drifted else log.info
        log_event("drift_checked", report_id=report.id, **asdict(report.counts))
    return report
