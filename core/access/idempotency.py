"""Requests that come again under the same Idempotency-Key: answered as before, and nothing is done twice.

The answer is stored by the transaction that makes the change. Of two requests at once the second waits for the first
one's transaction and finds its answer; a request that failed left nothing, so its repeat is tried like a new one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete, select, tuple_, update
from sqlalchemy.orm import Session

from core.db.database import insert_once
from core.db.models.access import KeptAnswer

KEPT_FOR: Final = timedelta(hours=24)
_CLEARED_AT_ONCE: Final = 20
_IN_THE_MAKING: Final = 0


class KeyReusedError(Exception):
    """The Idempotency-Key was used for another request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request of one caller. ``fingerprint`` names what was asked; a key for something else is refused."""

    caller: str
    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    body: str


def earlier(session: Session, question: Question, now: datetime) -> Answer | None:
    """What the question was answered; ``None``: it is new, and ``keep`` must follow in this transaction.

    Raises ``KeyReusedError``.
    """
    _clear(session, question, now)
    row = {
        "caller": question.caller,
        "key": question.key,
        "fingerprint": question.fingerprint,
        "status": _IN_THE_MAKING,
        "body": "",
        "expires_at": now + KEPT_FOR,
    }
    if insert_once(session, KeptAnswer, row):
        return None
    kept = session.get_one(KeptAnswer, (question.caller, question.key))
    if kept.fingerprint != question.fingerprint:
        raise KeyReusedError
    return Answer(status=kept.status, body=kept.body)


def keep(session: Session, question: Question, answer: Answer) -> None:
    session.execute(
        update(KeptAnswer)
        .where(KeptAnswer.caller == question.caller, KeptAnswer.key == question.key)
        .values(status=answer.status, body=answer.body)
        .execution_options(synchronize_session=False)
    )


def _clear(session: Session, question: Question, now: datetime) -> None:
    """Its own, should it be old, and a few others: the table holds little more than a day's."""
    old = (
        select(KeptAnswer.caller, KeptAnswer.key)
        .where(KeptAnswer.expires_at < now)
        .limit(_CLEARED_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    rows = [(row[0], row[1]) for row in session.execute(old)]
    this = (question.caller, question.key)
    session.execute(
        delete(KeptAnswer)
        .where(KeptAnswer.expires_at < now, tuple_(KeptAnswer.caller, KeptAnswer.key).in_([this, *rows]))
        .execution_options(synchronize_session=False)
    )
