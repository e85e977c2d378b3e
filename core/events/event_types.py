"""The event types, in the past tense. An event has an id and no state: its consumer reads the row as it is now.

The names are protocol: other services and the routing table use them.
"""

from __future__ import annotations

import re
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
"""The types of changes, also in messages of other services."""

ORGANIZATION_CHANGES: Final = tuple(name for name in CHANGE_TYPES if name.startswith("organization."))
"""The types that a provider may have to see; it sees no memberships."""

OperatorEventType = Literal["link.parked", "link.payment_on_hold", "provider.unavailable"]
"""What an operator must act on. Only an endpoint that asks for them by name gets them."""

AdoptionEventType = Literal["organization.adopted", "organization.released"]
"""An operator handed what is at the providers over to billing-sync, or gave it back."""

EventType = (
    ChangeType
    | Literal[
        "organization.sync_requested",
        "organization.synced",
        "organization.management_changed",
        "organization.price_change_scheduled",
    ]
    | AdoptionEventType
    | OperatorEventType
)
"""All types that we record; no other service can send the additional ones. ``sync_requested``: an operator asked for
another attempt (a retry, or a decided conflict), so the relay sends one although no value changed.
``management_changed``: the organization is observed or managed from now on. ``price_change_scheduled``: an operator
moves it to another price of its plan on a day that is to come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Who made a change, through what, and caused by which message (``source#id`` of a service event).

    ``key_id``: the API key of a service over HTTP. Keys are never deleted, so it also says which account.
    """

    actor: str = "system"
    source: str = "billing-sync"
    caused_by: str | None = None
    key_id: str | None = None


BY_SYSTEM: Final = Cause()
RESOLVE_SOURCE: Final = "billing-sync resolve"
"""The source of what an operator takes over from a provider."""
# What the API writes. The reference of a service event has a ``#``, so it is never taken for one.
_REQUEST_CAUSE: Final = re.compile(r"request:([A-Za-z0-9._-]{1,64})")


@dataclass(frozen=True, slots=True)
class ChangeContext:
    """An open transaction that changes something, with the time and the cause of the change."""

    session: Session
    now: datetime
    cause: Cause = BY_SYSTEM


def request_id_of(caused_by: str | None) -> str | None:
    """The id of the API request that made a change. ``None``: something else did, or nothing named itself."""
    match = _REQUEST_CAUSE.fullmatch(caused_by or "")
    return match[1] if match else None
