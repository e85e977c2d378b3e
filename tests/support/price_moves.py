"""Moves of organizations to another price, as the commands and the sweep make them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from core.catalog.plans import ChargingProvider
from core.db.models.events import Event
from core.db.models.price_moves import PriceMove
from core.events.event_types import Cause
from core.price_moves import request, table
from core.price_moves.applying import AppliedRow, PriceMoveApplier
from core.price_moves.due import DuePriceMoves
from core.price_moves.listing import PriceMoveLister
from core.price_moves.row import PriceMoveRow
from core.reconcile.low_priority_reader import LowPriorityReader
from tests.support.adoption_harness import AdoptionHarness
from tests.support.former_codes import NEW, SOLD
from tests.support.sync_world import SyncWorld

MAX_STEPS = 1_000


@dataclass(frozen=True)
class PriceMoves:
    world: SyncWorld
    provider: ChargingProvider
    harness: AdoptionHarness

    def rows(self, *, at_period_end: bool = False, notice_days: int = 0) -> list[PriceMoveRow]:
        requested = request.checked(
            self.world.catalog,
            "professional",
            from_code=SOLD[self.provider],
            to_code=NEW,
            at_period_end=at_period_end,
            notice_days=notice_days,
        )
        lister = PriceMoveLister(
            database=self.world.database,
            read=LowPriorityReader(readers=self.harness.inventories, purpose="test"),
            installation=self.world.management,
            clock=self.world.clock,
        )
        return list(lister.rows(requested, lister.prices(requested)))

    def through_file(self, folder: Path, rows: list[PriceMoveRow]) -> list[PriceMoveRow]:
        path = folder / "moves.csv"
        path.unlink(missing_ok=True)
        table.write(path, rows)
        return table.read(path)

    def apply(self, rows: list[PriceMoveRow], *, is_expected: bool = False) -> list[AppliedRow]:
        return list(self.applier(is_expected=is_expected).apply(rows))

    def applier(self, *, is_expected: bool = False) -> PriceMoveApplier:
        return PriceMoveApplier(
            database=self.world.database,
            installation=self.world.management,
            clock=self.world.clock,
            cause=Cause(actor="operator:alice"),
            is_expected=is_expected,
        )

    def sweep(self) -> None:
        """Take all steps that are due now."""
        for _ in range(MAX_STEPS):
            if not self.step(100):
                return

    def step(self, limit: int) -> int:
        due = DuePriceMoves(
            database=self.world.database,
            catalog=self.world.catalog,
            installation=self.world.management,
            clock=self.world.clock,
        )
        return due.run(limit)

    def move(self, org_id: str) -> PriceMove:
        with self.world.database.read() as session:
            query = select(PriceMove).where(PriceMove.org_id == org_id).order_by(PriceMove.seq.desc()).limit(1)
            return session.scalars(query).one()

    def notices(self, org_id: str) -> list[dict[str, object]]:
        with self.world.database.read() as session:
            query = select(Event.data).where(
                Event.org_id == org_id, Event.type == "organization.price_change_scheduled"
            )
            return [dict(each) for each in session.scalars(query)]
