"""What a change in the middle of a period costs, by the second: the old price's unused time back, the new one's rest.

It waits for the subscription's next invoice. The ledger knows nothing of it: there each change counts in full.
"""

from fractions import Fraction

from sandbox.http import Doc
from sandbox.stripe_api.serializers import Tables

MOST_PENDING = 250


class Prorations:
    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._pending = tables.world.store.table("stripe.prorations")

    def between(self, before: Doc, after: Doc, moment: int, *, anew: bool) -> list[Doc]:
        """One item's old and new state after the other; what a period that begins ``anew`` costs is no proration."""
        kept = {item["id"]: item for item in after["items"]}
        lines: list[Doc] = []
        for old in before["items"]:
            new = kept.pop(old["id"], None)
            if new is not None and (new["price"], new["quantity"]) == (old["price"], old["quantity"]):
                continue
            lines.append(self._line(old, moment, old["current_period_end"], sign=-1))
            if new is not None and not anew:
                lines.append(self._line(new, moment, new["current_period_end"], sign=1))
        if not anew:
            lines += [self._line(new, moment, new["current_period_end"], sign=1) for new in kept.values()]
        return [line for line in lines if line["amount"]]

    def of_period(self, item: Doc, start: int, end: int) -> Doc:
        """A whole period at the item's price."""
        price = self._price(item)
        return _line(item, price, int(price["unit_amount"] or 0) * int(item["quantity"]), (start, end), proration=False)

    def pending(self, subscription_id: str) -> list[Doc]:
        found = self._pending.get(subscription_id)
        return [] if found is None else list(found["lines"])

    def keep(self, subscription_id: str, lines: list[Doc]) -> None:
        if lines:
            kept = [*self.pending(subscription_id), *lines][-MOST_PENDING:]
            self._pending.put(subscription_id, {"lines": kept})

    def invoiced(self, subscription_id: str) -> None:
        """An invoice took them."""
        if self._pending.get(subscription_id) is not None:
            self._pending.drop(subscription_id)

    def _line(self, item: Doc, moment: int, end: int, *, sign: int) -> Doc:
        price = self._price(item)
        worth = int(price["unit_amount"] or 0) * int(item["quantity"])
        share = Fraction(end - moment, end - item["current_period_start"])
        return _line(item, price, sign * round(worth * share), (moment, end), proration=True)

    def _price(self, item: Doc) -> Doc:
        price = self._tables.prices.get(item["price"])
        assert price is not None, item["price"]  # noqa: S101  # prices cannot be deleted
        return price


def _line(item: Doc, price: Doc, amount: int, period: tuple[int, int], *, proration: bool) -> Doc:
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
