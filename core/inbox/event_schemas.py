"""What other services may send: one CloudEvents 1.0 object a message, its ``data`` checked field by field.

``(source, id)`` names it once and for ever; ``subject`` is the organization's id; ``time``, where given, orders the
messages of one source about one organization. The JSON Schemas in ``docs/schemas`` are generated from these models.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from core.db.models.organizations import Role, Status
from core.events.event_types import CHANGE_TYPES, ChangeType

LARGEST_BYTES: Final = 64 * 1024

ShortText = Annotated[str, Field(min_length=1, max_length=255)]
OrganizationId = Annotated[str, Field(pattern=r"^org_[A-Za-z0-9_-]{1,60}$")]
Email = Annotated[str, Field(max_length=512, pattern=r"^[^@\s,]+@[^@\s,]+\.[^@\s,]+$")]
Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$")]


# NUL as json.dumps writes it, not the six characters of a text that merely says so.
_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class RefusedError(ValueError):
    """The message cannot be taken; the text names the field and what it may be."""


class Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OrganizationCreated(Data):
    """``owner_user_id`` becomes the first owner."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    plan_tier: ShortText = "founders_friend"
    billing_email: Email | None = None
    currency: Currency | None = None
    owner_user_id: ShortText | None = None


class OrganizationRenamed(Data):
    name: Annotated[str, Field(min_length=1, max_length=200)]


class PlanChanged(Data):
    plan_tier: ShortText


class StatusChanged(Data):
    status: Status


class BillingDetailsChanged(Data):
    billing_email: Email | None = None
    currency: Currency | None = None


class MembershipAdded(Data):
    user_id: ShortText
    role: Role = "member"


class MembershipRemoved(Data):
    user_id: ShortText


class MembershipRoleChanged(Data):
    user_id: ShortText
    role: Role


DATA_OF: Final[dict[ChangeType, type[Data]]] = {
    "organization.created": OrganizationCreated,
    "organization.renamed": OrganizationRenamed,
    "organization.plan_changed": PlanChanged,
    "organization.status_changed": StatusChanged,
    "organization.billing_details_changed": BillingDetailsChanged,
    "membership.added": MembershipAdded,
    "membership.removed": MembershipRemoved,
    "membership.role_changed": MembershipRoleChanged,
}


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:
        message = "must lie between the years 1 and 9999 in UTC"
        raise ValueError(message) from None


class Envelope(BaseModel):
    """CloudEvents 1.0; attributes that are not named here are allowed and ignored, as that standard asks."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    specversion: Literal["1.0"]
    id: ShortText
    source: ShortText
    type: ShortText
    subject: OrganizationId
    time: Annotated[AwareDatetime, AfterValidator(_in_utc)] | None = None
    datacontenttype: Literal["application/json"] = "application/json"
    data: dict[str, Any]

    @property
    def cause(self) -> str:
        return f"{self.source}#{self.id}"


def parse(raw: object) -> tuple[Envelope, ChangeType, Data]:
    """The checked message. Raises ``RefusedError``."""
    if not isinstance(raw, dict):
        message = f"the message must be one JSON object in CloudEvents 1.0 form; got {type(raw).__name__}"
        raise RefusedError(message)
    if (problem := unstorable(raw)) is not None:
        raise RefusedError(problem)
    try:
        envelope = Envelope.model_validate(raw)
    except ValidationError as error:
        raise RefusedError(_sentence(error, ())) from None
    event_type = next((known for known in CHANGE_TYPES if known == envelope.type), None)
    if event_type is None:
        message = f"type must be one of {', '.join(CHANGE_TYPES)}"
        raise RefusedError(message)
    try:
        return envelope, event_type, DATA_OF[event_type].model_validate(envelope.data)
    except ValidationError as error:
        raise RefusedError(_sentence(error, ("data",))) from None


def unstorable(value: object) -> str | None:
    """Why this cannot be kept in a JSON column, or ``None``: too large, too deep, or not what both databases take."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return "the message must be plain JSON: texts, finite numbers, lists and objects that are not nested too deep"
    if len(text) > LARGEST_BYTES:
        return f"the message has {len(text)} bytes; at most {LARGEST_BYTES} are taken"
    if _NUL.search(text) or not _is_utf8(json.dumps(value, ensure_ascii=False)):
        return "the message holds a character that is no text: NUL, or half of a surrogate pair"
    return None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _sentence(error: ValidationError, prefix: tuple[str, ...]) -> str:
    """Every bad field with what it wants; what was given is not repeated, it may be a person's name or address."""
    parts = [
        f"{'.'.join((*prefix, *map(_shown, part['loc'])))}: {part['msg']}" for part in error.errors(include_input=False)
    ]
    return "; ".join(parts[:10])


def _shown(part: str | int) -> str:
    """A field's name, unless it is one that the sender made up: that may hold anything."""
    return str(part) if re.fullmatch(r"[A-Za-z0-9_]{1,40}", str(part)) else "(a field that is not known)"
