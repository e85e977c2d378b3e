"""The relay: committed events to the broker, oldest first. It may repeat a message and never loses one.

Rows are leased, handed over, then marked; no transaction is open while the broker is talked to. Woken by LISTEN on
Postgres, by a short poll on SQLite; several relays share the work. A broker or a database that is away, full or
read-only is outlasted.
"""

from __future__ import annotations

import threading
from typing import Final

import psycopg
import structlog
from kombu.exceptions import KombuError
from psycopg.conninfo import make_conninfo
from redis.exceptions import RedisError

from core.db.database import DATABASE_UNAVAILABLE_ERRORS, TCP_KEEPALIVE_OPTIONS, Database
from core.emails import queue
from core.events import outbox
from core.inbox import provider_webhooks
from core.webhooks import deliveries
from tasks import provider_webhooks as provider_webhook_tasks
from tasks import queue as task_queue
from tasks import routing
from tasks import webhook_deliveries as delivery_tasks
from tasks.base import BillingApp
from worker.processes.burst_classifier import BurstClassifier

log = structlog.get_logger()

RELAY_BATCH_SIZE: Final = 500
SQLITE_POLL_SECONDS: Final = 0.02  # seconds
POSTGRES_POLL_SECONDS: Final = 1.0  # seconds; the fallback when a notification was missed
FIRST_RELAY_PAUSE_SECONDS: Final = 0.5  # seconds; doubled by each failure in a row
MAX_RELAY_PAUSE_SECONDS: Final = 8.0  # seconds

# What a broker that is away, full, read-only or of another password raises: kombu's own errors, the socket's, and
# those of Redis' client where kombu lets them through.
BROKER_UNAVAILABLE_ERRORS: Final = (KombuError, OSError, RedisError)


class Relay:
    """Runs until ``stop()``; one batch is always finished."""

    def __init__(self, app: BillingApp, database: Database) -> None:
        self._app = app
        self._database = database
        self._stopping = threading.Event()
        self._burst_classifier = BurstClassifier(app.runtime.reconciler.request_gates.rate_limiter.expected_rate)
        self._listener: psycopg.Connection[tuple[object, ...]] | None = None
        self._failures = 0

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self.relay_once() == 0:
                    self._wait_for_events()
                self._failures = 0
            except BROKER_UNAVAILABLE_ERRORS as error:
                self._pause("broker_away", error)
            except (*DATABASE_UNAVAILABLE_ERRORS, psycopg.Error) as error:
                self._stop_listening()
                self._pause("database_away", error)
        self._stop_listening()

    def stop(self) -> None:
        self._stopping.set()

    def relay_once(self) -> int:
        """One batch; returns how many events left the pending set. A failure gives them back and is raised."""
        relayed = self._relay_events()
        self._dispatch_provider_webhooks()
        return relayed

    def _relay_events(self) -> int:
        runtime = self._app.runtime
        now = runtime.clock
        if self._database.is_sqlite and not self._is_pending():
            return 0
        with self._database.write() as session:
            token, events = outbox.lease_batch(session, RELAY_BATCH_SIZE, now())
        if not events:
            return 0
        try:
            requests = routing.requests_for((event.type, event.org_id) for event in events)
            task_queue.publish(self._app, list(self._burst_classifier.classify(requests)))
        except BROKER_UNAVAILABLE_ERRORS:
            with self._database.write() as session:
                outbox.release(session, token)
            raise
        with self._database.write() as session:
            published = outbox.mark_published(session, token, now())
            queue.enqueue_for_events(
                session, [event for event in events if event.seq in published], runtime.catalog, now()
            )
            delivery_counts = deliveries.create_for_events(session, published, now())
        delivery_tasks.enqueue(self._app, delivery_counts)
        log.debug("relayed", events=len(events))
        return len(events)

    def _is_pending(self) -> bool:
        """SQLite is polled, and to lease, be it nothing, keeps every writer out."""
        with self._database.read() as session:
            return outbox.has_pending(session)

    def _dispatch_provider_webhooks(self) -> None:
        """One ring for all: whoever answers it takes whatever is stored then."""
        now = self._app.runtime.clock
        with self._database.read() as session:
            if not provider_webhooks.any_due(session, now()):
                return
        with self._database.write() as session:
            dispatched = provider_webhooks.dispatch(session, now())
        if dispatched:
            provider_webhook_tasks.enqueue(self._app)

    def _pause(self, log_event: str, error: Exception) -> None:
        # The class alone: the text may hold the address with its password.
        log.warning(log_event, error=type(error).__name__)
        self._stopping.wait(min(MAX_RELAY_PAUSE_SECONDS, FIRST_RELAY_PAUSE_SECONDS * 2.0 ** min(self._failures, 10)))
        self._failures += 1

    def _wait_for_events(self) -> None:
        if self._database.is_sqlite:
            self._stopping.wait(SQLITE_POLL_SECONDS)
            return
        for _ in self._listen().notifies(timeout=POSTGRES_POLL_SECONDS, stop_after=1):
            pass

    def _listen(self) -> psycopg.Connection[tuple[object, ...]]:
        if self._listener is None:
            url = self._database.url.set(drivername="postgresql").render_as_string(hide_password=False)
            self._listener = psycopg.connect(
                make_conninfo(url, connect_timeout=5, **TCP_KEEPALIVE_OPTIONS), autocommit=True
            )
            self._listener.execute(f"LISTEN {outbox.EVENTS_CHANNEL}")
        return self._listener

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
