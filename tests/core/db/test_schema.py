"""Rolling deploys: a version goes on running on the next schema where that schema's migration says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.db.database import Database, UnusableDatabaseError
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.organizations.commands import NewOrganization
from tests.support.next_schema import OUR_REVISION, upgrade_to_next_versions


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
