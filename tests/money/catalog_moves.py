"""A plan gets another price while organizations are on the old one; each way that a team has to do it.

New organizations are sold the new price. Nobody else is moved, except by a person who changes a plan in Lago itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final

from core.catalog import publishing
from core.catalog.plans import CatalogPlan, FormerCodes
from core.events.event_types import ChangeContext
from core.organizations import usage_plans
from tests.money.prices import PriceWatch
from tests.money.provider_books import ActionHistory, Books
from tests.support.sync_world import SyncWorld

RAISED_BY: Final = 100
"""Far below the distance of two plans, so that Lago orders them as before."""


@dataclass(kw_only=True)
class CatalogMoves:
    world: SyncWorld
    history: ActionHistory
    prices: PriceWatch

    def make(self, move: str, tier: str) -> None:
        """The processes start again with the changed catalog."""
        if self.world.catalog.plan(tier).amount > 0:
            self._books().record_prices()
            MOVES[move](self, tier)
            self._books().record_prices()
            self.world.restart()

    def sell_under_new_codes(self, tier: str) -> None:
        plan = self.world.catalog.plan(tier)
        codes = [*plan.former_codes.lago, plan.lago_plan_code], [*plan.former_codes.stripe, plan.stripe_lookup_key]
        code = f"{tier}_{len(codes[0])}"
        new = {
            "amount": plan.amount + RAISED_BY,
            "lago_plan_code": code,
            "stripe_lookup_key": code,
            "former_codes": FormerCodes(lago=codes[0], stripe=codes[1]),
        }
        changed = plan.model_copy(update=new)
        # In Stripe, too, where only people sell it.
        self._publish(changed.model_copy(update={"charged_by": "stripe"}))
        self._publish(changed)

    def _publish(self, plan: CatalogPlan) -> None:
        plans = {**self.world.catalog.plans, plan.tier: plan}
        self.world.catalog = self.world.catalog.model_copy(update={"plans": plans})
        publishing.publish(self.world.catalog, self.world.providers.values())

    def move_the_lookup_key(self, tier: str) -> None:
        plan = self.world.catalog.plan(tier)
        self.world.sandbox.preload_stripe_prices(
            [
                {
                    "lookup_key": plan.stripe_lookup_key,
                    "transfer_lookup_key": True,
                    "currency": plan.currency.lower(),
                    "unit_amount": plan.amount + RAISED_BY,
                    "recurring": {"interval": "month"},
                    "product_data": {"name": f"{plan.name} at another price"},
                }
            ]
        )

    def rename_the_price_that_was_sold(self, tier: str) -> None:
        """It gets a lookup key of its own, and a new price takes the one of the plan."""
        key = self.world.catalog.plan(tier).stripe_lookup_key
        (sold,) = [each for each in self.world.stripe_objects("prices") if each["lookup_key"] == key]
        self.world.sandbox.patch("stripe", "prices", str(sold["id"]), lookup_key=f"{key}_{sold['id']}")
        self.move_the_lookup_key(tier)

    def change_the_amount_in_lago(self, tier: str) -> None:
        """Lago bills it to everybody on the plan from the next invoice on: a person's word."""
        code = self.world.catalog.plan(tier).lago_plan_code
        (plan,) = [each for each in self.world.lago_objects("plans") if each["code"] == code and not each["parent_id"]]
        amount = int(str(plan["amount_cents"])) + RAISED_BY
        self.world.sandbox.patch("lago", "plans", code, amount_cents=amount)
        self.prices.forget_lago()
        books = self._books()
        for its_id, kept in self.history.kept.items():
            terms = books.terms_of(kept.provider, its_id)
            if kept.provider == "lago" and terms is not None:
                self.history.kept[its_id] = replace(kept, terms=terms)

    def use_the_plan_of_amount_0(self, tier: str) -> None:
        """Where Stripe charges, Lago gets a plan of its own, and an operator moves everybody to such plans."""
        self.name_plans_of_amount_0([tier])
        catalog = self.world.catalog
        tiers = usage_plans.tiers_with_usage_plan(catalog)
        with self.world.database.write() as session:
            change = ChangeContext(session, self.world.now)
            for org_id in usage_plans.next_org_ids(session, catalog, tiers, "", 100) if tiers else ():
                if usage_plans.move(change, org_id, catalog):
                    self.history.plan_changes[org_id] += 1

    def name_plans_of_amount_0(self, tiers: Collection[str]) -> None:
        for tier in tiers:
            plan = self.world.catalog.plan(tier)
            self._publish(plan.model_copy(update={"lago_usage_plan_code": f"{tier}_usage"}))

    def _books(self) -> Books:
        return Books(state=self.world.sandbox.state(), history=self.history, catalog=self.world.catalog)


MOVES: Final[dict[str, Callable[[CatalogMoves, str], None]]] = {
    move.__name__: move
    for move in (
        CatalogMoves.sell_under_new_codes,
        CatalogMoves.move_the_lookup_key,
        CatalogMoves.rename_the_price_that_was_sold,
        CatalogMoves.change_the_amount_in_lago,
        CatalogMoves.use_the_plan_of_amount_0,
    )
}
