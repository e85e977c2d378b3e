"""Stored drift runs and reports: stage, cursor, listings and findings. Each step is one transaction.

A process that resumes a run takes over its lease token. The process that had it before stops at its next step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import uuid4

from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.orm import Session

from core.compare.findings import DriftItem, from_json, report_id, to_json
from core.db.database import Database
from core.db.models.drift import DriftFinding, DriftListing, DriftReportRecord
from core.ports.spec import Provider

DriftStage = Literal[
    "stripe_customers",
    "stripe_subscriptions",
    "lago_customers",
    "lago_subscriptions",
    "organizations",
    "orphans",
]
DRIFT_STAGES: tuple[DriftStage, ...] = (
    "stripe_customers",
    "stripe_subscriptions",
    "lago_customers",
    "lago_subscriptions",
    "organizations",
    "orphans",
)
# An older run is not resumed, since its listings are out of date.
MAX_DRIFT_RUN_AGE = timedelta(hours=6)
# A step takes seconds. The schedule does not take over a run that an operator has under way.
DRIFT_RUN_ABANDONED_AFTER = timedelta(minutes=2)
MAX_STORED_DRIFT_REPORTS = 20
_DRIFTS_PER_PAGE = 200


class DriftRunTakenOverError(Exception):
    """Another process took over this run, so this one stops."""


@dataclass(slots=True, kw_only=True)
class DriftCounts:
    """``in_flux``: organizations that were changing, so nothing is reported about them.

    ``parked_or_on_hold``: organizations that wait for an operator. ``excluded_providers``: providers that were not
    compared, because the API key belongs to another account.
    """

    compared: int = 0
    in_flux: int = 0
    parked_or_on_hold: int = 0
    drifted: int = 0
    repairable: int = 0
    kinds: dict[str, int]
    excluded_providers: list[Provider]

    def add(self, drifts: Iterable[DriftItem]) -> None:
        for drift in drifts:
            self.drifted += 1
            self.repairable += bool(drift.repairs)
            for finding in drift.findings:
                self.kinds[finding.kind] = self.kinds.get(finding.kind, 0) + 1


@dataclass(slots=True, kw_only=True)
class DriftRun:
    """``processed``: rows listed or organizations compared in this stage."""

    id: str
    lease_token: str
    stage: DriftStage | None
    cursor: str | None
    processed: int
    counts: DriftCounts
    started_at: datetime

    def advance(self, cursor: str | None, processed: int) -> None:
        """Moves on within the stage; without a cursor, to the next stage."""
        if cursor is not None:
            self.cursor, self.processed = cursor, self.processed + processed
            return
        remaining_stages = DRIFT_STAGES[DRIFT_STAGES.index(self.stage) + 1 :] if self.stage is not None else ()
        self.stage, self.cursor, self.processed = (remaining_stages[0] if remaining_stages else None), None, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReport:
    """A finished run. ``id`` is the hash of its findings."""

    id: str
    run_id: str
    counts: DriftCounts
    started_at: datetime
    finished_at: datetime
    repair_started_at: datetime | None


def resume(session: Session, now: datetime) -> DriftRun:
    """The unfinished run, whose lease token is now the caller's; if there is none, a new run."""
    row = session.scalars(
        select(DriftReportRecord)
        .where(DriftReportRecord.finished_at.is_(None), DriftReportRecord.started_at > now - MAX_DRIFT_RUN_AGE)
        .order_by(DriftReportRecord.started_at.desc())
        .limit(1)
        .with_for_update()
    ).one_or_none()
    if row is None:
        return start(session, now)
    row.lease_token, row.heartbeat_at = str(uuid4()), now
    session.flush()
    return _to_run(row)


def start(session: Session, now: datetime) -> DriftRun:
    """Starts a run at the first page. Unfinished runs are deleted."""
    session.execute(delete(DriftReportRecord).where(DriftReportRecord.finished_at.is_(None)))
    row = DriftReportRecord(
        run_id=str(uuid4()),
        lease_token=str(uuid4()),
        stage=DRIFT_STAGES[0],
        processed=0,
        counts=asdict(DriftCounts(kinds={}, excluded_providers=[])),
        started_at=now,
        heartbeat_at=now,
    )
    session.add(row)
    session.flush()
    return _to_run(row)


def is_due(session: Session, every: timedelta, now: datetime) -> bool:
    """Whether the schedule has to start a run, or to resume one that was abandoned."""
    last = session.scalars(
        select(DriftReportRecord).order_by(DriftReportRecord.started_at.desc()).limit(1)
    ).one_or_none()
    if last is None:
        return True
    if last.finished_at is None:
        return last.heartbeat_at <= now - DRIFT_RUN_ABANDONED_AFTER
    return last.started_at <= now - every


