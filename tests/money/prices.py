"""The price that each organization was sold, seen from outside: it changes with its plan, or when a person says so.

In Stripe a scheduled plan is on the item before it is paid for, so the price that was sold is remembered until the end
of the period in which the other one appeared.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from tests.money.provider_books import Books, Doc
from tests.money.tally import RepricedError


@dataclass(frozen=True, kw_only=True)
class Sold:
    """``words``: how often people had changed anything of the organization by then.

    ``began_at``: when the provider put the tier into effect. ``scheduled``, ``due_at``: the tier that follows.
    """

    tier: str
    price: str
    words: int
    began_at: datetime
    scheduled: str | None = None
    due_at: datetime | None = None


@dataclass(kw_only=True)
class PriceWatch:
    in_stripe: dict[str, Sold] = field(default_factory=dict)
    """By subscription."""
    in_lago: dict[str, Sold] = field(default_factory=dict)
    """By organization."""
    lago_ids: dict[str, str] = field(default_factory=dict)

    def observe(self, books: Books, now: datetime) -> None:
        """Raises ``RepricedError``."""
        for org_id in books.history.asked:
            words = books.history.edits[org_id] + books.history.words[org_id]
            for each in books.stripe_subscriptions(org_id):
                self._observe_in_stripe(books, each, words, now)
            self._observe_in_lago(books, org_id, words)

    def forget_lago(self) -> None:
        """A person changed what a plan costs there; those who are on it have that price from now on."""
        self.in_lago.clear()

    def _observe_in_stripe(self, books: Books, row: Doc, words: int, now: datetime) -> None:
        items = row["items"]["data"]
        if len(items) != 1:
            return
        price = str(items[0]["price"]["id"])
        free = next((plan.tier for plan in books.catalog.plans.values() if plan.amount == 0), "")
        tier = books.tier_of_price(price) if items[0]["quantity"] else free
        if tier == free:
            price = "nothing"  # At first it is the paid price, none of it.
        known = self.in_stripe.get(row["id"])
        began_at = datetime.fromtimestamp(items[0]["current_period_start"], UTC)
        ends_at = datetime.fromtimestamp(items[0]["current_period_end"], UTC)
        seen = Sold(tier=tier, price=price, words=words, began_at=began_at)
        if known is None or known.words != words or _rank(books, tier) > _rank(books, known.tier):
            self.in_stripe[row["id"]] = seen
        elif tier == known.tier:
            _refuse_other_price(row["id"], known, price)
            self.in_stripe[row["id"]] = replace(known, scheduled=None, due_at=None)
        elif known.scheduled != tier or known.due_at is None:
            self.in_stripe[row["id"]] = replace(known, scheduled=tier, due_at=ends_at)
        elif now >= known.due_at:
            self.in_stripe[row["id"]] = seen

    def _observe_in_lago(self, books: Books, org_id: str, words: int) -> None:
        active = next((each for each in books.lago_subscriptions(org_id) if each["status"] == "active"), None)
        if active is None:
            self.in_lago.pop(org_id, None)
            return
        tier = books.catalog.tier_of("lago", active["plan_code"]) or ""
        price = f"{active['plan_code']} at {active['plan_amount_cents']}"
        known, known_id = self.in_lago.get(org_id), self.lago_ids.get(org_id)
        self.lago_ids[org_id] = active["lago_id"]
        is_new = known_id != active["lago_id"] and active["previous_plan_code"] is None
        plan = books.catalog.plans.get(tier)
        costs_nothing = plan is not None and plan.has_unpaid_plan and plan.is_usage_code(active["plan_code"])
        if known is not None and known.words == words and known.tier == tier and not is_new and not costs_nothing:
            _refuse_other_price(org_id, known, price)
            return
        began_at = datetime.fromisoformat(active["activated_at"])
        self.in_lago[org_id] = Sold(tier=tier, price=price, words=words, began_at=began_at)


def _refuse_other_price(its_id: str, known: Sold, price: str) -> None:
    if price != known.price:
        message = f"{its_id} was sold {known.tier} as {known.price}, and has {price} without a word"
        raise RepricedError(message)


def _rank(books: Books, tier: str) -> int:
    plan = books.catalog.plans.get(tier)
    return plan.rank if plan is not None else -1
