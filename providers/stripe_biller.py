"""Stripe as a biller (``core.gateways.Biller``): the customer who pays, and the subscription where Stripe charges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from core.catalog import Ending
from core.gateways import Claim, Customer, CustomerSpec, Known, Offer, Provider, Subscription, SubscriptionSpec

from .stripe_answers import Object, Page
from .stripe_customers import Customers
from .stripe_door import Door, NoLease
from .stripe_prices import Prices
from .stripe_subscriptions import Subscriptions

TIMEOUT = 20.0  # seconds for one request, the last byte of the answer included


@dataclass(frozen=True, slots=True)
class Account:
    """Whose key this is. ``livemode`` is None while the account holds nothing that could tell."""

    id: str
    livemode: bool | None


def _utc_now() -> datetime:
    return datetime.now(UTC)


class StripeBiller:
    """One for each process, built after the fork; threads share it. Close it when the process ends.

    ``api_base`` has no default, so that no test and no staging reaches live systems by accident.
    """

    provider: Provider = "stripe"

    def __init__(  # noqa: PLR0913 - the settings of one biller, all named
        self,
        secret_key: str,
        api_base: str,
        *,
        ending: Ending,
        days_until_due: int = 30,
        timeout: float = TIMEOUT,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._door = Door(secret_key, api_base, timeout)
        self._prices = Prices(self._door)
        self._customers = Customers(self._door, clock)
        self._subscriptions = Subscriptions(self._door, self._prices, ending, days_until_due, clock)

    def make_customer(self, spec: CustomerSpec, known: Known, claim: Claim) -> Customer:
        return self._customers.make(spec, known, claim)

    def make_subscription(self, spec: SubscriptionSpec, known: Known, claim: Claim) -> Subscription:
        return self._subscriptions.make(spec, known, claim)

    def end_subscription(self, known: Known, org_id: str, claim: Claim) -> None:
        self._subscriptions.end(known, org_id, claim)

    def find_offer(self, code: str) -> Offer | None:
        return self._prices.find_offer(code)

    def add_offer(self, offer: Offer) -> None:
        self._prices.add_offer(offer)

    def account(self) -> Account:
        """Whose key this is, for the guard against a key of another account or mode (money.md 17). Two calls."""
        owner = self._door.send(NoLease(), "read the account", self._door.v1.accounts.retrieve_current, Object)
        any_price = self._door.send(
            NoLease(), "read a price", lambda: self._door.v1.prices.list({"limit": 1}), Page[Object]
        )
        return Account(owner.id, any_price.data[0].livemode if any_price.data else None)

    def close(self) -> None:
        self._door.close()
