"""Lists who was sold a code, with what each pays and the day of its move. It reads the provider and changes nothing.

An organization that cannot be moved is listed with its reason. What is not known is said, and is not moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from sqlalchemy import ColumnElement, func, select

from core.common.clock import Clock
from core.compare import local_state
from core.compare.desired_state import external_ids
from core.compare.local_state import LocalState
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Management
from core.db.models.price_moves import PriceMove
from core.ports.errors import RejectedError
from core.ports.inventory import Inventory, InventoryItem, InventoryPrice, InventorySubscription
from core.ports.minor_units import amount_text
from core.ports.spec import PROVIDER_NAMES
from core.price_moves import obstacles
from core.price_moves.obstacles import MovedPlan
from core.price_moves.request import PriceMoveRequest
from core.price_moves.row import PriceMoveRow, follows_new_period, period_end_after
from core.reconcile.low_priority_reader import LowPriorityReader

MAX_PRICE_PAGES: Final = 100
_BATCH_SIZE: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class MovePrices:
    """``before`` None: the provider has no price under the former code any more."""

    before: InventoryPrice | None
    after: InventoryPrice
    amount_after: int

    @property
    def interval(self) -> str:
        return interval_of(self.after)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceMoveLister:
    database: Database
    read: LowPriorityReader[Inventory]
    installation: Management
    clock: Clock

    def count(self, request: PriceMoveRequest) -> int:
        with self.database.read() as session:
            return session.scalar(select(func.count()).select_from(BillingLink).where(*_was_sold(request))) or 0

    def prices(self, request: PriceMoveRequest) -> MovePrices:
        """As the provider has them now. Raises ``RejectedError``."""
        before = self.read(request.provider, lambda inventory: _price(inventory, request, request.from_code))
        after = self.read(request.provider, lambda inventory: _price(inventory, request, request.to_code))
        name = PROVIDER_NAMES[request.provider]
        if after is None or after.amount is None:
            message = f"{name} has no flat price under {request.to_code}; `billing-sync plans push` creates it"
            raise RejectedError(request.provider, message)
        terms = (after.currency, interval_of(after))
        if before is not None and (before.currency, interval_of(before)) != terms:
            message = (
                f"{request.from_code} and {request.to_code} differ in their currency or interval at {name}: such a "
                "price is another plan"
            )
            raise RejectedError(request.provider, message)
        return MovePrices(before=before, after=after, amount_after=after.amount)

    def rows(self, request: PriceMoveRequest, prices: MovePrices) -> Iterator[PriceMoveRow]:
        """By ascending id. Raises ``ProviderError``."""
        org_id = ""
        while True:
            found = self._next_sold(request, org_id)
            for state, has_open_move in found:
                yield self._row(request, prices, state, has_open_move=has_open_move)
            if len(found) < _BATCH_SIZE:
                return
            org_id = found[-1][0].organization.id

    def _next_sold(self, request: PriceMoveRequest, org_id: str) -> list[tuple[LocalState, bool]]:
        query = select(BillingLink.org_id).where(BillingLink.org_id > org_id, *_was_sold(request))
        with self.database.read() as session:
            org_ids = session.scalars(query.order_by(BillingLink.org_id).limit(_BATCH_SIZE)).all()
            moved = set(
                session.scalars(
                    select(PriceMove.org_id).where(PriceMove.org_id.in_(org_ids), PriceMove.ended_at.is_(None))
                )
            )
            states = (local_state.load(session, each) for each in org_ids)
            return [(state, state.organization.id in moved) for state in states if state is not None]

    def _row(
        self, request: PriceMoveRequest, prices: MovePrices, state: LocalState, *, has_open_move: bool
    ) -> PriceMoveRow:
        organization, link = state.organization, state.links[request.provider]
        row = PriceMoveRow(
            org_id=organization.id,
            name=organization.name,
            provider=request.provider,
            tier=request.tier,
            from_code=request.from_code,
            to_code=request.to_code,
            amount_before=None,
            amount_after=prices.amount_after,
            currency=prices.after.currency,
            interval=prices.interval,
            at_period_end=request.at_period_end,
            effective_at=None,
            notice_days=request.notice_days,
            version=organization.version,
            sold_price_id=link.sold_price_id,
        )
        moved = MovedPlan(provider=request.provider, tier=request.tier, from_code=request.from_code)
        obstacle = obstacles.find(organization, state.links, moved, self.installation)
        if has_open_move or obstacle is not None:
            reason = obstacle.sentence if obstacle is not None else "it is moved by another file already"
            return replace(row, reason=reason)
        ids = external_ids(link)
        customer = ids.customer_of(organization.id) if request.provider == "lago" else str(link.customer_id)
        found = self.read(request.provider, lambda inventory: inventory.subscriptions_of(customer))
        ours = [each for each in found if each.id == link.subscription_id]
        if len(ours) != 1 or len(ours[0].items) != 1:
            sentence = f"{PROVIDER_NAMES[request.provider]} does not show its subscription with one price"
            return replace(row, reason=sentence)
        return self._read_row(row, prices, ours[0])

    def _read_row(self, row: PriceMoveRow, prices: MovePrices, found: InventorySubscription) -> PriceMoveRow:
        item, now = found.items[0], self.clock()
        amount = None if item.amount is None else item.amount * item.quantity
        row = replace(row, amount_before=amount)
        reason = next(_price_reasons(row, prices, found, item), None)
        if reason is not None:
            return replace(row, reason=reason)
        earliest = now + timedelta(days=row.notice_days)
        if not row.at_period_end:
            return replace(row, effective_at=earliest)
        if found.next_at is None:
            return replace(row, reason="the end of its period is not known")
        is_lower = amount is not None and row.amount_after < amount
        latest_day = follows_new_period(row.provider, is_lower=is_lower)
        return replace(
            row, effective_at=period_end_after(found.next_at, row.interval, max(earliest, now), latest_day=latest_day)
        )


def interval_of(price: InventoryPrice | InventoryItem) -> str:
    return f"{price.interval_count} {price.interval}"


def _price_reasons(
    row: PriceMoveRow, prices: MovePrices, found: InventorySubscription, item: InventoryItem
) -> Iterator[str]:
    """Why it is not moved, by what it pays."""
    before = prices.before
    is_sold_price = item.code == row.from_code or (row.sold_price_id is not None and item.price_id == row.sold_price_id)
    if not is_sold_price:
        yield f"its price is {item.code or item.price_id}"
    if item.amount is None or row.amount_before is None:
        yield "what it pays is not known"
        return
    if item.quantity != 1:
        yield f"it pays {item.quantity} times the price"
    if before is not None and before.amount != item.amount:
        yield f"it pays a price of its own, {amount_text(item.amount, item.currency)}"
    if (item.currency, interval_of(item)) != (row.currency, row.interval):
        yield f"it pays {item.currency} each {interval_of(item)}"
    if found.arrangement is not None:
        yield f"somebody arranged {found.arrangement.phrase}"
    if found.next_code is not None:
        yield f"it changes to {found.next_code} at the end of the period"
    if found.trial_ends_at is not None:
        yield f"it is in a trial until {found.trial_ends_at:%Y-%m-%d}"
    yield from _terms_reasons(row, row.amount_before or 0)


def _terms_reasons(row: PriceMoveRow, amount_before: int) -> Iterator[str]:
    """What the provider cannot do."""
    if row.provider == "lago" and not row.at_period_end and row.amount_after < amount_before:
        yield "Lago lowers a price only at the end of a period: use --when period-end"
    if row.provider == "stripe" and row.at_period_end and not amount_before:
        yield "Stripe charges at once when a free subscription becomes paid: use --when now"


def _price(inventory: Inventory, request: PriceMoveRequest, code: str) -> InventoryPrice | None:
    if request.provider == "lago":
        return inventory.price(code)
    cursor: str | None = None
    for _ in range(MAX_PRICE_PAGES):
        page = inventory.prices(cursor)
        for price in page.rows:
            if price.code == code:
                return price
        cursor = page.next_cursor
        if cursor is None:
            return None
    message = f"Stripe has more prices than are read for {code}"
    raise RejectedError("stripe", message)


def _was_sold(request: PriceMoveRequest) -> tuple[ColumnElement[bool], ...]:
    return (BillingLink.provider == request.provider, BillingLink.sold_plan == request.from_code)
