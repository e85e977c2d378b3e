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
from api.context import Runtime, TheRuntime
from api.problems import MEDIA_TYPE, FieldError, ProblemError
from api.schemas.responses import Sync
from core.db.database import DATABASE_IS_AWAY
from core.db.models.inbox import Verdict
from core.inbox import service_events
from core.inbox.event_schemas import DATA_OF, Data, Envelope
from core.inbox.service_events import Receipt
from core.reporting import sync_status

log = structlog.get_logger()
router = APIRouter(tags=["events"])

MOST: Final = 100
ONE: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"
PLAIN: Final = "application/json"
_NAMED: Final = re.compile(r"([A-Za-z0-9_.]{1,80}): (.+)", re.DOTALL)


class EventVerdict(BaseModel):
    """``waiting``: for its organization or member, which is not known yet. ``superseded``: its source has said
    something later since. ``sync`` where it was accepted: hand ``sequence`` to ``GET …/sync?through=``.
    """

    id: str | None = Field(examples=["6f1c2a"], description="As it was sent; null: it had none.")
    source: str | None = Field(examples=["/signup"])
    verdict: Verdict
    reason: str | None = Field(description="What was wrong or is waited for, with the field named.")
    org_id: str | None = Field(examples=["org_0b7c6a9e-2f4d-4c53-9a55-0f7b0a4c8d11"])
    sync: Sync | None


class EventVerdicts(BaseModel):
    """In the order in which the events were sent."""

    events: list[EventVerdict]
    count: int


_EXAMPLE: Final = {
    "specversion": "1.0",
    "id": "6f1c2a",
    "source": "/signup",
    "type": "organization.created",
    "subject": "org_0b7c6a9e-2f4d-4c53-9a55-0f7b0a4c8d11",
    "data": {"name": "Initech", "plan_tier": "starter", "owner_user_id": "user_1"},
}
_EVENT: Final = {"$ref": "#/components/schemas/CloudEvent"}
# What is no event has its own verdict there and is no fault of the list.
_LIST: Final = {"type": "array", "maxItems": MOST, "items": {"anyOf": [_EVENT, {}]}}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            ONE: {"schema": _EVENT, "example": _EXAMPLE},
            BATCH: {"schema": _LIST, "example": [_EXAMPLE]},
            PLAIN: {"schema": {"anyOf": [_EVENT, _LIST]}, "example": _EXAMPLE},
        },
    }
}
_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": EventVerdict | EventVerdicts, "description": "One event is taken, or a batch is judged."},
    202: {"model": EventVerdict, "description": "One event is kept and waits."},
    415: {
        "description": "The body is not said to be JSON.",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    },
}


@router.post("/api/events", responses=_ANSWERS, openapi_extra=_BODY)
async def receive(request: Request, runtime: TheRuntime) -> Response:
    """Take one CloudEvents 1.0 object, or up to 100 in a list; `docs/schemas` says what each type holds.

    One: 200 with its verdict, 202 if it waits, 422 if it is refused. A list: 200 with every verdict in order, also
    where some are refused. Send what you are not sure of again: it is taken once.
    """
    sent = _read(await request.body(), request.headers.get("Content-Type", PLAIN))
    verdicts = await run_in_threadpool(_judged, runtime, sent if isinstance(sent, list) else [sent])
    if isinstance(sent, list):
        return _answer(HTTPStatus.OK, EventVerdicts(events=verdicts, count=len(verdicts)))
    (verdict,) = verdicts
    if verdict.verdict == "refused":
        raise _refusal(verdict.reason or "")
    return _answer(HTTPStatus.ACCEPTED if verdict.verdict == "waiting" else HTTPStatus.OK, verdict)


def describe(document: dict[str, Any]) -> None:
    """Add what an event may be to the document: each type with its data."""
    each = {f"CloudEvent.{kind}": _described(kind, model) for kind, model in DATA_OF.items()}
    refs = {kind: f"#/components/schemas/CloudEvent.{kind}" for kind in DATA_OF}
    one_of = [{"$ref": ref} for ref in refs.values()]
    whole = {"oneOf": one_of, "discriminator": {"propertyName": "type", "mapping": refs}}
    document["components"]["schemas"] |= {**each, "CloudEvent": whole}


def _described(kind: str, data: type[Data]) -> dict[str, Any]:
    schema = Envelope.model_json_schema()
    schema["properties"]["type"] = {"const": kind, "type": "string"}
    schema["properties"]["data"] = data.model_json_schema()
    return schema


def _answer(status: HTTPStatus, body: BaseModel) -> Response:
    return Response(body.model_dump_json(), status, media_type=PLAIN)


def _read(body: bytes, content_type: str) -> object:
    """Raises ``ProblemError``."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in {ONE, BATCH, PLAIN}:
        detail = f"Send {ONE}, {BATCH} or {PLAIN} as Content-Type."
        raise ProblemError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", detail)
    try:
        sent: object = json.loads(body)
    except (ValueError, RecursionError):
        raise problems.unprocessable("body", "it is not JSON in UTF-8") from None
    if kind != PLAIN and isinstance(sent, list) != (kind == BATCH):
        raise problems.unprocessable("body", f"{ONE} is one object, {BATCH} is a list of them")
    if isinstance(sent, list) and len(sent) > MOST:
        raise problems.unprocessable("body", f"a batch holds at most {MOST} events; this one has {len(sent)}")
    return sent


def _judged(runtime: Runtime, events: Sequence[object]) -> list[EventVerdict]:
    """Each in its own transaction, in their order. Raises ``ProblemError``; what was taken by then stays taken."""
    try:
        found = [service_events.receive(runtime.database, runtime.catalog, runtime.clock, event) for event in events]
    except IntegrityError:
        detail = (
            "Others keep putting in the same at the same moments. Send it again: what was taken is not taken twice."
        )
        raise problems.unavailable(detail) from None
    except DATABASE_IS_AWAY:
        detail = "The database does not answer in time. Send it again: what was taken by then is not taken twice."
        raise problems.unavailable(detail) from None
    for receipt in found:
        log.info("event_received", verdict=receipt.verdict, org_id=receipt.org_id, repeated=receipt.repeated)
    with runtime.database.read() as session:
        newest = sync_status.newest(session, {receipt.org_id for receipt in found if receipt.org_id is not None})
    return [_verdict(event, receipt, newest) for event, receipt in zip(events, found, strict=True)]


def _verdict(event: object, receipt: Receipt, newest: dict[str, int]) -> EventVerdict:
    sequence = newest.get(receipt.org_id or "")
    return EventVerdict(
        id=_word(event, "id"),
        source=_word(event, "source"),
        verdict=receipt.verdict,
        reason=receipt.reason,
        org_id=receipt.org_id,
        sync=None if sequence is None else Sync(sequence=sequence),
    )


def _word(event: object, name: str) -> str | None:
    """What tells the sender which event is meant."""
    value = event.get(name) if isinstance(event, dict) else None
    return service_events.short(value)


def _refusal(reason: str) -> ProblemError:
    return ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, "event-refused", reason, _fields(reason))


def _fields(reason: str) -> list[FieldError]:
    """A reason is one ``field: what it must be`` or several; where it speaks of the whole message, that is ``body``."""
    parts = [_NAMED.fullmatch(part) for part in reason.split("; ")]
    if all(parts):
        return [FieldError(field=part[1], detail=part[2]) for part in parts if part]
    if (whole := _NAMED.fullmatch(reason)) is not None:
        return [FieldError(field=whole[1], detail=whole[2])]
    first = reason.partition(" ")[0]
    return [FieldError(field=first if first in Envelope.model_fields else "body", detail=reason)]
