"""What waits for the commit: it happens after it, and never for a change that was rolled back."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from core.db import after_commit
from core.db.database import Database


class RefusedError(Exception):
    pass


def change_and_refuse(database: Database, seen: list[str]) -> None:
    with database.write() as session:
        after_commit.call(session, lambda: seen.append("called"))
        raise RefusedError


def count_locks(database: Database) -> int:
    with database.read() as session:
        return int(session.scalar(text("SELECT count(*) FROM job_locks")) or 0)


def test_an_action_runs_once_and_sees_what_was_committed(database: Database) -> None:
    seen: list[int] = []
    with database.write() as session:
        session.execute(text("INSERT INTO job_locks (name) VALUES ('one')"))
        after_commit.call(session, lambda: seen.append(count_locks(database)))
        assert seen == []
    assert seen == [1]


def test_no_action_runs_for_a_change_that_is_rolled_back(database: Database) -> None:
    seen: list[str] = []
    with pytest.raises(RefusedError):
        change_and_refuse(database, seen)
    assert seen == []
