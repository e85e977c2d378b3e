"""Protocols of a billing provider: what it is given, what it returns, and the attempt under which it may send.

A provider makes what exists there match the absolute spec that it is given. Every method may be repeated after a crash
at any point and ends in the same state, with one customer and at most one subscription. It raises
``errors.ProviderError`` kinds, ``errors.LeaseLostError``, ``errors.MustWaitError`` and
``errors.OlderCustomerFoundError``, nothing else. It uses neither the database nor Celery.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from core.common.json_types import Json
from core.ports.arrangement import Arrangement
from core.ports.external_ids import OWN_IDS, ExternalIds
from core.ports.observed import (
    ObservedCredit,
    ObservedCustomer,
    ObservedPage,
    ObservedPayment,
    ObservedState,
    ObservedSubscription,
    RemoteWrite,
    Repair,
)
from core.ports.planned import PaymentChange, PlannedStep
from core.ports.quotes import PlanChangeQuery, Quote, Usage
from core.ports.spec import Account, CustomerSpec, LastKnown, PriceSpec, Provider, SubscriptionSpec

# Stripe may drop an idempotency key when it is 24 hours old (stripe.md 2); one hour is a margin for clock skew.
IDEMPOTENCY_KEY_SAFE_FOR = timedelta(hours=23)


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """``payer_id``: the Stripe customer that Lago charges, by Lago's response.

    ``payer_accepted``: Lago wrote the customer to this Stripe customer within our request, and Stripe accepted it.
    ``is_older``: it may have existed before our link, with a subscription.
    ``credit``: Stripe only, on the customer's balance; None if the response does not show it.
    """

    id: str
    livemode: bool | None = None
    payer_id: str | None = None
    payer_accepted: bool = False
    is_older: bool = False
    credit: ObservedCredit | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """As read from the provider's response. ``next_plan_at``: when a scheduled plan takes effect (UTC).

    ``price_id``: the price of ``plan_code`` that was sold, as in ``SoldPrice``; None if it is not known.
    """

    id: str
    plan_code: str
    price_id: str | None = None
    next_plan_code: str | None = None
    next_plan_at: datetime | None = None
    arrangement: Arrangement | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A create request, stored before it is sent. A retry sends the same ``body`` and ``idempotency_key`` again."""

    operation: str
    generation: int
    idempotency_key: str
    body: Mapping[str, Json]
    first_sent_at: datetime
    last_sent_at: datetime

    def is_key_safe(self, now: datetime) -> bool:
        return now - self.first_sent_at < IDEMPOTENCY_KEY_SAFE_FOR


class AttemptContext(Protocol):
    """One worker's sync attempt at one link. What a method stores is committed before the next request that writes."""

    @property
    def may_write(self) -> bool:
        """False: the organization is observed. The client then refuses every request that writes."""

    def before_change(
        self, describe: Callable[[], Iterable[PlannedStep]], payment: PaymentChange | None = None
    ) -> None:
        """Call before the first write of a change, and before an intent is stored or a permit acquired for it.

        ``payment``: what it changes for somebody who pays; None: nothing. Raises ``PaymentBrakeError`` if that is to
        wait for an operator.

        An attempt that only plans calls ``describe``, which may read, and raises ``WritePlannedError``. Any other goes
        on without calling it. ``describe`` has nothing if the write would change nothing, and raises what the write
        would raise, as far as reads can show it; what the check of its response would raise, after the steps.
        """

    def acquire_permit_ahead(self, operation: str) -> None:
        """Call before an intent is recorded: gets the permit of its request, or raises ``MustWaitError`` while nothing
        is written. The next ``before_request`` of that operation uses this permit.
        """

    def before_request(self, operation: str) -> None:
        """Call before every request.

        Raises ``MustWaitError`` if the rate limiter does not permit it now. Raises ``LeaseLostError`` if the lease is
        lost; otherwise the lease outlasts the request. ``operation`` is what the provider limits by, for example
        ``POST /v1/customers``.
        """

    def after_response(self, request_id: str | None) -> None:
        """Call after every response, with the provider's id of the request."""

    @property
    def database_id(self) -> str:
        """Of the database that the link is in. What is written in Stripe carries it."""

    @property
    def intent(self) -> Intent | None:
        """The stored intent, while the outcome of its request is not known."""

    def record_intent(self, operation: str, body: Mapping[str, Json]) -> Intent:
        """Store a new intent (next generation, new key) in place of any earlier one. It counts as sent now.

        Call it only after proof that the earlier request created nothing.
        """

    def resend_intent(self) -> Intent:
        """Store that the intent is sent again now, and return it."""

    def record_no_older_customer(self) -> None:
        """Store with the next request that writes that the provider had no customer of the organization before it.

        If the response to that request gets lost, the customer that is found then is ours.
        """

    def record_subscription_request(self) -> None:
        """Store that the subscription is about to be written without an intent: one that is found may be ours then."""


class RequestPermits(Protocol):
    @property
    def may_write(self) -> bool:
        """Whether a request that writes may be sent with these permits. Previews write nothing."""

    def before_request(self, operation: str) -> None:
        """Call before every request; raises ``MustWaitError`` if the rate limiter does not permit it now."""

    def after_response(self, request_id: str | None) -> None:
        """Call after every response with the provider's id of the request; ``None``: it named none."""


