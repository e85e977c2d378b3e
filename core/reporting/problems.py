"""What needs an operator now, read from the rows: links, providers that cannot be used, and rejected messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import and_, exists, func, or_, select, text
from sqlalchemy.orm import Session

from core.db.models.billing_links import NEEDS_OPERATOR, BillingLink
from core.db.models.inbox import ServiceEvent
from core.db.models.providers import ProviderStatus
from core.flow_control import circuit_breaker
from core.flow_control.circuit_breaker import OpenBreaker
from core.ports.spec import Provider
from core.reporting import overview
from core.reporting.overview import FailureGroup

# Rejected messages are stored permanently, and nobody marks them as done.
REJECTED_MESSAGES_LISTED_FOR: Final = timedelta(days=1)

# As the partial indexes have it.
_NEEDS_OPERATOR: Final = text(NEEDS_OPERATOR)
_IS_REJECTED: Final = text("service_events.status = 'rejected'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problems:
    """``links``: parked or on hold, by error, the most frequent ones; ``waiting_links``: the number of all.

    ``rejected_messages``: of other services, within a day.
    """

    waiting_links: int
    links: list[FailureGroup]
    open_breakers: Mapping[Provider, OpenBreaker]
    rejected_messages: int


def read(session: Session, now: datetime) -> Problems:
    is_rejected = and_(_IS_REJECTED, ServiceEvent.rejected_at > now - REJECTED_MESSAGES_LISTED_FOR)
    return Problems(
        waiting_links=session.scalar(select(func.count()).select_from(BillingLink).where(_NEEDS_OPERATOR)) or 0,
        links=overview.failures_for_operators(session),
        open_breakers=circuit_breaker.open_breakers(session),
        rejected_messages=session.scalar(select(func.count()).select_from(ServiceEvent).where(is_rejected)) or 0,
    )


def any_since(session: Session, since: datetime) -> bool:
    """Whether one of the problems began at that time or later."""
    began = or_(
        exists().where(_NEEDS_OPERATOR, BillingLink.error_at >= since),
        exists().where(ProviderStatus.open_since >= since),
        exists().where(_IS_REJECTED, ServiceEvent.rejected_at >= since),
    )
    return bool(session.scalar(select(began)))
