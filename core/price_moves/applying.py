"""Applies a list of price moves: one row for each organization that is still as listed, and nothing is sent.

It may be killed anywhere: what is stored stays, and the same file again says what is done already. The sweep takes it
from there (``core.price_moves.due``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.common.clock import Clock
from core.compare import local_state
from core.db.database import Database
from core.db.models.organizations import Management
from core.db.models.price_moves import PriceMove
from core.events.event_types import Cause
from core.organizations import commands
from core.price_moves import obstacles
from core.price_moves.obstacles import MovedPlan
from core.price_moves.row import PriceMoveRow, lasts_past_notice, notice_at, start_at

APPLY_BATCH_SIZE: Final = 50

AppliedKind = Literal["applied", "already_applied", "left", "overlaps", "not_listed"]
"""left: it changed since it was listed. overlaps: another file moves it. not_listed: the list says why it is not
moved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedRow:
    row: PriceMoveRow
    kind: AppliedKind
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceMoveApplier:
    """``is_expected``: the moves take no place of the payment brake's hour."""

    database: Database
    installation: Management
    clock: Clock
    cause: Cause
    is_expected: bool = False

    def check(self, rows: Sequence[PriceMoveRow]) -> list[AppliedRow]:
        """What ``apply`` would do now; stores nothing."""
        checked: list[AppliedRow] = []
        for batch in _batches(rows):
            with self.database.read() as session:
                checked += [self._check(session, row) for row in batch]
        return checked

    def apply(self, rows: Sequence[PriceMoveRow]) -> Iterator[AppliedRow]:
        """By ascending id, a small transaction for a batch, each under the lock of its organization."""
        for batch in _batches(rows):
            with self.database.write() as session:
                applied = [self._apply(session, row) for row in batch]
            yield from applied

    def _apply(self, session: Session, row: PriceMoveRow) -> AppliedRow:
        if row.reason is None:
            commands.lock(session, row.org_id)
        checked = self._check(session, row)
        if checked.kind == "applied":
            self._store(session, row)
        return checked

    def _check(self, session: Session, row: PriceMoveRow) -> AppliedRow:
        if row.reason is not None or row.effective_at is None or row.amount_before is None:
            return AppliedRow(row=row, kind="not_listed", reason=row.reason or "its day or its price is not known")
        for move in session.scalars(select(PriceMove).where(PriceMove.org_id == row.org_id)):
            if _is_of(move, row):
                return AppliedRow(row=row, kind="already_applied", reason=move.state)
            if move.ended_at is None:
                reason = f"another file moves it from {move.from_code} to {move.to_code}"
                return AppliedRow(row=row, kind="overlaps", reason=reason)
        changed = self._change_since(session, row)
        return AppliedRow(row=row, kind="applied" if changed is None else "left", reason=changed)

    def _change_since(self, session: Session, row: PriceMoveRow) -> str | None:
        """Why it is not as it was listed."""
        state = local_state.load(session, row.org_id)
        if state is None:
            return "there is no such organization"
        moved = MovedPlan(provider=row.provider, tier=row.tier, from_code=row.from_code)
        obstacle = obstacles.find(state.organization, state.links, moved, self.installation)
        if obstacle is not None:
            return obstacle.sentence
        if state.organization.version != row.version:
            return "it was changed since it was listed"
        if state.links[row.provider].sold_price_id != row.sold_price_id:
            return "its price was changed since it was listed"
        if row.effective_at is not None and not lasts_past_notice(row.effective_at, row.notice_days, self.clock()):
            return f"its day is less than {row.notice_days} days away by now"
        return None

    def _store(self, session: Session, row: PriceMoveRow) -> None:
        if row.effective_at is None or row.amount_before is None:
            return
        now = self.clock()
        is_lower = row.amount_after < row.amount_before
        starts_at = start_at(row.provider, row.effective_at, at_period_end=row.at_period_end, is_lower=is_lower)
        session.add(
            PriceMove(
                org_id=row.org_id,
                provider=row.provider,
                tier=row.tier,
                from_code=row.from_code,
                to_code=row.to_code,
                amount_before=row.amount_before,
                amount_after=row.amount_after,
                currency=row.currency,
                interval=row.interval,
                at_period_end=row.at_period_end,
                listed_for=row.effective_at,
                effective_at=row.effective_at,
                notice_days=row.notice_days,
                is_expected=self.is_expected,
                state="scheduled",
                due_at=max(now, notice_at(row.effective_at, row.notice_days, starts_at)),
                actor=self.cause.actor,
                created_at=now,
            )
        )


def _batches(rows: Sequence[PriceMoveRow]) -> Iterator[Sequence[PriceMoveRow]]:
    for first in range(0, len(rows), APPLY_BATCH_SIZE):
        yield rows[first : first + APPLY_BATCH_SIZE]


def _is_of(move: PriceMove, row: PriceMoveRow) -> bool:
    return (move.from_code, move.to_code, move.listed_for) == (row.from_code, row.to_code, row.effective_at)
