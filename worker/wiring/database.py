"""Connects to the configured database. Every process and command of ``worker`` does it here, by the same settings."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Final

import structlog

from core.db.database import (
    DEFAULT_POOL_SIZE,
    READ_ONLY_CODE,
    Database,
    UnreachableDatabaseError,
    UnusableDatabaseError,
)
from core.db.postgres_sessions import DIRECT_URL_UNREACHABLE_CODE, DIRECT_URL_WARNINGS
from core.db.problems import DatabaseProblem
from worker.config.settings import Settings

log = structlog.get_logger()

WAIT_FOR_DATABASE_SECONDS: Final = 1.0


def connect(settings: Settings, *, pool_size: int = DEFAULT_POOL_SIZE) -> Database:
    return Database(
        settings.database,
        direct_url=settings.database_direct_url,
        pool_size=pool_size,
        unique_names=settings.unique_organization_names,
    )


def connect_directly(settings: Settings) -> Database:
    """Without the pooler, if there is one and DATABASE_DIRECT_URL is set."""
    return Database(settings.database_direct_url or settings.database, pool_size=1)


def connect_to_file(path: Path) -> Database:
    """The SQLite file of a demo, which has no settings of its own."""
    return Database(f"sqlite:///{path}")


def wait_until_ready(settings: Settings, *, for_writes: bool, stopping: threading.Event) -> None:
    """Wait while the server is starting or is read-only, and say so once. It goes on by itself, as after a failover.

    ``for_writes``: the API also starts on a read-only database, because it answers reads there. ``stopping`` ends the
    wait. Raises ``DatabaseError`` if the server cannot be reached, or DATABASE_DIRECT_URL leads to another database.
    """
    with closing(connect(settings, pool_size=1)) as database:
        said = None
        while (obstacle := _obstacle(database, has_waited=said is not None)) is not None:
            if (reason := str(obstacle)) != said:
                log.warning("waits_for_database", reason=reason)
                said = reason
            if obstacle.code == READ_ONLY_CODE and not for_writes:
                break
            if stopping.wait(WAIT_FOR_DATABASE_SECONDS):
                return
        else:
            if said is not None:
                log.warning("database_is_ready")
        check_direct_url(database, is_needed=False)


def _obstacle(database: Database, *, has_waited: bool) -> DatabaseProblem | None:
    """A server that was there, and is away for a moment, as in a failover, is waited for, too."""
    try:
        return database.obstacle()
    except UnreachableDatabaseError as error:
        if not has_waited:
            raise
        return error.problem


def check_direct_url(database: Database, *, is_needed: bool) -> None:
    """Raises ``UnusableDatabaseError`` if DATABASE_DIRECT_URL does not lead to the database behind the pooler.

    Another pooler is only a warning: a proxy may look like one and keep sessions. So is an address that cannot be
    reached, unless it is needed now: no process but the relay uses it, and the relay asks for new events without it.
    """
    problem = database.direct_url_problem()
    if problem is None:
        return
    if problem.code not in DIRECT_URL_WARNINGS or (is_needed and problem.code == DIRECT_URL_UNREACHABLE_CODE):
        raise UnusableDatabaseError(problem)
    log.warning("direct_url_not_used", reason=str(problem))
