"""State of both providers, read independently of ``core``, and the invariants that must hold after any history.

Objects that were created by hand are recognized by their id; all others are ours.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from core.catalog.plans import Catalog
from sandbox.stripe_api.subscriptions import ENDED_STATUSES
from tests.money.tally import ChargedTwiceError

Doc = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A subscription that somebody arranged or re-priced by hand, and what no request of ours may change of it.

    Only while nothing else happened by hand, and for a price of its own only while the plan was not changed either.
    ``ends_at``: a planned end, after which there is nothing to keep.
    """

    org_id: str
    provider: str
    terms: tuple[object, ...]
    edits: int
    plan_changes: int | None
    ends_at: datetime | None = None


@dataclass(kw_only=True)
class ActionHistory:
    """What billing-sync was asked to do, and what users did in the dashboards, by organization or by object."""

    asked: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """All tiers that were ever requested for an organization."""
    by_hand: set[str] = field(default_factory=set)
    """Customers that were created by hand."""
    rogues: dict[str, str] = field(default_factory=dict)
    """Subscriptions that were created by hand, with their price in Stripe or their plan in Lago."""
    ended_by_hand: set[str] = field(default_factory=set)
    deleted_by_hand: set[str] = field(default_factory=set)
    """Customers, by the providers' ids."""
    plans_by_hand: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Tiers that users set at a provider for a subscription of ours, by organization."""
    touched: set[str] = field(default_factory=set)
    """Organizations whose objects were changed by hand."""
    owners: dict[str, str] = field(default_factory=dict)
    """The organization of each customer of ours at its first observation, since its org_id can be cleared later."""
    lago_ids: set[str] = field(default_factory=set)
    edits: Counter[str] = field(default_factory=Counter)
    """Number of changes by hand of each organization."""
    plan_changes: Counter[str] = field(default_factory=Counter)
    """Number of plan changes of each organization that were requested of us; its deletion counts too."""
    decisions: Counter[str] = field(default_factory=Counter)
    """Number of times that an operator decided about a hold. Another hold may follow."""
    words: Counter[str] = field(default_factory=Counter)
    """Number of other things asked of us after which an organization may be sold its plan anew: a status, a decision,
    a repair."""
    tier_by_price: dict[str, str] = field(default_factory=dict)
    """Of each price in Stripe, also after its lookup key moved."""
    deleted: set[str] = field(default_factory=set)
    """Organizations that were ever deleted, which ends what was arranged."""
    kept: dict[str, Kept] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Books:
    """Both providers at one moment."""

    state: Doc
    history: ActionHistory
    catalog: Catalog

    def stripe_customers(self, org_id: str) -> list[Doc]:
        """Those that exist and that we created."""
        return [
            each
            for each in self.state["stripe"]["customers"]
            if not each.get("deleted") and self.history.owners.get(each["id"]) == org_id
        ]

    def stripe_customer(self, customer_id: str | None) -> Doc | None:
        found = [each for each in self.state["stripe"]["customers"] if each["id"] == customer_id]
        return found[0] if found and not found[0].get("deleted") else None

    def stripe_subscriptions(self, org_id: str) -> list[Doc]:
        """Those that exist and that we created."""
        return [
            each
            for each in self.state["stripe"]["subscriptions"]
            if each["status"] not in ENDED_STATUSES
            and each["id"] not in self.history.rogues
            and each["metadata"].get("billing_sync_org_id") == org_id
        ]

    def lago_customer(self, org_id: str) -> Doc | None:
        found = [each for each in self.state["lago"]["customers"] if each["external_id"] == org_id]
        assert len(found) <= 1, f"{org_id} has {len(found)} customers at Lago"
        return found[0] if found else None

    def lago_subscriptions(self, org_id: str) -> list[Doc]:
        """The active and pending ones with the organization's id."""
        return [
            each
            for each in self.state["lago"]["subscriptions"]
            if each["external_id"] == org_id and each["status"] in {"active", "pending"}
        ]

    def payer(self, org_id: str) -> str | None:
        """The Stripe customer that Lago charges."""
        customer = self.lago_customer(org_id)
        payer = customer["billing_configuration"].get("provider_customer_id") if customer else None
        return str(payer) if payer else None

    def rogues_alive(self) -> list[str]:
        statuses = {each["id"]: each["status"] for each in self.state["stripe"]["subscriptions"]}
        statuses |= {each["lago_id"]: each["status"] for each in self.state["lago"]["subscriptions"]}
        return [each for each in self.history.rogues if statuses[each] not in {*ENDED_STATUSES, "terminated"}]

    def check(self, now: datetime) -> None:
        """Check the invariants that must hold after each step, and record the organizations of new customers."""
        self.record_prices()
        self._record_owners()
        self._check_none_deleted()
        self._rogues_are_left_alone()
        for org_id in self.history.asked:
            self._one_charging_provider(org_id)
            self._one_customer(org_id)
            self._check_plans(org_id)
        for its_id, kept in self.history.kept.items():
            self._check_kept(its_id, kept, now)

    def record_prices(self) -> None:
        for each in self.state["stripe"]["prices"]:
            tier = self.catalog.tier_of("stripe", each["lookup_key"] or "")
            if tier is not None:
                self.history.tier_by_price.setdefault(each["id"], tier)

    def tier_of_price(self, price_id: str) -> str:
        return self.history.tier_by_price.get(price_id, "")

    def _check_kept(self, its_id: str, kept: Kept, now: datetime) -> None:
        history = self.history
        is_changed = history.edits[kept.org_id] != kept.edits or kept.org_id in history.deleted
        is_sold_again = kept.plan_changes is not None and history.plan_changes[kept.org_id] != kept.plan_changes
        if is_changed or is_sold_again:
            return
        found = self.terms_of(kept.provider, its_id)
        if found is None and kept.ends_at is not None and kept.ends_at <= now:
            return
        assert found == kept.terms, f"{its_id} was {kept.terms} by hand, and is {found}"

    def terms_of(self, provider: str, its_id: str) -> tuple[object, ...] | None:
        """What a person may arrange, with the price; None for one that has ended."""
        rows = self.state[provider]["subscriptions"]
        (row,) = [each for each in rows if its_id in {each.get("id"), each.get("lago_id")}]
        if row["status"] in {*ENDED_STATUSES, "terminated"}:
            return None
        if provider == "lago":
            return row["plan_code"], row["plan_amount_cents"], row["ending_at"]
        (item,) = row["items"]["data"]
        is_paused = row["pause_collection"] is not None
        return item["price"]["id"], item["quantity"], row["cancel_at_period_end"], is_paused, row["schedule"]

    def end_of(self, provider: str, its_id: str) -> datetime | None:
        """The planned end of a subscription, if it has one."""
        rows = self.state[provider]["subscriptions"]
        (row,) = [each for each in rows if its_id in {each.get("id"), each.get("lago_id")}]
        if provider == "lago":
            return datetime.fromisoformat(row["ending_at"]) if row["ending_at"] else None
        return datetime.fromtimestamp(row["cancel_at"], UTC) if row["cancel_at"] else None

    def _record_owners(self) -> None:
        for each in self.state["stripe"]["customers"]:
            if each["id"] not in self.history.by_hand and not each.get("deleted"):
                self.history.owners.setdefault(each["id"], each["metadata"].get("billing_sync_org_id", "nobody"))
        self.history.lago_ids |= {each["lago_id"] for each in self.state["lago"]["customers"]}

    def _check_none_deleted(self) -> None:
        gone = {each["id"] for each in self.state["stripe"]["customers"] if each.get("deleted")}
        gone |= self.history.lago_ids - {each["lago_id"] for each in self.state["lago"]["customers"]}
        assert gone <= self.history.deleted_by_hand, f"we deleted {gone - self.history.deleted_by_hand}"

    def _rogues_are_left_alone(self) -> None:
        for each in self.state["stripe"]["subscriptions"]:
            if each["id"] in self.history.rogues:
                self._rogue(each["id"], each["status"], _prices(each), each["customer"])
                assert "billing_sync_org_id" not in each["metadata"], (
                    f"{each['id']} was created by hand, and was adopted"
                )
        for each in self.state["lago"]["subscriptions"]:
            if each["lago_id"] in self.history.rogues:
                self._rogue(each["lago_id"], each["status"], [each["plan_code"]], each["lago_customer_id"])

    def _rogue(self, its_id: str, status: str, sold: Iterable[str], customer: str) -> None:
        if its_id in self.history.ended_by_hand or customer in self.history.deleted_by_hand:
            return
        assert status == "active", f"{its_id} was created by hand, and is {status}"
        assert [*sold] == [self.history.rogues[its_id]], f"{its_id} was created by hand, and has the plan {sold} now"

    def _one_charging_provider(self, org_id: str) -> None:
        """A payer that was set in Lago by hand does not count, only a customer that we created or were given."""
        charging_providers = [str(each["id"]) for each in self.stripe_subscriptions(org_id)]
        payer = self.payer(org_id)
        if payer is not None and not payer.startswith("cus_hand"):
            charging_providers.append(payer)
        if len(charging_providers) > 1:
            message = f"{org_id} is charged by {charging_providers}"
            raise ChargedTwiceError(message)
        active = [each for each in self.lago_subscriptions(org_id) if each["status"] == "active"]
        assert len(active) <= 1, f"{org_id} has {len(active)} active subscriptions at Lago"

    def _one_customer(self, org_id: str) -> None:
        customers = [each["id"] for each in self.stripe_customers(org_id)]
        assert len(customers) <= 1, f"{org_id} has the customers {customers}"
        self.lago_customer(org_id)

    def _check_plans(self, org_id: str) -> None:
        """Every plan was requested. Above all, none is free unless that was requested."""
        tiers = self.history.asked[org_id] | self.history.plans_by_hand[org_id]
        plans = [self.catalog.plans[tier] for tier in tiers if tier in self.catalog.plans]
        free = any(plan.amount == 0 for plan in plans)
        for each in self.stripe_subscriptions(org_id):
            sold = {self.tier_of_price(price) for price in _prices(each)}
            assert sold <= tiers, f"{each['id']} has the plan {sold}"
            assert free or all(item["quantity"] > 0 for item in each["items"]["data"]), f"{each['id']} costs nothing"
        for each in self.lago_subscriptions(org_id):
            assert self.catalog.tier_of("lago", each["plan_code"]) in tiers, f"{org_id} is on {each['plan_code']}"


def _prices(subscription: Doc) -> list[str]:
    return [item["price"]["id"] for item in subscription["items"]["data"]]
