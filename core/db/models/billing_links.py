"""Billing links: one organization at one provider, and what is left to do.

A link is in sync when ``applied_version == desired_version`` and it has no intent. ``desired_version`` repeats the
organization's version and is written in the same transaction (decision 0002), so one partial index on the link alone
answers "what is due" at any size.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import (
    BigInteger,
    Boolean,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    and_,
    false,
    or_,
    text,
    true,
)
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base, JsonObject
from core.db.leases import Leased

LinkState = Literal["active", "parked", "on_hold", "observed"]
CustomerState = Literal["absent", "unconfirmed", "unknown", "applied"]
"""absent: no id is stored. unconfirmed: the id came from outside, or an operator asked for a retry. unknown: a write
was sent and its outcome is not known. applied: the provider confirmed the stored fingerprint."""
PlanState = Literal["unknown", "ending", "applied"]
"""unknown: nothing was applied, or a write was sent and its outcome is not known. ending: we set out to end it."""
WaitReason = Literal["backoff", "object_limit", "cooldown", "request", "payer", "lago_unread"]
"""backoff: after an error. object_limit: the provider limits requests to this customer. cooldown: after an attempt that
made calls. request: for a permit of the rate limiter, or until no earlier request can be in
flight any more. payer: for the Stripe customer that Lago will charge. lago_unread: Stripe charges nobody before Lago,
which may have a customer that pays already, was read."""
Ownership = Literal["ours", "theirs", "adopted"]
"""Of the customer and the subscription. ours: we made them, or will. theirs: the id came from outside, so nothing is
written to them, and the whole organization is observed. adopted: an operator handed them over to billing-sync."""
MarksState = Literal["ours", "due", "none", "removal"]
"""Stripe only: our metadata. ours: it is written with whatever is written. due: of adopted objects; it is written once
the organization is managed. none: adopted without marks. removal: the objects are given back, so it is removed."""
ChargingMoveState = Literal["asked", "ended"]
"""asked: an operator said that this provider is to charge no more. ended: our subscription in Lago has ended since."""
PaymentStatus = Literal["failed", "payer_rejected", "dispute_lost", "overdue", "manual"]

PAYMENT_BRAKE = "payment_brake"
"""The ``error_kind`` of a link that is on hold because the payment brake holds its change."""
NEEDS_OPERATOR: Final = "billing_links.state <> 'active' AND billing_links.state <> 'observed'"
"""Parked or on hold. The first part is the condition of a partial index."""
CONFLICT = "conflict"
"""The ``error_kind`` of a link that is on hold because somebody changed its provider."""
LINK_IS_BEHIND = "applied_version < desired_version OR intent IS NOT NULL"
CREDIT_IS_LEFT = "credit_amount > 0 AND subscription_id IS NULL"
"""No invoice will use the credit, because no subscription of ours is left."""
HAS_ROUTINE_CHECKS = "((state = 'active' AND subscription_id IS NOT NULL) OR state = 'observed')"
LINK_IS_OBSERVED = "billing_links.state = 'observed'"
"""A literal: it is the condition of a partial index."""
IS_NOT_OBSERVED = "billing_links.observed_at IS NULL"
"""Also a link that is read again is observed: its version is behind for as long as nothing may be written."""
LINK_HAS_WORK = f"{LINK_IS_BEHIND} OR checks_done < checks_requested"


class BillingLink(Leased, Base):
    """One organization at one provider: ids, applied state, remaining work and lease."""

    __tablename__ = "billing_links"

    org_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    provider: Mapped[str] = mapped_column(String(16), primary_key=True)

    customer_id: Mapped[str | None] = mapped_column(String(255))
    subscription_id: Mapped[str | None] = mapped_column(String(255))
    external_customer_id: Mapped[str | None] = mapped_column(String(255))
    """Lago only: the external id of the customer, if it is not the organization's id. Lago addresses it by that."""
    external_subscription_id: Mapped[str | None] = mapped_column(String(255))
    """Lago only: the same for the subscription."""
    ownership: Mapped[Ownership] = mapped_column(String(8), default="ours", server_default="ours")
    marks: Mapped[MarksState] = mapped_column(String(8), default="ours", server_default="ours")
    account_id: Mapped[str | None] = mapped_column(String(255))
    livemode: Mapped[bool | None] = mapped_column(Boolean)

    created_at: Mapped[datetime | None]
    """NULL: the link is older than this column."""
    maybe_older: Mapped[bool] = mapped_column(Boolean, default=True, server_default=true())
    """The organization's id came from outside, so the provider may have had a customer with it before this link."""
    subscription_requested: Mapped[bool] = mapped_column(Boolean, default=False, server_default=true())
    """Lago only: a write of the subscription may have been sent, so one that is found may be ours."""
    desired_version: Mapped[int] = mapped_column(BigInteger)
    applied_version: Mapped[int] = mapped_column(BigInteger)
    customer_state: Mapped[CustomerState] = mapped_column(String(12))
    customer_fingerprint: Mapped[str | None] = mapped_column(String(64))
    """Digest of the customer as last written, while ``customer_state`` is applied; else NULL."""
    adopted_fingerprint: Mapped[str | None] = mapped_column(String(64))
    """Digest of our name and address when it was adopted: while they are the same, the provider's own ones stay."""
    plan_state: Mapped[PlanState] = mapped_column(String(8))
    applied_plan: Mapped[str | None] = mapped_column(String(255))
    """The provider's code of the plan, while ``plan_state`` is applied; else NULL."""
    sold_plan: Mapped[str | None] = mapped_column(String(255))
    """The code of the subscription's plan when it was last confirmed, also while ``plan_state`` is not applied."""
    sold_price_id: Mapped[str | None] = mapped_column(String(255))
    """The price that was sold under ``sold_plan``, as in ``SoldPrice``; NULL if it is not known."""
    target_plan: Mapped[str | None] = mapped_column(String(255))
    """The code of the same plan to which an operator moves it, until it is the one that was sold; NULL: none."""
    target_at_period_end: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    """Whether ``target_plan`` follows at the end of the period, or at once."""
    applied_next_plan: Mapped[str | None] = mapped_column(String(255))
    """The scheduled plan: as the provider confirmed it, or as the last write, which has no answer yet, schedules it."""
    replaced_next_plans: Mapped[list[str] | None] = mapped_column(JsonObject)
    """Scheduled plans that writes without an answer may have replaced; each may still be scheduled. NULL: none."""
    payer_id: Mapped[str | None] = mapped_column(String(255))
    """Lago only: the Stripe customer that Lago charges. While it is set, Stripe itself may not charge."""
    payer_confirmed: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    """Lago has returned ``payer_id`` since it was stored, so it is not sent again."""
    without_payer: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    """Lago only: it was adopted without a payer, so Lago gets none until an operator says so."""
    charging_move: Mapped[ChargingMoveState | None] = mapped_column(String(8))
    """Set while this provider stops to charge on an operator's word, because the other one is to; else NULL."""
    charging_move_at: Mapped[datetime | None]
    """Since when ``charging_move`` is what it is."""
    arrangement: Mapped[dict[str, Any] | None]
    """``core.ports.arrangement.Arrangement`` as the subscription last showed it; NULL: nothing is arranged."""
    synced_at: Mapped[datetime | None]

    state: Mapped[LinkState] = mapped_column(String(8))
    """active; parked (until the organization changes, its scheduled plan is due, the other link changes who charges, or
    an operator retries); on_hold (until an operator decides; one for a conflict also until the deletion); observed (it
    was read and compared, and nothing may be written; until the organization changes or is read again)."""
    attempts: Mapped[int] = mapped_column(Integer)
    not_before: Mapped[datetime | None]
    """No sync attempt before this time; NULL: at once."""
    not_before_reason: Mapped[WaitReason | None] = mapped_column(String(12))
    """A change of the organization ends every wait but ``cooldown`` and ``object_limit``."""
    waiting_since: Mapped[datetime | None]
    """Since when it waits for the payer, or for Lago to be read. A change of the organization leaves it, so that the
    wait for the payer has an end."""
    next_sweep_at: Mapped[datetime]
    """When the sweep sends the next sync request, if the link has work."""
    error_kind: Mapped[str | None] = mapped_column(String(32))
    error_code: Mapped[str | None] = mapped_column(String(255))
    error_message: Mapped[str | None] = mapped_column(Text)
    error_request_id: Mapped[str | None] = mapped_column(String(255))
    error_at: Mapped[datetime | None]

    generation: Mapped[int] = mapped_column(Integer)
    intent: Mapped[dict[str, Any] | None]

    checks_requested: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """Number of remote checks that webhooks have requested."""
    checks_done: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """Number of them that are done; if it is lower, a remote check is due."""
    observation: Mapped[dict[str, Any] | None]
    """``core.reconcile.observation.Observation``, the steps that would be taken, as last read while it was observed.

    Also while the link is read again, waits or is on hold. NULL again after an attempt while it is managed.
    """
    observed_at: Mapped[datetime | None]
    """When ``observation`` was read; NULL together with it. Until then a link with work is not behind."""
    routine_check_at: Mapped[datetime | None]
    """When its last routine check was requested, since a webhook may get lost."""
    payment_status: Mapped[PaymentStatus | None] = mapped_column(String(16))
    """A payment problem. failed: an invoice could not be charged. payer_rejected: the payment provider rejects the
    payer. dispute_lost: a payment was taken back. overdue: an invoice is past its due date, and nobody has paid it.
    manual: the provider charges nobody for the subscription."""
    payment_since: Mapped[datetime | None]
    payment_code: Mapped[str | None] = mapped_column(String(255))
    """The provider's code for it, from the last webhook."""
    disputes_closed_until: Mapped[datetime | None]
    """Lago only: an operator has dealt with the disputes that were lost until then, by Lago's time."""
    credit_amount: Mapped[int | None] = mapped_column(BigInteger)
    """Stripe only: the credit on the customer's balance when it was last seen, in minor units. NULL: never any."""
    credit_currency: Mapped[str | None] = mapped_column(String(3))
    credit_since: Mapped[datetime | None]
    """Since when ``credit_amount`` is known."""

    @property
    def is_conflict(self) -> bool:
        """Whether it is on hold because somebody changed its provider; ``IS_CONFLICT`` for a statement."""
        return self.state == "on_hold" and self.error_kind == CONFLICT

    @property
    def is_braked(self) -> bool:
        """Whether the payment brake holds a change of it; ``IS_BRAKED`` for a statement."""
        return self.state == "on_hold" and self.error_kind == PAYMENT_BRAKE

    __table_args__ = (
        Index(
            "uq_billing_links_customer_id",
            "provider",
            "customer_id",
            unique=True,
            sqlite_where=text("customer_id IS NOT NULL"),
            postgresql_where=text("customer_id IS NOT NULL"),
        ),
        Index(
            "uq_billing_links_external_customer_id",
            "provider",
            "external_customer_id",
            unique=True,
            sqlite_where=text("external_customer_id IS NOT NULL"),
            postgresql_where=text("external_customer_id IS NOT NULL"),
        ),
        Index(
            "uq_billing_links_external_subscription_id",
            "provider",
            "external_subscription_id",
            unique=True,
            sqlite_where=text("external_subscription_id IS NOT NULL"),
            postgresql_where=text("external_subscription_id IS NOT NULL"),
        ),
        Index(
            "ix_billing_links_due",
            "provider",
            "next_sweep_at",
            sqlite_where=text(f"state = 'active' AND ({LINK_HAS_WORK})"),
            postgresql_where=text(f"state = 'active' AND ({LINK_HAS_WORK})"),
        ),
        Index(
            "ix_billing_links_parked",
            "provider",
            sqlite_where=text("state <> 'active'"),
            postgresql_where=text("state <> 'active'"),
        ),
        Index(
            "ix_billing_links_observed",
            "org_id",
            sqlite_where=text("state = 'observed'"),
            postgresql_where=text("state = 'observed'"),
        ),
        Index(
            "ix_billing_links_payment",
            "provider",
            "payment_status",
            sqlite_where=text("payment_status IS NOT NULL"),
            postgresql_where=text("payment_status IS NOT NULL"),
        ),
        Index(
            "ix_billing_links_routine_check",
            "provider",
            "routine_check_at",
            sqlite_where=text(HAS_ROUTINE_CHECKS),
            postgresql_where=text(HAS_ROUTINE_CHECKS),
        ),
        Index(
            "ix_billing_links_credit",
            "provider",
            sqlite_where=text(CREDIT_IS_LEFT),
            postgresql_where=text(CREDIT_IS_LEFT),
        ),
    )


NO_TARGET: Final[dict[str, Any]] = {"target_plan": None, "target_at_period_end": False}
"""The values of a link that no operator moves to another code of its plan."""
NO_MOVE: Final[dict[str, Any]] = {"charging_move": None, "charging_move_at": None}
"""The values of a link that does not move."""
NO_ERROR: Final[dict[str, Any]] = {
    "error_kind": None,
    "error_code": None,
    "error_message": None,
    "error_request_id": None,
    "error_at": None,
}
"""The values of a link without an error."""
IS_CONFLICT = and_(BillingLink.state == "on_hold", BillingLink.error_kind == CONFLICT)
IS_BRAKED = and_(BillingLink.state == "on_hold", BillingLink.error_kind == PAYMENT_BRAKE)
IS_NOT_BRAKED = or_(BillingLink.state != "on_hold", BillingLink.error_kind.is_distinct_from(PAYMENT_BRAKE))
IS_NO_CONFLICT = or_(BillingLink.state != "on_hold", BillingLink.error_kind.is_distinct_from(CONFLICT))

# A literal, not a bound parameter: SQLite uses a partial index only if the query contains its condition.
LINK_IS_ACTIVE_WITH_WORK = f"state = 'active' AND ({LINK_HAS_WORK})"
