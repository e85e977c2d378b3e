"""The status of one billing link, in the words that the CLI and the API show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Literal

from core.db.models.billing_links import BillingLink, PaymentStatus
from core.db.models.providers import BreakerReason
from core.flow_control.circuit_breaker import OpenBreaker
from core.ports import arrangement
from core.ports.arrangement import Arrangement
from core.ports.spec import Provider
from core.reconcile import observation
from core.reconcile.observation import Observation


def is_synced(link: BillingLink, version: int) -> bool:
    """Whether the link's provider has that version."""
    if link.applied_version < version or link.intent is not None:
        return False
    # A worker that lost its lease may have written old data after this attempt. Then the customer is unknown, and the
    # next attempt writes everything again.
    return link.applied_version == link.desired_version or link.customer_state == "applied"


SyncStatus = Literal[
    "in_sync", "syncing", "waiting", "provider_down", "retrying", "queued", "parked", "on_hold", "observed"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkReport:
    """One organization at one provider. ``next_at``: the time of the next automatic attempt; None: now, or never.

    ``waiting`` is no error: the other provider comes first. ``retrying`` has failed and is retried automatically.
    ``provider_down``: the circuit breaker is open, so nothing is tried; ``next_at`` is then the next probe, and
    ``breaker_reason`` says whether the provider does not respond, or rejects our key or settings.
    """

    provider: Provider
    status: SyncStatus
    breaker_reason: BreakerReason | None
    """Why the circuit breaker is open, if the status is ``provider_down``."""
    customer_id: str | None
    subscription_id: str | None
    plan_code: str | None
    next_plan_code: str | None
    arrangement: Arrangement | None
    """What somebody arranged for the subscription at the provider, when it was last read."""
    synced_at: datetime | None
    next_at: datetime | None
    attempts: int
    error_kind: str | None
    error_code: str | None
    error_message: str | None
    error_request_id: str | None
    error_at: datetime | None
    is_conflict: bool
    """On hold because somebody changed the provider; else on hold since an import."""
    payment_status: PaymentStatus | None
    """What is wrong with the payment at the provider. It delays nothing."""
    payment_since: datetime | None
    payment_code: str | None
    credit_amount: int | None
    """Credit on the customer's balance when it was last seen, in minor units; None: none is known."""
    credit_currency: str | None
    credit_since: datetime | None
    credit_is_left: bool
    """No invoice will use the credit: an operator must refund or grant it."""
    observation: Observation | None
    """What a reconcile would do, as last read while it was observed; None: not read, or managed since."""
    observed_at: datetime | None
    is_theirs: bool
    """Nothing is written to its customer and its subscription before they are adopted."""


def link_report(
    link: BillingLink, now: datetime, open_breakers: Mapping[Provider, OpenBreaker] = MappingProxyType({})
) -> LinkReport:
    """``open_breakers``: the providers whose circuit breaker is open; links that wait for one are ``provider_down``."""
    provider: Provider = "stripe" if link.provider == "stripe" else "lago"
    sync_status = _sync_status(link, now)
    credit_amount = link.credit_amount or None
    breaker = open_breakers.get(provider) if sync_status in {"retrying", "queued"} else None
    return LinkReport(
        provider=provider,
        status="provider_down" if breaker is not None else sync_status,
        breaker_reason=breaker.reason if breaker is not None else None,
        customer_id=link.customer_id,
        subscription_id=link.subscription_id,
        plan_code=link.applied_plan,
        next_plan_code=link.applied_next_plan,
        arrangement=arrangement.from_json(link.arrangement),
        synced_at=link.synced_at,
        next_at=breaker.probe_at if breaker is not None else _next_attempt_at(link, sync_status, now),
        attempts=link.attempts,
        error_kind=link.error_kind,
        error_code=link.error_code,
        error_message=link.error_message,
        error_request_id=link.error_request_id,
        error_at=link.error_at,
        is_conflict=link.is_conflict,
        payment_status=link.payment_status,
        payment_since=link.payment_since,
        payment_code=link.payment_code if link.payment_status is not None else None,
        credit_amount=credit_amount,
        credit_currency=link.credit_currency if credit_amount is not None else None,
        credit_since=link.credit_since if credit_amount is not None else None,
        credit_is_left=credit_amount is not None and link.subscription_id is None,
        observation=observation.from_json(link.observation),
        observed_at=link.observed_at,
        is_theirs=link.ownership == "theirs",
    )


def _sync_status(link: BillingLink, now: datetime) -> SyncStatus:
    if link.state != "active":
        return link.state
    if link.applied_version >= link.desired_version and link.intent is None:
        return "in_sync"
    if link.lease_until is not None and link.lease_until > now:
        return "syncing"
    if link.not_before_reason in {"payer", "lago_unread"}:
        return "waiting"
    return "queued" if link.error_kind is None else "retrying"


def _next_attempt_at(link: BillingLink, sync_status: SyncStatus, now: datetime) -> datetime | None:
    """A queued link is tried when its message arrives; at ``next_sweep_at`` the sweep sends it again."""
    if sync_status in {"waiting", "retrying"}:
        return link.not_before or link.next_sweep_at
    if sync_status == "syncing":
        return link.lease_until
    if sync_status == "queued":
        return max(link.next_sweep_at, now)
    return None
