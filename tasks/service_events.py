"""``events.receive``: the inbox for other services. It handles a CloudEvents 1.0 object once per ``(source, id)``."""

from __future__ import annotations

import structlog
from celery import shared_task

from core.inbox import service_events
from core.inbox.senders import QueueSender
from core.inbox.service_events import HandledEvent
from tasks.base import BillingTask
from tasks.routing import RECEIVE_EVENT

log = structlog.get_logger()

WRONG_ARGUMENTS = "arguments: pass exactly one, the event"


@shared_task(bind=True, base=BillingTask, name=RECEIVE_EVENT)
def receive(self: BillingTask, /, *args: object, **kwargs: object) -> None:
    """Every message gets a status in ``service_events``. Nothing in a message can make the task fail.

    After an error that nobody expects it is handled again, and rejected in the end: an operator can replay it.
    """
    events = [*args, *kwargs.values()] if kwargs.keys() <= {"event"} else []
    raw = events[0] if len(events) == 1 else [args, kwargs]

    def reject(reason: str) -> HandledEvent:
        with self.with_database_retry():
            runtime = self.runtime
            return service_events.reject(runtime.database, runtime.clock, raw, reason, self.first_failed_at)

    with self.giving_back(reject), self.with_database_retry():
        runtime = self.runtime
        if len(events) == 1:
            sender = QueueSender(allowed_sources=runtime.allowed_event_sources)
            handled = service_events.handle(runtime.database, runtime.catalog, runtime.clock, raw, sender)
        else:
            handled = service_events.reject(runtime.database, runtime.clock, raw, WRONG_ARGUMENTS)
    log.info("event_received", status=handled.status, org_id=handled.org_id, repeated=handled.repeated)
