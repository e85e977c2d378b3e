"""Resources of the commands: settings, database and lock file. Each is opened on demand and always closed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.db.database import Database
from worker.cli.exit_codes import UsageError
from worker.config import settings as settings_of
from worker.config.settings import Settings, SettingsError

UP_LOCK_FILE = "up.lock"


@contextmanager
def open_database(settings: Settings | None = None) -> Iterator[Database]:
    """The configured database, with this version's schema. Raises ``SettingsError`` or ``DatabaseError``."""
    settings = settings or settings_of.read()
    make_database_folder(settings)
    database = Database(settings.database)
    try:
        database.ensure_schema()
        yield database
    finally:
        database.close()


def make_database_folder(settings: Settings) -> None:
    """SQLite creates its file, but not the folder of it."""
    if settings.database.startswith("sqlite:///"):
        Path(settings.database.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)


def settings_with_broker(command: str) -> Settings:
    """Settings with a broker that other processes can reach. Raises ``SettingsError`` if there is none."""
    settings = settings_of.read()
    if settings.is_embedded:
        message = (
            f"`billing-sync {command}` needs a broker and none is configured: set REDIS_URL or "
            "CELERY_BROKER_URL, or run `billing-sync up`, which needs none"
        )
        raise SettingsError(message)
    return settings


@contextmanager
def single_instance(folder: Path) -> Iterator[None]:
    """Lock the folder for one process; the system releases it when the process ends. Raises ``UsageError``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / UP_LOCK_FILE).open("a+", encoding="ascii") as lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock_file.seek(0)
            message = (
                f"process {lock_file.read(20).strip() or '?'} already runs in {folder}: "
                "use it, stop it, or set another folder in DATA_DIR"
            )
            raise UsageError(message) from None
        lock_file.truncate(0)
        lock_file.write(str(os.getpid()))
        lock_file.flush()
        yield
