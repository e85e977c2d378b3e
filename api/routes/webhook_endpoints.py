"""Webhook endpoints: add, list and remove them, rotate a secret, and replay deliveries. For services only.

A service account sees its own endpoints. Another's is not found, like one that does not exist.

The API sends no webhooks: it writes rows, and the workers send what is due within seconds.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from api import problems
from api.auth.authorization import PrincipalDep
from api.context import ApiContext, ContextDep
from api.routing import ApiRoute
from api.schemas.requests import RequestBody, TimeInRequest
from api.unit_of_work import IdempotencyKey, UnitOfWork, UnitOfWorkDep
from core.events.event_types import ChangeContext
from core.webhooks import deliveries, endpoints, url_policy
from core.webhooks.endpoints import EndpointInfo, NewEndpoint
from core.webhooks.payloads import (
    CLOUDEVENT_MEDIA_TYPE,
    ORGANIZATION_EVENT_NAMES,
    OrganizationEventName,
    PublicEventName,
    WebhookEvent,
)
from core.webhooks.signing import Signer

router = APIRouter(tags=["webhooks out"], route_class=ApiRoute)

EndpointIdInPath = Annotated[str, Path(max_length=64, pattern=r"^[^\x00]*$", examples=["we_5f2b8c0d9e1a4b7c8d6e0f1a"])]
_DELIVERY_DESCRIPTION: Final = """
Signed according to Standard Webhooks: `webhook-id`, `webhook-timestamp`, `webhook-signature`.

Any 2xx response acknowledges a delivery. Any other response, or none within ten seconds, is retried after 1, 5 and 15
minutes, then 1 and 2 hours; 410 disables the endpoint. A delivery may arrive more than once and in any order:
deduplicate by `webhook-id`, order by `data.sequence`.
""".strip()
_SHOWN_ONCE: Final = "The secret that verifies signatures: `whsec_…`, as in Standard Webhooks. It is not shown again."


class AddEndpointRequest(RequestBody):
    """``events`` left out: all types, including those of later versions. What operators must act on is not among them:
    an operator subscribes to it by `billing-sync webhooks add`.
    """

    url: str = Field(
        min_length=1,
        max_length=url_policy.MAX_ENDPOINT_URL_LENGTH,
        pattern=r"^https?://[!-~]+$",
        description="https://…; http:// only on this machine.",
        examples=["https://hooks.example.com/billing"],
    )
    events: list[OrganizationEventName] = Field(
        default=[], max_length=len(ORGANIZATION_EVENT_NAMES), examples=[["organization.synced"]]
    )
    description: str | None = Field(
        default=None, max_length=endpoints.MAX_ENDPOINT_DESCRIPTION_LENGTH, pattern=r"^[^\x00]*$"
    )


class ReplayRequest(RequestBody):
    """``since`` left out: resend failed deliveries. Otherwise resend every event from then on, delivered or not."""

    since: TimeInRequest | None = Field(default=None, examples=["2026-11-23T12:00:00Z"])


class WebhookEndpointResponse(BaseModel):
    """``events`` empty: all. ``disabled_at``: nothing has been sent since; a replay enables the endpoint again.
    ``pending``: deliveries that are due or wait for a retry. ``failed``: deliveries without attempts left.
    """

    id: str = Field(examples=["we_5f2b8c0d9e1a4b7c8d6e0f1a"])
    url: str = Field(examples=["https://hooks.example.com/billing"])
    events: list[PublicEventName]
    description: str | None
    created_at: datetime
    disabled_at: datetime | None
    disabled_reason: str | None
    pending: int
    failed: int


class WebhookEndpointList(BaseModel):
    webhooks: list[WebhookEndpointResponse]
    count: int


class EndpointSecret(BaseModel):
    """``secret_generation``: running number of this endpoint's secret, starting at 1."""

    id: str = Field(examples=["we_5f2b8c0d9e1a4b7c8d6e0f1a"])
    status: str = Field(examples=["created"])
    secret_generation: int
    secret: str = Field(description=_SHOWN_ONCE, examples=["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDazfeAAAAAAA="])


class EndpointRemoved(BaseModel):
    status: str = Field(examples=["removed"])


class ReplayResponse(BaseModel):
    """``count`` deliveries are due now."""

    status: str = Field(examples=["replayed"])
    count: int


