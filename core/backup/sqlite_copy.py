"""Copy of a SQLite database in use: one consistent moment, without a pause for those who write.

SQLite's online backup copies all pages in one step, from one read transaction. With the write-ahead log that the
database uses, a reader keeps no writer waiting.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from core.backup.contents import REVISION_TABLE, BackupContents, BackupError, our_tables
from core.db.database import SQLITE_BUSY_TIMEOUT_SECONDS, Database


def copy(database: Database, target: Path) -> None:
    """``target``: an empty file. Raises ``BackupError``."""
    try:
        with database.read() as session, closing(sqlite3.connect(target)) as backup:
            source: Any = session.connection().connection.driver_connection
            source.backup(backup)
            # One file, without a write-ahead log beside it.
            backup.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as error:
        message = f"the database {database.url.database} cannot be copied ({error}): run `billing-sync doctor`"
        raise BackupError(message) from error


def read(file: Path) -> BackupContents:
    """Every page of it is read and checked. Raises ``BackupError``."""
    try:
        with closing(_open(file)) as backup:
            (result,) = backup.execute("PRAGMA integrity_check(1)").fetchone()
            if result != "ok":
                message = f"{file.name} is damaged ({result}): take another backup, and check the disk"
                raise BackupError(message)
            return _contents(backup)
    except sqlite3.Error as error:
        message = f"{file.name} is no complete copy of a database ({error}): take another backup"
        raise BackupError(message) from error


def _open(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=SQLITE_BUSY_TIMEOUT_SECONDS)


def _contents(backup: sqlite3.Connection) -> BackupContents:
    (revision,) = backup.execute(f"SELECT version_num FROM {REVISION_TABLE}").fetchone()  # noqa: S608 - a constant
    (database_id,) = backup.execute("SELECT max(database_id) FROM provider_status").fetchone()
    (newest,) = backup.execute("SELECT coalesce(max(version), 0) FROM organizations").fetchone()
    rows = {}
    for table in our_tables():
        (rows[table],) = backup.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608 - names of our models
    return BackupContents(schema_revision=revision, database_id=database_id or "", newest_version=newest, rows=rows)
