"""Webhooks out: who is told, of what, with which secret; and telling it once more. For services that may manage them.

The API sends nothing itself: it writes rows, and the workers send what is due within seconds.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Response
from pydantic import AwareDatetime, BaseModel, Field

from api import problems
from api.context import Runtime, TheRuntime
from api.schemas.requests import Body
from api.unit_of_work import IdempotencyKey, TheWriter
from core.events.event_types import Change
from core.webhooks import deliveries, endpoints, url_policy
from core.webhooks.endpoints import EndpointReport, NewEndpoint
from core.webhooks.payloads import MEDIA_TYPE, NAMES, Announcement, Name
from core.webhooks.signing import Signer

router = APIRouter(tags=["webhooks out"])

EndpointId = Annotated[str, Path(max_length=64, pattern=r"^[^\x00]*$", examples=["we_5f2b8c0d9e1a4b7c8d6e0f1a"])]
_SENT: Final = """
Signed as Standard Webhooks has it: `webhook-id`, `webhook-timestamp`, `webhook-signature`.

Any 2xx takes it. Anything else, and no answer within ten seconds, has it sent again after 1, 5 and 15 minutes, 1 and 2
hours; 410 ends the webhook. It may come more than once and in any order: `webhook-id` tells repeats, `data.sequence`
the order.
""".strip()
_SHOWN: Final = "The secret with which to verify: `whsec_…`, as Standard Webhooks has it. It is not shown again."


class NewWebhook(Body):
    """``events`` left out: all of them, those of later versions too."""

    url: str = Field(
        min_length=1,
        max_length=url_policy.URL_LIMIT,
        pattern=r"^https?://[!-~]+$",
        description="https://…; http:// on this machine alone.",
        examples=["https://hooks.example.com/billing"],
    )
    events: list[Name] = Field(default=[], max_length=len(NAMES), examples=[["organization.synced"]])
    description: str | None = Field(default=None, max_length=endpoints.DESCRIPTION_LIMIT, pattern=r"^[^\x00]*$")


class Replay(Body):
    """``since`` left out: what failed. Else everything that happened from then on, taken or not."""

    since: AwareDatetime | None = Field(default=None, examples=["2026-11-23T12:00:00Z"])


class Webhook(BaseModel):
    """``events`` empty: all. ``disabled_at``: nothing is sent there since; a replay tells it again. ``pending`` is on
    its way or waits for its next try, ``failed`` was given up.
    """

    id: str = Field(examples=["we_5f2b8c0d9e1a4b7c8d6e0f1a"])
    url: str = Field(examples=["https://hooks.example.com/billing"])
    events: list[Name]
    description: str | None
    created_at: datetime
    disabled_at: datetime | None
    disabled_because: str | None
    pending: int
    failed: int


class Webhooks(BaseModel):
    webhooks: list[Webhook]
    count: int


class Secret(BaseModel):
    """``generation``: the how manieth secret of this endpoint it is."""

    id: str = Field(examples=["we_5f2b8c0d9e1a4b7c8d6e0f1a"])
    status: str = Field(examples=["created"])
    generation: int
    secret: str = Field(description=_SHOWN, examples=["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDazfeAAAAAAA="])


class Removed(BaseModel):
    status: str = Field(examples=["removed"])


class Replayed(BaseModel):
    """``count`` deliveries are due now."""

    status: str = Field(examples=["replayed"])
    count: int


@router.post("/api/webhooks", status_code=201, response_model=Secret)
def add(body: NewWebhook, writer: TheWriter, runtime: TheRuntime, key: IdempotencyKey = None) -> Response:
    """Have another service told what happens. The answer holds the secret, this one time."""
    signer = _signer(runtime)
    new = NewEndpoint(url=body.url, events=body.events, description=body.description)

    def work(change: Change) -> Secret:
        made = endpoints.add(change.session, new, change.now, private=runtime.private_webhooks)
        return Secret(id=made.id, status="created", generation=made.generation, secret="")

    return _told(signer, writer.once(key, body, 201, work))


@router.get("/api/webhooks")
def index(runtime: TheRuntime) -> Webhooks:
    """All of them, oldest first."""
    with runtime.database.read() as session:
        found = [_webhook(report) for report in endpoints.every(session)]
    return Webhooks(webhooks=found, count=len(found))


@router.delete("/api/webhooks/{endpoint_id}")
def remove(endpoint_id: EndpointId, writer: TheWriter) -> Removed:
    """End it: nothing is sent there any more, and what was to be sent is forgotten."""

    def work(change: Change) -> Removed:
        if not endpoints.remove(change.session, endpoint_id):
            raise _unknown()
        return Removed(status="removed")

    return writer.change(work)


@router.post("/api/webhooks/{endpoint_id}/rotate", response_model=Secret)
def rotate(endpoint_id: EndpointId, writer: TheWriter, runtime: TheRuntime, key: IdempotencyKey = None) -> Response:
    """Make a new secret. For a day both sign, each in `webhook-signature`, so that the other side can change over."""
    signer = _signer(runtime)

    def work(change: Change) -> Secret:
        generation = endpoints.rotate(change.session, endpoint_id, change.now)
        if generation is None:
            raise _unknown()
        return Secret(id=endpoint_id, status="rotated", generation=generation, secret="")

    return _told(signer, writer.once(key, Body(), 200, work))


@router.post("/api/webhooks/{endpoint_id}/replay", response_model=Replayed)
def replay(endpoint_id: EndpointId, body: Replay, writer: TheWriter, key: IdempotencyKey = None) -> Response:
    """Send again, each event under the id that it had before. One that was disabled is told again."""

    def work(change: Change) -> Replayed:
        count = deliveries.replay(change.session, endpoint_id, change.now, body.since)
        if count is None:
            raise _unknown()
        return Replayed(status="replayed", count=count)

    return writer.once(key, body, 200, work)


def describe(document: dict[str, Any]) -> None:
    """Add what is sent to the document, in its own section for it."""
    told = Announcement.model_json_schema(ref_template="#/components/schemas/{model}")
    document["components"]["schemas"] |= told.pop("$defs") | {"Announcement": told}
    body = {"required": True, "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Announcement"}}}}
    document["webhooks"] = {
        "event": {
            "post": {
                "summary": "What a subscriber is sent",
                "description": _SENT,
                "tags": ["webhooks out"],
                "requestBody": body,
                "responses": {"2XX": {"description": "Taken."}, "410": {"description": "Send nothing more."}},
            }
        }
    }


def _signer(runtime: Runtime) -> Signer:
    if runtime.signer is None:
        detail = "Nobody is told by webhook here: WEBHOOK_SIGNING_SECRET is not set, so nothing can be signed."
        raise problems.conflict("webhooks-not-set-up", detail)
    return runtime.signer


def _told(signer: Signer, answer: Response) -> Response:
    """The answer with its secret, which is in no row: an answer that is kept for repeats is kept without it."""
    told = Secret.model_validate_json(bytes(answer.body))
    told.secret = signer.secret(told.id, told.generation)
    answer.body = told.model_dump_json().encode()
    answer.headers["Content-Length"] = str(len(answer.body))
    return answer


def _unknown() -> problems.ProblemError:
    return problems.not_found("There is no such webhook: look at its id.")


def _webhook(report: EndpointReport) -> Webhook:
    return Webhook(
        id=report.id,
        url=report.url,
        events=report.events,
        description=report.description,
        created_at=report.created_at,
        disabled_at=report.disabled_at,
        disabled_because=report.disabled_because,
        pending=report.pending,
        failed=report.failed,
    )
