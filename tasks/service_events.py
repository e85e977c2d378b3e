"""``events.receive``: the door for other services. One CloudEvents 1.0 object, taken once by ``(source, id)``."""

from __future__ import annotations

import structlog
from celery import shared_task

from core.inbox import service_events
from tasks.base import BillingTask
from tasks.routing import RECEIVE_EVENT

log = structlog.get_logger()

WRONG_ARGUMENTS = "arguments: send one, the event, and nothing else"


@shared_task(bind=True, base=BillingTask, name=RECEIVE_EVENT)
def receive(self: BillingTask, /, *args: object, **kwargs: object) -> None:
    """Whatever comes gets a verdict that stays in ``received_events``; nothing in it can make the task fail."""
    events = [*args, *kwargs.values()] if kwargs.keys() <= {"event"} else []
    with self.with_database_retry():
        runtime = self.runtime
        if len(events) == 1:
            handled = service_events.handle(runtime.database, runtime.catalog, runtime.clock, events[0])
        else:
            handled = service_events.reject(runtime.database, runtime.clock, [args, kwargs], WRONG_ARGUMENTS)
    log.info("event_received", status=handled.status, org_id=handled.org_id, repeated=handled.repeated)
