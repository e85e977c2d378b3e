"""What can happen, in the past tense. An event carries identity, not state: its reader looks at the row as it is now.

The names are protocol: other services and the routing table know them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, get_args

from sqlalchemy.orm import Session

ChangeType = Literal[
    "organization.created",
    "organization.renamed",
    "organization.plan_changed",
    "organization.status_changed",
    "organization.billing_details_changed",
    "membership.added",
    "membership.removed",
    "membership.role_changed",
]
CHANGE_TYPES: Final[tuple[ChangeType, ...]] = get_args(ChangeType)
"""What a change is, here and in another service's message."""

EventType = ChangeType | Literal["organization.synced"]
"""What we say besides: nobody else can send it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Who made a change, through what, and because of which message (``source#id`` of a received event)."""

    actor: str = "system"
    source: str = "billing-sync"
    caused_by: str | None = None


BY_SYSTEM: Final = Cause()


@dataclass(frozen=True, slots=True)
class ChangeContext:
    """One open transaction in which somebody changes something, and the moment it counts as."""

    session: Session
    now: datetime
    cause: Cause = BY_SYSTEM
