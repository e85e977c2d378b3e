"""Five hundred changes of sixty organizations from a seed, and a sender that repeats each until it is handled.

Half are sent to the broker, and half go straight to the inbox as the API's do. Each has its time, so the final state is
known from the start, in whatever order they arrive.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from celery import Celery
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy import select

from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.db.database import DATABASE_UNAVAILABLE_ERRORS, Database
from core.db.models.inbox import ServiceEvent
from core.inbox import service_events

SOURCE = "/chaos"
RESEND_SECONDS = 4.0
AFTER_REFUSAL_SECONDS = 0.3
PAUSE_SECONDS = 0.03
HANDLED_STATUSES = ("applied", "superseded")


@dataclass(frozen=True, slots=True)
class DesiredOrganization:
    """The final state of an organization."""

    name: str
    email: str
    tier: str


@dataclass(frozen=True, slots=True)
class ChaosChanges:
    messages: list[dict[str, Any]]
    desired: dict[str, DesiredOrganization]


def generate_changes(chance: random.Random, organizations: int, changes: int, tiers: Sequence[str]) -> ChaosChanges:
    ids = [f"org_{UUID(int=chance.getrandbits(128), version=4)}" for _ in range(organizations)]
    started_at = datetime.now(UTC) - timedelta(hours=1)
    messages: list[dict[str, Any]] = []
    desired: dict[str, DesiredOrganization] = {}

    def add(org_id: str, kind: str, **data: str) -> None:
        number = len(messages)
        messages.append(
            {
                "specversion": "1.0",
                "id": f"change-{number}",
                "source": SOURCE,
                "type": f"organization.{kind}",
                "subject": org_id,
                "time": (started_at + timedelta(seconds=number)).isoformat(),
                "data": data,
            }
        )

    # About every third change creates an organization, until all exist.
    waiting = deque(ids)
    while len(messages) < changes:
        number = len(messages)
        if waiting and (not desired or chance.random() < 3 * len(waiting) / (changes - number)):
            org_id = waiting.popleft()
            desired[org_id] = DesiredOrganization(f"Chaos {number}", f"first-{number}@chaos.test", chance.choice(tiers))
            one = desired[org_id]
            add(org_id, "created", name=one.name, plan_tier=one.tier, billing_email=one.email)
            continue
        org_id = chance.choice(list(desired))
        one = desired[org_id]
        match chance.choice(("renamed", "plan_changed", "billing_details_changed")):
            case "renamed":
                desired[org_id] = DesiredOrganization(f"Chaos {number}", one.email, one.tier)
                add(org_id, "renamed", name=desired[org_id].name)
            case "plan_changed":
                desired[org_id] = DesiredOrganization(one.name, one.email, chance.choice(tiers))
                add(org_id, "plan_changed", plan_tier=desired[org_id].tier)
            case _:
                desired[org_id] = DesiredOrganization(one.name, f"later-{number}@chaos.test", one.tier)
                add(org_id, "billing_details_changed", billing_email=desired[org_id].email)
    return ChaosChanges(messages, desired)


@dataclass
class Sender:
    """Sends one change after the other, and each again that failed or has no status.

    ``broker`` None: all go to the inbox. ``sent`` counts those that the broker or the inbox accepted.
    """

    generated: ChaosChanges
    database: Database
    catalog: Catalog
    broker: str | None
    sent: int = 0
    refused: int = 0
    sent_again: int = 0
    ended_at: float | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._send_all()
        finally:
            self.ended_at = time.monotonic()

    def _send_all(self) -> None:
        app = Celery("sender", broker=self.broker, set_as_current=False) if self.broker else None
        if app is not None:
            app.conf.task_create_missing_queue_type = "quorum"
        todo = deque(enumerate(self.generated.messages))
        unhandled: dict[str, tuple[float, dict[str, Any]]] = {}
        while (todo or unhandled) and not self._stopping.is_set():
            if todo:
                number, message = todo.popleft()
                if not self._send(app if number % 2 else None, message):
                    self.refused += 1
                    todo.append((number, message))
                    self._stopping.wait(AFTER_REFUSAL_SECONDS)
                    continue
                self.sent += 1
                if app is not None and number % 2:
                    unhandled[str(message["id"])] = (time.monotonic(), message)
            self._stopping.wait(PAUSE_SECONDS if todo else AFTER_REFUSAL_SECONDS)
            self._resend_unhandled(app, unhandled)
        if app is not None:
            app.close()

    def _send(self, app: Celery | None, message: dict[str, Any]) -> bool:
        try:
            if app is None:
                service_events.handle(self.database, self.catalog, utc_now, message)
            else:
                app.send_task("events.receive", args=[message], queue="events", retry=False, ignore_result=True)
        except (*DATABASE_UNAVAILABLE_ERRORS, BrokerError, OSError):
            return False
        return True

    def _resend_unhandled(self, app: Celery | None, waiting: dict[str, tuple[float, dict[str, Any]]]) -> None:
        """Send a message again that a wiped broker lost, as the contract requires of a sender."""
        late = {key for key, (sent, _) in waiting.items() if time.monotonic() - sent > RESEND_SECONDS}
        if not late:
            return
        try:
            with self.database.read() as session:
                handled = set(session.scalars(select(ServiceEvent.id).where(ServiceEvent.id.in_(late))))
        except DATABASE_UNAVAILABLE_ERRORS:
            return
        for key in handled:
            del waiting[key]
        for key in late - handled:
            message = waiting[key][1]
            waiting[key] = (time.monotonic(), message)
            self.sent_again += self._send(app, message)
