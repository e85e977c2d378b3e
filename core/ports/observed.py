"""Observed state, as read from a provider: customers, subscriptions, pages of them, and who wrote last."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Generic, Literal, TypeVar

from core.ports.arrangement import Arrangement
from core.ports.external_ids import ExternalIds
from core.ports.spec import SubscriptionSpec

ObservedT = TypeVar("ObservedT")
ObservedObjectT = TypeVar("ObservedObjectT", bound="ObservedCustomer | ObservedSubscription")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedCredit:
    """Credit on the balance of a customer, in the minor unit of its currency. ``amount`` 0: there is none."""

    amount: int
    currency: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedCustomer:
    """A customer at the provider. ``org_id``: the organization in it (Stripe: metadata; Lago: ``external_id``, or the
    organization that has this external id).

    ``former_org_id``: Stripe only: under the key of earlier versions. Others use that key, too, so it counts only for a
    customer whose id is in our database. ``database_id``: Stripe only: of the database that wrote it.
    """

    id: str
    org_id: str | None = None
    former_org_id: str | None = None
    database_id: str | None = None
    name: str | None = None
    email: str | None = None
    currency: str | None = None
    payer_id: str | None = None
    deleted: bool = False
    has_unpaid_invoice: bool = False
    """Stripe only: a payment failed or is overdue, and the invoice is still unpaid."""
    credit: ObservedCredit | None = None
    """Stripe only; None: the response does not show it."""
    changed_at: datetime | None = None
    """When anybody last wrote it, if the provider returns that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedSubscription:
    """A subscription that has not ended. ``plan_code`` None: its plan is not of a kind that we create.

    ``price_id``: Stripe only, the price of ``plan_code``; None while another plan is scheduled. ``started`` is False
    for one that starts at a later date or with its first payment.
    """

    id: str
    customer_id: str
    org_id: str | None = None
    former_org_id: str | None = None
    """As of a customer."""
    plan_code: str | None = None
    price_id: str | None = None
    next_plan_code: str | None = None
    started: bool = True
    arrangement: Arrangement | None = None
    paid_cents: int | None = None
    """Lago only: what it pays for ``plan_code``, which may be a price of its own."""
    is_paid_manually: bool = False
    """Lago only: its invoices charge nobody, although the customer may have a payer."""
    remark: Literal["pending", "took_effect"] | None = None
    """Stripe only: our note of a scheduled plan. After it took effect, the next change clears the note first."""
    changed_at: datetime | None = None

    @property
    def waits_for_payment(self) -> bool:
        return self.arrangement is not None and self.arrangement.waits_for_payment


def named(observed: ObservedObjectT, org_id: str, external_ids: ExternalIds) -> ObservedObjectT:
    """The object of Lago with the id of the organization that has its external id.

    Another object that is under the organization's own id is not the organization's.
    """
    ours = (
        external_ids.customer_of(org_id)
        if isinstance(observed, ObservedCustomer)
        else external_ids.subscription_of(org_id)
    )
    if observed.org_id == ours:
        return replace(observed, org_id=org_id)
    return replace(observed, org_id=None) if observed.org_id == org_id else observed


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedPayment:
    """What is wrong with the payment of a customer's invoices. ``failed``: one could not be charged and is unpaid.

    ``overdue``: Lago only: one is past its due date, and nobody has paid it or tried to charge it in vain.
    ``dispute_lost_at``: Lago only: when the latest dispute was lost; only voiding its invoice ends that in Lago.
    ``manual``: Lago only: its subscription is paid manually, so nobody is charged.
    """

    failed: bool = False
    overdue: bool = False
    manual: bool = False
    dispute_lost_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedState:
    """Everything that was read of one organization at a provider."""

    customers: tuple[ObservedCustomer, ...] = ()
    subscriptions: tuple[ObservedSubscription, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedPage(Generic[ObservedT]):
    """One page of a list. ``next_cursor`` requests the next page; None: this is the last one."""

    rows: tuple[ObservedT, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteWrite:
    """A write of an object at the provider. ``by_us``: its request had one of our idempotency keys."""

    object_id: str
    written_at: datetime
    by_us: bool
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What one attempt has to write again. ``observed``: the subscription as it is now; None: there is none."""

    org_id: str
    customer_id: str
    updates_customer: bool
    subscription: SubscriptionSpec | None = None
    observed: ObservedSubscription | None = None