def save_progress(session: Session, run: DriftRun, now: datetime) -> None:
    """Stores how far the run is. Raises ``DriftRunTakenOverError``."""
    saved = session.execute(
        update(DriftReportRecord)
        .where(DriftReportRecord.run_id == run.id, DriftReportRecord.lease_token == run.lease_token)
        .values(
            stage=run.stage or "done",
            cursor=run.cursor,
            processed=run.processed,
            counts=asdict(run.counts),
            heartbeat_at=now,
        )
        .returning(DriftReportRecord.run_id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if saved is None:
        message = (
            "another drift check took over this run; wait for its report, or run `billing-sync drift check` to "
            "continue it here"
        )
        raise DriftRunTakenOverError(message)


def add_drifts(session: Session, run: DriftRun, drifts: Sequence[DriftItem]) -> None:
    """Stores items of the run and adds them to its counts, which ``save_progress`` stores."""
    rows = [
        {
            "run_id": run.id,
            "seq": run.counts.drifted + number,
            "org_id": drift.org_id,
            "repairable": bool(drift.repairs),
            "body": to_json(drift),
        }
        for number, drift in enumerate(drifts)
    ]
    if rows:
        session.execute(insert(DriftFinding), rows)
    run.counts.add(drifts)


def release(session: Session, run: DriftRun, now: datetime) -> None:
    """Marks the run as abandoned, so that any process may resume it."""
    session.execute(
        update(DriftReportRecord)
        .where(DriftReportRecord.run_id == run.id, DriftReportRecord.lease_token == run.lease_token)
        .values(heartbeat_at=now - DRIFT_RUN_ABANDONED_AFTER)
    )


def finish(session: Session, run: DriftRun, now: datetime) -> DriftReport:
    """Gives the report its id and deletes the listings. An earlier report with the same findings is replaced."""
    identity = report_id(_all_drifts(session, run.id))
    session.execute(delete(DriftReportRecord).where(DriftReportRecord.report_id == identity))
    session.execute(delete(DriftListing).where(DriftListing.run_id == run.id))
    session.execute(
        update(DriftReportRecord)
        .where(DriftReportRecord.run_id == run.id)
        .values(report_id=identity, finished_at=now, stage="done")
    )
    old = (
        select(DriftReportRecord.run_id).order_by(DriftReportRecord.started_at.desc()).offset(MAX_STORED_DRIFT_REPORTS)
    )
    session.execute(delete(DriftReportRecord).where(DriftReportRecord.run_id.in_(session.scalars(old).all())))
    return _to_report(session.get_one(DriftReportRecord, run.id))


def find_by_prefix(session: Session, prefix: str) -> list[DriftReport]:
    """Reports whose id starts with ``prefix``; at most two, which is enough to see that it is ambiguous."""
    rows = session.scalars(
        select(DriftReportRecord).where(DriftReportRecord.report_id.startswith(prefix, autoescape=True)).limit(2)
    )
    return [_to_report(row) for row in rows]


def read_drifts(database: Database, report: DriftReport, *, repairable: bool = False) -> Iterator[DriftItem]:
    """The report's items in order, read in pages, so that no transaction is open while an item is processed."""
    last_seq = -1
    while True:
        with database.read() as session:
            page = _drift_page(session, report.run_id, last_seq, repairable=repairable)
        if not page:
            return
        for last_seq, drift in page:  # noqa: B007 - the next page begins after the last one
            yield drift


def mark_repair_started(session: Session, report: DriftReport, now: datetime) -> None:
    session.execute(
        update(DriftReportRecord).where(DriftReportRecord.run_id == report.run_id).values(repair_started_at=now)
    )


def _all_drifts(session: Session, run_id: str) -> Iterator[DriftItem]:
    last_seq = -1
    while page := _drift_page(session, run_id, last_seq, repairable=False):
        yield from (drift for _, drift in page)
        last_seq = page[-1][0]


def _drift_page(session: Session, run_id: str, after_seq: int, *, repairable: bool) -> list[tuple[int, DriftItem]]:
    conditions: list[ColumnElement[bool]] = [DriftFinding.run_id == run_id, DriftFinding.seq > after_seq]
    if repairable:
        conditions.append(DriftFinding.repairable.is_(True))
    rows = session.scalars(select(DriftFinding).where(*conditions).order_by(DriftFinding.seq).limit(_DRIFTS_PER_PAGE))
    return [(row.seq, from_json(row.body)) for row in rows]


def _to_run(row: DriftReportRecord) -> DriftRun:
    stage = next((each for each in DRIFT_STAGES if each == row.stage), None)
    return DriftRun(
        id=row.run_id,
        lease_token=row.lease_token,
        stage=stage,
        cursor=row.cursor,
        processed=row.processed,
        counts=DriftCounts(**row.counts),
        started_at=row.started_at,
    )


def _to_report(row: DriftReportRecord) -> DriftReport:
    if row.report_id is None or row.finished_at is None:
        message = f"drift run {row.run_id} is not finished"
        raise ValueError(message)
    return DriftReport(
        id=row.report_id,
        run_id=row.run_id,
        counts=DriftCounts(**row.counts),
        started_at=row.started_at,
        finished_at=row.finished_at,
        repair_started_at=row.repair_started_at,
    )
