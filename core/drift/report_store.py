"""A comparison as it is kept: its stage and place, what was listed, what was found. Each step is one transaction.

Whoever goes on with a run takes its token; whoever had it before learns so at the next step and stops.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import uuid4

from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.orm import Session

from core.compare.findings import Drift, loaded, plan_id, stored
from core.db.database import Database
from core.db.models.drift import DriftFinding, DriftPlan, DriftSighting
from core.ports.spec import Provider

Stage = Literal[
    "stripe_customers",
    "stripe_subscriptions",
    "lago_customers",
    "lago_subscriptions",
    "organizations",
    "strangers",
]
STAGES: tuple[Stage, ...] = (
    "stripe_customers",
    "stripe_subscriptions",
    "lago_customers",
    "lago_subscriptions",
    "organizations",
    "strangers",
)
# What was listed longer ago than this is listed anew.
A_RUN_IS_YOUNG_FOR = timedelta(hours=6)
# A step takes seconds; what a person has under way is not taken from him.
ABANDONED_AFTER = timedelta(minutes=2)
PLANS_KEPT = 20
_READ_AT_ONCE = 200


class RunTakenOverError(Exception):
    """Somebody else goes on with this comparison; this one stops."""


@dataclass(slots=True, kw_only=True)
class Counts:
    """``behind``: organizations that moved, of which nothing is said; ``parked``: those that wait for a person.

    ``left_out``: billers of which nothing is said, because the key is another account's.
    """

    compared: int = 0
    behind: int = 0
    parked: int = 0
    drifted: int = 0
    repairable: int = 0
    kinds: dict[str, int]
    left_out: list[Provider]

    def add(self, found: Iterable[Drift]) -> None:
        for drift in found:
            self.drifted += 1
            self.repairable += bool(drift.rounds)
            for finding in drift.findings:
                self.kinds[finding.kind] = self.kinds.get(finding.kind, 0) + 1


@dataclass(slots=True, kw_only=True)
class Run:
    """``done``: of this stage, rows listed or organizations compared."""

    id: str
    token: str
    stage: Stage | None
    cursor: str | None
    done: int
    counts: Counts
    started_at: datetime

    def go_to(self, cursor: str | None, done: int) -> None:
        """On within the stage, or on to the next one where there is no more."""
        if cursor is not None:
            self.cursor, self.done = cursor, self.done + done
            return
        left = STAGES[STAGES.index(self.stage) + 1 :] if self.stage is not None else ()
        self.stage, self.cursor, self.done = (left[0] if left else None), None, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run that ended. ``id`` is the hash of what it found."""

    id: str
    run_id: str
    counts: Counts
    started_at: datetime
    finished_at: datetime
    applied_at: datetime | None


def take_up(session: Session, now: datetime) -> Run:
    """The run that was broken off, its token now the caller's; else a new one."""
    row = session.scalars(
        select(DriftPlan)
        .where(DriftPlan.finished_at.is_(None), DriftPlan.started_at > now - A_RUN_IS_YOUNG_FOR)
        .order_by(DriftPlan.started_at.desc())
        .limit(1)
        .with_for_update()
    ).one_or_none()
    if row is None:
        return begin_anew(session, now)
    row.token, row.touched_at = str(uuid4()), now
    session.flush()
    return _run(row)


def begin_anew(session: Session, now: datetime) -> Run:
    """From the first page; what was broken off is forgotten."""
    session.execute(delete(DriftPlan).where(DriftPlan.finished_at.is_(None)))
    row = DriftPlan(
        run_id=str(uuid4()),
        token=str(uuid4()),
        stage=STAGES[0],
        done=0,
        counts=asdict(Counts(kinds={}, left_out=[])),
        started_at=now,
        touched_at=now,
    )
    session.add(row)
    session.flush()
    return _run(row)


def is_due(session: Session, every: timedelta, now: datetime) -> bool:
    """Whether a schedule has something to do: begin a comparison, or go on with one that nobody goes on with."""
    last = session.scalars(select(DriftPlan).order_by(DriftPlan.started_at.desc()).limit(1)).one_or_none()
    if last is None:
        return True
    if last.finished_at is None:
        return last.touched_at <= now - ABANDONED_AFTER
    return last.started_at <= now - every


