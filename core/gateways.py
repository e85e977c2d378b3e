"""The door to a biller: what it is told (absolute specs), what it answers, and under which claim it may send.

A biller makes what exists there match the spec it is given. Every method may be repeated after a crash at any
point and ends in the same state, with one customer and at most one subscription. It raises ``errors.ProviderError``
kinds, ``errors.LeaseLostError`` and ``errors.MustWaitError``, nothing else, and it knows neither database nor Celery.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, Literal, Protocol, TypeVar

Provider = Literal["stripe", "lago"]
PROVIDERS: tuple[Provider, ...] = ("stripe", "lago")

Seen = TypeVar("Seen")
Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]

# Stripe may forget an idempotency key once it is 24 hours old (stripe.md 2); one hour is margin for clocks.
KEY_IS_TRUSTED_FOR = timedelta(hours=23)

# Code of a refusal: the biller shows that the known customer was deleted, and with it whatever it paid for.
CUSTOMER_DELETED = "customer_deleted"

LONG_KEY = 20


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
    """The other biller charges: a payer found at Lago, or a subscription found at Stripe, is refused (money.md 1)."""


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
    may_be_forgotten: bool = False
    """No customer is known after longer than a key tells: a restored database may have forgotten one."""
    subscription_id: str | None = None
    ended_by_us: bool = False
    """We set out to end the subscription and may have: one that is found ended says nothing against a new one."""
    plan_code: str | None = None
    next_plan_code: str | None = None
    payer_id: str | None = None
    """Lago only: whom it charges by what it was told, or answered, last."""


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
class Account:
    """Whose key this is. ``livemode`` None: the biller has no modes, or nothing tells. ``key_ends`` is for messages."""

    id: str
    livemode: bool | None = None
    key_ends: str = ""


def key_ends(key: str) -> str:
    """The last four characters, by which a person finds the key among others; none of one that they would give away."""
    return f" …{key[-4:]}" if len(key) >= LONG_KEY else ""


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

    def book(self, operation: str) -> None:
        """Call before a create is written ahead: takes its place in the biller's quota, or raises ``MustWaitError``
        while nothing of it is written. The next ``hold`` of that operation takes no other.
        """

    def hold(self, operation: str) -> None:
        """Call before every request: it is within the biller's quota now, or ``MustWaitError`` is raised; the lease
        outlasts it, or ``LeaseLostError`` is raised.

        ``operation`` is what the biller counts by: ``POST /v1/customers``.
        """

    @property
    def intent(self) -> Intent | None:
        """The create that was written ahead and is not yet known to have ended."""

    def write_ahead(self, operation: str, body: Mapping[str, Json]) -> Intent:
        """Store a new intent (next generation, new key) in place of any earlier one; it counts as sent now.

        Only after proof that the earlier one left nothing behind.
        """

    def resend(self) -> Intent:
        """Stamp the stored intent as sent again now and return it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenCustomer:
    """A customer as the biller shows it. ``org_id``: whose it is by its own mark (Stripe's metadata, Lago's id)."""

    id: str
    org_id: str | None = None
    name: str | None = None
    email: str | None = None
    currency: str | None = None
    payer_id: str | None = None
    deleted: bool = False
    owes: bool = False
    """Stripe only: a payment failed or came too late, and the invoice is not settled since."""
    changed_at: datetime | None = None
    """Where the biller tells it: when anybody last wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenSubscription:
    """One that has not ended. ``plan_code`` None: it has no plan of a kind that we make.

    ``begun`` is False for one that waits for a later day.
    """

    id: str
    customer_id: str
    org_id: str | None = None
    plan_code: str | None = None
    next_plan_code: str | None = None
    begun: bool = True
    note: Literal["waits", "came"] | None = None
    """Stripe only: our note of a scheduled plan, which the next change clears first once it came."""
    changed_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """All that a biller shows of one organization."""

    customers: tuple[SeenCustomer, ...] = ()
    subscriptions: tuple[SeenSubscription, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed(Generic[Seen]):
    """One page of a list; ``after`` asks for the next one, None: this was the last."""

    rows: tuple[Seen, ...]
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Somebody wrote an object there. ``ours``: the request carried one of our keys."""

    object_id: str
    at: datetime
    ours: bool
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What one round at a biller has to make again; ``seen`` is the subscription as it is now, None: there is none."""

    org_id: str
    customer_id: str
    customer: bool
    subscription: SubscriptionSpec | None = None
    seen: SeenSubscription | None = None


class Pace(Protocol):
    def hold(self, operation: str) -> None:
        """Call before every request; raises ``MustWaitError`` where it would be one too many now."""


class Auditor(Protocol):
    """The same biller, read only, to compare what it holds with what it should. Raises ``errors.ProviderError`` kinds.

    Pages may repeat an object, and miss one that moved while they were turned: what they show is looked at again
    before anybody acts on it.
    """

    def paced(self, pace: Pace) -> Auditor:
        """The same, every request of it passing here first."""

    def customers(self, after: str | None) -> Listed[SeenCustomer]: ...

    def subscriptions(self, after: str | None) -> Listed[SeenSubscription]: ...

    def look(self, org_id: str, customer_ids: Collection[str]) -> Sight:
        """One organization as it is now: these customers, what is marked as its own, and their subscriptions."""

    def owes(self, org_id: str, sight: Sight) -> bool:
        """Whether an invoice of its customer, who is in the sight, could not be charged and is still open."""

    def writes(self) -> list[Write]:
        """The last that were made there, newest first; as far back as a few calls go, empty where nobody keeps it."""

    def calls(self, repair: Repair) -> list[str]:
        """The requests that a round would send for this; look-ups of prices, which are kept a while, left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanQuestion:
    """A plan change that is not made yet: what the subscription would have to be, ``subscription_id`` the one that is
    there. ``listed``: the price in the catalog of the plan that the next period takes, in minor units.
    """

    spec: SubscriptionSpec
    subscription_id: str | None
    listed: int
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What a change costs by the biller's own word, in minor units of ``currency``. None: it does not tell, not 0.

    ``now`` is invoiced with the change. ``prorated`` settles the period that runs (negative: a credit), in that invoice
    or the next one. ``next`` is what the invoice at ``next_at`` takes. ``why`` says what is missing or comes on top.
    """

    currency: str
    now: int | None = None
    prorated: int | None = None
    next: int | None = None
    next_at: datetime | None = None
    why: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """One metric of the running period. ``units`` is the biller's own decimal; ``amount`` in minor units."""

    code: str
    name: str
    units: str
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was used in the running period and not yet billed; the plan's own price is not in it."""

    since: datetime
    until: datetime
    currency: str
    amount: int
    metrics: tuple[Metered, ...]


class Teller(Protocol):
    """The same biller, read only, for people who wait for the answer. Raises ``errors.ProviderError`` kinds."""

    def paced(self, pace: Pace) -> Teller:
        """The same, every request of it passing here first."""

    def quote(self, question: PlanQuestion) -> Quote: ...


class Meter(Protocol):
    """Where usage is counted. Raises ``errors.ProviderError`` kinds."""

    def paced(self, pace: Pace) -> Meter: ...

    def usage(self, org_id: str) -> Usage | None:
        """``None``: it holds no subscription that usage could belong to."""


class Biller(Protocol):
    """Stripe or Lago. ``make_*`` are absolute: the same spec twice changes nothing the second time."""

    @property
    def provider(self) -> Provider: ...

    @property
    def audit(self) -> Auditor: ...

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

    def account(self) -> Account:
        """Whose key this is; asks the biller each time, outside any claim."""

    def close(self) -> None:
        """Release pooled connections."""
