"""The heartbeat of a process: a thread that stores every 20 seconds that the process runs.

Nothing is stored while the loop of the process stands still, or while the database is away; the process goes on. When
the process ends, its row is deleted, so it is no longer listed; after a kill it is listed for one more minute.
"""

from __future__ import annotations

import importlib.metadata
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

import structlog
from sqlalchemy.exc import DBAPIError

from core.common.clock import utc_now
from core.db.database import DATABASE_UNAVAILABLE_ERRORS, Database, cause_name
from core.reporting import heartbeats
from core.reporting.heartbeats import HEARTBEAT_SECONDS, ProcessKind, ProcessStart
from worker.processes.loop_watch import LoopWatch

log = structlog.get_logger()

HEARTBEAT_STOP_SECONDS: Final = 2.0
# The table is also missing while a server's schema is older than this version.
_UNSTORED_ERRORS: Final = (*DATABASE_UNAVAILABLE_ERRORS, DBAPIError)


@contextmanager
def heartbeat(
    database: Database, kind: ProcessKind, seconds: float = HEARTBEAT_SECONDS, loop: LoopWatch | None = None
) -> Iterator[None]:
    """Store inside the ``with`` block that this process runs, and that its loop does, if one is given.

    Nothing is raised; the caller closes the database.
    """
    stopping = threading.Event()
    process = ProcessStart(
        instance_id=uuid4().hex,
        kind=kind,
        host=socket.gethostname(),
        version=importlib.metadata.version("billing-sync"),
        started_at=utc_now(),
    )
    arguments = (database, process, stopping, seconds, loop)
    thread = threading.Thread(target=_run, args=arguments, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        log.info("process_ended", kind=kind)
        stopping.set()
        thread.join(HEARTBEAT_STOP_SECONDS)


def _run(
    database: Database, process: ProcessStart, stopping: threading.Event, seconds: float, loop: LoopWatch | None
) -> None:
    was_stored, was_stalled, has_row = True, False, False
    while True:
        is_stalled = loop is not None and loop.is_stalled()
        if is_stalled and not was_stalled:
            log.error("process_stalled", kind=process.kind)
        was_stalled = is_stalled
        if not is_stalled:
            error = _store(database, process)
            is_stored = error is None
            if was_stored and not is_stored:
                log.warning("heartbeat_not_stored", kind=process.kind, error=error)
            was_stored, has_row = is_stored, has_row or is_stored
        if stopping.wait(seconds):
            break
    if has_row:
        _remove(database, process)


def _store(database: Database, process: ProcessStart) -> str | None:
    """The class of the error, ``None`` if it is stored."""
    now = utc_now()
    if database.is_sqlite and not Path(str(database.url.database)).exists():
        return FileNotFoundError.__name__  # only connecting would make an empty file
    try:
        with database.write() as session:
            heartbeats.record(session, process, now)
            heartbeats.delete_old(session, now)
    except _UNSTORED_ERRORS as error:
        return cause_name(error)
    return None


def _remove(database: Database, process: ProcessStart) -> None:
    # After an outage the first connection of the pool may be a dead one.
    for _ in range(2):
        try:
            with database.write() as session:
                heartbeats.remove(session, process.instance_id)
        except _UNSTORED_ERRORS:
            continue
        return
    log.debug("heartbeat_not_removed", kind=process.kind)
