"""The status of one billing link, in the words that the CLI and the API show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Literal

from core.db.models.billing_links import BillingLink, Payment
from core.flow_control.circuit_breaker import Stop
from core.ports.spec import Provider
from core.reconcile.attempt import UNSURE

WAITING_FOR_PAYER = "waiting"


def holds(link: BillingLink, through: int) -> bool:
    """Whether the link's biller has everything up to that change."""
    if link.applied_version < through or link.intent is not None:
        return False
    # A worker that lost its turn may have written something old after this round: then the customer is not known,
    # and the next round makes everything again.
    return link.applied_version == link.wanted_version or link.applied_customer not in {None, UNSURE}


Standing = Literal["in_sync", "working", "waiting", "stopped", "retrying", "queued", "parked", "held"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkReport:
    """One organization at one biller. ``next_at``: when it is tried next by itself; None: at once, or never.

    ``waiting`` is no error: the other biller goes first. ``retrying`` has failed and is tried again by itself.
    ``stopped``: its biller is, so nothing of it is tried; ``next_at`` is the biller's next probe then.
    """

    provider: Provider
    standing: Standing
    customer_id: str | None
    subscription_id: str | None
    plan_code: str | None
    next_plan_code: str | None
    synced_at: datetime | None
    next_at: datetime | None
    attempts: int
    error_kind: str | None
    error_code: str | None
    error_message: str | None
    error_request_id: str | None
    error_at: datetime | None
    payment: Payment | None
    """What is wrong with paying there; no reason to wait for anything."""
    payment_since: datetime | None
    payment_code: str | None


def link_report(link: BillingLink, now: datetime, stops: Mapping[Provider, Stop] = MappingProxyType({})) -> LinkReport:
    """``stops``: the billers that are stopped, for what waits for them."""
    provider: Provider = "stripe" if link.provider == "stripe" else "lago"
    standing, stop = _standing(link, now), stops.get(provider)
    waits = stop is not None and standing in {"retrying", "queued"}
    return LinkReport(
        provider=provider,
        standing="stopped" if waits else standing,
        customer_id=link.customer_id,
        subscription_id=link.subscription_id,
        plan_code=link.applied_plan,
        next_plan_code=link.applied_next_plan,
        synced_at=link.synced_at,
        next_at=stop.probe_at if stop is not None and waits else _next_at(link, standing, now),
        attempts=link.attempts,
        error_kind=link.error_kind,
        error_code=link.error_code,
        error_message=link.error_message,
        error_request_id=link.error_request_id,
        error_at=link.error_at,
        payment=link.payment,
        payment_since=link.payment_since,
        payment_code=link.payment_code if link.payment is not None else None,
    )


def _standing(link: BillingLink, now: datetime) -> Standing:
    if link.state != "open":
        return "held" if link.state == "held" else "parked"
    if link.applied_version >= link.wanted_version and link.intent is None:
        return "in_sync"
    if link.lease_until is not None and link.lease_until > now:
        return "working"
    if link.error_kind == WAITING_FOR_PAYER:
        return "waiting"
    return "queued" if link.error_kind is None else "retrying"


def _next_at(link: BillingLink, standing: Standing, now: datetime) -> datetime | None:
    """A queued link is worked on when its message arrives; ``sweep_at`` is when the sweep sends it once more."""
    if standing in {"waiting", "retrying"}:
        return link.next_attempt_at or link.sweep_at
    if standing == "working":
        return link.lease_until
    if standing == "queued":
        return max(link.sweep_at, now)
    return None
