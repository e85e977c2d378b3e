"""Failed emails, and sending one again."""

from __future__ import annotations

from typing import Annotated

import typer

from core.common.clock import utc_now
from core.emails import queue
from worker.cli import descriptions, output, resources

MAX_FAILED_EMAILS = 10_000


def retry_email(
    email_id: Annotated[str, typer.Argument(metavar="ID", help="Id, or its beginning, as `parked` shows it.")],
) -> None:
    """Send a failed email again after its cause is gone. Safe to repeat.

    It keeps its Message-ID. If it is not true any more, for example because the plan changed since, it is not sent.
    """
    with resources.open_database() as database, database.write() as session:
        failed = [each.id for each in queue.list_failed(session, utc_now(), MAX_FAILED_EMAILS)]
        email_id = descriptions.whole_id(email_id, failed, "failed email", "parked")
        queue.retry(session, email_id, utc_now())
    output.show(f"Email {email_id} will be sent again.")
