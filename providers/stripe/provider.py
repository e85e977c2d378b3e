"""Stripe as a biller (``ports.provider.Biller``): the customer who pays, and the subscription where Stripe charges."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from core.catalog.plans import Ending
from core.ports.provider import Claim, Customer, Subscription
from core.ports.spec import Account, CustomerSpec, Known, Offer, Provider, SubscriptionSpec, key_ends
from providers.stripe.client import Door, NoLease
from providers.stripe.customers import Customers
from providers.stripe.invoice_preview import StripeTeller
from providers.stripe.prices import Prices
from providers.stripe.responses import Object
from providers.stripe.state_reader import StripeAudit
from providers.stripe.subscriptions import Subscriptions

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
