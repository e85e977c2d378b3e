"""Stripe as a biller (``core.gateways.Biller``): the customer who pays, and the subscription where Stripe charges."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from core.catalog import Ending
from core.gateways import (
    Account,
    Claim,
    Customer,
    CustomerSpec,
    Known,
    Offer,
    Provider,
    Subscription,
    SubscriptionSpec,
    key_ends,
)

from .stripe_answers import Object
from .stripe_audit import StripeAudit
from .stripe_customers import Customers
from .stripe_door import Door, NoLease
from .stripe_prices import Prices
from .stripe_subscriptions import Subscriptions
from .stripe_teller import StripeTeller

_MODES = {"live_": True, "test_": False}
TIMEOUT = 20.0  # seconds for one request, the last byte of the answer included


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
        self._key_ends = key_ends(secret_key)
        self._livemode = _MODES.get(secret_key[3:8]) if secret_key.startswith(("sk_", "rk_")) else None
        self.audit = StripeAudit(self._door)
        self._prices = Prices(self._door)
        self.teller = StripeTeller(self._door, self._prices)
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
        """One account has both modes under one id, so it is the key that tells which of them is meant. One call."""
        owner = self._door.send(
            NoLease(), "GET /v1/account", "read the account", self._door.v1.accounts.retrieve_current, Object
        )
        return Account(id=owner.id, livemode=self._livemode, key_ends=self._key_ends)

    def close(self) -> None:
        self._door.close()
