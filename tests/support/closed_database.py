"""A Postgres database that accepts no connection for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.sql import SQL, Identifier

from core.db.database import Database


@contextmanager
def closed_to_all(database: Database, server: str) -> Iterator[None]:
    """Within the context, the database closes all connections and accepts none."""
    name = str(database.url.database)
    with psycopg.connect(server, autocommit=True) as owner:
        owner.execute(SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(Identifier(name)))
        owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        try:
            yield
        finally:
            owner.execute(SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(Identifier(name)))
