"""Stored discoveries: stage, cursor, and the rows that are proposed. Each step is one transaction.

A process that resumes a run takes over its lease token. The process that had it before stops at its next step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal
from uuid import uuid4

from pydantic import TypeAdapter
from sqlalchemy import delete, exists, func, insert, select, tuple_, update
from sqlalchemy.orm import Session

from core.adoption.row import ADOPTION_ACTIONS, AdoptionAction, AdoptionRow
from core.db.database import Database
from core.db.models.adoption import DiscoveryListing, DiscoveryProposal, DiscoveryRecord

DiscoveryStage = Literal[
    "organizations",
    "stripe_customers",
    "stripe_subscriptions",
    "lago_customers",
    "lago_subscriptions",
    "lago_discounts",
    "matching",
    "missing",
]
DISCOVERY_STAGES: Final[tuple[DiscoveryStage, ...]] = (
    "organizations",
    "stripe_customers",
    "stripe_subscriptions",
    "lago_customers",
    "lago_subscriptions",
    "lago_discounts",
    "matching",
    "missing",
)
MAX_DISCOVERY_AGE: Final = timedelta(hours=6)  # of what was listed; an older run is begun anew
# One that was resumed just before that age comes to its end.
_STORED_DISCOVERY_AGE: Final = MAX_DISCOVERY_AGE + timedelta(hours=1)
_PROPOSALS_PER_PAGE: Final = 500
_MAX_DELETED_ROWS: Final = 1_000

_ROW_ADAPTER: Final = TypeAdapter(AdoptionRow)


class DiscoveryTakenOverError(Exception):
    """Another process took over this run, so this one stops."""


@dataclass(slots=True, kw_only=True)
class DiscoveryRun:
    """``stage`` None: everything is proposed. ``managed``: organizations for which nothing is left to adopt.

    ``suggested``: organizations that may be the ones of customers in conflicts. It is not stored, because a run that is
    resumed matches anew. ``observed``: those of them that are observed until that is decided.
    """

    id: str
    lease_token: str
    stage: DiscoveryStage | None
    cursor: str | None
    processed: int
    managed: int
    started_at: datetime
    suggested: set[str] = field(default_factory=set)
    observed: list[str] = field(default_factory=list)

    def advance(self, cursor: str | None, processed: int) -> None:
        """Moves on within the stage; without a cursor, to the next stage."""
        if cursor is not None:
            self.cursor, self.processed = cursor, self.processed + processed
            return
        remaining = DISCOVERY_STAGES[DISCOVERY_STAGES.index(self.stage) + 1 :] if self.stage is not None else ()
        self.stage, self.cursor, self.processed = (remaining[0] if remaining else None), None, 0


def resume(session: Session, now: datetime) -> DiscoveryRun:
    """The run that was interrupted, whose lease token is now the caller's; if there is none, a new one."""
    row = session.scalars(
        select(DiscoveryRecord)
        .where(DiscoveryRecord.started_at > now - MAX_DISCOVERY_AGE)
        .order_by(DiscoveryRecord.started_at.desc())
        .limit(1)
        .with_for_update()
    ).one_or_none()
    if row is None:
        session.execute(delete(DiscoveryRecord))
        row = DiscoveryRecord(
            run_id=str(uuid4()), stage=DISCOVERY_STAGES[0], cursor=None, processed=0, managed=0, started_at=now
        )
        session.add(row)
    row.lease_token = str(uuid4())
    session.flush()
    return DiscoveryRun(
        id=row.run_id,
        lease_token=row.lease_token,
        stage=next((each for each in DISCOVERY_STAGES if each == row.stage), None),
        cursor=row.cursor,
        processed=row.processed,
        managed=row.managed,
        started_at=row.started_at,
    )


def match_again(session: Session, run: DiscoveryRun) -> None:
    """What was listed stays, and what was proposed is dropped: our rows and plans.toml may have changed meanwhile."""
    if run.stage not in {"matching", "missing", None}:
        return
    session.execute(delete(DiscoveryProposal).where(DiscoveryProposal.run_id == run.id))
    session.execute(update(DiscoveryListing).where(DiscoveryListing.run_id == run.id).values(is_matched=False))
    run.stage, run.cursor, run.processed, run.managed = "matching", None, 0, 0
    save_progress(session, run)


