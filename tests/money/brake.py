"""The payment brake seen from outside: no change of what is paid was sent without a place or an operator's word.

What is paid is read from the provider that charges. Each change of it must have a place in our rows that no earlier
change used, unless it goes back to what was sent within a week, the provider carried out what was scheduled, or a
person did it. The places of any hour are no more than the limit, and those of expectations no more than expected.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import select

from core.db.models.payments import PaymentChangeRecord
from core.flow_control import payment_brake
from tests.money.provider_books import Books
from tests.money.tally import SentUnaskedError
from tests.support.sync_world import SyncWorld


@dataclass(frozen=True, kw_only=True)
class Paid:
    """``plan``, ``next_plan``: the code in Lago, the tier with its price in Stripe. ``is_free``: nobody pays for it."""

    provider: str
    subscription: str
    plan: str
    next_plan: str | None
    payer: str | None
    is_free: bool


@dataclass(frozen=True, kw_only=True)
class Seen:
    """``edits``: how often people had changed anything of the organization by then. ``seq``: of its newest place."""

    paid: Paid | None
    edits: int
    seq: int


@dataclass(kw_only=True)
class BrakeWatch:
    world: SyncWorld
    expected: int = 0
    seen: dict[str, Seen] = field(default_factory=dict)
    sent: dict[str, tuple[Paid, datetime]] = field(default_factory=dict)
    """What was sent last, by organization."""

    def observe(self, books: Books) -> None:
        """Raises ``SentUnaskedError``."""
        limit = self.world.payment_limit
        if limit is None:
            return
        with self.world.database.read() as session:
            rows = list(session.scalars(select(PaymentChangeRecord).order_by(PaymentChangeRecord.seq)))
        self._refuse_too_many(rows, limit.changes)
        newest = {row.org_id: row.seq for row in rows if row.place != "returned"}
        for org_id in books.history.asked:
            self._observe_one(books, org_id, newest.get(org_id, 0))

    def _refuse_too_many(self, rows: list[PaymentChangeRecord], limit: int) -> None:
        counted = [row.at for row in rows if row.place == "counted"]
        for number, last in enumerate(counted):
            within = [at for at in counted[: number + 1] if at > last - payment_brake.PAYMENT_WINDOW]
            if len(within) > limit:
                message = f"{len(within)} changes within an hour, and the limit is {limit}"
                raise SentUnaskedError(message)
        by_expectation = [row for row in rows if row.place == "expected"]
        assert len(by_expectation) <= self.expected, f"{len(by_expectation)} changes took one of {self.expected}"

    def _observe_one(self, books: Books, org_id: str, seq: int) -> None:
        paid, edits = paid_for(books, org_id), books.history.edits[org_id]
        known = self.seen.get(org_id)
        if known is None or known.edits != edits or paid == known.paid:
            seq = seq if known is None else known.seq
        elif _takes_a_place(known.paid, paid):
            before, at = self.sent.get(org_id, (None, self.world.now))
            is_repeat = paid == before and self.world.now - at < payment_brake.PLACE_LASTS
            if seq <= known.seq and not is_repeat:
                message = f"{org_id} paid {known.paid}, and pays {paid}, without a place or a word"
                raise SentUnaskedError(message)
            if paid is not None:
                self.sent[org_id] = paid, self.world.now
        self.seen[org_id] = Seen(paid=paid, edits=edits, seq=seq)


def paid_for(books: Books, org_id: str) -> Paid | None:
    """What our subscription costs where it is charged; None: nobody pays."""
    for each in books.stripe_subscriptions(org_id):
        (item,) = each["items"]["data"]
        tier = books.tier_of_price(item["price"]["id"])
        plan = books.catalog.plans.get(tier)
        is_free = item["quantity"] == 0 or (plan is not None and plan.amount == 0)
        return Paid(
            provider="stripe",
            subscription=each["id"],
            plan="free" if is_free else f"{tier} as {item['price']['id']}",
            next_plan=None,
            payer=each["customer"],
            is_free=is_free,
        )
    payer = books.payer(org_id)
    subscriptions = books.lago_subscriptions(org_id)
    active = next((each for each in subscriptions if each["status"] == "active"), None)
    if active is None or payer is None:
        return None
    return Paid(
        provider="lago",
        subscription=str(active["external_id"]),
        plan=active["plan_code"],
        next_plan=next((each["plan_code"] for each in subscriptions if each["status"] == "pending"), None),
        payer=payer,
        is_free=active["plan_amount_cents"] == 0,
    )


def _takes_a_place(before: Paid | None, after: Paid | None) -> bool:
    if before is None or before == after:
        return False
    if after is None:
        return not before.is_free
    if before.provider != after.provider or (before.provider == "stripe" and before.subscription != after.subscription):
        return not before.is_free
    is_carried_out = after.plan == before.next_plan and after.next_plan is None
    # In Stripe the free price only follows what took effect.
    return not is_carried_out and not (after.provider == "stripe" and after.is_free)
