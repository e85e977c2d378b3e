"""The history of billing links: what operators did with a link, stored in the transaction that does it.

``core.reconcile.attempt_history`` stores what the sync attempts sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from core.common.json_types import Json
from core.db.models.history import HistoryKind, LinkHistory
from core.events.event_types import ChangeContext

MAX_DELETED_ROWS = 1000

_INSERT = insert(LinkHistory)


def record_actions(
    change: ChangeContext, org_id: str, providers: Iterable[str], kind: HistoryKind, **data: Json
) -> None:
    """One row for each of the links. ``data`` has ids and codes only."""
    rows = [
        {
            "org_id": org_id,
            "provider": provider,
            "kind": kind,
            "at": change.now,
            "ended_at": change.now,
            "actor": change.cause.actor,
            "source": change.cause.source,
            "key_id": change.cause.key_id,
            "data": data,
        }
        for provider in providers
    ]
    if rows:
        change.session.connection().execute(_INSERT, rows)


def delete_expired(session: Session, before: datetime) -> int:
    """Delete a batch of rows that are older. Returns how many there were."""
    expired = select(LinkHistory.seq).where(LinkHistory.at < before).order_by(LinkHistory.at).limit(MAX_DELETED_ROWS)
    deleted = session.scalars(
        delete(LinkHistory)
        .where(LinkHistory.seq.in_(expired))
        .returning(LinkHistory.seq)
        .execution_options(synchronize_session=False)
    )
    return len(deleted.all())
