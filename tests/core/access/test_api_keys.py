"""A key opens what its scopes say, from its making to its revocation, and is stored nowhere."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from core.access import api_keys
from core.common.validation import InvalidChangeError
from core.db.database import Database

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def test_a_key_is_known_by_itself_alone_until_it_is_revoked(database: Database) -> None:
    with database.write() as session:
        report, key = api_keys.create(session, "signup", ["events:write", "organizations:read"], NOW)
    with database.read() as session:
        service = api_keys.find(session, key)
        assert service is not None
        assert (service.id, service.name) == (report.id, "signup")
        assert sorted(service.scopes) == ["events:write", "organizations:read"]
        assert api_keys.find(session, key[:-1] + ("A" if key[-1] != "A" else "B")) is None
        assert api_keys.find(session, report.id) is None
        assert api_keys.find(session, "") is None
    with database.write() as session:
        assert api_keys.revoke(session, report.id, NOW)
        assert api_keys.revoke(session, report.id, NOW)
        assert not api_keys.revoke(session, "0" * 16, NOW)
    with database.read() as session:
        assert api_keys.find(session, key) is None
        assert [(each.id, each.revoked_at) for each in api_keys.list_all(session)] == [(report.id, NOW)]


def test_the_key_is_not_in_the_database(database: Database) -> None:
    with database.write() as session:
        _, key = api_keys.create(session, "signup", ["events:write"], NOW)
    with database.read() as session:
        stored = str(session.execute(text("SELECT * FROM api_keys")).all())
    assert key[-43:] not in stored


@pytest.mark.parametrize(
    ("name", "scopes", "sentence"),
    [
        ("", ["events:write"], "name must be one line"),
        ("a\nb", ["events:write"], "name must be one line"),
        ("x" * 101, ["events:write"], "name must be one line"),
        ("signup", [], "scopes must name at least one of organizations:read"),
        ("signup", ["all"], "scope must be one of organizations:read"),
    ],
)
def test_a_key_that_nobody_can_tell_apart_or_use_is_refused(
    database: Database, name: str, scopes: list[str], sentence: str
) -> None:
    with database.write() as session, pytest.raises(InvalidChangeError, match=sentence):
        api_keys.create(session, name, scopes, NOW)
