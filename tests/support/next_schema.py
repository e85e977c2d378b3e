"""The schema of a newer version, made by its own migrations as `db upgrade` of that version does."""

from __future__ import annotations

import shutil
from pathlib import Path

from core.db import upgrade
from core.db.database import MIGRATIONS_FOLDER, Database

OUR_REVISION = max(int(file.name[1:5]) for file in (MIGRATIONS_FOLDER / "versions").glob("v*.py"))
NEXT_MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "{revision}", "{before}", None, None
{said}


def upgrade() -> None:
    op.add_column("organizations", sa.Column("new_{revision}", sa.String(8), nullable=True))
"""


def upgrade_to_next_versions(database: Database, folder: Path, *compatible_with: int | None) -> None:
    """What `db upgrade` of a newer version does, with one migration more for each argument."""
    shutil.copytree(MIGRATIONS_FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for revision, oldest in enumerate(compatible_with, OUR_REVISION + 1):
        said = "" if oldest is None else f'compatible_with = "{oldest}"'
        file = folder / "versions" / f"v{revision:04}_next.py"
        file.write_text(NEXT_MIGRATION.format(revision=revision, before=revision - 1, said=said), encoding="utf-8")
    with database.engine.begin() as connection:
        upgrade.to_head(connection, folder)
