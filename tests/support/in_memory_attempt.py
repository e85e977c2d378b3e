"""A sync attempt in memory: it stores intents as the database does, and can lose its lease at a chosen moment."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from core.common.json_types import Json
from core.ports.errors import LeaseLostError
from core.ports.planned import PaymentChange, PlannedStep
from core.ports.provider import Intent


def _utc_now() -> datetime:
    return datetime.now(UTC)


class InMemoryAttempt:
    """``stored`` is the intent as in the link's row. Set it to test the retry after a crash, or to None to end it."""

    def __init__(self, stored: Intent | None = None, now: Callable[[], datetime] = _utc_now) -> None:
        self.stored = stored
        self.recorded: list[Intent] = []
        self.resent: list[Intent] = []
        self.operations: list[str] = []
        """Every request that was allowed, by the name that the rate limiter counts it under."""
        self.permits_ahead: list[str] = []
        self.subscription_requested = False
        self.request_ids: list[str | None] = []
        """The provider's id of each request that it answered."""
        self.lease_lost_after: int | None = None
        """How many more requests the lease lasts; None: without end."""
        self.may_write = True
        self._now = now
        self._generation = stored.generation if stored else 0

    @property
    def database_id(self) -> str:
        return "database_1"

    @property
    def request_count(self) -> int:
        return len(self.operations)

    def before_change(
        self, describe: Callable[[], Iterable[PlannedStep]], payment: PaymentChange | None = None
    ) -> None:
        """It does not plan."""

    def acquire_permit_ahead(self, operation: str) -> None:
        self.permits_ahead.append(operation)

    def before_request(self, operation: str) -> None:
        if self.lease_lost_after is not None:
            if self.lease_lost_after == 0:
                raise LeaseLostError
            self.lease_lost_after -= 1
        self.operations.append(operation)

    def after_response(self, request_id: str | None) -> None:
        self.request_ids.append(request_id)

    @property
    def intent(self) -> Intent | None:
        return self.stored

    def record_intent(self, operation: str, body: Mapping[str, Json]) -> Intent:
        self._generation += 1
        now = self._now()
        self.stored = Intent(
            operation=operation,
            generation=self._generation,
            idempotency_key=uuid.uuid4().hex,
            body=dict(body),
            first_sent_at=now,
            last_sent_at=now,
        )
        self.recorded.append(self.stored)
        return self.stored

    def resend_intent(self) -> Intent:
        if self.stored is None:
            message = "no intent was recorded"
            raise LookupError(message)
        self.stored = replace(self.stored, last_sent_at=self._now())
        self.resent.append(self.stored)
        return self.stored

    def record_no_older_customer(self) -> None:
        self.no_older_customer = True

    def record_subscription_request(self) -> None:
        self.subscription_requested = True
