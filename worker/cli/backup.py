"""The command that takes a backup of the database."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from core.backup import backups
from core.backup.contents import BackupError
from core.common.clock import utc_now
from worker.cli import output, resources
from worker.cli.exit_codes import CommandFailedError, UsageError
from worker.config import settings as settings_of


def backup(
    *,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Folder of the backups. Default: BACKUP_DIR.")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="AGE", help="Delete older ones once this one was checked: 30d, 36h or 8w. Default: keep all."
        ),
    ] = None,
    as_json: output.JsonOption = False,
) -> None:
    """Take a backup of the database while everything runs, check it, and delete older ones.

    The file is a copy of the SQLite database, or a dump of Postgres by pg_dump. Beside it is a manifest with its time,
    schema, digest and numbers of rows. Only this user can read them.

    JSON: {"path", "manifest": {"format", "file", "kind": "sqlite" or "postgresql", "taken_at", "program_version",
    "schema_revision", "database_id", "size", "sha256", "newest_version", "rows": {table: number}}, "deleted": [file]}
    """
    settings = settings_of.read()
    age = None if keep is None else _age(keep)
    with resources.open_database(settings) as database:
        try:
            taken = backups.take(database, to or settings.backup_folder, utc_now(), age)
        except BackupError as error:
            raise CommandFailedError(str(error)) from error
    manifest = taken.manifest
    if as_json:
        output.show_json(
            {"path": str(taken.path), "manifest": manifest.model_dump(mode="json"), "deleted": taken.deleted}
        )
        return
    organizations = manifest.rows["organizations"]
    output.show(
        f"{taken.path}: {manifest.size:,} bytes, {organizations:,} organizations, schema {manifest.schema_revision}. "
        "It was read back and is whole."
    )
    if taken.deleted:
        output.show(f"Deleted, because they are older than {keep}: {', '.join(taken.deleted)}.")


def _age(given: str) -> timedelta:
    try:
        return backups.parse_age(given)
    except ValueError as error:
        message = f"--keep: {error}"
        raise UsageError(message) from error
