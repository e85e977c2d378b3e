"""Sends deliveries: claim one, send it, write down what came of it; each its own transaction, none open meanwhile.

Killed between the other side's yes and our commit, an event is sent again under the same id. An endpoint that is slow
or away costs one wait of one thread and then rests; of a process's threads webhooks take a few and no more.
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
from core.db.database import Database
from core.webhooks import deliveries, payloads
from core.webhooks.deliveries import Answer, Try
from core.webhooks.payloads import MEDIA_TYPE
from core.webhooks.signing import Signer

log = structlog.get_logger()


class Wire(Protocol):
    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """One request, ended in time, whatever the other side does. Raises nothing of the network's."""

    def close(self) -> None: ...


class Lanes:
    """As many threads of one process as may be out at once; half of them, at least one, at the same endpoint."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._out: Counter[str] = Counter()
        self._lock = threading.Lock()

    def enter(self, endpoint_id: str) -> bool:
        with self._lock:
            if self._out.total() >= self._width or self._out[endpoint_id] >= max(1, self._width // 2):
                return False
            self._out[endpoint_id] += 1
            return True

    def leave(self, endpoint_id: str) -> None:
        with self._lock:
            self._out[endpoint_id] -= 1
            self._out += Counter()  # forgets those at nought


@dataclass(frozen=True, slots=True, kw_only=True)
class Courier:
    database: Database
    clock: Clock
    signer: Signer
    wire: Wire
    lanes: Lanes = field(default_factory=lambda: Lanes(2))

    def run(self, endpoint_id: str, seconds: float) -> bool:
        """Send what is due there for so long; whether there may be more. An endpoint that is not well ends it."""
        if not self.lanes.enter(endpoint_id):
            # The sweep rings again in a few seconds.
            return False
        try:
            return self._run(endpoint_id, time.monotonic() + seconds)
        finally:
            self.lanes.leave(endpoint_id)

    def _run(self, endpoint_id: str, ends: float) -> bool:
        while time.monotonic() < ends:
            with self.database.write() as session:
                tried = deliveries.claim(session, endpoint_id, self.clock())
            if tried is None or not self._send(tried):
                return False
        return True

    def _send(self, tried: Try) -> bool:
        body = payloads.announcement(tried.event, tried.name).model_dump_json().encode()
        signed = self.signer.headers(tried.endpoint, tried.event.id, body, self.clock())
        answer = self.wire.post(tried.endpoint.url, body, {"Content-Type": MEDIA_TYPE, **signed})
        with self.database.write() as session:
            deliveries.settle(session, tried, answer, self.clock())
        tell = log.info if answer.took else log.warning
        tell(
            "webhook_sent" if answer.took else "webhook_not_taken",
            endpoint=tried.endpoint.id,
            event_id=tried.event.id,
            org_id=tried.event.org_id,
            status=answer.status,
            error=answer.error,
        )
        return answer.was_read
