"""``mails.send``: mails whose time has come. One run at a time, whoever rings; what it leaves, the next one takes.

A mail server that is away is left alone for a while, so that it costs one try and not one for each mail.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import structlog
from celery import shared_task

from core.db import job_locks
from core.db.database import DATABASE_IS_AWAY
from core.emails.sender import Post
from tasks.base import BillingApp, BillingTask
from tasks.routing import MAILS

log = structlog.get_logger()

SLICE_SECONDS: Final = 15.0
# The slice, and a mail at its end that takes as long as one may.
JOB_SECONDS: Final = 90.0
PAUSE: Final = timedelta(seconds=30)
RING_EVERY: Final = 3.0  # seconds


@shared_task(bind=True, base=BillingTask, name=MAILS)
def send(self: BillingTask) -> None:
    app = self.app
    if isinstance(app, BillingApp) and app.runtime.post is not None:
        try:
            run(app.runtime.post)
        except DATABASE_IS_AWAY as error:
            # The next ring comes in seconds, and the lease that was taken ends by itself.
            log.warning("mails_wait", error=type(error).__name__)


def run(post: Post) -> int:
    """Returns how many were sent."""
    if not post.is_due():
        return 0
    with post.database.write() as session:
        if not job_locks.take_job(session, MAILS, JOB_SECONDS, post.clock()):
            return 0
    posted = post.run(SLICE_SECONDS)
    with post.database.write() as session:
        job_locks.rest(session, MAILS, post.clock() + PAUSE if posted.away else post.clock())
    return posted.sent
