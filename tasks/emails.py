"""``emails.send``: sends the emails that are due. Only one run at a time; what it leaves is sent by the next one.

After the SMTP server was unavailable, no run starts for a while. An outage thus costs one try, not one for each email.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import structlog
from celery import shared_task

from core.db import job_locks
from core.db.database import DATABASE_UNAVAILABLE_ERRORS, cause_name
from core.emails.sender import EmailSender
from tasks.base import BillingApp, BillingTask
from tasks.routing import SEND_EMAILS

log = structlog.get_logger()

EMAIL_SLICE_SECONDS: Final = 15.0
# The slice, and one email at its end that takes as long as it may.
EMAIL_JOB_SECONDS: Final = 90.0
EMAIL_SERVER_RETRY_DELAY: Final = timedelta(seconds=30)
EMAIL_TICK_SECONDS: Final = 3.0


@shared_task(bind=True, base=BillingTask, name=SEND_EMAILS)
def send(self: BillingTask) -> None:
    app = self.app
    if isinstance(app, BillingApp) and app.runtime.email_sender is not None:
        try:
            run(app.runtime.email_sender)
        except DATABASE_UNAVAILABLE_ERRORS as error:
            # The next message comes within seconds, and a job lock that was acquired expires.
            log.warning("email_task_deferred", error=cause_name(error))


def run(sender: EmailSender) -> int:
    """Returns the number of emails sent."""
    if not sender.has_due():
        return 0
    with sender.database.write() as session:
        if not job_locks.acquire(session, SEND_EMAILS, EMAIL_JOB_SECONDS, sender.clock()):
            return 0
    summary = sender.run(EMAIL_SLICE_SECONDS)
    with sender.database.write() as session:
        job_locks.release_until(
            session,
            SEND_EMAILS,
            sender.clock() + EMAIL_SERVER_RETRY_DELAY if summary.unavailable_reason else sender.clock(),
        )
    return summary.sent
