"""Events in: what other services say, by the rules of the Celery task ``events.receive``, and answered at once.

Each is taken once by its source and id; a repeat is given the verdict of the first and does nothing. One event is
answered by its verdict, a refused one as a problem; a batch is answered whole, each event with its own verdict, so that
a bad one keeps no other out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy.exc import IntegrityError
from starlette.concurrency import run_in_threadpool

from api import problems
from api.context import ApiContext, ContextDep
from api.problems import PROBLEM_MEDIA_TYPE, FieldError, ProblemError
from api.schemas.responses import SyncVersion
from core.db.database import DATABASE_UNAVAILABLE_ERRORS
from core.db.models.inbox import ServiceEventStatus
from core.inbox import service_events
from core.inbox.event_schemas import DATA_MODELS, ServiceEventData, ServiceEventMessage
from core.inbox.service_events import HandledEvent
from core.reporting import sync_status

log = structlog.get_logger()
router = APIRouter(tags=["events"])

MAX_EVENTS_PER_BATCH: Final = 100
SINGLE_EVENT_MEDIA_TYPE: Final = "application/cloudevents+json"
EVENT_BATCH_MEDIA_TYPE: Final = "application/cloudevents-batch+json"
JSON_MEDIA_TYPE: Final = "application/json"
_FIELD_REASON_PATTERN: Final = re.compile(r"([A-Za-z0-9_.]{1,80}): (.+)", re.DOTALL)


class EventResult(BaseModel):
    """``waiting``: for its organization or member, which is not known yet. ``superseded``: its source has said
    something later since. ``sync`` where it was accepted: hand ``version`` to ``GET …/sync?version=``.
    """

    id: str | None = Field(examples=["6f1c2a"], description="As it was sent; null: it had none.")
    source: str | None = Field(examples=["/signup"])
    status: ServiceEventStatus
    reason: str | None = Field(description="What was wrong or is waited for, with the field named.")
    org_id: str | None = Field(examples=["org_0b7c6a9e-2f4d-4c53-9a55-0f7b0a4c8d11"])
    sync: SyncVersion | None


class EventResults(BaseModel):
    """In the order in which the events were sent."""

    events: list[EventResult]
    count: int


_EVENT_EXAMPLE: Final = {
    "specversion": "1.0",
    "id": "6f1c2a",
    "source": "/signup",
    "type": "organization.created",
    "subject": "org_0b7c6a9e-2f4d-4c53-9a55-0f7b0a4c8d11",
    "data": {"name": "Initech", "plan_tier": "starter", "owner_user_id": "user_1"},
}
_EVENT_SCHEMA: Final = {"$ref": "#/components/schemas/CloudEvent"}
# What is no event has its own verdict there and is no fault of the list.
_BATCH_SCHEMA: Final = {"type": "array", "maxItems": MAX_EVENTS_PER_BATCH, "items": {"anyOf": [_EVENT_SCHEMA, {}]}}
_EVENTS_REQUEST_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            SINGLE_EVENT_MEDIA_TYPE: {"schema": _EVENT_SCHEMA, "example": _EVENT_EXAMPLE},
            EVENT_BATCH_MEDIA_TYPE: {"schema": _BATCH_SCHEMA, "example": [_EVENT_EXAMPLE]},
            JSON_MEDIA_TYPE: {"schema": {"anyOf": [_EVENT_SCHEMA, _BATCH_SCHEMA]}, "example": _EVENT_EXAMPLE},
        },
    }
}
_EVENTS_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": EventResult | EventResults, "description": "One event is taken, or a batch is judged."},
    202: {"model": EventResult, "description": "One event is kept and waits."},
    415: {
        "description": "The body is not said to be JSON.",
        "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    },
}


@router.post("/api/events", responses=_EVENTS_RESPONSES, openapi_extra=_EVENTS_REQUEST_BODY)
async def receive_events(request: Request, context: ContextDep) -> Response:
    """Take one CloudEvents 1.0 object, or up to 100 in a list; `docs/schemas` says what each type holds.

    One: 200 with its verdict, 202 if it waits, 422 if it is refused. A list: 200 with every verdict in order, also
    where some are refused. Send what you are not sure of again: it is taken once.
    """
    payload = _parse_body(await request.body(), request.headers.get("Content-Type", JSON_MEDIA_TYPE))
    results = await run_in_threadpool(_handle_events, context, payload if isinstance(payload, list) else [payload])
    if isinstance(payload, list):
        return _json_response(HTTPStatus.OK, EventResults(events=results, count=len(results)))
    (result,) = results
    if result.status == "rejected":
        raise _event_rejected(result.reason or "")
    return _json_response(HTTPStatus.ACCEPTED if result.status == "waiting" else HTTPStatus.OK, result)


def describe(document: dict[str, Any]) -> None:
    """Add what an event may be to the document: each type with its data."""
    each = {f"CloudEvent.{kind}": _event_schema(kind, model) for kind, model in DATA_MODELS.items()}
    refs = {kind: f"#/components/schemas/CloudEvent.{kind}" for kind in DATA_MODELS}
    one_of = [{"$ref": ref} for ref in refs.values()]
    whole = {"oneOf": one_of, "discriminator": {"propertyName": "type", "mapping": refs}}
    document["components"]["schemas"] |= {**each, "CloudEvent": whole}


def _event_schema(kind: str, data: type[ServiceEventData]) -> dict[str, Any]:
    schema = ServiceEventMessage.model_json_schema()
    schema["properties"]["type"] = {"const": kind, "type": "string"}
    schema["properties"]["data"] = data.model_json_schema()
    return schema


def _json_response(status: HTTPStatus, body: BaseModel) -> Response:
    return Response(body.model_dump_json(), status, media_type=JSON_MEDIA_TYPE)


def _parse_body(body: bytes, content_type: str) -> object:
    """Raises ``ProblemError``."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in {SINGLE_EVENT_MEDIA_TYPE, EVENT_BATCH_MEDIA_TYPE, JSON_MEDIA_TYPE}:
        detail = f"Send {SINGLE_EVENT_MEDIA_TYPE}, {EVENT_BATCH_MEDIA_TYPE} or {JSON_MEDIA_TYPE} as Content-Type."
        raise ProblemError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", detail)
    try:
        payload: object = json.loads(body)
    except (ValueError, RecursionError):
        raise problems.unprocessable("body", "it is not JSON in UTF-8") from None
    if kind != JSON_MEDIA_TYPE and isinstance(payload, list) != (kind == EVENT_BATCH_MEDIA_TYPE):
        raise problems.unprocessable(
            "body", f"{SINGLE_EVENT_MEDIA_TYPE} is one object, {EVENT_BATCH_MEDIA_TYPE} is a list of them"
        )
    if isinstance(payload, list) and len(payload) > MAX_EVENTS_PER_BATCH:
        raise problems.unprocessable(
            "body", f"a batch holds at most {MAX_EVENTS_PER_BATCH} events; this one has {len(payload)}"
        )
    return payload


