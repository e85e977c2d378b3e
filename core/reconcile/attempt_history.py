"""The history of one sync attempt: each write is stored before it is sent, and the provider's request id afterwards.

A write is stored in the transaction that renews the lease for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import BigInteger, String, bindparam, insert, update
from sqlalchemy.orm import Session

from core.db.models.history import AttemptOutcome, LinkHistory
from core.ports.errors import ProviderError
from core.ports.spec import Provider

# What the history of an organization shows of a link as it was.
HISTORY_COLUMNS: Final = ("state", "customer_id", "subscription_id", "sold_plan", "applied_next_plan", "payer_id")
# A lease ends long before an attempt can send so many.
MAX_REQUESTS: Final = 50

_RESULT: Final = ("data", "outcome", "ended_at")
# Built once: an attempt sends each of them, and to build a statement takes longer than to send it.
_INSERT: Final = insert(LinkHistory).returning(LinkHistory.seq)
_UPDATE: Final = (
    update(LinkHistory)
    .where(
        LinkHistory.seq == bindparam("row_seq", type_=BigInteger()),
        LinkHistory.org_id == bindparam("row_org", type_=String()),
    )
    .values({name: bindparam(f"new_{name}", type_=LinkHistory.__table__.c[name].type) for name in _RESULT})
    .execution_options(synchronize_session=False)
)


@dataclass(slots=True, kw_only=True)
class AttemptHistory:
    org_id: str
    provider: Provider
    version: int
    _requests: list[dict[str, Any]] = field(default_factory=list)
    _last: dict[str, Any] | None = None
    _is_stored: bool = True
    _seq: int | None = None
    _at: datetime | None = None
    _link: dict[str, Any] = field(default_factory=dict)

    @property
    def has_writes(self) -> bool:
        return bool(self._requests)

    def add_request(self, operation: str, now: datetime) -> None:
        """Call before a write is sent, and ``store`` in a transaction that ends before that."""
        if len(self._requests) >= MAX_REQUESTS:
            message = f"an attempt at {self.org_id} sends more than {MAX_REQUESTS} writes"
            raise RuntimeError(message)
        self._last = {"operation": operation, "at": now.isoformat(), "request_id": None}
        self._requests.append(self._last)
        self._at = self._at or now
        self._is_stored = False

    def drop_request(self) -> None:
        """The write that was added last was not sent, and will not be."""
        self._requests.pop()
        self._last = None

    def add_read(self) -> None:
        """Call before a read is sent: the next answer is not that of the last write, which then got none."""
        self._last = None

    def add_response(self, request_id: str | None) -> None:
        """The answer to the last write, if it is one; stored with the next write or the outcome."""
        if self._last is not None:
            self._last["request_id"] = request_id
            self._last = None

    def store(self, session: Session) -> int | None:
        """Store a write that was added. Returns the number of the row, for ``confirm`` after the commit."""
        return self._seq if self._is_stored else self._save(session, {"requests": self._requests})

    def confirm(self, seq: int | None, link_values: Mapping[str, Any]) -> None:
        """The transaction of ``store`` was committed, and wrote ``link_values``."""
        self._seq, self._is_stored = seq, True
        self._link |= {name: link_values[name] for name in HISTORY_COLUMNS if name in link_values}

    def end(  # noqa: PLR0913, PLR0917 - an outcome, and what the link is after it
        self,
        session: Session,
        now: datetime,
        outcome: AttemptOutcome,
        link: Mapping[str, Any],
        written: Mapping[str, Any],
        error: ProviderError | None = None,
    ) -> None:
        """Store the outcome in the caller's transaction.

        ``link``: its values when the attempt began; empty: what it is now is not known. ``written``: those that the
        transaction writes. An attempt that wrote nothing to the provider has a row only if it completed something or
        needs an operator.
        """
        if self._seq is None and outcome not in {"synced", "parked", "on_hold"}:
            return
        self._at = self._at or now
        data: dict[str, Any] = {"requests": self._requests}
        if link:
            new = {name: written[name] for name in HISTORY_COLUMNS if name in written}
            data["link"] = {**link, **self._link, **new}
        if error is not None:
            data["error"] = {
                "kind": error.kind,
                "code": error.code,
                "message": error.message,
                "request_id": error.request_id,
            }
        self._save(session, data, outcome, now)

    def _save(
        self,
        session: Session,
        data: dict[str, Any],
        outcome: AttemptOutcome | None = None,
        ended_at: datetime | None = None,
    ) -> int:
        connection = session.connection()
        if self._seq is not None:
            connection.execute(
                _UPDATE,
                {
                    "row_seq": self._seq,
                    "row_org": self.org_id,
                    "new_data": data,
                    "new_outcome": outcome,
                    "new_ended_at": ended_at,
                },
            )
            return self._seq
        row = {
            "org_id": self.org_id,
            "provider": self.provider,
            "kind": "attempt",
            "at": self._at,
            "version": self.version,
            "data": data,
            "outcome": outcome,
            "ended_at": ended_at,
        }
        seq: int = connection.execute(_INSERT, row).scalar_one()
        return seq
