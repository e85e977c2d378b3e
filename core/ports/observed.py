"""What was read from a provider: customers, subscriptions, pages of them, and who wrote last."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Literal, TypeVar

from core.ports.spec import SubscriptionSpec

ObservedT = TypeVar("ObservedT")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedCustomer:
    """A customer as the biller shows it. ``org_id``: whose it is by its own mark (Stripe's metadata, Lago's id)."""

    id: str
    org_id: str | None = None
    name: str | None = None
    email: str | None = None
    currency: str | None = None
    payer_id: str | None = None
    deleted: bool = False
    has_unpaid_invoice: bool = False
    """Stripe only: a payment failed or came too late, and the invoice is not settled since."""
    changed_at: datetime | None = None
    """Where the biller tells it: when anybody last wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedSubscription:
    """One that has not ended. ``plan_code`` None: it has no plan of a kind that we make.

    ``begun`` is False for one that waits for a later day.
    """

    id: str
    customer_id: str
    org_id: str | None = None
    plan_code: str | None = None
    next_plan_code: str | None = None
    started: bool = True
    remark: Literal["waits", "came"] | None = None
    """Stripe only: our note of a scheduled plan, which the next change clears first once it came."""
    changed_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedState:
    """All that a biller shows of one organization."""

    customers: tuple[ObservedCustomer, ...] = ()
    subscriptions: tuple[ObservedSubscription, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedPage(Generic[ObservedT]):
    """One page of a list; ``after`` asks for the next one, None: this was the last."""

    rows: tuple[ObservedT, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteWrite:
    """Somebody wrote an object there. ``ours``: the request carried one of our keys."""

    object_id: str
    written_at: datetime
    by_us: bool
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What one round at a biller has to make again; ``seen`` is the subscription as it is now, None: there is none."""

    org_id: str
    customer_id: str
    updates_customer: bool
    subscription: SubscriptionSpec | None = None
    observed: ObservedSubscription | None = None
