"""The ledger finds what is lost, and counts what is only repeated."""

from __future__ import annotations

from typing import Any

from tests.generated import ledger
from tests.generated.ledger import EventKey, StoredEvent
from tests.generated.messages import Fate, GeneratedMessage
from tests.generated.values import encoded

RENAMED: dict[str, Any] = {"id": "1", "source": "/a", "type": "organization.renamed", "data": {"name": "A"}}
Rows = dict[EventKey, list[StoredEvent]]


def message(event: object, fate: Fate = "row") -> GeneratedMessage:
    return GeneratedMessage(number=1, kind="any", fate=fate, body=encoded([[event], {}, {}]))


def rows_of(*messages: GeneratedMessage, status: str = "applied") -> Rows:
    rows: Rows = {}
    for each in messages:
        key, content = ledger.expected_row(each)
        rows.setdefault(key, []).append(StoredEvent(content, status, from_queue=True))
    return rows


def test_the_same_message_again_is_repeated_and_needs_no_row_of_its_own() -> None:
    found = ledger.account([message(RENAMED)] * 3, rows_of(message(RENAMED)), dropped_lines=0)
    assert (found.statuses["applied"], found.repeated, found.lost, found.problems) == (1, 2, 0, [])


def test_a_message_without_its_row_is_lost() -> None:
    found = ledger.account([message(RENAMED), message({})], rows_of(message(RENAMED)), dropped_lines=0)
    assert found.lost == 1
    assert [problem.partition(":")[0] for problem in found.problems] == ["lost"]


def test_another_message_under_a_used_id_is_lost_without_a_row_of_its_own() -> None:
    other = message(RENAMED | {"data": {"name": "B"}})
    assert ledger.account([message(RENAMED), other], rows_of(message(RENAMED)), dropped_lines=0).lost == 1
    assert ledger.account([message(RENAMED), other], rows_of(message(RENAMED), other), dropped_lines=0).problems == []


def test_a_row_that_nobody_sent_a_wrong_status_and_a_drop_without_a_line_are_problems() -> None:
    assert ledger.account([], rows_of(message(RENAMED)), dropped_lines=0).problems
    assert ledger.account([message(7, "rejected")], rows_of(message(7)), dropped_lines=0).problems
    assert ledger.account([message(7, "dropped")], {}, dropped_lines=0).problems


def test_numbers_are_compared_as_the_databases_return_them() -> None:
    sent, stored = message(RENAMED | {"data": {"n": 1e23}}), message(RENAMED | {"data": {"n": 10**23}})
    assert ledger.expected_row(sent) == ledger.expected_row(stored)
