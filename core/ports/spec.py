"""Specs for a provider: customers, subscriptions and prices as they must be, our last-known state, and the account."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Literal

from core.ports.external_ids import OWN_IDS, ExternalIds

Provider = Literal["stripe", "lago"]
PROVIDERS: tuple[Provider, ...] = ("stripe", "lago")
PROVIDER_NAMES: Final[dict[Provider, str]] = {"stripe": "Stripe", "lago": "Lago"}

# Code of a ``RejectedError``: the known customer was deleted at the provider, and its subscriptions with it.
CUSTOMER_DELETED = "customer_deleted"
# The organization was deleted, and its customer, which is not ours, may go on paying.
CUSTOMER_NOT_OURS = "customer_not_ours"

# Codes of a ``ConflictError``: somebody changed the payer in Lago, or something else.
PAYER_CHANGED = "payer_changed"
CHANGED_AT_PROVIDER = "changed_at_provider"
# Somebody created a subscription that carries the organization's id and is not on the terms of its plan.
OTHER_TERMS = "other_terms"
# The plan of a subscription is to be changed for which somebody arranged something (``core.ports.arrangement``).
ARRANGED_AT_PROVIDER = "arranged_at_provider"

LONG_API_KEY_LENGTH = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerSpec:
    """What the customer must be. ``None``: we have no value, so the provider's own value is left alone."""

    org_id: str
    name: str | None
    """None only for an adopted customer, whose name and address stay until ours change."""
    email: str | None = None
    currency: str | None = None
    plan_currency: str | None = None
    """Of the plan. A customer that has another currency in Lago is a ``RejectedError``, because Lago would mix them."""
    payer_id: str | None = None
    """The Stripe customer that Lago charges; the Stripe adapter ignores it."""
    charged_by_other_provider: bool = False
    """The other provider charges: a payer at Lago, or a subscription at Stripe, is a ``RejectedError`` (money.md 1)."""
    without_payer: bool = False
    """It was adopted without a payer, and Lago gets none. One that somebody sets there is a ``ConflictError``."""
    external_ids: ExternalIds = OWN_IDS
    writes_marks: bool = True
    """Stripe only. False: it was adopted without our metadata, which an update then does not send."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionSpec:
    """The one subscription that the organization must have: ``plan_code`` now, ``next_plan_code`` from period end on.

    Codes are the provider's own: a Lago plan code, a Stripe price lookup key. A subscription that is on a former code
    of the same plan stays on it.
    """

    org_id: str
    customer_id: str
    plan_code: str
    next_plan_code: str | None = None
    former_plan_codes: frozenset[str] = frozenset()
    former_next_plan_codes: frozenset[str] = frozenset()
    next_plan_amount: int | None = None
    """What the next plan costs for the interval of ``plan_code``, in ISO minor units, rounded down."""
    charged_by_other_provider: bool = False
    """The other provider decides when the next plan takes effect; here it may be active before."""
    has_billing_email: bool = False
    """Our row has an email address, which the customer got before the subscription. Lago does not need it."""
    external_ids: ExternalIds = OWN_IDS
    writes_marks: bool = True
    """Stripe only. False: it was adopted without our metadata, which then goes with changes of its plan only."""

    def as_sold(self, plan_code: str | None, next_plan_code: str | None) -> SubscriptionSpec:
        """The same with the codes that the provider has, where they are former codes of the desired plans.

        The next plan may be active already.
        """
        former_next = [code for code in (next_plan_code, plan_code) if code in self.former_next_plan_codes]
        return replace(
            self,
            plan_code=plan_code if plan_code in self.former_plan_codes and plan_code else self.plan_code,
            next_plan_code=former_next[0] if former_next else self.next_plan_code,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SoldPrice:
    """The price that was sold under a code. The code may name another price by now.

    ``price_id``: in Stripe the id of the price; in Lago, which has none for a price of its own, the amount in cents.
    """

    plan_code: str
    price_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LastKnown:
    """What we last read or wrote at the provider; ``None`` if we do not know.

    ``confirmed`` is False for a customer id that was set from outside: it is read before it is written.
    """

    customer_id: str | None = None
    confirmed: bool = False
    applied: bool = False
    """The customer was confirmed as we last wanted it, and nothing was sent since."""
    maybe_lost_in_restore: bool = False
    """No customer is known for longer than an idempotency key is safe: a restored database may have lost it."""
    linked_at: datetime | None = None
    """When our link was created. A customer that we created is not older."""
    maybe_older: bool = False
    """No customer is known, but the organization's id came from outside, so one may exist from before our link.

    For the subscription of a customer that was just written: it may be the customer's from before.
    """
    subscription_requested: bool = False
    """Lago only: we may have sent a write of the subscription. Before that, one that is found is not ours."""
    subscription_id: str | None = None
    ending_started: bool = False
    """We may have ended the subscription. If it is found ended, a new one may be created."""
    plan_code: str | None = None
    next_plan_code: str | None = None
    replaced_next_plan_codes: frozenset[str] = frozenset()
    """What was scheduled before writes that have no answer yet; one of them may still be."""
    cancellation_is_planned: bool = False
    """An attempt that only plans has planned to cancel the scheduled plan, which is still read."""
    sold_price: SoldPrice | None = None
    payer_id: str | None = None
    """Lago only: the payer that was last sent to it, or that it last returned."""
    external_ids: ExternalIds = OWN_IDS
    is_adopted: bool = False
    """We did not make them. Metadata that resembles that of our earlier versions is somebody else's."""
    payer_confirmed: bool = False
    """Lago has returned ``payer_id``. If it returns another one or none from now on, somebody else changed that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceSpec:
    """A plan at a provider: a Lago plan, or a Stripe price with its lookup key. ``amount`` is in minor units.

    ``other_terms``: a sentence for each thing that makes it bill otherwise than the catalog says. ``remarks``: what it
    has beside the catalog's terms and may have.
    """

    code: str
    name: str
    amount: int
    currency: str
    interval: str
    other_terms: tuple[str, ...] = ()
    remarks: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The account of an API key. ``livemode`` None: the provider has no modes, or does not say.

    ``key_suffix`` is for messages.
    """

    id: str
    livemode: bool | None = None
    key_suffix: str = ""


def key_suffix(api_key: str) -> str:
    """The last four characters, so that an operator recognizes the key; nothing if the key is too short for that."""
    return f" …{api_key[-4:]}" if len(api_key) >= LONG_API_KEY_LENGTH else ""
