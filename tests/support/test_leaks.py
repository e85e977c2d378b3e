"""The search for leaks finds a secret anywhere, and a name only outside the columns for names."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.inbox import ServiceEvent
from core.org_manager import OrgManager
from tests.support import leaks

NAME = "Übermut & Söhne"


@pytest.fixture
def organization(database: Database, database_url: str) -> None:
    """An organization of that name in a database with the schema."""
    assert database
    manager = OrgManager(database_url=database_url)
    manager.create_organization(NAME)
    manager.close()


def leaks_found(database_url: str) -> list[str]:
    return leaks.found(leaks.rows(database_url, with_names=False), leaks.names(database_url))


@pytest.mark.usefixtures("organization")
def test_a_name_may_stand_in_its_own_row_and_nowhere_else(database: Database, database_url: str) -> None:
    assert leaks.names(database_url) == {NAME}
    assert leaks_found(database_url) == []
    with database.write() as session:
        session.execute(text("UPDATE billing_links SET error_message = :said"), {"said": f"no such customer: {NAME}"})
    assert leaks_found(database_url) == [f"billing_links.error_message: {NAME}"]


def test_a_name_is_found_as_text_and_as_json(tmp_path: Path) -> None:
    (tmp_path / "worker.log").write_text('{"event": "oh", "name": "\\u00dcbermut & S\\u00f6hne"}\n')
    (tmp_path / "input.json").write_text(NAME)
    assert [place.partition(":")[0] for place in leaks.found(leaks.files(tmp_path, "*.log"), [NAME])] == ["worker.log"]


def test_a_key_is_found_in_any_file_and_any_cell(database: Database, database_url: str, tmp_path: Path) -> None:
    (tmp_path / "schedule.dat").write_bytes(b"\x00\xff sk_test_key \x00")
    assert leaks.found(leaks.files(tmp_path, "*"), {"sk_test_key"}) == ["schedule.dat: sk_test_key"]
    with database.write() as session:
        session.add(
            ServiceEvent(source="s", id="i", received_at=utc_now(), status="rejected", data={"token": "sk_test_key"})
        )
    rows = leaks.rows(database_url, with_names=True)
    assert leaks.found(rows, {"sk_test_key"}) == ["service_events.data: sk_test_key"]


@pytest.mark.parametrize(
    ("address", "secret"),
    [
        ("postgresql://me:p%40ss@db/x", {"p%40ss", "p@ss"}),
        ("redis://:word@host:6379/0", {"word"}),
        ("amqp://guest:guest@host//", {"guest:guest"}),
        ("sqlite:///data/x.db", set()),
    ],
)
def test_the_password_of_an_address_is_a_secret(address: str, secret: set[str]) -> None:
    assert leaks.secrets_of({"DATABASE_URL": address}) == secret
