"""Prorations of a change within a period, by the second: a credit for the old price and a charge for the new one.

Each line is rounded down by itself, toward minus infinity: a credit of 2.5 cents is -3, a charge of 4.5 cents is 4. In
flexible billing mode a credit is worked out from what was charged for the item, in classic mode from the price that it
has now (stripe.md 6, 9). The ledger does not contain them: it records each change in full.
"""

from fractions import Fraction

from sandbox.http import JsonDocument
from sandbox.stripe_api.serializers import StripeTables


class StripeProrations:
    def __init__(self, tables: StripeTables) -> None:
        self._tables = tables

    def lines_between(
        self, before: JsonDocument, after: JsonDocument, moment: int, *, restarts_period: bool
    ) -> list[JsonDocument]:
        """Credit and charge for each changed item. With ``restarts_period``, the new period's price is no proration.

        In a trial there is nothing to credit or charge.
        """
        if before["status"] == "trialing":
            return []
        remaining = {item["id"]: item for item in after["items"]}
        lines: list[JsonDocument] = []
        for old in before["items"]:
            new = remaining.pop(old["id"], None)
            if new is not None and not restarts_period and _terms(new) == _terms(old):
                continue
            lines += self._credit(before, old, moment)
            if new is not None and not restarts_period:
                lines.append(self._line(new, moment, new["current_period_end"], sign=1))
        if not restarts_period:
            lines += [self._line(new, moment, new["current_period_end"], sign=1) for new in remaining.values()]
        return [line for line in lines if line["amount"]]

    def unused_time(self, row: JsonDocument, moment: int) -> list[JsonDocument]:
        """The credit for the part of each item's period after ``moment``."""
        lines = [line for item in row["items"] for line in self._credit(row, item, moment)]
        return [line for line in lines if line["amount"]]

    def whole_period(self, item: JsonDocument, start: int, end: int) -> JsonDocument:
        """The charge for a whole period at the item's price."""
        price = self._tables.price(item["price"])
        return _line(item, price, billed_amount(price, item["quantity"]), (start, end), proration=False)

    def _credit(self, row: JsonDocument, item: JsonDocument, moment: int) -> list[JsonDocument]:
        billed = billed_terms(item) if row["billing_mode"]["type"] == "flexible" else _terms(item)
        if billed is None or moment >= item["current_period_end"]:
            return []
        price, quantity = billed
        charged = {**item, "price": price, "quantity": quantity}
        return [self._line(charged, moment, item["current_period_end"], sign=-1)]

    def _line(self, item: JsonDocument, moment: int, end: int, *, sign: int) -> JsonDocument:
        price = self._tables.price(item["price"])
        full_amount = billed_amount(price, item["quantity"])
        share = Fraction(end - moment, end - item["current_period_start"])
        return _line(item, price, sign * full_amount * share // 1, (moment, end), proration=True)


def billed_amount(price: JsonDocument, quantity: int) -> int:
    """For one period. Usage and tiers are not simulated: they cost nothing."""
    bills_usage = (price["recurring"] or {}).get("usage_type") == "metered"
    return 0 if bills_usage else int(price["unit_amount"] or 0) * int(quantity)


def mark_billed(row: JsonDocument, unchanged_since: JsonDocument | None = None) -> None:
    """Store what was charged for each item, since later credits are worked out from that.

    Items that are as they were in ``unchanged_since`` were not charged again.
    """
    before = {} if unchanged_since is None else {item["id"]: _terms(item) for item in unchanged_since["items"]}
    for item in row["items"]:
        if before.get(item["id"]) != _terms(item):
            item["billed"] = list(_terms(item))


def billed_terms(item: JsonDocument) -> tuple[str, int] | None:
    """Price and quantity that were charged for the item's period; None if nothing was charged for it."""
    billed = item.get("billed", _terms(item))  # a file of an older version does not have it
    return None if billed is None else (billed[0], billed[1])


def _terms(item: JsonDocument) -> tuple[str, int]:
    return item["price"], item["quantity"]


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
        "invoice_item": None,
    }
