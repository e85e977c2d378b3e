"""Takes the next step of each price move that is due: its notice, its start, and what became of it.

Each step is one transaction under the lock of the organization, and its state says that it was taken, so it is taken
once. A move starts only after its notice was recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from core.catalog.plans import Catalog
from core.common.clock import Clock
from core.compare import local_state
from core.compare.local_state import LocalState
from core.db.database import Database
from core.db.models.billing_links import NO_TARGET, BillingLink
from core.db.models.organizations import Management
from core.db.models.price_moves import PriceMove, PriceMoveState
from core.events import link_history, outbox
from core.events.event_types import Cause, ChangeContext
from core.flow_control import payment_brake
from core.flow_control.payment_brake import RequestedChange
from core.organizations import commands, link_states
from core.organizations import links as organization_links
from core.ports.spec import PROVIDERS, Provider
from core.price_moves import obstacles
from core.price_moves.obstacles import MovedPlan
from core.price_moves.row import (
    LATE_AFTER,
    follows_new_period,
    lasts_past_notice,
    notice_at,
    period_end_after,
    start_at,
)
from core.reconcile.payment_goals import plan_goal

RETRY_AFTER: Final = timedelta(hours=1)
FOLLOW_AFTER: Final = timedelta(minutes=10)
STARTS_WITHIN: Final = timedelta(days=14)
"""After its day. A move that something kept from starting for so long ends: nobody expects it any more."""
_SOURCE: Final = "billing-sync plans move"


@dataclass(frozen=True, slots=True, kw_only=True)
class DuePriceMoves:
    database: Database
    catalog: Catalog
    installation: Management
    clock: Clock

    def run(self, limit: int) -> int:
        """Take one step of each of up to ``limit`` moves. Returns how many were due."""
        with self.database.read() as session:
            due = session.execute(
                select(PriceMove.seq, PriceMove.org_id)
                .where(PriceMove.ended_at.is_(None), PriceMove.due_at <= self.clock())
                .order_by(PriceMove.due_at, PriceMove.seq)
                .limit(limit)
            ).all()
        for seq, org_id in due:
            with self.database.write() as session:
                commands.lock(session, org_id)
                self._step(session, session.get_one(PriceMove, seq))
        return len(due)

    def _step(self, session: Session, move: PriceMove) -> None:
        change = ChangeContext(session, self.clock(), Cause(actor=move.actor or "system", source=_SOURCE))
        state = local_state.load(session, move.org_id)
        if state is None or move.ended_at is not None or move.due_at > change.now:
            return
        match move.state:
            case "scheduled":
                self._notice(change, move, state)
            case "noticed":
                self._start(change, move, state)
            case _:
                _follow(change, move, state)

    def _notice(self, change: ChangeContext, move: PriceMove, state: LocalState) -> None:
        if self._meets_obstacle(change, move, state):
            return
        if not lasts_past_notice(move.effective_at, move.notice_days, change.now):
            move.effective_at = _moved_on(move, change.now)
        move.state, move.noticed_at, move.problem = "noticed", change.now, None
        move.due_at = _start_at(move)
        outbox.record(
            change,
            "organization.price_change_scheduled",
            move.org_id,
            {
                "tier": move.tier,
                "amount_before": move.amount_before,
                "amount_after": move.amount_after,
                "currency": move.currency,
                "effective_at": move.effective_at.isoformat(),
            },
        )

    def _start(self, change: ChangeContext, move: PriceMove, state: LocalState) -> None:
        if self._meets_obstacle(change, move, state):
            return
        if _is_past_period_end(move, change.now):
            # It would come a period later than its notice said, or in the middle of one.
            move.state, move.effective_at = "scheduled", _moved_on(move, change.now)
            move.due_at = max(change.now, notice_at(move.effective_at, move.notice_days, _start_at(move)))
            return
        session, organization, provider = change.session, state.organization, _provider(move)
        at_period_end = move.at_period_end and not follows_new_period(provider, is_lower=_is_lower(move))
        session.execute(
            update(BillingLink)
            .where(BillingLink.org_id == move.org_id, BillingLink.provider == provider)
            .values(target_plan=move.to_code, target_at_period_end=at_period_end)
            .execution_options(synchronize_session=False)
        )
        links = [session.get_one(BillingLink, (move.org_id, each), populate_existing=True) for each in PROVIDERS]
        if move.is_expected:
            goal = plan_goal(organization, links, self.catalog)
            requested = RequestedChange(org_id=move.org_id, scope="plan", goal=goal)
            payment_brake.record(session, requested, "expected", change.now)
        link_history.record_actions(
            change, move.org_id, [provider], "price_move_started", before=move.from_code, after=move.to_code
        )
        # The sweep requests the attempts, at the rate that leaves room for what somebody waits for.
        organization_links.mark_for_sync(change, organization, "price_move")
        move.state, move.started_at, move.problem = "started", change.now, None
        move.due_at = change.now + FOLLOW_AFTER

    def _meets_obstacle(self, change: ChangeContext, move: PriceMove, state: LocalState) -> bool:
        moved = MovedPlan(provider=_provider(move), tier=move.tier, from_code=move.from_code)
        obstacle = obstacles.find(state.organization, state.links, moved, self.installation)
        if obstacle is None:
            return False
        if obstacle.is_lasting or change.now > move.effective_at + STARTS_WITHIN:
            _end(change, move, "ended", obstacle.sentence)
        else:
            move.problem, move.due_at = obstacle.sentence, change.now + RETRY_AFTER
        return True


def withdraw(change: ChangeContext, org_id: str, from_code: str, to_code: str) -> list[str]:
    """End this move of the organization, unless something of it may have been sent. Returns whose ended.

    One that the payment brake holds has sent nothing, and a release then sends the organization as it was sold. The
    caller has locked the organization.
    """
    open_moves = change.session.scalars(
        select(PriceMove).where(
            PriceMove.org_id == org_id,
            PriceMove.from_code == from_code,
            PriceMove.to_code == to_code,
            PriceMove.ended_at.is_(None),
        )
    ).all()
    found = [move for move in open_moves if move.state != "started" or _is_on_hold(change.session, move)]
    for move in found:
        if move.state == "started":
            change.session.execute(
                update(BillingLink)
                .where(BillingLink.org_id == org_id, BillingLink.provider == move.provider)
                .values(**NO_TARGET)
                .execution_options(synchronize_session=False)
            )
        _end(change, move, "withdrawn", "an operator withdrew it")
    return sorted(move.org_id for move in found)


def _is_on_hold(session: Session, move: PriceMove) -> bool:
    link = session.get_one(BillingLink, (move.org_id, move.provider), populate_existing=True)
    return link.is_braked and link.sold_plan == move.from_code and link.applied_next_plan is None


def _follow(change: ChangeContext, move: PriceMove, state: LocalState) -> None:
    """Whether it is what was sold by now. At the end of the period the subscription is read for that."""
    link = state.links[_provider(move)]
    if link.sold_plan == move.to_code and link.target_plan != move.to_code:
        _end(change, move, "done", None)
        return
    if link.target_plan != move.to_code:
        _end(change, move, "ended", "its plan was changed, or somebody decided for what the provider has")
        return
    move.problem = link.error_message if link.state != "active" else None
    awaits_period_end = link.target_at_period_end and link.applied_next_plan == move.to_code
    if awaits_period_end and move.effective_at > change.now:
        move.due_at = move.effective_at + FOLLOW_AFTER
        return
    if awaits_period_end and link.state == "active" and link.checks_done == link.checks_requested:
        change.session.execute(
            update(BillingLink)
            .where(BillingLink.org_id == move.org_id, BillingLink.provider == move.provider)
            .values(
                **link_states.values_after("check_requested"),
                checks_requested=BillingLink.checks_requested + 1,
                next_sweep_at=change.now,
            )
            .execution_options(synchronize_session=False)
        )
    move.due_at = change.now + (FOLLOW_AFTER if awaits_period_end else RETRY_AFTER)


def _end(change: ChangeContext, move: PriceMove, state: PriceMoveState, problem: str | None) -> None:
    move.state, move.ended_at, move.problem = state, change.now, problem


def _moved_on(move: PriceMove, now: datetime) -> datetime:
    """The day, if its notice comes too late for the one that was listed."""
    earliest = now + timedelta(days=move.notice_days)
    if not move.at_period_end:
        return earliest
    latest_day = follows_new_period(_provider(move), is_lower=_is_lower(move))
    return period_end_after(move.listed_for, move.interval, earliest, latest_day=latest_day)


def _is_past_period_end(move: PriceMove, now: datetime) -> bool:
    if not move.at_period_end:
        return False
    follows = follows_new_period(_provider(move), is_lower=_is_lower(move))
    return now >= (_start_at(move) + LATE_AFTER if follows else move.effective_at)


def _start_at(move: PriceMove) -> datetime:
    return start_at(_provider(move), move.effective_at, at_period_end=move.at_period_end, is_lower=_is_lower(move))


def _is_lower(move: PriceMove) -> bool:
    return move.amount_after < move.amount_before


def _provider(move: PriceMove) -> Provider:
    return "stripe" if move.provider == "stripe" else "lago"
