"""What a provider is told: customers, subscriptions and prices as they must be, and whose account is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Provider = Literal["stripe", "lago"]
PROVIDERS: tuple[Provider, ...] = ("stripe", "lago")

# Code of a refusal: the biller shows that the known customer was deleted, and with it whatever it paid for.
CUSTOMER_DELETED = "customer_deleted"

LONG_API_KEY_LENGTH = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerSpec:
    """What the customer must be. ``None`` means that we know nothing: the biller's own value is left alone."""

    org_id: str
    name: str
    email: str | None = None
    currency: str | None = None
    payer_id: str | None = None
    """The Stripe customer that Lago charges through; Stripe itself ignores it."""
    charged_by_other_provider: bool = False
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
class LastKnown:
    """What we last saw or wrote at the biller; ``None`` where we do not know.

    ``verified`` is False for a customer id that was brought in from outside: it is read before it is written.
    """

    customer_id: str | None = None
    confirmed: bool = False
    maybe_lost_in_restore: bool = False
    """No customer is known after longer than a key tells: a restored database may have forgotten one."""
    subscription_id: str | None = None
    ending_started: bool = False
    """We set out to end the subscription and may have: one that is found ended says nothing against a new one."""
    plan_code: str | None = None
    next_plan_code: str | None = None
    payer_id: str | None = None
    """Lago only: whom it charges by what it was told, or answered, last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceSpec:
    """A plan as a biller sells it: a Lago plan, or a Stripe price under its lookup key. ``amount`` in minor units."""

    code: str
    name: str
    amount: int
    currency: str
    interval: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Whose key this is. ``livemode`` None: the biller has no modes, or nothing tells. ``key_suffix`` is for
    messages.
    """

    id: str
    livemode: bool | None = None
    key_suffix: str = ""


def key_suffix(api_key: str) -> str:
    """The last four characters, by which a person finds the key among others; none of one that they would give away."""
    return f" …{api_key[-4:]}" if len(api_key) >= LONG_API_KEY_LENGTH else ""
