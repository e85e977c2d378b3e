"""The door to a biller: what it is told (absolute specs), what it answers, and under which claim it may send.

A biller makes what exists there match the spec it is given. Every method may be repeated after a crash at any
point and ends in the same state, with one customer and at most one subscription. It raises ``errors.ProviderError``
kinds, ``errors.LeaseLostError`` and ``errors.NoPermitError``, nothing else, and it knows neither database nor Celery.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from core.common.json_types import Json
from core.ports.observed import ObservedCustomer, ObservedPage, ObservedState, ObservedSubscription, RemoteWrite, Repair
from core.ports.quotes import PlanChangeQuery, Quote, Usage
from core.ports.spec import Account, CustomerSpec, LastKnown, PriceSpec, Provider, SubscriptionSpec

# Stripe may forget an idempotency key once it is 24 hours old (stripe.md 2); one hour is margin for clocks.
IDEMPOTENCY_KEY_SAFE_FOR = timedelta(hours=23)


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
class Intent:
    """A create that was written down before it was sent: a retry sends this ``body`` under this ``key``, unchanged."""

    operation: str
    generation: int
    idempotency_key: str
    body: Mapping[str, Json]
    first_sent_at: datetime
    last_sent_at: datetime

    def is_key_safe(self, now: datetime) -> bool:
        return now - self.first_sent_at < IDEMPOTENCY_KEY_SAFE_FOR


class AttemptContext(Protocol):
    """One worker's turn at one organization at one biller. Each method is its own short transaction."""

    def reserve(self, operation: str) -> None:
        """Call before a create is written ahead: takes its place in the biller's quota, or raises ``NoPermitError``
        while nothing of it is written. The next ``hold`` of that operation takes no other.
        """

    def before_request(self, operation: str) -> None:
        """Call before every request: it is within the biller's quota now, or ``NoPermitError`` is raised; the lease
        outlasts it, or ``LeaseLostError`` is raised.

        ``operation`` is what the biller counts by: ``POST /v1/customers``.
        """

    @property
    def intent(self) -> Intent | None:
        """The create that was written ahead and is not yet known to have ended."""

    def record_intent(self, operation: str, body: Mapping[str, Json]) -> Intent:
        """Store a new intent (next generation, new key) in place of any earlier one; it counts as sent now.

        Only after proof that the earlier one left nothing behind.
        """

    def resend_intent(self) -> Intent:
        """Stamp the stored intent as sent again now and return it."""


class Throttle(Protocol):
    def before_request(self, operation: str) -> None:
        """Call before every request; raises ``NoPermitError`` where it would be one too many now."""


class StateReader(Protocol):
    """The same biller, read only, to compare what it holds with what it should. Raises ``errors.ProviderError`` kinds.

    Pages may repeat an object, and miss one that moved while they were turned: what they show is looked at again
    before anybody acts on it.
    """

    def with_throttle(self, throttle: Throttle) -> StateReader:
        """The same, every request of it passing here first."""

    def customers(self, cursor: str | None) -> ObservedPage[ObservedCustomer]: ...

    def subscriptions(self, cursor: str | None) -> ObservedPage[ObservedSubscription]: ...

    def read(self, org_id: str, customer_ids: Collection[str]) -> ObservedState:
        """One organization as it is now: these customers, what is marked as its own, and their subscriptions."""

    def has_unpaid_invoice(self, org_id: str, observed: ObservedState) -> bool:
        """Whether an invoice of its customer, who is in the sight, could not be charged and is still open."""

    def recent_writes(self) -> list[RemoteWrite]:
        """The last that were made there, newest first; as far back as a few calls go, empty where nobody keeps it."""

    def planned_requests(self, repair: Repair) -> list[str]:
        """The requests that a round would send for this; look-ups of prices, which are kept a while, left out."""


class InvoicePreviewer(Protocol):
    """The same biller, read only, for people who wait for the answer. Raises ``errors.ProviderError`` kinds."""

    def with_throttle(self, throttle: Throttle) -> InvoicePreviewer:
        """The same, every request of it passing here first."""

    def quote(self, query: PlanChangeQuery) -> Quote: ...


class UsageReader(Protocol):
    """Where usage is counted. Raises ``errors.ProviderError`` kinds."""

    def with_throttle(self, throttle: Throttle) -> UsageReader: ...

    def usage(self, org_id: str) -> Usage | None:
        """``None``: it holds no subscription that usage could belong to."""


class BillingProvider(Protocol):
    """Stripe or Lago. ``make_*`` are absolute: the same spec twice changes nothing the second time."""

    @property
    def provider(self) -> Provider: ...

    @property
    def reader(self) -> StateReader: ...

    def ensure_customer(self, spec: CustomerSpec, last_known: LastKnown, attempt: AttemptContext) -> Customer:
        """Create or update the customer and return its id (``cus_…``; Lago's ``lago_id``).

        A known id is never replaced: if the biller does not know it, has it deleted, or holds it for another
        organization, ``RejectedError`` says which. A customer that was there before us and carries subscriptions
        that we did not make is ``RejectedError`` too: joining it would bill twice.
        """

    def ensure_subscription(
        self, spec: SubscriptionSpec, last_known: LastKnown, attempt: AttemptContext
    ) -> Subscription:
        """Create or change the one subscription; the answer is what the biller read back.

        Higher plan: at once. ``next_plan_code``: scheduled for period end. ``next_plan_code`` None: a scheduled
        change is taken back. When the scheduled plan has already taken effect, the answer says so
        (``plan_code == spec.next_plan_code``) and nothing is changed back.
        """

    def end_subscription(self, last_known: LastKnown, org_id: str, attempt: AttemptContext) -> None:
        """End the subscription that we made, by the declared policy; one that is gone already is done."""

    def find_price(self, code: str) -> PriceSpec | None:
        """The plan or price that is on sale under this code; ``None`` only when the biller says there is none."""

    def create_price(self, price: PriceSpec) -> None:
        """Put a plan or price on sale that ``find_price`` did not find; never changes one that exists."""

    def fetch_account(self) -> Account:
        """Whose key this is; asks the biller each time, outside any claim."""

    def close(self) -> None:
        """Release pooled connections."""
