"""The relay publishes committed events to the broker, oldest first. It may repeat a message and never loses one.

It leases rows, publishes them, then marks them as published; no transaction is open during a call to the broker. On
Postgres it waits with LISTEN, on SQLite and behind a pooler it polls, and also while the connection that listens is
lost. Several relays share the work. While the broker or the database is unavailable, full or read-only, the relay keeps
retrying.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import Final

import psycopg
import structlog
from amqp import AMQPError
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from core.db.database import DATABASE_UNAVAILABLE_ERRORS, Database, cause_name, first_line
from core.emails import queue as email_queue
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
POOLER_POLL_SECONDS: Final = 0.2  # seconds; a pooler passes no notification on
POSTGRES_POLL_SECONDS: Final = 1.0  # seconds; the fallback for a missed notification
LISTEN_RETRY_SECONDS: Final = 20.0  # seconds; meanwhile the relay polls
FIRST_RELAY_PAUSE_SECONDS: Final = 0.5  # seconds; doubled by each consecutive failure
MAX_RELAY_PAUSE_SECONDS: Final = 8.0  # seconds

# Raised if the broker is unavailable, full, read-only or has another password: errors of kombu and the socket, and
# those of the Redis client that kombu does not convert.
BROKER_UNAVAILABLE_ERRORS: Final = (AMQPError, KombuError, OSError, RedisError)


class Relay:
    """Runs until ``stop()``. A batch that was started is always finished."""

    def __init__(self, app: BillingApp, database: Database) -> None:
        self._app = app
        self._database = database
        self._stopping = threading.Event()
        self._burst_classifier = BurstClassifier(app.runtime.reconciler.request_gates.rate_limiter.expected_rate)
        self._listener: psycopg.Connection[tuple[object, ...]] | None = None
        self._closing = ExitStack()
        # Without LISTEN. Of Postgres it is not known before the first wait.
        self._polls = database.is_sqlite
        self._listens_again_at: float | None = None
        self._failures = 0

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self.relay_once() == 0:
                    self._wait_for_events()
                self._failures = 0
            except BROKER_UNAVAILABLE_ERRORS as error:
                self._pause("broker_away", error)
            except DATABASE_UNAVAILABLE_ERRORS as error:
                self._stop_listening()
                self._pause("database_away", error)
        self._stop_listening()

    def stop(self) -> None:
        self._stopping.set()

    def relay_once(self) -> int:
        """Publish one batch and return the number of its events. A failure makes them pending again and is raised."""
        relayed = self._relay_events()
        self._dispatch_provider_webhooks()
        return relayed

    def _relay_events(self) -> int:
        runtime = self._app.runtime
        now = runtime.clock
        if self._polls and not self._is_pending():
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
            email_queue.enqueue_for_events(
                session,
                [event for event in events if event.seq in published],
                runtime.catalog,
                now(),
                runtime.reconciler.management,
            )
            delivery_counts = deliveries.create_for_events(session, published, now())
        delivery_tasks.enqueue(self._app, delivery_counts)
        log.debug("relayed", events=len(events))
        return len(events)

    def _is_pending(self) -> bool:
        """For a database that is polled: a read avoids the lock of SQLite that even an empty lease would take."""
        with self._database.read() as session:
            return outbox.has_pending(session)

    def _dispatch_provider_webhooks(self) -> None:
        """One message for all stored provider webhooks: its task handles whatever is stored by then."""
        now = self._app.runtime.clock
        with self._database.read() as session:
            if not provider_webhooks.any_due(session, now()):
                return
        with self._database.write() as session:
            dispatched = provider_webhooks.dispatch(session, now())
        if dispatched:
            provider_webhook_tasks.enqueue(self._app)

    def _pause(self, log_event: str, error: Exception) -> None:
        # Only the error's class is logged: its text may contain the URL with the password.
        log.warning(log_event, error=cause_name(error))
        self._stopping.wait(min(MAX_RELAY_PAUSE_SECONDS, FIRST_RELAY_PAUSE_SECONDS * 2.0 ** min(self._failures, 10)))
        self._failures += 1

    def _wait_for_events(self) -> None:
        if self._listens_again_at is not None and time.monotonic() >= self._listens_again_at:
            self._polls = False
        try:
            listener = None if self._polls else self._listen()
            if listener is not None:
                for _ in listener.notifies(timeout=POSTGRES_POLL_SECONDS, stop_after=1):
                    pass
                return
        except psycopg.Error as error:
            self._poll_instead(error)
        self._stopping.wait(SQLITE_POLL_SECONDS if self._database.is_sqlite else POOLER_POLL_SECONDS)

    def _poll_instead(self, error: psycopg.Error) -> None:
        """For a while. It is said once, until the relay listens again."""
        if self._listens_again_at is None:
            log.warning("listen_failed", reason=first_line(error))
        self._stop_listening()
        self._polls = True
        self._listens_again_at = time.monotonic() + LISTEN_RETRY_SECONDS

    def _listen(self) -> psycopg.Connection[tuple[object, ...]] | None:
        """``None`` behind a pooler."""
        if self._listener is None:
            self._listener = self._closing.enter_context(self._database.session_of_server())
            self._polls = self._listener is None
            if self._listener is not None:
                self._listener.execute(f"LISTEN {outbox.EVENTS_CHANNEL}")
            else:
                self._closing.close()
            self._listens_again_at = None
        return self._listener

    def _stop_listening(self) -> None:
        """The next wait finds out anew what DATABASE_URL leads to."""
        self._closing.close()
        self._listener = None
        self._listens_again_at = None
        self._polls = self._database.is_sqlite
