"""Sends deliveries: lease one, send it, record the response. No transaction is open while it is sent.

If the process is killed between the endpoint's response and our commit, the event is sent again under the same id. An
endpoint that is slow or unreachable costs one wait of one thread, and then backs off. Webhooks use only a few threads
of a process.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from core.common.clock import Clock
from core.common.error_place import raised_at
from core.db.database import DATABASE_UNAVAILABLE_ERRORS, Database
from core.webhooks import deliveries, payloads
from core.webhooks.deliveries import DeliveryAttempt, WebhookResponse
from core.webhooks.payloads import CLOUDEVENT_MEDIA_TYPE
from core.webhooks.signing import Signer

log = structlog.get_logger()


class HttpSender(Protocol):
    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> WebhookResponse:
        """Send one request with a time limit, whatever the endpoint does. Network errors are returned, not raised."""

    def close(self) -> None: ...


class PerEndpointSlots:
    """Limits the threads of one process that send at once. Half of them, at least one, may send to one endpoint."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._in_use: Counter[str] = Counter()
        self._lock = threading.Lock()

    def try_acquire(self, endpoint_id: str) -> bool:
        with self._lock:
            if self._in_use.total() >= self._size or self._in_use[endpoint_id] >= max(1, self._size // 2):
                return False
            self._in_use[endpoint_id] += 1
            return True

    def release(self, endpoint_id: str) -> None:
        with self._lock:
            self._in_use[endpoint_id] -= 1
            self._in_use += Counter()  # drops the zeros


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatcher:
    database: Database
    clock: Clock
    signer: Signer
    sender: HttpSender
    slots: PerEndpointSlots = field(default_factory=lambda: PerEndpointSlots(2))

    def run(self, endpoint_id: str, seconds: float) -> bool:
        """Send what is due, for at most ``seconds``. Returns whether there may be more; an unhealthy one ends it."""
        if not self.slots.try_acquire(endpoint_id):
            # The sweep starts it again in a few seconds.
            return False
        try:
            return self._send_until(endpoint_id, time.monotonic() + seconds)
        finally:
            self.slots.release(endpoint_id)

    def _send_until(self, endpoint_id: str, deadline: float) -> bool:
        while time.monotonic() < deadline:
            with self.database.write() as session:
                attempt = deliveries.lease_next(session, endpoint_id, self.clock())
            if attempt is None or not self._send(attempt):
                return False
        return True

    def _send(self, attempt: DeliveryAttempt) -> bool:
        response = self._post(attempt)
        with self.database.write() as session:
            deliveries.record_attempt(session, attempt, response, self.clock())
        write_log = log.info if response.accepted else log.warning
        write_log(
            "webhook_delivered" if response.accepted else "webhook_delivery_failed",
            endpoint=attempt.endpoint.id,
            event_id=attempt.event.id,
            org_id=attempt.event.org_id,
            status=response.status,
            error=response.error,
        )
        return response.endpoint_healthy

    def _post(self, attempt: DeliveryAttempt) -> WebhookResponse:
        """An error that nobody named counts as a failed attempt, so that the delivery fails in the end."""
        try:
            body = payloads.build(attempt.event, attempt.name).model_dump_json().encode()
            signature_headers = self.signer.headers(attempt.endpoint, attempt.event.id, body, self.clock())
            headers = {"Content-Type": CLOUDEVENT_MEDIA_TYPE, **signature_headers}
            return self.sender.post(attempt.endpoint.url, body, headers)
        except Exception as error:
            if isinstance(error, DATABASE_UNAVAILABLE_ERRORS):
                raise
            log.error(  # noqa: TRY400 - its text may repeat what was sent
                "webhook_failed_unexpectedly",
                endpoint=attempt.endpoint.id,
                event_id=attempt.event.id,
                error=type(error).__name__,
                at=raised_at(error),
            )
            return WebhookResponse(error="unexpected")
