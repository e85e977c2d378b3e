"""The history of one sync attempt: each write is stored before it is sent, and the provider's request id afterwards.

An attempt that only read, and left its link as it was, leaves no row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import BigInteger, bindparam, insert, update
from sqlalchemy.orm import Session

from core.db.database import Database
from core.db.models.history import AttemptOutcome, LinkHistory
from core.ports.spec import Provider

# A lease ends long before an attempt can send so many.
MAX_REQUESTS: Final = 50

_INSERT: Final = insert(LinkHistory).returning(LinkHistory.seq)
_UPDATE: Final = (
    update(LinkHistory)
    .where(LinkHistory.seq == bindparam("row_seq", type_=BigInteger()))
    .execution_options(synchronize_session=False)
)


@dataclass(slots=True, kw_only=True)
class AttemptHistory:
    org_id: str
    provider: Provider
    version: int
    _requests: list[dict[str, Any]] = field(default_factory=list)
    _last: dict[str, Any] | None = None
    _seq: int | None = None
    _at: datetime | None = None

    def add_request(self, database: Database, operation: str, now: datetime) -> None:
        """Call before a request is sent. A read is not stored."""
        self._last = None
        if operation.startswith("GET ") or len(self._requests) >= MAX_REQUESTS:
            return
        self._last = {"operation": operation, "at": now.isoformat(), "request_id": None}
        self._requests.append(self._last)
        self._at = self._at or now
        with database.write() as session:
            seq = self._save(session, {"requests": self._requests})
        self._seq = seq

    def add_response(self, request_id: str | None) -> None:
        """The answer to the last request; stored with the next request or the outcome."""
        if self._last is not None:
            self._last["request_id"] = request_id
            self._last = None

    def end(
        self,
        session: Session,
        now: datetime,
        outcome: AttemptOutcome,
        data: dict[str, Any],
        *,
        is_worth_a_row: bool = False,
    ) -> None:
        """Store the outcome in the caller's transaction; ``data``: the link afterwards, and the error.

        ``is_worth_a_row``: also if no write was sent.
        """
        if self._seq is None and not is_worth_a_row:
            return
        self._at = self._at or now
        self._save(session, {"requests": self._requests, **data}, outcome=outcome, ended_at=now)

    def _save(self, session: Session, data: dict[str, Any], **values: object) -> int:
        connection = session.connection()
        if self._seq is not None:
            connection.execute(_UPDATE.values(data=data, **values), {"row_seq": self._seq})
            return self._seq
        row = {
            "org_id": self.org_id,
            "provider": self.provider,
            "kind": "attempt",
            "at": self._at,
            "version": self.version,
            "data": data,
            **values,
        }
        seq: int = connection.execute(_INSERT, row).scalar_one()
        return seq
