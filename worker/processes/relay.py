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

from core.db.database import DATABASE_IS_AWAY, GONE_HOST, Database
from core.emails import queue
from core.events import outbox
from core.inbox import provider_webhooks
from core.webhooks import deliveries
from tasks import provider_webhooks as told
from tasks import queue as task_queue
from tasks import routing
from tasks import webhook_deliveries as webhooks
from tasks.base import BillingApp
from worker.processes.burst_classifier import Turnstile

log = structlog.get_logger()

AT_ONCE: Final = 500
POLL_SQLITE: Final = 0.02  # seconds
POLL_POSTGRES: Final = 1.0  # seconds; the fallback when a notification was missed
AFTER_FAILURE: Final = 0.5  # seconds; doubled by each failure in a row
LONGEST_PAUSE: Final = 8.0  # seconds

# What a broker that is away, full, read-only or of another password raises: kombu's own errors, the socket's, and
# those of Redis' client where kombu lets them through.
BROKER_IS_AWAY: Final = (KombuError, OSError, RedisError)


class Relay:
    """Runs until ``stop()``; one batch is always finished."""

    def __init__(self, app: BillingApp, database: Database) -> None:
        self._app = app
        self._database = database
        self._stopping = threading.Event()
        self._turnstile = Turnstile(app.runtime.sync.gates.quota.pace)
        self._ear: psycopg.Connection[tuple[object, ...]] | None = None
        self._failures = 0

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self.relay_once() == 0:
                    self._wait()
                self._failures = 0
            except BROKER_IS_AWAY as error:
                self._pause("broker_away", error)
            except (*DATABASE_IS_AWAY, psycopg.Error) as error:
                self._hang_up()
                self._pause("database_away", error)
        self._hang_up()

    def stop(self) -> None:
        self._stopping.set()

    def relay_once(self) -> int:
        """One batch; returns how many events left the pending set. A failure gives them back and is raised."""
        relayed = self._relay_events()
        self._tell_of_hints()
        return relayed

    def _relay_events(self) -> int:
        runtime = self._app.runtime
        now = runtime.clock
        if self._database.is_sqlite and not self._is_pending():
            return 0
        with self._database.write() as session:
            token, events = outbox.lease(session, AT_ONCE, now())
        if not events:
            return 0
        try:
            rings = routing.rings((event.type, event.org_id) for event in events)
            task_queue.publish(self._app, list(self._turnstile.sort(rings)))
        except BROKER_IS_AWAY:
            with self._database.write() as session:
                outbox.give_back(session, token)
            raise
        with self._database.write() as session:
            published = outbox.mark_published(session, token, now())
            queue.of_events(session, [event for event in events if event.seq in published], runtime.catalog, now())
            waiting = deliveries.make(session, published, now())
        webhooks.ring(self._app, waiting)
        log.debug("relayed", events=len(events))
        return len(events)

    def _is_pending(self) -> bool:
        """SQLite is polled, and to lease, be it nothing, keeps every writer out."""
        with self._database.read() as session:
            return outbox.any_pending(session)

    def _tell_of_hints(self) -> None:
        """One ring for all: whoever answers it takes whatever is stored then."""
        now = self._app.runtime.clock
        with self._database.read() as session:
            if not provider_webhooks.any_due(session, now()):
                return
        with self._database.write() as session:
            found = provider_webhooks.hand_over(session, now())
        if found:
            told.ring(self._app)

    def _pause(self, what: str, error: Exception) -> None:
        # The class alone: the text may hold the address with its password.
        log.warning(what, error=type(error).__name__)
        self._stopping.wait(min(LONGEST_PAUSE, AFTER_FAILURE * 2.0 ** min(self._failures, 10)))
        self._failures += 1

    def _wait(self) -> None:
        if self._database.is_sqlite:
            self._stopping.wait(POLL_SQLITE)
            return
        for _ in self._listen().notifies(timeout=POLL_POSTGRES, stop_after=1):
            pass

    def _listen(self) -> psycopg.Connection[tuple[object, ...]]:
        if self._ear is None:
            url = self._database.url.set(drivername="postgresql").render_as_string(hide_password=False)
            self._ear = psycopg.connect(make_conninfo(url, connect_timeout=5, **GONE_HOST), autocommit=True)
            self._ear.execute(f"LISTEN {outbox.CHANNEL}")
        return self._ear

    def _hang_up(self) -> None:
        if self._ear is not None:
            self._ear.close()
            self._ear = None
