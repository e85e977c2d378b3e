"""The same question under the same key has one answer, also when it is asked twice at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Barrier

import pytest
from sqlalchemy import func, select

from core.access import idempotency
from core.access.idempotency import IDEMPOTENCY_RETENTION, IdempotencyKeyReusedError, RequestKey, StoredResponse
from core.db.database import Database
from core.db.models.access import IdempotencyRecord

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
QUESTION = RequestKey(caller="user:alice", idempotency_key="k1", fingerprint="a")


def ask(database: Database, question: RequestKey, body: str, now: datetime = NOW) -> StoredResponse:
    with database.write() as session:
        if (earlier := idempotency.find_or_reserve(session, question, now)) is not None:
            return earlier
        idempotency.store(session, question, StoredResponse(status=201, body=body))
        return StoredResponse(status=201, body=body)


def test_the_first_answer_is_given_again(database: Database) -> None:
    assert ask(database, QUESTION, '{"b": 1, "a": 2}').body == '{"b": 1, "a": 2}'
    assert ask(database, QUESTION, "another").body == '{"b": 1, "a": 2}'


def test_keys_of_different_callers_have_nothing_to_do_with_each_other(database: Database) -> None:
    ask(database, QUESTION, "alice's")
    assert ask(database, replace(QUESTION, caller="user:bob"), "bob's").body == "bob's"


def test_another_question_under_the_key_is_refused(database: Database) -> None:
    ask(database, QUESTION, "first")
    with pytest.raises(IdempotencyKeyReusedError):
        ask(database, replace(QUESTION, fingerprint="b"), "second")


def test_what_failed_may_be_asked_again(database: Database) -> None:
    def fail() -> None:
        with database.write() as session:
            assert idempotency.find_or_reserve(session, QUESTION, NOW) is None
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert ask(database, QUESTION, "now").body == "now"


def test_of_the_same_question_at_the_same_moment_one_is_answered_anew(database: Database) -> None:
    together = Barrier(6)

    def once(number: int) -> str:
        together.wait()
        return ask(database, QUESTION, str(number)).body

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(once, range(6)))) == 1


def test_an_answer_is_kept_for_a_day_and_then_forgotten(database: Database) -> None:
    for number in range(30):
        ask(database, replace(QUESTION, idempotency_key=f"k{number}"), "old")
    assert ask(database, replace(QUESTION, idempotency_key="k29"), "new", NOW + IDEMPOTENCY_RETENTION).body == "old"
    assert (
        ask(
            database,
            replace(QUESTION, idempotency_key="k29"),
            "new",
            NOW + IDEMPOTENCY_RETENTION + timedelta(seconds=1),
        ).body
        == "new"
    )
    ask(database, replace(QUESTION, idempotency_key="next"), "", NOW + IDEMPOTENCY_RETENTION + timedelta(seconds=1))
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(IdempotencyRecord)) == 2
