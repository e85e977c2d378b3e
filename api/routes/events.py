"""Service events by HTTP, handled by the rules of the Celery task ``events.receive`` and answered at once.

Each event is handled once, by its source and id; a repeat gets the status of the first and changes nothing. Another
event under the id of an earlier one is rejected. A source belongs to the service account that first sent from it. The
response to one event is its status, or a problem if it is rejected. The response to a batch has a status for each
event, so that a bad event does not stop the others.
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
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api import problems
from api.auth.authorization import PrincipalDep, confirm, rule_of
from api.context import ApiContext, ContextDep
from api.problems import PROBLEM_MEDIA_TYPE, FieldError, ProblemError
from api.routing import ApiRoute
from api.schemas.responses import SyncVersion
from core.db.database import DATABASE_UNAVAILABLE_ERRORS
from core.db.models.inbox import ServiceEventStatus
from core.inbox import service_events
from core.inbox.event_schemas import DATA_MODELS, ServiceEventData, ServiceEventMessage
from core.inbox.senders import AccountSender, SenderAccount
from core.inbox.service_events import HandledEvent
from core.reporting import sync_status

log = structlog.get_logger()
router = APIRouter(tags=["events"], route_class=ApiRoute)

MAX_EVENTS_PER_BATCH: Final = 100
SINGLE_EVENT_MEDIA_TYPE: Final = "application/cloudevents+json"
EVENT_BATCH_MEDIA_TYPE: Final = "application/cloudevents-batch+json"
JSON_MEDIA_TYPE: Final = "application/json"
_FIELD_REASON_PATTERN: Final = re.compile(r"([A-Za-z0-9_.]{1,80}): (.+)", re.DOTALL)


class EventResult(BaseModel):
    """``waiting``: it waits for its organization or member, which does not exist yet. ``superseded``: its source sent a
    later change. ``sync``: pass ``version`` to ``GET …/sync?version=``.
    """

    id: str | None = Field(examples=["6f1c2a"], description="As sent; null: missing.")
    source: str | None = Field(examples=["/signup"])
    status: ServiceEventStatus
    reason: str | None = Field(description="What is invalid or missing, naming the field.")
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
# An item that is not an event gets a status of its own; the list is still valid.
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
    200: {
        "model": EventResult | EventResults,
        "description": "The event is applied or superseded, or every event of the batch has a status.",
    },
    202: {"model": EventResult, "description": "The event is stored and waits for its subject."},
    415: {
        "description": "The Content-Type is not JSON.",
        "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    },
}


@router.post("/api/events", responses=_EVENTS_RESPONSES, openapi_extra=_EVENTS_REQUEST_BODY)
async def receive_events(request: Request, context: ContextDep, principal: PrincipalDep) -> Response:
    """Send one CloudEvents 1.0 object, or a list of up to 100; `docs/schemas` has the schema of each type.

    One event: 200 with its status, 202 if it waits, 422 if it is rejected, 403 if its source belongs to another
    service account. A list: 200 with every status in order, even if some are rejected. Resend when in doubt; duplicates
    are applied once.
    """
    payload = _parse_body(await request.body(), request.headers.get("Content-Type", JSON_MEDIA_TYPE))
    events = payload if isinstance(payload, list) else [payload]

    def confirm_sender(session: Session) -> SenderAccount:
        service = confirm(session, principal, rule_of(request), context.clock()).service
        return SenderAccount(account_id=service.account_id, key_id=service.key_id)

    handled = await run_in_threadpool(_handle_events, context, events, AccountSender(confirm=confirm_sender))
    results = await run_in_threadpool(_event_results, context, events, handled)
    if isinstance(payload, list):
        return _json_response(HTTPStatus.OK, EventResults(events=results, count=len(results)))
    (result,) = results
    if handled[0].is_foreign:
        detail = f"{result.reason}. An operator can see whose it is: `billing-sync inbox sources`."
        raise problems.forbidden(detail)
    if result.status == "rejected":
        raise _event_rejected(result.reason or "")
    return _json_response(HTTPStatus.ACCEPTED if result.status == "waiting" else HTTPStatus.OK, result)


def describe(document: dict[str, Any]) -> None:
    """Add the schemas of the events to the document: each type with its data."""
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
        raise problems.unprocessable("body", "must be JSON in UTF-8") from None
    if kind != JSON_MEDIA_TYPE and isinstance(payload, list) != (kind == EVENT_BATCH_MEDIA_TYPE):
        raise problems.unprocessable(
            "body", f"{SINGLE_EVENT_MEDIA_TYPE} is one object, {EVENT_BATCH_MEDIA_TYPE} is a list of them"
        )
    if isinstance(payload, list) and len(payload) > MAX_EVENTS_PER_BATCH:
        raise problems.unprocessable(
            "body", f"a batch may have at most {MAX_EVENTS_PER_BATCH} events; this one has {len(payload)}"
        )
    return payload


def _handle_events(context: ApiContext, events: Sequence[object], sender: AccountSender) -> list[HandledEvent]:
    """Each in its own transaction, in order. Raises ``ProblemError``; events that were applied by then stay applied."""
    try:
        handled = [
            service_events.handle(context.database, context.catalog, context.clock, event, sender) for event in events
        ]
    except IntegrityError:
        detail = (
            "Other requests are sending the same events at the same time. Send it again; an event that was applied is "
            "not applied twice."
        )
        raise problems.unavailable(detail) from None
    except DATABASE_UNAVAILABLE_ERRORS:
        detail = "The database did not respond in time. Send it again; events that were applied are not applied twice."
        raise problems.unavailable(detail) from None
    for handled_event in handled:
        log.info(
            "event_received", status=handled_event.status, org_id=handled_event.org_id, repeated=handled_event.repeated
        )
    return handled


def _event_results(context: ApiContext, events: Sequence[object], handled: Sequence[HandledEvent]) -> list[EventResult]:
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
    """An attribute by which the sender recognizes the event."""
    value = event.get(name) if isinstance(event, dict) else None
    return service_events.storable_text(value)


def _event_rejected(reason: str) -> ProblemError:
    return ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, "event-rejected", reason, _field_errors(reason))


def _field_errors(reason: str) -> list[FieldError]:
    """A reason is one or several of ``field: what it must be``. A reason about the whole message is about ``body``."""
    parts = [_FIELD_REASON_PATTERN.fullmatch(part) for part in reason.split("; ")]
    if all(parts):
        return [FieldError(field=part[1], detail=part[2]) for part in parts if part]
    if (whole := _FIELD_REASON_PATTERN.fullmatch(reason)) is not None:
        return [FieldError(field=whole[1], detail=whole[2])]
    first = reason.partition(" ")[0]
    return [FieldError(field=first if first in ServiceEventMessage.model_fields else "body", detail=reason)]
