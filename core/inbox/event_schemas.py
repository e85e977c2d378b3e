"""Schemas of service events: the CloudEvents 1.0 envelope and one data model per event type.

``(source, id)`` identifies a message permanently. ``subject`` is the organization's id. ``time``, if given, orders the
messages of one source about one organization. The JSON Schemas in ``docs/schemas`` are generated from these models.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from core.common.clock import to_utc
from core.db.models.organizations import MembershipRole, OrganizationStatus
from core.events.event_types import CHANGE_TYPES, ChangeType
from core.organizations.validation import checked_user_id

MAX_SERVICE_EVENT_BYTES: Final = 64 * 1024

ShortText = Annotated[str, Field(min_length=1, max_length=255)]


def _one_line(text: str) -> str:
    if not text.isprintable():
        message = "must be one line of text that can be seen"
        raise ValueError(message)
    return text


OneLine = Annotated[ShortText, AfterValidator(_one_line)]
OrganizationIdField = Annotated[str, Field(pattern=r"^org_[A-Za-z0-9_-]{1,60}$")]
UserIdField = Annotated[
    str, Field(min_length=1, max_length=255), AfterValidator(lambda user_id: checked_user_id("user_id", user_id))
]
BillingEmailField = Annotated[str, Field(max_length=512, pattern=r"^[^@\s,]+@[^@\s,]+\.[^@\s,]+$")]
CurrencyField = Annotated[str, Field(pattern=r"^[A-Z]{3}$")]


# NUL as json.dumps escapes it, but not a text that contains the six characters of that escape.
_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class InvalidEventError(ValueError):
    """The message is invalid. The text names the field and what it may be."""


class ServiceEventData(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OrganizationCreatedData(ServiceEventData):
    """``owner_user_id`` becomes the first owner."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    plan_tier: ShortText = "founders_friend"
    billing_email: BillingEmailField | None = None
    currency: CurrencyField | None = None
    owner_user_id: UserIdField | None = None


class OrganizationRenamedData(ServiceEventData):
    name: Annotated[str, Field(min_length=1, max_length=200)]


class PlanChangedData(ServiceEventData):
    plan_tier: ShortText


class StatusChangedData(ServiceEventData):
    status: OrganizationStatus


class BillingDetailsChangedData(ServiceEventData):
    billing_email: BillingEmailField | None = None
    currency: CurrencyField | None = None


class MembershipAddedData(ServiceEventData):
    user_id: UserIdField
    role: MembershipRole = "member"


class MembershipRemovedData(ServiceEventData):
    user_id: ShortText


class MembershipRoleChangedData(ServiceEventData):
    user_id: UserIdField
    role: MembershipRole


DATA_MODELS: Final[dict[ChangeType, type[ServiceEventData]]] = {
    "organization.created": OrganizationCreatedData,
    "organization.renamed": OrganizationRenamedData,
    "organization.plan_changed": PlanChangedData,
    "organization.status_changed": StatusChangedData,
    "organization.billing_details_changed": BillingDetailsChangedData,
    "membership.added": MembershipAddedData,
    "membership.removed": MembershipRemovedData,
    "membership.role_changed": MembershipRoleChangedData,
}


class ServiceEventMessage(BaseModel):
    """CloudEvents 1.0; attributes that are not named here are allowed and ignored, as that standard asks."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    specversion: Literal["1.0"]
    id: OneLine
    source: OneLine
    type: OneLine
    subject: OrganizationIdField
    time: Annotated[AwareDatetime, AfterValidator(to_utc)] | None = None
    datacontenttype: Literal["application/json"] = "application/json"
    data: dict[str, Any]

    @property
    def reference(self) -> str:
        return f"{self.source}#{self.id}"


def parse(raw: object) -> tuple[ServiceEventMessage, ChangeType, ServiceEventData]:
    """The message, its type and its data, checked. Raises ``InvalidEventError``."""
    if not isinstance(raw, dict):
        message = f"the message must be one JSON object in CloudEvents 1.0 form; got {type(raw).__name__}"
        raise InvalidEventError(message)
    if (problem := storage_problem(raw)) is not None:
        raise InvalidEventError(problem)
    try:
        envelope = ServiceEventMessage.model_validate(raw)
    except ValidationError as error:
        raise InvalidEventError(_error_text(error, ())) from None
    event_type = next((change_type for change_type in CHANGE_TYPES if change_type == envelope.type), None)
    if event_type is None:
        message = f"type must be one of {', '.join(CHANGE_TYPES)}"
        raise InvalidEventError(message)
    try:
        return envelope, event_type, DATA_MODELS[event_type].model_validate(envelope.data)
    except ValidationError as error:
        raise InvalidEventError(_error_text(error, ("data",))) from None


def storage_problem(value: object) -> str | None:
    """Why this cannot be stored in a JSON column, or ``None``: too large, too deep, or not valid in both databases."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return "the message must be plain JSON: strings, finite numbers, lists and objects, not nested too deeply"
    if len(text) > MAX_SERVICE_EVENT_BYTES:
        return f"the message has {len(text)} bytes; at most {MAX_SERVICE_EVENT_BYTES} are accepted"
    if _NUL.search(text) or not _is_utf8(json.dumps(value, ensure_ascii=False)):
        return "the message contains a character that cannot be stored: NUL or an unpaired surrogate"
    return None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _error_text(error: ValidationError, prefix: tuple[str, ...]) -> str:
    """Each invalid field with what is expected. The value is not repeated: it may be a user's name or address."""
    parts = [
        f"{'.'.join((*prefix, *map(_safe_field_name, part['loc'])))}: {part['msg']}"
        for part in error.errors(include_input=False)
    ]
    return "; ".join(parts[:10])


def _safe_field_name(part: str | int) -> str:
    """The field's name, unless the sender invented one, which may contain anything."""
    return str(part) if re.fullmatch(r"[A-Za-z0-9_]{1,40}", str(part)) else "(an unknown field)"
