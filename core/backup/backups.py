"""Backups in a folder: one file and its manifest each, named by the time at which it was begun.

A backup is written under another name, read back, and renamed only then, so a file with a backup's name is a whole one.
Older ones are deleted only after a newer one was checked. Nobody but the user of this process can read them: they
contain names, addresses and ids.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import delete, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from core.backup import postgres_dump, sqlite_copy
from core.backup.contents import BackupContents, BackupError, digest_of
from core.db.database import Database, is_read_only_error
from core.db.models.backups import BackupRecord

BackupKind = Literal["sqlite", "postgresql"]

BACKUP_FOLDER_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
_NAME: Final = re.compile(r"billing-sync-(\d{8}T\d{6}Z)\.(sqlite3|dump)(\.json)?")
_UNFINISHED_NAME: Final = re.compile(r"\.billing-sync-(\d{8}T\d{6}Z)\.(sqlite3|dump)(\.json)?\.part(-journal)?")
_AGE_PATTERN: Final = re.compile(r"(\d{1,5})([hdw])")
_AGE_UNITS: Final = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_TIME_FORMAT: Final = "%Y%m%dT%H%M%SZ"
_SUFFIXES: Final[dict[BackupKind, str]] = {"sqlite": "sqlite3", "postgresql": "dump"}
# What a process that was killed left. One that is still at work is younger.
_UNFINISHED_LASTS: Final = timedelta(days=1)


def parse_age(text: str) -> timedelta:
    """``30d``, ``36h`` or ``8w``. Raises ``ValueError``."""
    found = _AGE_PATTERN.fullmatch(text.strip().lower())
    if found is None or int(found[1]) == 0:
        message = f"{text!r} is no time: write days as 30d, hours as 36h or weeks as 8w"
        raise ValueError(message)
    return int(found[1]) * _AGE_UNITS[found[2]]


class BackupManifest(BaseModel):
    """Beside each backup, as JSON. ``rows``: by table. ``newest_version``: the highest of an organization."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    file: str
    kind: BackupKind
    taken_at: datetime
    program_version: str
    schema_revision: str
    database_id: str
    size: int
    sha256: str
    newest_version: int
    rows: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenBackup:
    """``deleted``: names of the older backups that are gone now."""

    path: Path
    manifest: BackupManifest
    deleted: list[str]


def take(database: Database, folder: Path, now: datetime, keep: timedelta | None = None) -> TakenBackup:
    """Take a backup, check it, then delete those that are older than ``keep``. Raises ``BackupError``.

    What a process that is killed meanwhile leaves is deleted a day later.
    """
    kind: BackupKind = "sqlite" if database.is_sqlite else "postgresql"
    path = folder / f"billing-sync-{now.astimezone(UTC):{_TIME_FORMAT}}.{_SUFFIXES[kind]}"
    parts = [folder / f".{path.name}{ending}.part" for ending in ("", ".json")]
    created: list[Path] = []
    try:
        folder.mkdir(mode=BACKUP_FOLDER_MODE, parents=True, exist_ok=True)
        for part in parts:
            _create_private(part)
            created.append(part)
        manifest = _write(database, path, now, parts)
    except FileExistsError as error:
        if not folder.is_dir():
            message = f"{folder} is no folder: name another one with --to or BACKUP_DIR"
            raise BackupError(message) from error
        message = f"another backup was begun in {folder} in the same second: run the command again"
        raise BackupError(message) from error
    except OSError as error:
        message = f"{folder} cannot be written ({error.strerror}): name another folder with --to or BACKUP_DIR"
        raise BackupError(message) from error
    finally:
        _delete_files(*created)
    _record(database, manifest)
    deleted = [] if keep is None else delete_older(path, manifest, now - keep)
    return TakenBackup(path=path, manifest=manifest, deleted=deleted)


def check(database: Database, path: Path) -> BackupManifest:
    """Read all of it, and compare it with its manifest. ``database``: of the same kind. Raises ``BackupError``."""
    manifest = read_manifest(path)
    if path.stat().st_size != manifest.size or digest_of(path) != manifest.sha256:
        message = f"{path.name} is not what its manifest describes: it was damaged or changed; use another backup"
        raise BackupError(message)
    contents = _read(database, path)
    if dict(contents.rows) != manifest.rows:
        message = f"{path.name} has other rows than its manifest says: use another backup"
        raise BackupError(message)
    return manifest


