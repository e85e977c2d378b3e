"""The comparison on a schedule: a few seconds of it at a time, so that no thread is held for long.

What it finds is a plan in the rows, for a person to apply, and one line in the log that a monitor can count.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Final

import structlog
from celery import shared_task

from core.db import job_locks
from core.drift import report_store
from core.drift.detector import Planner
from core.drift.report_store import Plan, RunTakenOverError
from core.ports.errors import ProviderError
from tasks.base import BillingApp, BillingTask
from tasks.routing import PLAN

log = structlog.get_logger()

SLICE_SECONDS: Final = 20.0
RING_EVERY: Final = 30.0  # seconds


@shared_task(bind=True, base=BillingTask, name=PLAN)
def plan(self: BillingTask, every: float) -> None:
    """``every``: seconds from the beginning of one comparison to that of the next."""
    app = self.app
    if isinstance(app, BillingApp):
        with self.outlasting_the_database():
            run(app, timedelta(seconds=every))


def run(app: BillingApp, every: timedelta) -> Plan | None:
    """One slice, if there is anything to do; the plan, if that ended it. A biller that is away leaves it for later."""
    runtime = app.runtime
    now = runtime.clock()
    with runtime.database.write() as session:
        if not job_locks.take_job(session, PLAN, SLICE_SECONDS, now) or not report_store.is_due(session, every, now):
            return None
    try:
        made = Planner.beside(runtime.sync).go_on(SLICE_SECONDS)
    except RunTakenOverError:
        return None
    except ProviderError as error:
        log.warning("plan_interrupted", provider=error.provider, error=type(error).__name__, code=error.code)
        return None
    if made is not None:
        tell = log.warning if made.counts.drifted else log.info
        tell("planned", plan=made.id, **asdict(made.counts))
    return made