@router.post("/api/webhooks", status_code=201, response_model=EndpointSecret)
def add_endpoint(
    body: AddEndpointRequest, unit_of_work: UnitOfWorkDep, context: ContextDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Add a webhook endpoint. The response contains the secret, this one time."""
    signer = _require_signer(context)
    new = NewEndpoint(
        url=body.url,
        events=body.events,
        description=body.description,
        account_id=unit_of_work.principal.service.account_id,
    )

    def work(change: ChangeContext) -> EndpointSecret:
        endpoint = endpoints.add(change.session, new, change.now, allow_private=context.allow_private_webhooks)
        return EndpointSecret(id=endpoint.id, status="created", secret_generation=endpoint.secret_generation, secret="")

    return _with_secret(signer, unit_of_work.run_idempotent(idempotency_key, body, 201, work))


@router.get("/api/webhooks")
def list_endpoints(context: ContextDep, principal: PrincipalDep) -> WebhookEndpointList:
    """List your webhook endpoints, oldest first."""
    with context.database.read() as session:
        found = endpoints.list_all(session, principal.service.account_id)
    endpoints_found = [_endpoint_response(report) for report in found]
    return WebhookEndpointList(webhooks=endpoints_found, count=len(endpoints_found))


@router.delete("/api/webhooks/{endpoint_id}")
def remove_endpoint(endpoint_id: EndpointIdInPath, unit_of_work: UnitOfWorkDep) -> EndpointRemoved:
    """Remove the endpoint and all its deliveries."""

    def work(change: ChangeContext) -> EndpointRemoved:
        _lock_own(unit_of_work, change, endpoint_id)
        endpoints.remove(change.session, endpoint_id)
        return EndpointRemoved(status="removed")

    return unit_of_work.run(work)


@router.post("/api/webhooks/{endpoint_id}/rotate", response_model=EndpointSecret)
def rotate_secret(
    endpoint_id: EndpointIdInPath,
    unit_of_work: UnitOfWorkDep,
    context: ContextDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Create a new secret. For a day both secrets sign, each in `webhook-signature`, so the receiver can switch."""
    signer = _require_signer(context)

    def work(change: ChangeContext) -> EndpointSecret:
        _lock_own(unit_of_work, change, endpoint_id)
        generation = endpoints.rotate_secret(change.session, endpoint_id, change.now)
        if generation is None:
            raise _endpoint_not_found()
        return EndpointSecret(id=endpoint_id, status="rotated", secret_generation=generation, secret="")

    return _with_secret(signer, unit_of_work.run_idempotent(idempotency_key, RequestBody(), 200, work))


@router.post("/api/webhooks/{endpoint_id}/replay", response_model=ReplayResponse)
def replay_deliveries(
    endpoint_id: EndpointIdInPath,
    body: ReplayRequest,
    unit_of_work: UnitOfWorkDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Resend events under their original ids. A disabled endpoint is enabled again."""

    def work(change: ChangeContext) -> ReplayResponse:
        _lock_own(unit_of_work, change, endpoint_id)
        count = deliveries.replay(change.session, endpoint_id, change.now, body.since)
        if count is None:
            raise _endpoint_not_found()
        return ReplayResponse(status="replayed", count=count)

    return unit_of_work.run_idempotent(idempotency_key, body, 200, work)


def describe(document: dict[str, Any]) -> None:
    """Add the webhooks that are sent to the document, in its section for webhooks."""
    event_schema = WebhookEvent.model_json_schema(ref_template="#/components/schemas/{model}")
    document["components"]["schemas"] |= event_schema.pop("$defs") | {"WebhookEvent": event_schema}
    body = {
        "required": True,
        "content": {CLOUDEVENT_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/WebhookEvent"}}},
    }
    document["webhooks"] = {
        "event": {
            "post": {
                "summary": "What an endpoint receives",
                "description": _DELIVERY_DESCRIPTION,
                "tags": ["webhooks out"],
                "requestBody": body,
                "responses": {"2XX": {"description": "Acknowledged."}, "410": {"description": "Disable the endpoint."}},
            }
        }
    }


def _require_signer(context: ApiContext) -> Signer:
    if context.signer is None:
        detail = "Outbound webhooks are disabled: WEBHOOK_SIGNING_SECRET is not set, so nothing can be signed."
        raise problems.conflict("webhooks-not-set-up", detail)
    return context.signer


def _with_secret(signer: Signer, response: Response) -> Response:
    """Add the secret to the response. It is in no row, so the stored response of an Idempotency-Key has none either."""
    secret = EndpointSecret.model_validate_json(bytes(response.body))
    secret.secret = signer.secret(secret.id, secret.secret_generation)
    response.body = secret.model_dump_json().encode()
    response.headers["Content-Length"] = str(len(response.body))
    return response


def _lock_own(unit_of_work: UnitOfWork, change: ChangeContext, endpoint_id: str) -> None:
    """Raises ``ProblemError`` if the endpoint is not one of the caller's."""
    if not endpoints.lock_own(change.session, endpoint_id, unit_of_work.principal.service.account_id):
        raise _endpoint_not_found()


def _endpoint_not_found() -> problems.ProblemError:
    return problems.not_found("There is no such webhook endpoint. Check its id.")


def _endpoint_response(report: EndpointInfo) -> WebhookEndpointResponse:
    return WebhookEndpointResponse(
        id=report.id,
        url=report.url,
        events=report.events,
        description=report.description,
        created_at=report.created_at,
        disabled_at=report.disabled_at,
        disabled_reason=report.disabled_reason,
        pending=report.pending,
        failed=report.failed,
    )
