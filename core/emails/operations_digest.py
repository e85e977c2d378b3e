"""Operations digest: at most one email an hour to ``OPERATIONS_EMAIL`` that says what newly needs an operator.

A digest is queued when something began since the last one, and sent some minutes later, so that what belongs together
is in one email. It is written when it is sent, and lists all that needs an operator then. If what is new is over by
then, it is not sent.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy.orm import Session

from core.db.database import Database
from core.db.models.email import Email
from core.emails import queue
from core.emails.templates import TemplateContext
from core.ports.spec import PROVIDER_NAMES
from core.reporting import problems
from core.reporting.overview import FailureGroup
from core.reporting.problems import REJECTED_MESSAGES_LISTED_FOR, Problems

DIGEST_INTERVAL: Final = timedelta(hours=1)
DIGEST_DELAY: Final = timedelta(minutes=3)
_STATES: Final = {"parked": "parked", "on_hold": "on hold"}


def enqueue_due(database: Database, recipient: str | None, now: datetime) -> None:
    """Queues a digest if something began since the last one, unless one is queued or was sent within the hour.

    ``recipient`` None: nobody is told any more. A digest that is queued to another address is not sent.
    """
    with database.read() as session:
        last = queue.last_digest(session, recipient) if recipient is not None else None
        is_due = (
            recipient is not None and _may_follow(last, now) and problems.any_since(session, queue.covered_until(last))
        )
        is_changed = queue.any_digest_to_others(session, recipient)
    if not is_due and not is_changed:
        return
    with database.write() as session:
        queue.close_digests_to_others(session, recipient, now)
        if recipient is not None and is_due:
            queue.enqueue_digest(session, last, recipient, now + DIGEST_DELAY, now)


def context(session: Session, now: datetime) -> TemplateContext:
    found = problems.read(session, now)
    return TemplateContext(
        organization="",
        waiting_links=found.waiting_links,
        problems=tuple(_sentences(found)),
    )


def _may_follow(last: Email | None, now: datetime) -> bool:
    if last is None or last.state == "stale":
        return True
    return last.closed_at is not None and now + DIGEST_DELAY >= last.closed_at + DIGEST_INTERVAL


def _sentences(found: Problems) -> list[str]:
    rejected = found.rejected_messages
    hours = int(REJECTED_MESSAGES_LISTED_FOR / timedelta(hours=1))
    return [
        *(_end_sentence(group) for group in found.links if group.is_end_on_hold),
        *(
            f"{PROVIDER_NAMES[provider]} receives no changes since {_time(breaker.open_since)} ({breaker.reason})."
            for provider, breaker in found.open_breakers.items()
        ),
        *(_link_sentence(group) for group in found.links if not group.is_end_on_hold),
        *(
            [f"Messages of other services that were rejected in the last {hours} hours: {rejected}."]
            if rejected
            else []
        ),
    ]


def _end_sentence(group: FailureGroup) -> str:
    return f"Somebody who has left goes on paying. {_link_sentence(group)} `billing-sync brake list` shows who."


def _link_sentence(group: FailureGroup) -> str:
    since = f" since {_time(group.since)}" if group.since is not None else ""
    links = "1 link" if group.links == 1 else f"{group.links} links"
    return f"{group.provider.title()}: {links} {_STATES[group.state]}{since}, {group.code or group.kind}."


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%d %B %Y, %H:%M} UTC".lstrip("0")
