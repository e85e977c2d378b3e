"""Webhook events: the public name of an event, the organization it is about, and as few fields as possible.

A webhook event carries identity, not state: a subscriber reads the current state from the API. No address and no name
of a user or organization is in it. It is built from the event's own row, so each attempt sends the same bytes.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, and_, case, literal, null, or_

from core.db.models.events import Event
from core.db.models.webhooks import WebhookEndpoint
from core.events.event_types import EventType, OperatorEventType

OrganizationEventName = Literal[
    "organization.created",
    "organization.updated",
    "organization.plan_changed",
    "organization.price_change_scheduled",
    "organization.status_changed",
    "organization.deleted",
    "organization.synced",
    "membership.added",
    "membership.removed",
    "membership.role_changed",
]
PublicEventName = OrganizationEventName | OperatorEventType
ORGANIZATION_EVENT_NAMES: Final[tuple[OrganizationEventName, ...]] = get_args(OrganizationEventName)
OPERATOR_EVENT_NAMES: Final[tuple[OperatorEventType, ...]] = get_args(OperatorEventType)
PUBLIC_EVENT_NAMES: Final[tuple[PublicEventName, ...]] = (*ORGANIZATION_EVENT_NAMES, *OPERATOR_EVENT_NAMES)

# A change of the status to ``deleted`` has a name of its own.
PUBLIC_NAME_BY_TYPE: Final[dict[EventType, PublicEventName]] = {
    "organization.created": "organization.created",
    "organization.renamed": "organization.updated",
    "organization.billing_details_changed": "organization.updated",
    "organization.plan_changed": "organization.plan_changed",
    "organization.price_change_scheduled": "organization.price_change_scheduled",
    "organization.status_changed": "organization.status_changed",
    "organization.synced": "organization.synced",
    "membership.added": "membership.added",
    "membership.removed": "membership.removed",
    "membership.role_changed": "membership.role_changed",
    "link.parked": "link.parked",
    "link.payment_on_hold": "link.payment_on_hold",
    "provider.unavailable": "provider.unavailable",
}
# Only these fields of an event are sent.
FIELDS_BY_PUBLIC_NAME: Final[dict[PublicEventName, tuple[str, ...]]] = {
    "organization.created": ("plan_tier",),
    "organization.updated": (),
    "organization.plan_changed": ("from", "to", "at"),
    "organization.price_change_scheduled": ("tier", "amount_before", "amount_after", "currency", "effective_at"),
    "organization.status_changed": ("from", "to"),
    "organization.deleted": ("from",),
    "organization.synced": ("version",),
    "membership.added": ("user_id", "role"),
    "membership.removed": ("user_id",),
    "membership.role_changed": ("user_id", "from", "to"),
    "link.parked": ("provider", "kind", "code"),
    "link.payment_on_hold": ("provider", "code"),
    "provider.unavailable": ("provider", "reason"),
}

WEBHOOK_EVENT_SOURCE: Final = "/billing-sync"
CLOUDEVENT_MEDIA_TYPE: Final = "application/cloudevents+json"


class EventFields(BaseModel):
    """``sequence`` is the event's running number: of two events of one organization the higher one happened later. The
    other fields depend on the type: `plan_tier` (created); `from`, `to` and `at` (plan_changed); `tier`,
    `amount_before` and `amount_after` in minor units of `currency`, and `effective_at` (price_change_scheduled); `from`
    and `to` (status_changed, role_changed); `user_id` and `role` (members); `version` (synced): both providers have
    every change up to this `sync.version`; `provider`, `kind` and `code` (parked); `provider` and `code`
    (payment_on_hold); `provider` and `reason` (unavailable, without `org_id`).
    """

    model_config = ConfigDict(extra="allow")

    org_id: str | None = Field(examples=["org_0b7c6a9e-2f4d-4c53-9a55-0f7b0a4c8d11"])
    sequence: int = Field(examples=[42])


class WebhookEvent(BaseModel):
    """CloudEvents 1.0. ``id`` is the event's id, the same on every attempt and in ``webhook-id``: deduplicate by it."""

    specversion: Literal["1.0"] = "1.0"
    id: str = Field(examples=["9c1de6a4-4d5e-4f0a-8f5c-2a1b3c4d5e6f"])
    source: str = Field(examples=[WEBHOOK_EVENT_SOURCE])
    type: PublicEventName
    subject: str = Field(
        description="The organization's id, or the provider.", examples=["org_0b7c6a9e-2f4d-4c53-9a55-0f7b0a4c8d11"]
    )
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
        subject=event.org_id or str(event.data["provider"]),
        time=event.occurred_at,
        data=EventFields(org_id=event.org_id or None, sequence=event.seq, **fields),
    )


def public_name() -> ColumnElement[str | None]:
    """The public name of an ``events`` row, for a statement. NULL: the event is not sent."""
    is_deletion = (Event.type == "organization.status_changed") & (Event.data["to"].as_string() == "deleted")
    cases = [(Event.type == event_type, literal(public)) for event_type, public in PUBLIC_NAME_BY_TYPE.items()]
    return case((is_deletion, literal("organization.deleted")), *cases, else_=null())


def subscribed() -> ColumnElement[bool]:
    """Whether an endpoint's row subscribes to an event's row, for a statement. All: those of organizations."""
    space = literal(" ")
    is_of_organization = Event.type.not_in(OPERATOR_EVENT_NAMES)
    is_listed = (space + WebhookEndpoint.events + space).like(literal("% ") + public_name() + literal(" %"))
    return or_(and_(WebhookEndpoint.events == "", is_of_organization), is_listed)
