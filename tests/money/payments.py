"""What the invoices in Stripe bill and what is credited on them, read from outside: no time is billed twice.

Whoever leaves gets the unused time of each invoice back, once, whether it was paid or not.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.money.provider_books import Books, Doc
from tests.money.tally import ChargedTwiceError

OUR_END: Final = "ended by billing-sync"
ENDED_SUBSCRIPTION: Final = "billing_sync_ended_subscription"
BEGINNINGS: Final = {"subscription_create", "upgrade", "plan_change"}
"""Reasons of the ledger's charges that somebody asked for; the others come with time."""


@dataclass(frozen=True, kw_only=True)
class PaymentBooks:
    books: Books

    def check(self) -> None:
        """Raises ``ChargedTwiceError``."""
        for its_id in {_subscription_of(each) for each in self._invoices()}:
            self._no_time_is_billed_twice(its_id)
        self._nothing_is_credited_twice()
        self._every_charge_was_asked_for()

    def check_that_it_left(self, org_id: str) -> None:
        """Call once all of it is settled. Raises ``ChargedTwiceError``: unused time that is not given back."""
        for row in self.books.state["stripe"]["subscriptions"]:
            ended_by_us = (row["cancellation_details"] or {}).get("comment") == OUR_END
            if (
                row["metadata"].get("billing_sync_org_id") != org_id
                or not ended_by_us
                or row["pause_collection"] is not None
            ):
                continue
            invoices = [each for each in self._invoices() if _subscription_of(each) == row["id"]]
            if all(_is_plain(line) for each in invoices for line in _lines(each)):
                for invoice in invoices:
                    self._credited_in_full(invoice, row)

    def _credited_in_full(self, invoice: Doc, row: Doc) -> None:
        was_given_up = invoice["status_transitions"]["marked_uncollectible_at"] is not None
        if invoice["status"] not in {"open", "paid"} or was_given_up:
            return
        due = sum(_unused(line, row["ended_at"]) for line in _lines(invoice))
        given = sum(each["amount"] for each in self._notes(invoice["id"], row["id"]))
        if given != due:
            message = f"{row['id']} has ended, {due} of {invoice['id']} was not used, and {given} was credited"
            raise ChargedTwiceError(message)

    def _no_time_is_billed_twice(self, its_id: str) -> None:
        lines = [
            line
            for each in self._invoices()
            if _subscription_of(each) == its_id and each["status"] != "void"
            for line in _lines(each)
            if _is_plain(line) and line["amount"] > 0
        ]
        periods = sorted((line["period"]["start"], line["period"]["end"]) for line in lines)
        for earlier, later in itertools.pairwise(periods):
            if later[0] < earlier[1]:
                message = f"{its_id} is billed for {earlier} and for {later}"
                raise ChargedTwiceError(message)

    def _nothing_is_credited_twice(self) -> None:
        given: defaultdict[tuple[str, str], int] = defaultdict(int)
        for each in self.books.state["credit_notes"]:
            ended = each["metadata"].get(ENDED_SUBSCRIPTION)
            if ended is not None and each["status"] == "issued":
                given[each["invoice"], ended] += 1
        twice = [key for key, times in given.items() if times > 1]
        if twice:
            message = f"credited twice, by invoice and ended subscription: {twice}"
            raise ChargedTwiceError(message)

    def _every_charge_was_asked_for(self) -> None:
        """Each request for a plan, and each deed of a person, is a reason for one charge at a provider."""
        history = self.books.history
        owners = history.owners | {each: each for each in history.asked}
        charged: defaultdict[tuple[str, str], int] = defaultdict(int)
        for each in self.books.state["charges"]:
            if each["reason"] in BEGINNINGS and each["amount"] > 0:
                charged[each["provider"], owners.get(each["customer"], "")] += 1
        for (provider, org_id), times in charged.items():
            asked = history.plan_changes[org_id] + history.edits[org_id] + history.words[org_id] + 1
            if org_id in history.asked and times > asked:
                message = f"{org_id} was charged {times} times in {provider} for {asked} requests"
                raise ChargedTwiceError(message)

    def _invoices(self) -> Iterator[Doc]:
        """Those of subscriptions of ours whose price nobody changed by hand."""
        for each in self.books.state["invoices"]:
            org_id = self.books.history.owners.get(each["customer"])
            its_id = _subscription_of(each)
            if org_id is None or its_id == "" or its_id in self.books.history.rogues:
                continue
            if not self.books.history.plans_by_hand[org_id]:
                yield each

    def _notes(self, invoice_id: str, its_id: str) -> list[Doc]:
        return [
            each
            for each in self.books.state["credit_notes"]
            if each["invoice"] == invoice_id and each["metadata"].get(ENDED_SUBSCRIPTION) == its_id
        ]


def _subscription_of(invoice: Doc) -> str:
    details = (invoice["parent"] or {}).get("subscription_details")
    return str(details["subscription"]) if details else ""


def _lines(invoice: Doc) -> list[Doc]:
    return list(invoice["lines"]["data"])


def _is_plain(line: Doc) -> bool:
    """No part of a change within a period."""
    details = (line["parent"] or {}).get("subscription_item_details")
    return details is not None and not details["proration"]


def _unused(line: Doc, ended_at: int) -> int:
    """Rounded up to a whole cent: the seconds after the end, of all that were billed."""
    start, end = line["period"]["start"], line["period"]["end"]
    left = end - max(start, ended_at)
    return -(-line["amount"] * left // (end - start)) if left > 0 else 0