def save_progress(session: Session, run: DiscoveryRun) -> None:
    """Stores how far the run is. Raises ``DiscoveryTakenOverError``."""
    saved = session.execute(
        update(DiscoveryRecord)
        .where(DiscoveryRecord.run_id == run.id, DiscoveryRecord.lease_token == run.lease_token)
        .values(stage=run.stage or "done", cursor=run.cursor, processed=run.processed, managed=run.managed)
        .returning(DiscoveryRecord.run_id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if saved is None:
        message = (
            "another `billing-sync adopt discover` took over this run; wait for its table, or run it again to continue "
            "the run there"
        )
        raise DiscoveryTakenOverError(message)


def add_proposals(session: Session, run: DiscoveryRun, rows: Sequence[AdoptionRow]) -> None:
    if not rows:
        return
    last = session.scalar(select(func.max(DiscoveryProposal.seq)).where(DiscoveryProposal.run_id == run.id))
    first = 0 if last is None else last + 1
    session.execute(
        insert(DiscoveryProposal),
        [
            {
                "run_id": run.id,
                "seq": first + number,
                "org_id": row.org_id,
                "action": row.action,
                "body": _ROW_ADAPTER.dump_python(row, mode="json"),
            }
            for number, row in enumerate(rows)
        ],
    )


def counts(session: Session, run: DiscoveryRun) -> dict[AdoptionAction, int]:
    """How many rows have each action."""
    found = session.execute(
        select(DiscoveryProposal.action, func.count())
        .where(DiscoveryProposal.run_id == run.id)
        .group_by(DiscoveryProposal.action)
    )
    by_action = {row[0]: row[1] for row in found}
    return {action: by_action.get(action, 0) for action in ADOPTION_ACTIONS}


def adopted_org_ids(session: Session, run: DiscoveryRun) -> set[str]:
    """The organizations that exist and that a row proposes to adopt."""
    found = session.scalars(
        select(DiscoveryProposal.org_id).where(
            DiscoveryProposal.run_id == run.id,
            DiscoveryProposal.action.in_(("adopt", "adopt-keep-price")),
            DiscoveryProposal.org_id.is_not(None),
        )
    )
    return {each for each in found if each is not None}


def read_rows(database: Database, run: DiscoveryRun) -> Iterator[AdoptionRow]:
    """All rows by action, in pages, so that no transaction is open while a row is written."""
    for action in ADOPTION_ACTIONS:
        last_seq = -1
        while True:
            with database.read() as session:
                page = session.execute(
                    select(DiscoveryProposal.seq, DiscoveryProposal.body)
                    .where(
                        DiscoveryProposal.run_id == run.id,
                        DiscoveryProposal.action == action,
                        DiscoveryProposal.seq > last_seq,
                    )
                    .order_by(DiscoveryProposal.seq)
                    .limit(_PROPOSALS_PER_PAGE)
                ).all()
            if not page:
                break
            last_seq = page[-1][0]
            for _, body in page:
                yield _ROW_ADAPTER.validate_python(body)


def delete_expired(session: Session, now: datetime) -> None:
    """Delete a batch of what an old run listed and proposed, with names and addresses, and at last the run."""
    run_id = session.scalar(
        select(DiscoveryRecord.run_id).where(DiscoveryRecord.started_at <= now - _STORED_DISCOVERY_AGE).limit(1)
    )
    if run_id is None:
        return
    listings, proposals = DiscoveryListing, DiscoveryProposal
    listing_key = tuple_(listings.provider, listings.object_type, listings.id)
    listed = select(listings.provider, listings.object_type, listings.id).where(listings.run_id == run_id)
    proposed = select(proposals.seq).where(proposals.run_id == run_id).limit(_MAX_DELETED_ROWS)
    session.execute(
        delete(listings)
        .where(listings.run_id == run_id, listing_key.in_(listed.limit(_MAX_DELETED_ROWS)))
        .execution_options(synchronize_session=False)
    )
    session.execute(
        delete(proposals)
        .where(proposals.run_id == run_id, proposals.seq.in_(proposed))
        .execution_options(synchronize_session=False)
    )
    is_empty = ~exists(listed) & ~exists(proposed)
    session.execute(
        delete(DiscoveryRecord)
        .where(DiscoveryRecord.run_id == run_id, is_empty)
        .execution_options(synchronize_session=False)
    )


def end(session: Session, run: DiscoveryRun) -> None:
    """The table is written. What was listed contains names and addresses, so nothing of it stays."""
    for table in (DiscoveryProposal, DiscoveryListing, DiscoveryRecord):
        session.execute(delete(table).where(table.run_id == run.id))
