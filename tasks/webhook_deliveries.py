"""``webhooks.deliver``: send one endpoint what is due there. The relay rings for what is new, the sweep for the rest.

A ring that is lost, late or doubled does no harm: what is due stands in the rows. A run is short and rings again for
what it left, so an endpoint with much to be told stands in line with the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog
from celery import Celery, shared_task

from core.webhooks import deliveries
from tasks.base import BillingApp, BillingTask
from tasks.routing import DELIVER, QUEUE_OF

log = structlog.get_logger()

SLICE_SECONDS: Final = 5.0
# By then the sweep has rung again.
EXPIRES: Final = 60.0  # seconds
CLEARED_AT_MOST: Final = 20  # times ``deliveries.clear``; the next sweep goes on


@shared_task(bind=True, base=BillingTask, name=DELIVER)
def deliver(self: BillingTask, endpoint_id: str) -> None:
    app = self.app
    if isinstance(app, BillingApp):
        with self.outlasting_the_database():
            more = run(app, endpoint_id)
        if more:
            ring(app, {endpoint_id: 1})


def run(app: BillingApp, endpoint_id: str) -> bool:
    """A few seconds of sending; whether there may be more."""
    courier = app.runtime.courier
    if courier is None:
        log.warning("webhooks_wait", reason="WEBHOOK_SIGNING_SECRET is not set: nothing can be signed")
        return False
    return courier.run(endpoint_id, SLICE_SECONDS)


def ring(app: Celery, waiting: Mapping[str, int]) -> None:
    """``waiting``: how much there is for each endpoint; as many workers as may be there at once are called."""
    for endpoint_id, count in waiting.items():
        for _ in range(min(count, deliveries.AT_ONCE)):
            app.send_task(DELIVER, args=[endpoint_id], argsrepr="()", queue=QUEUE_OF[DELIVER], expires=EXPIRES)


def sweep(app: BillingApp) -> None:
    """Ring for what is due, and away with what is old."""
    runtime = app.runtime
    with runtime.database.read() as session:
        ready, old = deliveries.due(session, runtime.clock()), deliveries.old(session, runtime.clock())
    ring(app, dict.fromkeys(ready, 1))
    for endpoint_id in old:
        for _ in range(CLEARED_AT_MOST):
            with runtime.database.write() as session:
                if not deliveries.clear(session, endpoint_id, runtime.clock()):
                    break
