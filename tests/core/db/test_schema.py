"""Rolling deploys: a version goes on running on the next schema where that schema's migration says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sqlalchemy import text

from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.db import upgrade
from core.db.database import MIGRATIONS_FOLDER, Database, UnusableDatabaseError
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.organizations.commands import NewOrganization

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


def test_a_process_accepts_a_newer_schema_that_says_so(database: Database, tmp_path: Path, plans: Catalog) -> None:
    upgrade_to_next_versions(database, tmp_path / "next", OUR_REVISION)
    database.ensure_schema()
    database.upgrade()
    assert database.schema_state().current == str(OUR_REVISION + 1)
    with database.write() as session:
        commands.create(ChangeContext(session, utc_now()), NewOrganization(name="Acme", plan_tier="starter"), plans)


@pytest.mark.parametrize(
    "compatible_with",
    [(None,), (OUR_REVISION + 1,), (None, OUR_REVISION), (OUR_REVISION, None)],
    ids=["silent", "only its own", "after a silent one", "before a silent one"],
)
def test_it_refuses_any_other_newer_schema_as_what_it_is(
    database: Database, tmp_path: Path, compatible_with: tuple[int | None, ...]
) -> None:
    upgrade_to_next_versions(database, tmp_path / "next", *compatible_with)
    revision = OUR_REVISION + len(compatible_with)
    for refuses in (database.ensure_schema, database.upgrade):
        with pytest.raises(UnusableDatabaseError) as refused:
            refuses()
        assert str(refused.value) == (
            f"the database has schema {revision}, which is newer than this version's {OUR_REVISION}: install the newer "
            "version, `pip install --upgrade billing-sync`"
        )
    assert not database.accepts_schema()


def test_an_upgrade_keeps_one_row_of_what_is_compatible(database: Database, tmp_path: Path) -> None:
    upgrade_to_next_versions(database, tmp_path / "next", OUR_REVISION, OUR_REVISION + 1, OUR_REVISION)
    with database.read() as session:
        lowest = session.scalars(text("SELECT lowest_revision FROM schema_compatibility")).all()
    assert lowest == [OUR_REVISION + 1]
