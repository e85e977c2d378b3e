"""Prorations of a change within a period, by the second: a credit for the old price and a charge for the new one.

They go to the subscription's next invoice. The ledger does not contain them: it records each change in full.
"""

from fractions import Fraction

from sandbox.http import JsonDocument
from sandbox.stripe_api.serializers import StripeTables

MAX_PENDING_PRORATIONS = 250


class StripeProrations:
    def __init__(self, tables: StripeTables) -> None:
        self._tables = tables
        self._pending = tables.state.store.table("stripe.prorations")

    def lines_between(
        self, before: JsonDocument, after: JsonDocument, moment: int, *, restarts_period: bool
    ) -> list[JsonDocument]:
        """Credit and charge for each changed item. With ``restarts_period``, the new period's price is no proration."""
        remaining = {item["id"]: item for item in after["items"]}
        lines: list[JsonDocument] = []
        for old in before["items"]:
            new = remaining.pop(old["id"], None)
            if new is not None and (new["price"], new["quantity"]) == (old["price"], old["quantity"]):
                continue
            lines.append(self._line(old, moment, old["current_period_end"], sign=-1))
            if new is not None and not restarts_period:
                lines.append(self._line(new, moment, new["current_period_end"], sign=1))
        if not restarts_period:
            lines += [self._line(new, moment, new["current_period_end"], sign=1) for new in remaining.values()]
        return [line for line in lines if line["amount"]]

    def whole_period(self, item: JsonDocument, start: int, end: int) -> JsonDocument:
        """The charge for a whole period at the item's price."""
        price = self._price(item)
        return _line(item, price, int(price["unit_amount"] or 0) * int(item["quantity"]), (start, end), proration=False)

    def pending(self, subscription_id: str) -> list[JsonDocument]:
        found = self._pending.get(subscription_id)
        return [] if found is None else list(found["lines"])

    def add(self, subscription_id: str, lines: list[JsonDocument]) -> None:
        if lines:
            pending = [*self.pending(subscription_id), *lines][-MAX_PENDING_PRORATIONS:]
            self._pending.put(subscription_id, {"lines": pending})

    def clear(self, subscription_id: str) -> None:
        """Remove them, since an invoice now contains them."""
        if self._pending.get(subscription_id) is not None:
            self._pending.delete(subscription_id)

    def _line(self, item: JsonDocument, moment: int, end: int, *, sign: int) -> JsonDocument:
        price = self._price(item)
        full_amount = int(price["unit_amount"] or 0) * int(item["quantity"])
        share = Fraction(end - moment, end - item["current_period_start"])
        return _line(item, price, sign * round(full_amount * share), (moment, end), proration=True)

    def _price(self, item: JsonDocument) -> JsonDocument:
        price = self._tables.prices.get(item["price"])
        assert price is not None, item["price"]  # noqa: S101  # prices cannot be deleted
        return price


def _line(
    item: JsonDocument, price: JsonDocument, amount: int, period: tuple[int, int], *, proration: bool
) -> JsonDocument:
    return {
        "item": item["id"],
        "price": price["id"],
        "product": price["product"],
        "unit_amount": price["unit_amount"] or 0,
        "quantity": item["quantity"],
        "amount": amount,
        "start": period[0],
        "end": period[1],
        "proration": proration,
    }
