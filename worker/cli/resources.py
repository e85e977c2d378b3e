"""Resources of the commands: settings, database and lock file. Each is opened on demand and always closed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.db.database import Database
from worker.cli import command_line
from worker.cli.exit_codes import UsageError
from worker.config import settings as settings_of
from worker.config.settings import Settings, SettingsError
from worker.wiring.database import connect

UP_LOCK_FILE = "up.lock"
SANDBOX_ADDRESS_FILE = "sandbox.url"


@contextmanager
def open_database(settings: Settings | None = None, *, may_create: bool = False) -> Iterator[Database]:
    """The configured database, with this version's schema. Raises ``SettingsError`` or ``DatabaseError``.

    ``may_create``: whether a SQLite file is made if there is none. A command that reads makes none: with a wrong
    setting it would show an empty one.
    """
    settings = settings or settings_of.read()
    if may_create:
        make_database_folder(settings)
    else:
        require_database(settings)
    database = connect(settings)
    try:
        database.ensure_schema()
        yield database
    finally:
        database.close()


def make_database_folder(settings: Settings) -> None:
    """SQLite creates its file, but not the folder of it."""
    if settings.sqlite_file is not None:
        settings.sqlite_file.parent.mkdir(parents=True, exist_ok=True)


def require_database(settings: Settings) -> None:
    """Raises ``SettingsError`` if the file of the database is not there."""
    file = settings.sqlite_file
    if file is not None and not has_database(settings):
        message = (
            f"there is no database {file}: correct DATABASE_URL or DATA_DIR, or make it with `billing-sync up` or "
            "`billing-sync db upgrade`"
        )
        raise SettingsError(message)


def has_database(settings: Settings) -> bool:
    """Always true of a database on a server, and of a SQLite URI, which names a file in its own way."""
    file = settings.sqlite_file
    return file is None or str(file).startswith("file:") or file.is_file()


def warn_of_weak_tls(settings: Settings) -> None:
    """One sentence for each address. Call it where a process starts; doctor says the same."""
    for name, weakness in settings.weak_tls.items():
        command_line.print_error(f"{name}: {weakness}; `billing-sync doctor` says what to do")


def settings_with_broker(command: str) -> Settings:
    """Settings with a broker that other processes can reach. Raises ``SettingsError`` if there is none."""
    settings = settings_of.read()
    if settings.is_embedded:
        message = (
            f"`billing-sync {command}` needs a broker and none is configured: set REDIS_URL or "
            "CELERY_BROKER_URL, or run `billing-sync up`, which needs none"
        )
        raise SettingsError(message)
    warn_of_weak_tls(settings)
    return settings


def settings_with_providers() -> Settings:
    """Settings whose providers can be called: the configured ones, else the sandbox of a running ``up``.

    ``up`` leaves the address of its sandbox in the data folder. Without either, opening the providers says what to set.
    """
    settings = settings_of.read()
    address_file = settings.data_dir / SANDBOX_ADDRESS_FILE
    if settings.uses_sandbox and settings.is_embedded and address_file.exists() and _is_up(settings.data_dir):
        return settings.with_sandbox(address_file.read_text(encoding="ascii").strip())
    return settings


@contextmanager
def sandbox_address(folder: Path, url: str | None) -> Iterator[None]:
    """Leave the address of the sandbox in the folder while this process runs, for ``settings_with_providers``."""
    file = folder / SANDBOX_ADDRESS_FILE
    if url is not None:
        file.write_text(f"{url}\n", encoding="ascii")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _is_up(folder: Path) -> bool:
    """Whether a process has the lock of the folder. A process that was killed left its files, but not its lock."""
    lock_file = folder / UP_LOCK_FILE
    if not lock_file.exists():
        return False
    with lock_file.open(encoding="ascii") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


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
