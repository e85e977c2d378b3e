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

PublicEventName = Literal[
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
PUBLIC_EVENT_NAMES: Final[tuple[PublicEventName, ...]] = get_args(PublicEventName)

# A status that becomes ``deleted`` has a name of its own.
PUBLIC_NAME_BY_TYPE: Final[dict[EventType, PublicEventName]] = {
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
FIELDS_BY_PUBLIC_NAME: Final[dict[PublicEventName, tuple[str, ...]]] = {
    "organization.created": ("plan_tier",),
    "organization.updated": (),
    "organization.plan_changed": ("from", "to", "at"),
    "organization.status_changed": ("from", "to"),
    "organization.deleted": ("from",),
    "organization.synced": ("version",),
    "membership.added": ("user_id", "role"),
    "membership.removed": ("user_id",),
    "membership.role_changed": ("user_id", "from", "to"),
}

WEBHOOK_EVENT_SOURCE: Final = "/billing-sync"
CLOUDEVENT_MEDIA_TYPE: Final = "application/cloudevents+json"


class EventFields(BaseModel):
    """``sequence`` rises with every event of an organization: the higher one happened later. What else there is depends
    on the type: `plan_tier` (created); `from`, `to` and `at` (plan_changed), `from` and `to` (status_changed,
    role_changed); `user_id` and `role` (members); `through` (synced): both billers hold every change up to that
    `sync.sequence`.
    """

    model_config = ConfigDict(extra="allow")

    org_id: str = Field(examples=["org_0b7c6a9e-2f4d-4c53-9a55-0f7b0a4c8d11"])
    sequence: int = Field(examples=[42])


class WebhookEvent(BaseModel):
    """CloudEvents 1.0. ``id`` is the event's, the same at each try and in ``webhook-id``: take it once."""

    specversion: Literal["1.0"] = "1.0"
    id: str = Field(examples=["9c1de6a4-4d5e-4f0a-8f5c-2a1b3c4d5e6f"])
    source: str = Field(examples=[WEBHOOK_EVENT_SOURCE])
    type: PublicEventName
    subject: str = Field(description="The organization.", examples=["org_0b7c6a9e-2f4d-4c53-9a55-0f7b0a4c8d11"])
    time: datetime
    datacontenttype: Literal["application/json"] = "application/json"
    data: EventFields


def build(event: Event, name: str) -> WebhookEvent:
    event_name = next(each for each in PUBLIC_EVENT_NAMES if each == name)
    fields: dict[str, Any] = {
        field: event.data[field] for field in FIELDS_BY_PUBLIC_NAME[event_name] if field in event.data
    }
    return WebhookEvent(
        id=event.id,
        source=WEBHOOK_EVENT_SOURCE,
        type=event_name,
        subject=event.org_id,
        time=event.occurred_at,
        data=EventFields(org_id=event.org_id, sequence=event.seq, **fields),
    )


def public_name() -> ColumnElement[str | None]:
    """The name of an ``events`` row, for a statement; NULL: of this one nobody is told."""
    is_deletion = (Event.type == "organization.status_changed") & (Event.data["to"].as_string() == "deleted")
    cases = [(Event.type == event_type, literal(public)) for event_type, public in PUBLIC_NAME_BY_TYPE.items()]
    return case((is_deletion, literal("organization.deleted")), *cases, else_=null())


def subscribed() -> ColumnElement[bool]:
    """Whether an endpoint's row asks for an event's row, for a statement."""
    space = literal(" ")
    is_listed = (space + WebhookEndpoint.events + space).like(literal("% ") + public_name() + literal(" %"))
    return or_(WebhookEndpoint.events == "", is_listed)