def _handle_events(context: ApiContext, events: Sequence[object]) -> list[EventResult]:
    """Each in its own transaction, in their order. Raises ``ProblemError``; what was taken by then stays taken."""
    try:
        handled = [service_events.handle(context.database, context.catalog, context.clock, event) for event in events]
    except IntegrityError:
        detail = (
            "Others keep putting in the same at the same moments. Send it again: what was taken is not taken twice."
        )
        raise problems.unavailable(detail) from None
    except DATABASE_UNAVAILABLE_ERRORS:
        detail = "The database does not answer in time. Send it again: what was taken by then is not taken twice."
        raise problems.unavailable(detail) from None
    for handled_event in handled:
        log.info(
            "event_received", status=handled_event.status, org_id=handled_event.org_id, repeated=handled_event.repeated
        )
    with context.database.read() as session:
        latest_versions = sync_status.latest_versions(
            session, {handled_event.org_id for handled_event in handled if handled_event.org_id is not None}
        )
    return [
        _event_result(event, handled_event, latest_versions)
        for event, handled_event in zip(events, handled, strict=True)
    ]


def _event_result(event: object, handled_event: HandledEvent, latest_versions: dict[str, int]) -> EventResult:
    version = latest_versions.get(handled_event.org_id or "")
    return EventResult(
        id=_event_attribute(event, "id"),
        source=_event_attribute(event, "source"),
        status=handled_event.status,
        reason=handled_event.reason,
        org_id=handled_event.org_id,
        sync=None if version is None else SyncVersion(version=version),
    )


def _event_attribute(event: object, name: str) -> str | None:
    """What tells the sender which event is meant."""
    value = event.get(name) if isinstance(event, dict) else None
    return service_events.storable_text(value)


def _event_rejected(reason: str) -> ProblemError:
    return ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, "event-rejected", reason, _field_errors(reason))


def _field_errors(reason: str) -> list[FieldError]:
    """A reason is one ``field: what it must be`` or several; where it speaks of the whole message, that is ``body``."""
    parts = [_FIELD_REASON_PATTERN.fullmatch(part) for part in reason.split("; ")]
    if all(parts):
        return [FieldError(field=part[1], detail=part[2]) for part in parts if part]
    if (whole := _FIELD_REASON_PATTERN.fullmatch(reason)) is not None:
        return [FieldError(field=whole[1], detail=whole[2])]
    first = reason.partition(" ")[0]
    return [FieldError(field=first if first in ServiceEventMessage.model_fields else "body", detail=reason)]
