"""What other services are told of an event: its public name, whom it is about, and the least that helps.

An announcement carries identity, not state: who wants to know how it is now asks the API. No address and no name of a
person or organization is in it. Built from the event's own row, so each try sends the same bytes.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, case, literal, null, or_

from core.db.models.events import Event
from core.db.models.webhooks import WebhookEndpoint
from core.events.event_types import EventType

Name = Literal[
    "organization.created",
    "organization.updated",
    "organization.plan_changed",
    "organization.status_changed",
    "organization.deleted",
    "organization.synced",
    "membership.added",
    "membership.removed",
    "membership.role_changed",
]
NAMES: Final[tuple[Name, ...]] = get_args(Name)

# A status that becomes ``deleted`` has a name of its own.
NAME_OF: Final[dict[EventType, Name]] = {
    "organization.created": "organization.created",
    "organization.renamed": "organization.updated",
    "organization.billing_details_changed": "organization.updated",
    "organization.plan_changed": "organization.plan_changed",
    "organization.status_changed": "organization.status_changed",
    "organization.synced": "organization.synced",
    "membership.added": "membership.added",
    "membership.removed": "membership.removed",
    "membership.role_changed": "membership.role_changed",
}
# Of what the event holds, these alone are told.
FACTS: Final[dict[Name, tuple[str, ...]]] = {
    "organization.created": ("plan_tier",),
    "organization.updated": (),
    "organization.plan_changed": ("from", "to", "at"),
    "organization.status_changed": ("from", "to"),
    "organization.deleted": ("from",),
    "organization.synced": ("through",),
    "membership.added": ("user_id", "role"),
    "membership.removed": ("user_id",),
    "membership.role_changed": ("user_id", "from", "to"),
}

SOURCE: Final = "/billing-sync"
MEDIA_TYPE: Final = "application/cloudevents+json"


class Facts(BaseModel):
    """``sequence`` rises with every event of an organization: the higher one happened later. What else there is depends
    on the type: `plan_tier` (created); `from`, `to` and `at` (plan_changed), `from` and `to` (status_changed,
    role_changed); `user_id` and `role` (members); `through` (synced): both billers hold every change up to that
    `sync.sequence`.
    """

    model_config = ConfigDict(extra="allow")

    org_id: str = Field(examples=["org_0b7c6a9e-2f4d-4c53-9a55-0f7b0a4c8d11"])
    sequence: int = Field(examples=[42])


class Announcement(BaseModel):
    """CloudEvents 1.0. ``id`` is the event's, the same at each try and in ``webhook-id``: take it once."""

    specversion: Literal["1.0"] = "1.0"
    id: str = Field(examples=["9c1de6a4-4d5e-4f0a-8f5c-2a1b3c4d5e6f"])
    source: str = Field(examples=[SOURCE])
    type: Name
    subject: str = Field(description="The organization.", examples=["org_0b7c6a9e-2f4d-4c53-9a55-0f7b0a4c8d11"])
    time: datetime
    datacontenttype: Literal["application/json"] = "application/json"
    data: Facts


def announcement(event: Event, name: str) -> Announcement:
    known = next(each for each in NAMES if each == name)
    told: dict[str, Any] = {word: event.data[word] for word in FACTS[known] if word in event.data}
    return Announcement(
        id=event.id,
        source=SOURCE,
        type=known,
        subject=event.org_id,
        time=event.occurred_at,
        data=Facts(org_id=event.org_id, sequence=event.seq, **told),
    )


def name() -> ColumnElement[str | None]:
    """The name of an ``events`` row, for a statement; NULL: of this one nobody is told."""
    deleted = (Event.type == "organization.status_changed") & (Event.data["to"].as_string() == "deleted")
    known = [(Event.type == kind, literal(public)) for kind, public in NAME_OF.items()]
    return case((deleted, literal("organization.deleted")), *known, else_=null())


def wanted() -> ColumnElement[bool]:
    """Whether an endpoint's row asks for an event's row, for a statement."""
    blank = literal(" ")
    among = (blank + WebhookEndpoint.events + blank).like(literal("% ") + name() + literal(" %"))
    return or_(WebhookEndpoint.events == "", among)
