"""Idempotency records: a repeated request with the same Idempotency-Key gets the same response and changes nothing.

The response is stored in the transaction that makes the change. Of two simultaneous requests the second waits for the
transaction of the first and finds its response. A failed request stores nothing, so its repeat counts as a new request.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete, select, tuple_, update
from sqlalchemy.orm import Session

from core.db.database import insert_once
from core.db.models.access import IdempotencyRecord

IDEMPOTENCY_RETENTION: Final = timedelta(hours=24)
_EXPIRED_BATCH_SIZE: Final = 20
_PENDING_STATUS: Final = 0


class IdempotencyKeyReusedError(Exception):
    """The Idempotency-Key was used for another request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestKey:
    """One request of one caller. ``fingerprint`` identifies its content; another content under the key is an error."""

    caller: str
    idempotency_key: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    status: int
    body: str


def find_or_reserve(session: Session, request_key: RequestKey, now: datetime) -> StoredResponse | None:
    """The stored response; ``None``: the request is new, and ``store`` must follow in this transaction.

    Raises ``IdempotencyKeyReusedError``.
    """
    _delete_expired(session, request_key, now)
    row = {
        "caller": request_key.caller,
        "idempotency_key": request_key.idempotency_key,
        "fingerprint": request_key.fingerprint,
        "status": _PENDING_STATUS,
        "body": "",
        "expires_at": now + IDEMPOTENCY_RETENTION,
    }
    if insert_once(session, IdempotencyRecord, row):
        return None
    record = session.get_one(IdempotencyRecord, (request_key.caller, request_key.idempotency_key))
    if record.fingerprint != request_key.fingerprint:
        raise IdempotencyKeyReusedError
    return StoredResponse(status=record.status, body=record.body)


def store(session: Session, request_key: RequestKey, response: StoredResponse) -> None:
    session.execute(
        update(IdempotencyRecord)
        .where(
            IdempotencyRecord.caller == request_key.caller,
            IdempotencyRecord.idempotency_key == request_key.idempotency_key,
        )
        .values(status=response.status, body=response.body)
        .execution_options(synchronize_session=False)
    )


def _delete_expired(session: Session, request_key: RequestKey, now: datetime) -> None:
    """Deletes the record of this key if it has expired, and a few others, so the table keeps little more than a day."""
    expired = (
        select(IdempotencyRecord.caller, IdempotencyRecord.idempotency_key)
        .where(IdempotencyRecord.expires_at < now)
        .limit(_EXPIRED_BATCH_SIZE)
        .with_for_update(skip_locked=True)
    )
    rows = [(row[0], row[1]) for row in session.execute(expired)]
    own = (request_key.caller, request_key.idempotency_key)
    session.execute(
        delete(IdempotencyRecord)
        .where(
            IdempotencyRecord.expires_at < now,
            tuple_(IdempotencyRecord.caller, IdempotencyRecord.idempotency_key).in_([own, *rows]),
        )
        .execution_options(synchronize_session=False)
    )
