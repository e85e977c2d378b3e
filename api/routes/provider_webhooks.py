"""Webhooks of the billers: the signature is the sign-in; stored once, answered at once, handled in the queue.

What is answered 200 is stored. A biller that is answered anything else sends it again: while the database is away, or
before its secret is set here. The API rings nobody: it has no broker, and the relay finds the row as it finds events.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final, NoReturn

from fastapi import APIRouter, Depends, Header, Request
from pydantic import BaseModel, Field

from api import problems
from api.context import ApiContext, ContextDep
from api.problems import PROBLEM_MEDIA_TYPE, ProblemError
from core.db.models.inbox import ProviderWebhookState
from core.inbox import provider_webhooks
from core.inbox.provider_webhooks import BadSignatureError, MalformedWebhookError, ParsedWebhook
from providers.lago import webhooks
from providers.stripe import webhooks as stripe_webhooks

router = APIRouter(tags=["webhooks"])

STRIPE_WEBHOOK_PATH: Final = "/webhooks/stripe"
LAGO_WEBHOOK_PATH: Final = "/webhooks/lago"
# Where the billers' dashboards still send them: the same handlers.
LEGACY_WEBHOOK_PATHS: Final[dict[str, tuple[str, ...]]] = {
    STRIPE_WEBHOOK_PATH: (
        "/api/v1/billing/webhooks/stripe",
        "/api/v1/billing/webhooks/stripe/checkout",
        "/api/v1/webhooks/stripe/checkout-completed",
        "/api/v1/webhooks/stripe/subscription-updated",
    ),
    LAGO_WEBHOOK_PATH: ("/api/v1/webhooks/lago",),
}
_WEBHOOK_REQUEST_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "As the biller sends it; its bytes are what is signed.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}


def _problem_description(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


_WEBHOOK_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    400: _problem_description("Signed, and not what the biller documents; nothing was stored."),
    401: _problem_description("Not signed by the biller, changed since, or signed too long ago; nothing was stored."),
    404: _problem_description("No webhooks of this biller are taken here: its secret is not set."),
}


class ProviderWebhookResponse(BaseModel):
    """``state``: stored, it is looked at soon; ignored or refused, ``reason`` says why. ``repeated``: it was there."""

    id: str = Field(examples=["evt_1PqRsT2eZvKYlo2C0aBcDeFg"])
    state: ProviderWebhookState
    reason: str | None
    repeated: bool


async def raw_body(request: Request) -> bytes:
    return await request.body()


RawBody = Annotated[bytes, Depends(raw_body)]
StripeSignature = Annotated[str | None, Header(alias=stripe_webhooks.STRIPE_SIGNATURE_HEADER)]
LagoSignature = Annotated[str | None, Header(alias=webhooks.LAGO_SIGNATURE_HEADER)]
LagoUniqueKey = Annotated[str | None, Header(alias=webhooks.LAGO_UNIQUE_KEY_HEADER, description="Names the event.")]


@router.post(STRIPE_WEBHOOK_PATH, responses=_WEBHOOK_RESPONSES, openapi_extra=_WEBHOOK_REQUEST_BODY)
def receive_stripe_webhook(
    raw: RawBody, context: ContextDep, signature: StripeSignature = None
) -> ProviderWebhookResponse:
    """An event of Stripe, signed with the endpoint's secret (STRIPE_WEBHOOK_SECRET)."""
    if context.stripe_webhooks is None:
        detail = "Webhooks of Stripe are not taken here: set STRIPE_WEBHOOK_SECRET."
        raise problems.not_found(detail)
    try:
        webhook = context.stripe_webhooks.parse(raw, signature)
    except (BadSignatureError, MalformedWebhookError) as error:
        _reject(error, "Stripe", "compare STRIPE_WEBHOOK_SECRET with the signing secret of the endpoint in Stripe")
    return _store(context, webhook)


@router.post(LAGO_WEBHOOK_PATH, responses=_WEBHOOK_RESPONSES, openapi_extra=_WEBHOOK_REQUEST_BODY)
def receive_lago_webhook(
    raw: RawBody, context: ContextDep, signature: LagoSignature = None, unique_key: LagoUniqueKey = None
) -> ProviderWebhookResponse:
    """A webhook of Lago, signed by the one algorithm that LAGO_WEBHOOK_ALGORITHM names."""
    if context.lago_webhooks is None:
        detail = "Webhooks of Lago are not taken here: set LAGO_WEBHOOK_SECRET."
        raise problems.not_found(detail)
    try:
        webhook = context.lago_webhooks.parse(raw, signature, unique_key)
    except (BadSignatureError, MalformedWebhookError) as error:
        _reject(error, "Lago", "compare LAGO_WEBHOOK_ALGORITHM and its secret or key with the endpoint in Lago")
    return _store(context, webhook)


for path, handler in ((STRIPE_WEBHOOK_PATH, receive_stripe_webhook), (LAGO_WEBHOOK_PATH, receive_lago_webhook)):
    for legacy_path in LEGACY_WEBHOOK_PATHS[path]:
        router.add_api_route(
            legacy_path,
            handler,
            methods=["POST"],
            responses=_WEBHOOK_RESPONSES,
            openapi_extra=_WEBHOOK_REQUEST_BODY,
            summary=f"As `POST {path}`",
        )


def _store(context: ApiContext, webhook: ParsedWebhook) -> ProviderWebhookResponse:
    with context.database.write() as session:
        stored = provider_webhooks.store(session, webhook, context.clock())
    return ProviderWebhookResponse(id=webhook.id, state=stored.state, reason=stored.reason, repeated=stored.repeated)


def _reject(error: Exception, provider_name: str, advice: str) -> NoReturn:
    if isinstance(error, MalformedWebhookError):
        detail = f"This is signed, but not what {provider_name} documents of its webhooks."
        raise ProblemError(HTTPStatus.BAD_REQUEST, "malformed-webhook", detail) from None
    detail = f"This is not signed by {provider_name} as our settings say, was changed since, or is too old: {advice}."
    headers = {"WWW-Authenticate": 'Signature realm="billing-sync"'}
    raise ProblemError(HTTPStatus.UNAUTHORIZED, "bad-signature", detail, headers=headers) from None
