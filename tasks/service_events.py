"""``events.receive``: the door for other services. One CloudEvents 1.0 object, taken once by ``(source, id)``."""

from __future__ import annotations

import structlog
from celery import shared_task

from core.inbox import service_events
from tasks.base import BillingTask
from tasks.routing import RECEIVE

log = structlog.get_logger()

SENT_WRONGLY = "arguments: send one, the event, and nothing else"


@shared_task(bind=True, base=BillingTask, name=RECEIVE)
def receive(self: BillingTask, /, *sent: object, **named: object) -> None:
    """Whatever comes gets a verdict that stays in ``received_events``; nothing in it can make the task fail."""
    events = [*sent, *named.values()] if named.keys() <= {"event"} else []
    with self.outlasting_the_database():
        runtime = self.runtime
        if len(events) == 1:
            receipt = service_events.receive(runtime.database, runtime.catalog, runtime.clock, events[0])
        else:
            receipt = service_events.refuse(runtime.database, runtime.clock, [sent, named], SENT_WRONGLY)
    log.info("event_received", verdict=receipt.verdict, org_id=receipt.org_id, repeated=receipt.repeated)
