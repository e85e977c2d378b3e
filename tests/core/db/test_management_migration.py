"""The upgrade to observe mode: whose the objects of the links are that were there before."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from core.db import upgrade
from core.db.database import MIGRATIONS_FOLDER, Database

REVISION_BEFORE = 18
INSERT_ORGANIZATION = (
    "INSERT INTO organizations (id, name, name_key, plan_tier, status, version, created_at, updated_at) "
    "VALUES ('org_1', 'Acme', 'acme', 'starter', 'active', 1, :at, :at)"
)
INSERT_LINK = (
    "INSERT INTO billing_links (org_id, provider, customer_id, account_id, synced_at, desired_version, "
    "applied_version, customer_state, plan_state, state, attempts, next_sweep_at, generation) "
    "VALUES ('org_1', 'stripe', :customer_id, :account_id, :synced_at, 1, 0, :customer_state, 'unknown', 'active', 0, "
    ":at, 0)"
)
AT = "2026-11-01 12:00:00+00:00"


@pytest.fixture
def old_database(database_url: str, tmp_path: Path) -> Iterator[Database]:
    """An empty database with the schema before observe mode."""
    folder = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS_FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (folder / "versions").glob("v*.py"):
        if int(file.name[1:5]) > REVISION_BEFORE:
            file.unlink()
    opened = Database(database_url)
    with opened.engine.begin() as connection:
        upgrade.to_head(connection, folder)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("customer_id", "account_id", "synced_at", "customer_state", "ownership"),
    [
        ("cus_1", None, None, "unconfirmed", "theirs"),
        ("cus_1", None, AT, "unconfirmed", "theirs"),
        ("cus_1", "acct_1", None, "unconfirmed", "ours"),
        ("cus_1", "acct_1", AT, "applied", "ours"),
        (None, None, None, "absent", "ours"),
    ],
    ids=["imported", "another id was set after a sync", "retried before its first sync", "synced", "not created"],
)
def test_what_came_from_outside_and_was_never_written_is_theirs(  # noqa: PLR0913, PLR0917 - one row of a table
    old_database: Database,
    customer_id: str | None,
    account_id: str | None,
    synced_at: str | None,
    customer_state: str,
    ownership: str,
) -> None:
    with old_database.engine.begin() as connection:
        connection.execute(text(INSERT_ORGANIZATION), {"at": AT})
        connection.execute(
            text(INSERT_LINK),
            {
                "customer_id": customer_id,
                "account_id": account_id,
                "synced_at": synced_at,
                "customer_state": customer_state,
                "at": AT,
            },
        )
    old_database.upgrade()
    with old_database.read() as session:
        assert session.scalar(text("SELECT ownership FROM billing_links")) == ownership
