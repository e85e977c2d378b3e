"""Changes that users make in the providers' dashboards without billing-sync; each is recorded in the history.

A change whose object does not exist does nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from core.ports.spec import CUSTOMER_DELETED
from core.reconcile import commands
from sandbox.client import SandboxError
from tests.money.provider_books import ActionHistory, Books, Doc, Kept
from tests.support.adoption_harness import adopt_known
from tests.support.sync_world import PAYMENT_PROVIDER_CODE, SyncWorld


def own_price(list_price: int) -> int:
    """Below the plan's own, above the next lower plan's: else Lago carries out a downgrade at once, as an upgrade."""
    return list_price * 9 // 10 or 100


@dataclass(kw_only=True)
class Hands:
    world: SyncWorld
    history: ActionHistory
    _number: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def do(self, deed: str, org_id: str, tier: str) -> None:
        """Make one change; nothing happens if the provider rejects it."""
        self.history.edits[org_id] += 1
        try:
            DEEDS[deed](self, org_id, tier)
        except SandboxError:
            return

    @property
    def books(self) -> Books:
        return Books(state=self.world.sandbox.state(), history=self.history, catalog=self.world.catalog)

    def sell_beside_in_stripe(self, org_id: str, tier: str) -> None:
        customer = self.books.stripe_customer(self.world.link(org_id, "stripe").customer_id)
        if customer is not None:
            price = self._price(self.world.catalog.plan(tier).stripe_lookup_key)
            made = self.world.sandbox.preload_stripe_subscription(customer["id"], price)
            self._touch(org_id)
            self.history.rogues[made["id"]] = price

    def sell_beside_in_lago(self, org_id: str, tier: str) -> None:
        if self.books.lago_customer(org_id) is not None:
            code = self.world.catalog.plan(tier).lago_plan_code
            name = f"by-hand-{next(self._number)}"
            made = self.world.sandbox.preload_lago_subscription(org_id, code, name)
            self._touch(org_id)
            self.history.rogues[made["lago_id"]] = code

    def end_what_was_sold_beside(self, org_id: str, _tier: str) -> None:
        """End every subscription that was created by hand, at both providers."""
        books = self.books
        names = {each["lago_id"]: each["external_id"] for each in books.state["lago"]["subscriptions"]}
        for each in books.rogues_alive():
            self.history.ended_by_hand.add(each)
            provider = "lago" if each in names else "stripe"
            self.world.sandbox.delete(provider, "subscriptions", names.get(each, each))
        self._touch(org_id)

    def delete_the_customer_in_stripe(self, org_id: str, _tier: str) -> None:
        customer = self.books.stripe_customer(self.world.link(org_id, "stripe").customer_id)
        if customer is not None:
            self.history.deleted_by_hand.add(customer["id"])
            self._touch(org_id)
            self.world.sandbox.delete("stripe", "customers", customer["id"])

    def bring_another_customer(self, org_id: str, _tier: str) -> None:
        """Follow the advice of a link that stopped because its customer was deleted; this must always be possible."""
        link = self.world.link(org_id, "stripe")
        if link.state != "active" and link.error_code == CUSTOMER_DELETED:
            made = self._customer("cus_brought", org_id)
            self._touch(org_id)
            self.world.set_customer_id(org_id, "stripe", made)
            adopt_known(self.world, org_id)

    def delete_the_customer_in_lago(self, org_id: str, _tier: str) -> None:
        customer = self.books.lago_customer(org_id)
        if customer is not None:
            self.history.deleted_by_hand.add(customer["lago_id"])
            self._touch(org_id)
            self.world.sandbox.delete("lago", "customers", org_id)

    def have_lago_charge_somebody_else(self, org_id: str, _tier: str) -> None:
        if self.books.lago_customer(org_id) is not None:
            payer = self._customer("cus_hand", org_id)
            configuration = {
                "payment_provider": "stripe",
                "payment_provider_code": PAYMENT_PROVIDER_CODE,
                "provider_customer_id": payer,
            }
            self._touch(org_id)
            self.world.sandbox.patch("lago", "customers", org_id, billing_configuration=configuration)

    def have_lago_charge_nobody(self, org_id: str, _tier: str) -> None:
        """Unlink the payer, then retry or decide: the advice of a link that stopped as the plan moves to Stripe."""
        if self.books.lago_customer(org_id) is not None:
            self._touch(org_id)
            self.world.sandbox.patch("lago", "customers", org_id, billing_configuration={"payment_provider": None})
            self.world.change(org_id, commands.retry)
            self.world.keep_ours(org_id)

    def change_the_plan_in_lago(self, org_id: str, tier: str) -> None:
        if self.books.lago_subscriptions(org_id):
            self.history.plans_by_hand[org_id].add(tier)
            self._touch(org_id)
            code = self.world.catalog.plan(tier).lago_plan_code
            self.world.sandbox.patch("lago", "subscriptions", org_id, plan_code=code)

    def end_it_in_lago(self, org_id: str, _tier: str) -> None:
        if self.books.lago_subscriptions(org_id):
            self._touch(org_id)
            self.world.sandbox.delete("lago", "subscriptions", org_id)

    def change_the_price_in_stripe(self, org_id: str, tier: str) -> None:
        for each in self.books.stripe_subscriptions(org_id):
            self.history.plans_by_hand[org_id].add(tier)
            self._touch(org_id)
            price = self._price(self.world.catalog.plan(tier).stripe_lookup_key)
            item = {"id": each["items"]["data"][0]["id"], "price": price, "quantity": 1}
            self.world.sandbox.patch("stripe", "subscriptions", each["id"], items=[item])

    def end_it_in_stripe(self, org_id: str, _tier: str) -> None:
        for each in self.books.stripe_subscriptions(org_id):
            self._touch(org_id)
            self.world.sandbox.delete("stripe", "subscriptions", each["id"])

    def plan_an_end_in_stripe(self, org_id: str, _tier: str) -> None:
        self._arrange_in_stripe(org_id, cancel_at_period_end=True)

    def pause_it_in_stripe(self, org_id: str, _tier: str) -> None:
        self._arrange_in_stripe(org_id, pause_collection={"behavior": "keep_as_draft"})

    def attach_a_schedule_in_stripe(self, org_id: str, _tier: str) -> None:
        self._arrange_in_stripe(org_id, schedule="sub_sched_1")

    def let_it_go_on_in_stripe(self, org_id: str, _tier: str) -> None:
        """Take off what was arranged, and say so."""
        for each in self.books.stripe_subscriptions(org_id):
            self.world.sandbox.patch("stripe", "subscriptions", each["id"], schedule=None)
            self.world.sandbox.patch(
                "stripe", "subscriptions", each["id"], cancel_at_period_end=False, pause_collection=None
            )
        self.world.keep_ours(org_id)

    def plan_an_end_in_lago(self, org_id: str, _tier: str) -> None:
        ends_at = self.world.now + timedelta(days=40)
        self._keep_in_lago(org_id, plan_changes=None, ending_at=ends_at.isoformat())

    def give_it_a_price_of_its_own_in_lago(self, org_id: str, _tier: str) -> None:
        if not self.world.is_in_sync(org_id):
            return  # A plan change that was asked before ends this price, too.
        changes = self.history.plan_changes[org_id]
        for each in self.books.lago_subscriptions(org_id):
            amount = own_price(each["plan_amount_cents"])
            self._keep_in_lago(org_id, plan_changes=changes, plan_overrides={"amount_cents": amount})

    def _arrange_in_stripe(self, org_id: str, **fields: object) -> None:
        for each in self.books.stripe_subscriptions(org_id):
            self._touch(org_id)
            self.world.sandbox.patch("stripe", "subscriptions", each["id"], **fields)
            self._keep(org_id, "stripe", each["id"], None)

    def _keep_in_lago(self, org_id: str, *, plan_changes: int | None, **fields: object) -> None:
        """Only without a scheduled plan, which takes the place of the subscription by itself."""
        for each in self.books.lago_subscriptions(org_id):
            if each["status"] == "active" and each["next_plan_code"] is None:
                self._touch(org_id)
                self.world.sandbox.patch("lago", "subscriptions", org_id, **fields)
                self._keep(org_id, "lago", each["lago_id"], plan_changes)

    def _keep(self, org_id: str, provider: str, its_id: str, plan_changes: int | None) -> None:
        terms = self.books.terms_of(provider, its_id)
        if terms is not None:
            self.history.kept[its_id] = Kept(
                org_id=org_id,
                provider=provider,
                terms=terms,
                edits=self.history.edits[org_id],
                plan_changes=plan_changes,
                ends_at=self.books.end_of(provider, its_id),
            )

    def rename_in_stripe(self, org_id: str, _tier: str) -> None:
        self._patch_in_stripe(org_id, {"name": "Mallory"})

    def clear_the_mark_in_stripe(self, org_id: str, _tier: str) -> None:
        self._patch_in_stripe(org_id, {"metadata": {"billing_sync_org_id": None}})

    def rename_in_lago(self, org_id: str, _tier: str) -> None:
        if self.books.lago_customer(org_id) is not None:
            self._touch(org_id)
            self.world.sandbox.patch("lago", "customers", org_id, name="Mallory")

    def _patch_in_stripe(self, org_id: str, fields: Doc) -> None:
        customer = self.books.stripe_customer(self.world.link(org_id, "stripe").customer_id)
        if customer is not None:
            self._touch(org_id)
            self.world.sandbox.patch("stripe", "customers", customer["id"], **fields)

    def _customer(self, prefix: str, org_id: str) -> str:
        made = f"{prefix}_{next(self._number)}"
        self.history.by_hand.add(made)
        self.world.sandbox.preload_stripe_customers([{"id": made, "name": f"for {org_id}"}])
        return made

    def _price(self, lookup_key: str) -> str:
        return next(str(each["id"]) for each in self.world.stripe_objects("prices") if each["lookup_key"] == lookup_key)

    def _touch(self, org_id: str) -> None:
        self.history.touched.add(org_id)


DEEDS: Final[dict[str, Callable[[Hands, str, str], None]]] = {
    deed.__name__: deed
    for deed in (
        Hands.sell_beside_in_stripe,
        Hands.sell_beside_in_lago,
        Hands.end_what_was_sold_beside,
        Hands.delete_the_customer_in_stripe,
        Hands.bring_another_customer,
        Hands.delete_the_customer_in_lago,
        Hands.have_lago_charge_somebody_else,
        Hands.have_lago_charge_nobody,
        Hands.change_the_plan_in_lago,
        Hands.end_it_in_lago,
        Hands.change_the_price_in_stripe,
        Hands.end_it_in_stripe,
        Hands.plan_an_end_in_stripe,
        Hands.pause_it_in_stripe,
        Hands.attach_a_schedule_in_stripe,
        Hands.let_it_go_on_in_stripe,
        Hands.plan_an_end_in_lago,
        Hands.give_it_a_price_of_its_own_in_lago,
        Hands.rename_in_stripe,
        Hands.clear_the_mark_in_stripe,
        Hands.rename_in_lago,
    )
}
