"""Ledger of what the providers would have charged: one entry for each subscription created, changed or renewed.

``price`` is the full price of a period, so a test's expectation does not depend on the day it runs. ``amount`` is what
Lago bills of it, which prorates (lago_api/fees.py); for Stripe it is the same, as its invoices have the proration.
``reason`` is ``subscription_create``, ``plan_change`` or ``renewal``; for Lago also ``upgrade``, ``downgrade``,
``upgrade_credit`` and ``termination_credit`` (negative), and ``termination_invoice``.
"""

from sandbox.clock import SandboxClock, utc_datetime
from sandbox.http import JsonDocument
from sandbox.store import SandboxStore


class Ledger:
    def __init__(self, store: SandboxStore, clock: SandboxClock) -> None:
        self._table = store.table("charges")
        self._clock = clock

    def charge(  # noqa: PLR0913  # an entry's fields
        self,
        provider: str,
        *,
        customer: str,
        subscription: str,
        amount: int,
        currency: str,
        reason: str,
        price: int | None = None,
    ) -> None:
        entry: JsonDocument = {
            "provider": provider,
            "customer": customer,
            "subscription": subscription,
            "amount": amount,
            "price": amount if price is None else price,
            "currency": currency.lower(),
            "reason": reason,
            "at": utc_datetime(self._clock.now()).isoformat(),
        }
        self._table.put(str(len(self._table)), entry)

    def entries(self) -> list[JsonDocument]:
        return list(self._table)