def keep(session: Session, run: Run, now: datetime) -> None:
    """Where the run is now. Raises ``RunTakenOverError``."""
    held = session.execute(
        update(DriftPlan)
        .where(DriftPlan.run_id == run.id, DriftPlan.token == run.token)
        .values(
            stage=run.stage or "done",
            cursor=run.cursor,
            done=run.done,
            counts=asdict(run.counts),
            touched_at=now,
        )
        .returning(DriftPlan.run_id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if held is None:
        message = "another comparison took over from this one; `billing-sync plan` goes on with it"
        raise RunTakenOverError(message)


def add(session: Session, run: Run, found: Sequence[Drift]) -> None:
    """Into the run, and into its counts; ``keep`` writes those."""
    rows = [
        {
            "run_id": run.id,
            "seq": run.counts.drifted + number,
            "org_id": drift.org_id,
            "repairable": bool(drift.rounds),
            "found": stored(drift),
        }
        for number, drift in enumerate(found)
    ]
    if rows:
        session.execute(insert(DriftFinding), rows)
    run.counts.add(found)


def let_go(session: Session, run: Run, now: datetime) -> None:
    """Nobody goes on with it now, so whoever wants to may."""
    session.execute(
        update(DriftPlan)
        .where(DriftPlan.run_id == run.id, DriftPlan.token == run.token)
        .values(touched_at=now - ABANDONED_AFTER)
    )


def finish(session: Session, run: Run, now: datetime) -> Plan:
    """Name the plan, and forget what was listed for it. One that said the same before is replaced."""
    identity = plan_id(_every(session, run.id))
    session.execute(delete(DriftPlan).where(DriftPlan.plan_id == identity))
    session.execute(delete(DriftSighting).where(DriftSighting.run_id == run.id))
    session.execute(
        update(DriftPlan).where(DriftPlan.run_id == run.id).values(plan_id=identity, finished_at=now, stage="done")
    )
    old = select(DriftPlan.run_id).order_by(DriftPlan.started_at.desc()).offset(PLANS_KEPT)
    session.execute(delete(DriftPlan).where(DriftPlan.run_id.in_(session.scalars(old).all())))
    return _plan(session.get_one(DriftPlan, run.id))


def named(session: Session, beginning: str) -> list[Plan]:
    """Plans whose id begins so; two at most, which is enough to know that it says too little."""
    rows = session.scalars(select(DriftPlan).where(DriftPlan.plan_id.startswith(beginning, autoescape=True)).limit(2))
    return [_plan(row) for row in rows]


def found_by(database: Database, plan: Plan, *, repairable: bool = False) -> Iterator[Drift]:
    """In the order of their ids; a few at a time, so that no transaction is open while one of them is worked on."""
    last = -1
    while True:
        with database.read() as session:
            page = _page(session, plan.run_id, last, repairable=repairable)
        if not page:
            return
        for last, drift in page:  # noqa: B007 - the last one's number is where the next page begins
            yield drift


def mark_applied(session: Session, plan: Plan, now: datetime) -> None:
    session.execute(update(DriftPlan).where(DriftPlan.run_id == plan.run_id).values(applied_at=now))


def _every(session: Session, run_id: str) -> Iterator[Drift]:
    last = -1
    while page := _page(session, run_id, last, repairable=False):
        yield from (drift for _, drift in page)
        last = page[-1][0]


def _page(session: Session, run_id: str, last: int, *, repairable: bool) -> list[tuple[int, Drift]]:
    conditions: list[ColumnElement[bool]] = [DriftFinding.run_id == run_id, DriftFinding.seq > last]
    if repairable:
        conditions.append(DriftFinding.repairable.is_(True))
    rows = session.scalars(select(DriftFinding).where(*conditions).order_by(DriftFinding.seq).limit(_READ_AT_ONCE))
    return [(row.seq, loaded(row.found)) for row in rows]


def _run(row: DriftPlan) -> Run:
    stage = next((each for each in STAGES if each == row.stage), None)
    return Run(
        id=row.run_id,
        token=row.token,
        stage=stage,
        cursor=row.cursor,
        done=row.done,
        counts=Counts(**row.counts),
        started_at=row.started_at,
    )


def _plan(row: DriftPlan) -> Plan:
    if row.plan_id is None or row.finished_at is None:
        message = f"run {row.run_id} has not ended"
        raise ValueError(message)
    return Plan(
        id=row.plan_id,
        run_id=row.run_id,
        counts=Counts(**row.counts),
        started_at=row.started_at,
        finished_at=row.finished_at,
        applied_at=row.applied_at,
    )
