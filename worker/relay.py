"""The relay: committed events to the broker, oldest first. It may repeat a message and never loses one.

Rows are leased, handed over, then marked; no transaction is open while the broker is talked to. Woken by LISTEN on
Postgres, by a short poll on SQLite; several relays share the work.
"""

from __future__ import annotations

import threading
from typing import Final

import psycopg
import structlog
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy.exc import OperationalError

from core import outbox
from core.database import Database
from tasks import broker, routing
from tasks.base import BillingApp

log = structlog.get_logger()

AT_ONCE: Final = 500
POLL_SQLITE: Final = 0.02  # seconds
POLL_POSTGRES: Final = 1.0  # seconds; the fallback when a notification was missed
AFTER_FAILURE: Final = 1.0  # seconds

# What a broker that is away raises: kombu's own error, or the socket's.
BROKER_IS_AWAY: Final = (BrokerError, OSError)


class Relay:
    """Runs until ``stop()``; one batch is always finished."""

    def __init__(self, app: BillingApp, database: Database) -> None:
        self._app = app
        self._database = database
        self._stopping = threading.Event()
        self._ear: psycopg.Connection[tuple[object, ...]] | None = None

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self.relay_once() == 0:
                    self._wait()
            except BROKER_IS_AWAY as error:
                log.warning("broker_away", error=type(error).__name__)
                self._stopping.wait(AFTER_FAILURE)
            except (OperationalError, psycopg.OperationalError) as error:
                log.warning("database_away", error=type(error).__name__)
                self._hang_up()
                self._stopping.wait(AFTER_FAILURE)
        self._hang_up()

    def stop(self) -> None:
        self._stopping.set()

    def relay_once(self) -> int:
        """One batch; returns how many events left the pending set. A failure gives them back and is raised."""
        now = self._app.runtime.clock
        with self._database.read() as session:
            if not outbox.any_pending(session):
                return 0
        with self._database.write() as session:
            token, events = outbox.lease(session, AT_ONCE, now())
        if not events:
            return 0
        try:
            broker.publish(self._app, routing.rings((event.type, event.org_id) for event in events))
        except BROKER_IS_AWAY:
            with self._database.write() as session:
                outbox.give_back(session, token)
            raise
        with self._database.write() as session:
            outbox.mark_published(session, token, now())
        log.debug("relayed", events=len(events))
        return len(events)

    def _wait(self) -> None:
        if self._database.is_sqlite:
            self._stopping.wait(POLL_SQLITE)
            return
        for _ in self._listen().notifies(timeout=POLL_POSTGRES, stop_after=1):
            pass

    def _listen(self) -> psycopg.Connection[tuple[object, ...]]:
        if self._ear is None:
            url = self._database.url.set(drivername="postgresql").render_as_string(hide_password=False)
            self._ear = psycopg.connect(url, autocommit=True, connect_timeout=5)
            self._ear.execute(f"LISTEN {outbox.CHANNEL}")
        return self._ear

    def _hang_up(self) -> None:
        if self._ear is not None:
            self._ear.close()
            self._ear = None
