"""What a backup contains, read from the backup itself, and the error of a backup that cannot be taken or used."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core.db.models import Base

REVISION_TABLE: Final = "alembic_version"
_READ_BYTES: Final = 1024 * 1024


class BackupError(Exception):
    """No backup was taken, or one cannot be used. The message is one sentence with the way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupContents:
    """``rows``: by table. ``newest_version``: the highest of an organization; 0 without organizations."""

    schema_revision: str
    database_id: str
    newest_version: int
    rows: Mapping[str, int]


def our_tables() -> list[str]:
    """In the order of their names, with the one that has the revision of the schema."""
    return sorted({*Base.metadata.tables, REVISION_TABLE})


def digest_of(file: Path) -> str:
    """SHA-256 of the whole file, in hex."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
