"""The door to a biller: what it is told (absolute specs), what it answers, and under which claim it may send.

A biller makes what exists there match the spec it is given. Every method may be repeated after a crash at any
point and ends in the same state, with one customer and at most one subscription. It raises ``errors.ProviderError``
kinds and ``errors.LeaseLostError``, nothing else, and it knows neither database nor Celery.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol

Provider = Literal["stripe", "lago"]
PROVIDERS: tuple[Provider, ...] = ("stripe", "lago")

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]

# Stripe may forget an idempotency key once it is 24 hours old (stripe.md 2); one hour is margin for clocks.
KEY_IS_TRUSTED_FOR = timedelta(hours=23)


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerSpec:
    """What the customer must be. ``None`` means that we know nothing: the biller's own value is left alone."""

    org_id: str
    name: str
    email: str | None = None
    currency: str | None = None
    payer_id: str | None = None
    """The Stripe customer that Lago charges through; Stripe itself ignores it."""
    unlinked: bool = False
    """Lago only: somebody else charges, so a payer that is found there is refused (money.md 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionSpec:
    """The one subscription the organization must have: ``plan_code`` now, ``next_plan_code`` from period end on.

    Codes are the biller's own: a Lago plan code, a Stripe price lookup key.
    """

    org_id: str
    customer_id: str
    plan_code: str
    next_plan_code: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What we last saw or wrote at the biller; ``None`` where we do not know.

    ``verified`` is False for a customer id that was brought in from outside: it is read before it is written.
    """

    customer_id: str | None = None
    verified: bool = False
    subscription_id: str | None = None
    plan_code: str | None = None
    next_plan_code: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """``payer_id``: the Stripe customer that Lago, by its own answer, charges."""

    id: str
    livemode: bool | None = None
    payer_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """As read back from the biller's own answer; ``next_plan_at`` is when a scheduled plan takes effect (UTC)."""

    id: str
    plan_code: str
    next_plan_code: str | None = None
    next_plan_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A plan as a biller sells it: a Lago plan, or a Stripe price under its lookup key. ``amount`` in minor units."""

    code: str
    name: str
    amount: int
    currency: str
    interval: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A create that was written down before it was sent: a retry sends this ``body`` under this ``key``, unchanged."""

    operation: str
    generation: int
    key: str
    body: Mapping[str, Json]
    first_sent_at: datetime
    last_sent_at: datetime

    def key_is_trusted(self, now: datetime) -> bool:
        return now - self.first_sent_at < KEY_IS_TRUSTED_FOR


class Claim(Protocol):
    """One worker's turn at one organization at one biller. Each method is its own short transaction."""

    def hold(self) -> None:
        """Call before every request: makes the lease outlast it, or raises ``LeaseLostError``."""

    @property
    def intent(self) -> Intent | None:
        """The create that was written ahead and is not yet known to have ended."""

    def write_ahead(self, operation: str, body: Mapping[str, Json]) -> Intent:
        """Store a new intent (next generation, new key) in place of any earlier one; it counts as sent now.

        Only after proof that the earlier one left nothing behind.
        """

    def resend(self) -> Intent:
        """Stamp the stored intent as sent again now and return it."""


class Biller(Protocol):
    """Stripe or Lago. ``make_*`` are absolute: the same spec twice changes nothing the second time."""

    @property
    def provider(self) -> Provider: ...

    def make_customer(self, spec: CustomerSpec, known: Known, claim: Claim) -> Customer:
        """Create or update the customer and return its id (``cus_…``; Lago's ``lago_id``).

        A known id is never replaced: if the biller does not know it, has it deleted, or holds it for another
        organization, ``RejectedError`` says which. A customer that was there before us and carries subscriptions
        that we did not make is ``RejectedError`` too: joining it would bill twice.
        """

    def make_subscription(self, spec: SubscriptionSpec, known: Known, claim: Claim) -> Subscription:
        """Create or change the one subscription; the answer is what the biller read back.

        Higher plan: at once. ``next_plan_code``: scheduled for period end. ``next_plan_code`` None: a scheduled
        change is taken back. When the scheduled plan has already taken effect, the answer says so
        (``plan_code == spec.next_plan_code``) and nothing is changed back.
        """

    def end_subscription(self, known: Known, org_id: str, claim: Claim) -> None:
        """End the subscription that we made, by the declared policy; one that is gone already is done."""

    def find_offer(self, code: str) -> Offer | None:
        """The plan or price that is on sale under this code; ``None`` only when the biller says there is none."""

    def add_offer(self, offer: Offer) -> None:
        """Put a plan or price on sale that ``find_offer`` did not find; never changes one that exists."""

    def close(self) -> None:
        """Release pooled connections."""
