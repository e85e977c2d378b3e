"""The database and the providers for a command that reads or writes at the providers itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from core.catalog.plans import CatalogError
from core.db.database import DatabaseError
from tasks.base import Runtime
from worker.cli import resources
from worker.cli.exit_codes import CommandFailedError
from worker.config.settings import SettingsError
from worker.wiring.runtime import open_runtime


@contextmanager
def open_worker_runtime() -> Iterator[Runtime]:
    """As a worker opens them. A wrong setting is a ``CommandFailedError``: exit code 2 may mean something else."""
    try:
        settings = resources.settings_with_providers()
        resources.require_database(settings)
        runtime = open_runtime(settings)
    except (SettingsError, CatalogError, DatabaseError) as error:
        raise CommandFailedError(str(error)) from error
    try:
        yield runtime
    finally:
        runtime.close()
