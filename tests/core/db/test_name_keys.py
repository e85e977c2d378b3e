"""The upgrade to schema 15 compares names by the new rule, and each organization goes on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import select

from core.catalog.plans import Catalog
from core.db.database import MIGRATIONS_FOLDER, Database
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.organizations.commands import NameTakenError, NewOrganization

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
# In the order in which they were created, with the key of the older rule.
ROWS: list[tuple[str, str, str, str]] = [
    ("org_z", "Acme", "acme", "active"),
    ("org_b", "Ac\u200bme", "ac\u200bme", "active"),
    ("org_a", "\uff21cme", "\uff41cme", "suspended"),
    ("org_c", "ACME", "acme", "deleted"),
    ("org_d", "Beta", "beta", "active"),
    ("org_e", "BETA", "beta org_e ", "active"),
    ("org_f", "Gone", "gone", "deleted"),
    ("org_g", "G\u00adone", "g\u00adone", "active"),
]
MANY = 2_100


@pytest.fixture
def older(database_url: str) -> Iterator[Database]:
    """Organizations under schema 14."""
    opened = Database(database_url)
    with opened.engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS_FOLDER))
        config.attributes["connection"] = connection
        command.upgrade(config, "14")
    with opened.engine.begin() as connection:
        tables = sa.MetaData()
        tables.reflect(connection, only=["organizations"])
        rows = [_row(number, *row) for number, row in enumerate(ROWS)]
        many = [
            _row(number, f"org_{number}", f"N\u00ad {number}", f"n\u00ad {number}", "active") for number in range(MANY)
        ]
        connection.execute(tables.tables["organizations"].insert(), [*rows, *many])
    yield opened
    opened.close()


def _row(number: int, org_id: str, name: str, key: str, status: str) -> dict[str, Any]:
    created_at = NOON + timedelta(seconds=number)
    return {
        "id": org_id,
        "name": name,
        "name_key": key,
        "plan_tier": "starter",
        "status": status,
        "created_at": created_at,
        "updated_at": created_at,
        "version": 1,
    }


def test_upgrade_keeps_every_name_and_lets_the_later_ones_share_it(older: Database) -> None:
    older.upgrade()
    with older.read() as session:
        stored = {row.id: row for row in session.scalars(select(Organization))}
    assert len(stored) == len(ROWS) + MANY
    assert {org_id: stored[org_id].name for org_id, *_ in ROWS} == {org_id: name for org_id, name, *_ in ROWS}
    assert {org_id: (stored[org_id].name_key, stored[org_id].may_share_name) for org_id, *_ in ROWS} == {
        "org_z": ("acme", False),
        "org_b": ("acme", True),
        "org_a": ("acme", True),
        "org_c": ("acme", False),
        "org_d": ("beta", False),
        "org_e": ("beta", True),
        "org_f": ("gone", False),
        "org_g": ("gone", False),
    }
    assert {stored[f"org_{number}"].name_key for number in range(MANY)} == {f"n {number}" for number in range(MANY)}


def test_after_the_upgrade_a_shared_name_is_changed_and_given_to_nobody_else(older: Database, plans: Catalog) -> None:
    older.upgrade()
    with older.write() as session:
        second = commands.lock(session, "org_b")
        assert second is not None
        commands.rename(ChangeContext(session, NOON), second, "Ac\u200bme")  # its present name: no change
        assert second.version == 1
        commands.rename(ChangeContext(session, NOON), second, "Ac me")
        assert (second.version, second.name_key, second.may_share_name) == (2, "ac me", False)
    for name in ("Acme", "Beta", "gone"):
        with older.write() as session, pytest.raises(NameTakenError):
            commands.create(ChangeContext(session, NOON), NewOrganization(name=name, plan_tier="starter"), plans)