class StateReader(Protocol):
    """Reads the state of a provider for comparisons. Raises ``errors.ProviderError`` kinds.

    Pages may repeat an object, and miss one that moved while they were read. So each object is read again before
    anything is done about it.
    """

    def with_permits(self, permits: RequestPermits) -> StateReader:
        """A copy that calls ``permits.before_request`` before each of its requests."""

    def customers(self, cursor: str | None) -> ObservedPage[ObservedCustomer]: ...

    def subscriptions(self, cursor: str | None) -> ObservedPage[ObservedSubscription]: ...

    def read(self, org_id: str, customer_ids: Collection[str], external_ids: ExternalIds = OWN_IDS) -> ObservedState:
        """One organization as it is now: these customers, those that have its org_id, and all their subscriptions.

        What has its external ids has its org_id in the result.
        """

    def read_payment(
        self, org_id: str, observed: ObservedState, *, is_charging: bool, external_ids: ExternalIds = OWN_IDS
    ) -> ObservedPayment:
        """What is wrong with the invoices of its customer, which is in ``observed``.

        ``is_charging`` False: this provider does not charge for the plan, so its invoices may stay unpaid.
        """

    def recent_writes(self) -> list[RemoteWrite]:
        """The last writes, newest first, as far back as a few requests reach; empty if the provider stores none."""

    def planned_requests(self, repair: Repair) -> list[str]:
        """The requests that an attempt would send for the repair, without look-ups of prices, which are cached."""


class InvoicePreviewer(Protocol):
    """Previews invoices for users who wait for the response; reads only. Raises ``errors.ProviderError`` kinds."""

    def with_permits(self, permits: RequestPermits) -> InvoicePreviewer:
        """A copy that calls ``permits.before_request`` before each of its requests."""

    def quote(self, query: PlanChangeQuery) -> Quote: ...


class UsageReader(Protocol):
    """Reads usage from the provider that counts it. Raises ``errors.ProviderError`` kinds."""

    def with_permits(self, permits: RequestPermits) -> UsageReader: ...

    def usage(self, org_id: str, external_ids: ExternalIds = OWN_IDS) -> Usage | None:
        """``None``: the organization has no subscription that usage could belong to."""


class BillingProvider(Protocol):
    """Stripe or Lago. ``ensure_*`` are idempotent: the same spec twice changes nothing the second time."""

    @property
    def provider(self) -> Provider: ...

    @property
    def reader(self) -> StateReader: ...

    def ensure_customer(self, spec: CustomerSpec, last_known: LastKnown, attempt: AttemptContext) -> Customer:
        """Create or update the customer and return its id (``cus_…``; Lago's ``lago_id``).

        A known id is never replaced: if the provider does not know it, has deleted it, or has it for another
        organization, ``RejectedError`` says which. A customer that existed before and has subscriptions that we did not
        create is ``RejectedError``, too: adopting it would bill twice.
        """

    def ensure_subscription(
        self, spec: SubscriptionSpec, last_known: LastKnown, attempt: AttemptContext
    ) -> Subscription:
        """Create or change the one subscription, and return it as the provider returned it.

        A higher plan takes effect at once. ``next_plan_code`` is scheduled for period end; None cancels a scheduled
        change. If the scheduled plan has already taken effect, the result says so
        (``plan_code == spec.next_plan_code``) and nothing is changed back.

        A subscription with an ``Arrangement`` is not changed: if its plan differs, that is a ``ConflictError``.
        """

    def has_our_marks(self, customer_id: str, org_id: str, attempt: AttemptContext) -> bool:
        """Whether the customer carries what only this database's billing-sync writes. Only reads.

        Always False at Lago, where nothing of that kind is written.
        """

    def refuse_arranged_end(self, last_known: LastKnown, org_id: str, attempt: AttemptContext) -> None:
        """Call before a subscription is ended because the other provider charges from now on. Only reads.

        One with an ``Arrangement`` is a ``ConflictError``, as for any other change of its plan.
        """

    def end_subscription(self, last_known: LastKnown, org_id: str, attempt: AttemptContext) -> ObservedCredit | None:
        """End the subscription that we created, by the declared policy. It is no error if it has ended already.

        Returns the credit that the customer then has on its balance, if a response showed it.
        """

    def write_marks(self, last_known: LastKnown, org_id: str, plan_code: str | None, attempt: AttemptContext) -> None:
        """Write our metadata to an adopted customer and its subscription in Stripe, and nothing else. Lago has none.

        ``plan_code``: of the subscription; None if Stripe does not charge. What has it already is not written.
        """

    def remove_marks(self, last_known: LastKnown, org_id: str, attempt: AttemptContext) -> None:
        """Remove our metadata from a customer and its subscription in Stripe, and nothing else.

        ``RejectedError`` while a plan is scheduled: only our metadata says what is paid until then.
        """

    def remove_payer(self, last_known: LastKnown, org_id: str, attempt: AttemptContext, *, collects: bool) -> None:
        """Take out the payer that we set, so that Lago charges nobody. It is no error if there is none any more.

        Another one is a ``ConflictError``. ``collects``: ``NotYetAllowedError`` while an invoice waits for its payment.
        Stripe has no payer beside the customer.
        """

    def find_price(self, code: str) -> PriceSpec | None:
        """The plan or price that is on sale under this code; ``None`` only if the provider says that there is none."""

    def create_price(self, price: PriceSpec) -> None:
        """Create a plan or price that ``find_price`` did not find. It never changes one that exists."""

    def fetch_account(self) -> Account:
        """The account of the API key. It calls the provider each time, outside any lease."""

    def close(self) -> None:
        """Release pooled connections."""
