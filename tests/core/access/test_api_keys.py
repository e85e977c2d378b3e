"""A key opens what its scopes say, from its making to its revocation, and is stored nowhere."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

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
        service = api_keys.find(session, key, NOW)
        assert service is not None
        assert (service.key_id, service.account_id, service.account_name) == (report.id, report.account_id, "signup")
        assert sorted(service.scopes) == ["events:write", "organizations:read"]
        assert api_keys.find(session, key[:-1] + ("A" if key[-1] != "A" else "B"), NOW) is None
        assert api_keys.find(session, report.id, NOW) is None
        assert api_keys.find(session, "", NOW) is None
    with database.write() as session:
        assert api_keys.revoke(session, report.id, NOW)
        assert api_keys.revoke(session, report.id, NOW)
        assert not api_keys.revoke(session, "0" * 16, NOW)
    with database.read() as session:
        assert api_keys.find(session, key, NOW) is None
        assert [(each.id, each.revoked_at) for each in api_keys.list_all(session)] == [(report.id, NOW)]


def test_an_account_has_several_keys_and_one_replaces_another(database: Database) -> None:
    with database.write() as session:
        first, first_key = api_keys.create(session, "signup", ["events:write"], NOW)
        second, second_key = api_keys.create(
            session, "signup 2027", ["organizations:read"], NOW, account_id=first.account_id
        )
        api_keys.revoke(session, first.id, NOW)
    assert (second.account_id, second.account_name, second.name) == (first.account_id, "signup", "signup 2027")
    with database.read() as session:
        service = api_keys.find(session, second_key, NOW)
        assert api_keys.find(session, first_key, NOW) is None
    assert service is not None
    assert (service.account_id, service.key_id) == (first.account_id, second.id)
    assert service.scopes == {"organizations:read"}


def test_a_key_ends_at_its_time_also_in_the_transaction_that_writes(database: Database) -> None:
    end = NOW + timedelta(days=1)
    with database.write() as session:
        report, key = api_keys.create(session, "signup", ["events:write"], NOW, expires_at=end)
    before = end - timedelta(microseconds=1)
    with database.write() as session:
        assert api_keys.find(session, key, before) is not None
        assert api_keys.lock(session, report.id, before) is not None
        assert api_keys.find(session, key, end) is None
        assert api_keys.lock(session, report.id, end) is None


def test_no_key_is_made_for_an_account_that_does_not_exist(database: Database) -> None:
    with database.write() as session, pytest.raises(InvalidChangeError, match="no such service account"):
        api_keys.create(session, "signup", ["events:write"], NOW, account_id="0" * 16)


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


# SQLite has one writer at a time, and grants no order.
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_key_in_steady_use_does_not_delay_its_own_revocation(database: Database) -> None:
    with database.write() as session:
        info, _ = api_keys.create(session, "busy", ["events:write"], NOW)
    revoking, revoked = threading.Event(), threading.Event()
    lanes, late = 6, []

    def use() -> None:
        while not revoked.is_set():
            is_late = revoking.is_set()
            with database.write() as session:
                if api_keys.lock(session, info.id, NOW) is None:
                    return
                time.sleep(0.005)  # some lane uses the key at every moment
            late.extend([1] if is_late else [])

    with ThreadPoolExecutor(lanes) as pool:
        used = [pool.submit(use) for _ in range(lanes)]
        time.sleep(0.1)
        revoking.set()
        with database.write() as session:
            assert api_keys.revoke(session, info.id, NOW)
        revoked.set()
        for each in used:
            each.result()
    # Those that asked before the revocation did, and no others.
    assert len(late) <= 2 * lanes
