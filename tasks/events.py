"""``events.receive``: the door for other services. One CloudEvents 1.0 object, taken once by ``(source, id)``."""

from __future__ import annotations

import structlog
from celery import shared_task

from core import received
from tasks.base import BillingTask
from tasks.routing import RECEIVE

log = structlog.get_logger()


@shared_task(bind=True, base=BillingTask, name=RECEIVE)
def receive(self: BillingTask, event: object = None) -> None:
    """Whatever comes gets a verdict that stays in ``received_events``; nothing in it can make the task fail."""
    runtime = self.runtime
    receipt = received.receive(runtime.database, runtime.catalog, runtime.clock, event)
    log.info("event_received", verdict=receipt.verdict, org_id=receipt.org_id, repeated=receipt.repeated)