def manifest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def delete_older(newest: Path, manifest: BackupManifest, than: datetime) -> list[str]:
    """The names of the deleted ones, of the same database. ``newest``: it was checked, and stays.

    What cannot be deleted stays, and is tried again after the next backup.
    """
    deleted = []
    for file in sorted(newest.parent.iterdir()):
        unfinished = _UNFINISHED_NAME.fullmatch(file.name)
        if unfinished is not None and _time_of(unfinished[1]) < manifest.taken_at - _UNFINISHED_LASTS:
            _delete_if_possible(file)
    for path in listed(newest.parent):
        if path == newest or taken_at(path) >= than or not _is_of(path, manifest.database_id):
            continue
        if _delete_if_possible(path):
            _delete_if_possible(manifest_path(path))
            deleted.append(path.name)
    return sorted(deleted)


def _is_of(path: Path, database_id: str) -> bool:
    """A folder may have backups of another database, too."""
    try:
        return read_manifest(path).database_id == database_id
    except BackupError:
        return False


def _delete_if_possible(file: Path) -> bool:
    try:
        file.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def read_manifest(path: Path) -> BackupManifest:
    """Raises ``BackupError``."""
    try:
        return BackupManifest.model_validate_json(manifest_path(path).read_bytes())
    except (OSError, ValidationError) as error:
        message = f"{manifest_path(path)} cannot be read ({type(error).__name__}): take another backup"
        raise BackupError(message) from error


def listed(folder: Path) -> Iterator[Path]:
    """The backups in the folder that are whole, newest first."""
    names = (file.name for file in folder.iterdir()) if folder.is_dir() else ()
    for name in sorted(names, reverse=True):
        found = _NAME.fullmatch(name)
        if found is not None and not found[3] and manifest_path(folder / name).is_file():
            yield folder / name


def _write(database: Database, path: Path, now: datetime, parts: Sequence[Path]) -> BackupManifest:
    """Write it, read it back, and give it its name. ``parts``: the new files for it and for its manifest."""
    part, manifest_part = parts
    if path.exists():
        raise FileExistsError(path)
    contents = _copy(database, part)
    manifest = _manifest(path, now, part, contents)
    manifest_part.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for each in parts:
        _flush(each)
    # The manifest first: a backup without one is not listed.
    manifest_part.rename(manifest_path(path))
    part.rename(path)
    _flush(path.parent)
    return manifest


def _copy(database: Database, part: Path) -> BackupContents:
    if database.is_sqlite:
        sqlite_copy.copy(database, part)
    else:
        postgres_dump.dump(postgres_dump.find_program(database), database, part)
    return _read(database, part)


def _read(database: Database, file: Path) -> BackupContents:
    if database.is_sqlite:
        return sqlite_copy.read(file)
    return postgres_dump.read(postgres_dump.find_program(database), file)


def _manifest(path: Path, now: datetime, part: Path, contents: BackupContents) -> BackupManifest:
    return BackupManifest(
        file=path.name,
        kind="sqlite" if path.suffix == ".sqlite3" else "postgresql",
        taken_at=now,
        program_version=importlib.metadata.version("billing-sync"),
        schema_revision=contents.schema_revision,
        database_id=contents.database_id,
        size=part.stat().st_size,
        sha256=digest_of(part),
        newest_version=contents.newest_version,
        rows=dict(contents.rows),
    )


def newest(session: Session) -> BackupRecord | None:
    """The newest one that was taken of this database, wherever its folder is."""
    return session.scalars(select(BackupRecord).order_by(BackupRecord.taken_at.desc()).limit(1)).one_or_none()


def _record(database: Database, manifest: BackupManifest) -> None:
    """Not in a database that accepts no write, such as a standby: its age is then that of the last one before."""
    try:
        with database.write() as session:
            session.execute(delete(BackupRecord).where(BackupRecord.taken_at <= manifest.taken_at))
            session.add(BackupRecord(file=manifest.file, taken_at=manifest.taken_at, size=manifest.size))
    except DBAPIError as error:
        if not is_read_only_error(error):
            raise


def _create_private(file: Path) -> None:
    os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _FILE_MODE))


def _flush(path: Path) -> None:
    """To the disk, so that a power cut leaves no empty file with a backup's name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete_files(*files: Path) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _time_of(text: str) -> datetime:
    return datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=UTC)


def taken_at(path: Path) -> datetime:
    """When the backup was begun, by its name. Raises ``ValueError``."""
    found = _NAME.fullmatch(path.name)
    if found is None:
        message = f"{path.name} is no backup's name"
        raise ValueError(message)
    return _time_of(found[1])
