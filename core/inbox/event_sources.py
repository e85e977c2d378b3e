"""Event sources: the first service account that sends from a source over HTTP owns it, until an operator changes that.

An operator may also give a source to an account before anybody sends from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.db.database import acquire_advisory_locks, insert_once
from core.db.models.access import ServiceAccount
from core.db.models.inbox import EventSource


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInfo:
    source: str
    account_id: str
    account_name: str
    bound_at: datetime


def owner(session: Session, source: str, account_id: str, now: datetime) -> str:
    """The account that owns the source: ``account_id`` if nobody did. It stays so until the transaction ends."""
    acquire_advisory_locks(session, _lock_name(source), shared=True)
    row = session.get(EventSource, source, populate_existing=True)
    if row is not None:
        return row.account_id
    if insert_once(session, EventSource, {"source": source, "account_id": account_id, "bound_at": now}):
        return account_id
    return session.get_one(EventSource, source, populate_existing=True).account_id


def bind(session: Session, source: str, account_id: str, now: datetime) -> None:
    """Give the source to this account, whoever owns it."""
    acquire_advisory_locks(session, _lock_name(source))
    row = session.get(EventSource, source, populate_existing=True)
    if row is None:
        session.add(EventSource(source=source, account_id=account_id, bound_at=now))
    else:
        row.account_id, row.bound_at = account_id, now


def _lock_name(source: str) -> str:
    return f"event_source:{source}"


def list_all(session: Session) -> list[SourceInfo]:
    """By their names."""
    rows = session.execute(
        select(EventSource, ServiceAccount.name)
        .join(ServiceAccount, ServiceAccount.id == EventSource.account_id)
        .order_by(EventSource.source)
    )
    return [
        SourceInfo(source=row.source, account_id=row.account_id, account_name=name, bound_at=row.bound_at)
        for row, name in rows
    ]
