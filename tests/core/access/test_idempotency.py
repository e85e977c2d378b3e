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
REQUEST = RequestKey(caller="user:alice", idempotency_key="k1", fingerprint="a")


def respond(database: Database, request: RequestKey, body: str, now: datetime = NOW) -> StoredResponse:
    with database.write() as session:
        if (earlier := idempotency.find_or_reserve(session, request, now)) is not None:
            return earlier
        idempotency.store(session, request, StoredResponse(status=201, body=body))
        return StoredResponse(status=201, body=body)


def test_the_first_answer_is_given_again(database: Database) -> None:
    assert respond(database, REQUEST, '{"b": 1, "a": 2}').body == '{"b": 1, "a": 2}'
    assert respond(database, REQUEST, "another").body == '{"b": 1, "a": 2}'


def test_keys_of_different_callers_have_nothing_to_do_with_each_other(database: Database) -> None:
    respond(database, REQUEST, "alice's")
    assert respond(database, replace(REQUEST, caller="user:bob"), "bob's").body == "bob's"


def test_another_question_under_the_key_is_refused(database: Database) -> None:
    respond(database, REQUEST, "first")
    with pytest.raises(IdempotencyKeyReusedError):
        respond(database, replace(REQUEST, fingerprint="b"), "second")


def test_what_failed_may_be_asked_again(database: Database) -> None:
    def fail() -> None:
        with database.write() as session:
            assert idempotency.find_or_reserve(session, REQUEST, NOW) is None
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert respond(database, REQUEST, "now").body == "now"


def test_of_the_same_question_at_the_same_moment_one_is_answered_anew(database: Database) -> None:
    together = Barrier(6)

    def once(number: int) -> str:
        together.wait()
        return respond(database, REQUEST, str(number)).body

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(once, range(6)))) == 1


def test_an_answer_is_kept_for_a_day_and_then_forgotten(database: Database) -> None:
    for number in range(30):
        respond(database, replace(REQUEST, idempotency_key=f"k{number}"), "old")
    assert respond(database, replace(REQUEST, idempotency_key="k29"), "new", NOW + IDEMPOTENCY_RETENTION).body == "old"
    assert (
        respond(
            database,
            replace(REQUEST, idempotency_key="k29"),
            "new",
            NOW + IDEMPOTENCY_RETENTION + timedelta(seconds=1),
        ).body
        == "new"
    )
    respond(database, replace(REQUEST, idempotency_key="next"), "", NOW + IDEMPOTENCY_RETENTION + timedelta(seconds=1))
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(IdempotencyRecord)) == 2
