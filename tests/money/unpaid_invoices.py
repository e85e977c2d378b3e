"""What becomes of an organization's invoices at the providers when nobody pays, and when somebody pays late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sandbox.client import SandboxError
from tests.money.provider_books import ActionHistory, Books, Doc
from tests.support.sync_world import SyncWorld


@dataclass(kw_only=True)
class UnpaidInvoices:
    """``made``: the invoices in Lago by organization; the sandbox makes none by itself."""

    world: SyncWorld
    history: ActionHistory
    made: dict[str, str]

    def do(self, deed: str, org_id: str) -> None:
        """Nothing happens without an invoice, or if the provider rejects it."""
        try:
            INVOICE_DEEDS[deed](self, org_id)
        except SandboxError:
            return

    def fail_in_stripe(self, org_id: str) -> None:
        self._set_in_stripe(org_id, "failed")

    def give_up_in_stripe(self, org_id: str) -> None:
        self._set_in_stripe(org_id, "uncollectible")

    def pay_in_stripe(self, org_id: str) -> None:
        self._set_in_stripe(org_id, "paid")

    def fail_in_lago(self, org_id: str) -> None:
        if self.books.lago_customer(org_id) is not None:
            made = self.world.sandbox.create("lago", "invoices", external_customer_id=org_id, payment_status="failed")
            self.made[org_id] = made["lago_id"]

    def become_overdue_in_lago(self, org_id: str) -> None:
        self._let_happen_in_lago(org_id, payment_overdue=True)

    def lose_a_dispute_in_lago(self, org_id: str) -> None:
        self._let_happen_in_lago(org_id, payment_dispute_lost=True)

    def pay_in_lago(self, org_id: str) -> None:
        self._let_happen_in_lago(org_id, payment_status="succeeded")

    @property
    def books(self) -> Books:
        return Books(state=self.world.sandbox.state(), history=self.history, catalog=self.world.catalog)

    def _set_in_stripe(self, org_id: str, status: str) -> None:
        for each in self._in_stripe(org_id):
            self.world.sandbox.patch("stripe", "invoices", each["id"], status=status)

    def _in_stripe(self, org_id: str) -> list[Doc]:
        """What is still to be paid; a draft is finalized within the hour and is left to that."""
        state = self.books.state
        unpaid = {"open", "uncollectible"}
        return [
            each
            for each in state["invoices"]
            if self.history.owners.get(each["customer"]) == org_id and each["status"] in unpaid
        ]

    def _let_happen_in_lago(self, org_id: str, **fields: Any) -> None:  # noqa: ANN401 - as the sandbox takes them
        if org_id not in self.made:
            self.fail_in_lago(org_id)
        if org_id in self.made:
            self.world.sandbox.patch("lago", "invoices", self.made[org_id], **fields)


INVOICE_DEEDS: Final[dict[str, Callable[[UnpaidInvoices, str], None]]] = {
    deed.__name__: deed
    for deed in (
        UnpaidInvoices.fail_in_stripe,
        UnpaidInvoices.give_up_in_stripe,
        UnpaidInvoices.pay_in_stripe,
        UnpaidInvoices.fail_in_lago,
        UnpaidInvoices.become_overdue_in_lago,
        UnpaidInvoices.lose_a_dispute_in_lago,
        UnpaidInvoices.pay_in_lago,
    )
}
