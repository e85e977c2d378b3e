"""Provider webhooks: authenticated by their signature, stored once, answered at once, handled in the queue.

A webhook that got a 200 is stored. After any other response the provider sends it again, for example while the database
is down or before its secret is set here. The API sends no sync request: it has no broker, and the relay finds the row
as it finds events.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final, NoReturn

import structlog
from fastapi import APIRouter, Depends, Header, Request
from pydantic import BaseModel, Field

from api import problems
from api.context import ApiContext, ContextDep
from api.problems import PROBLEM_MEDIA_TYPE, ProblemError
from api.routing import ApiRoute
from core.db.models.inbox import ProviderWebhookState
from core.inbox import provider_webhooks
from core.inbox.provider_webhooks import BadSignatureError, MalformedWebhookError, ParsedWebhook
from core.ports.spec import PROVIDER_NAMES, Provider
from providers.lago import webhooks as lago_webhooks
from providers.stripe import webhooks as stripe_webhooks
from providers.stripe.webhooks import ThinEventError

router = APIRouter(tags=["webhooks"], route_class=ApiRoute)
log = structlog.get_logger()

STRIPE_WEBHOOK_PATH: Final = "/webhooks/stripe"
LAGO_WEBHOOK_PATH: Final = "/webhooks/lago"
# The providers' dashboards may still send to these paths; they have the same handlers.
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
        "description": "As the provider sent it; the signature covers these bytes.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}


def _problem_description(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


_WEBHOOK_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    400: _problem_description("The signature is valid, the body is not; nothing was stored."),
    401: _problem_description("The signature is missing, invalid or too old; nothing was stored."),
    404: _problem_description("Webhooks of this provider are disabled: no secret is set."),
}


class ProviderWebhookResponse(BaseModel):
    """``stored``: it will be processed soon. ``ignored`` or ``rejected``: see ``reason``.

    ``repeated``: it was stored before.
    """

    id: str = Field(examples=["evt_1PqRsT2eZvKYlo2C0aBcDeFg"])
    state: ProviderWebhookState
    reason: str | None
    repeated: bool


async def raw_body(request: Request) -> bytes:
    return await request.body()


RawBody = Annotated[bytes, Depends(raw_body)]
StripeSignature = Annotated[str | None, Header(alias=stripe_webhooks.STRIPE_SIGNATURE_HEADER)]
LagoSignature = Annotated[str | None, Header(alias=lago_webhooks.LAGO_SIGNATURE_HEADER)]
LagoUniqueKey = Annotated[
    str | None, Header(alias=lago_webhooks.LAGO_UNIQUE_KEY_HEADER, description="Id of the webhook.")
]


@router.post(STRIPE_WEBHOOK_PATH, responses=_WEBHOOK_RESPONSES, openapi_extra=_WEBHOOK_REQUEST_BODY)
def receive_stripe_webhook(
    raw: RawBody, context: ContextDep, signature: StripeSignature = None
) -> ProviderWebhookResponse:
    """An event of Stripe, signed with the endpoint's secret (STRIPE_WEBHOOK_SECRET)."""
    if context.stripe_webhooks is None:
        detail = "Stripe webhooks are not enabled. Set STRIPE_WEBHOOK_SECRET."
        raise problems.not_found(detail)
    try:
        webhook = context.stripe_webhooks.parse(raw, signature)
    except BadSignatureError:
        advice = "compare STRIPE_WEBHOOK_SECRET with the signing secret of the endpoint in Stripe"
        _refuse(context, "stripe", advice, is_signed=bool(signature))
    except ThinEventError:
        _reject_malformed(
            "stripe", "The endpoint in Stripe sends thin payloads; create one with snapshot payloads in Stripe."
        )
    except MalformedWebhookError:
        _reject_malformed("stripe")
    return _store(context, webhook)


@router.post(LAGO_WEBHOOK_PATH, responses=_WEBHOOK_RESPONSES, openapi_extra=_WEBHOOK_REQUEST_BODY)
def receive_lago_webhook(
    raw: RawBody, context: ContextDep, signature: LagoSignature = None, unique_key: LagoUniqueKey = None
) -> ProviderWebhookResponse:
    """A webhook of Lago, signed with the algorithm of LAGO_WEBHOOK_ALGORITHM."""
    if context.lago_webhooks is None:
        detail = "Lago webhooks are not enabled. Set LAGO_WEBHOOK_SECRET."
        raise problems.not_found(detail)
    try:
        webhook = context.lago_webhooks.parse(raw, signature, unique_key)
    except BadSignatureError:
        advice = "compare LAGO_WEBHOOK_ALGORITHM and its secret or key with the endpoint in Lago"
        _refuse(context, "lago", advice, is_signed=bool(signature))
    except MalformedWebhookError:
        _reject_malformed("lago")
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
        provider_webhooks.record_acceptance(session, webhook.provider)
    return ProviderWebhookResponse(id=webhook.id, state=stored.state, reason=stored.reason, repeated=stored.repeated)


def _refuse(context: ApiContext, provider: Provider, advice: str, *, is_signed: bool) -> NoReturn:
    """``is_signed``: it has a signature, as each webhook of a provider has; what scans the internet sends none."""
    if is_signed:
        log.warning("provider_webhook_refused", provider=provider, problem="bad-signature")
        provider_webhooks.record_refusal(context.database, provider, context.clock())
    detail = (
        f"The signature of {PROVIDER_NAMES[provider]} is not valid for our settings, the body was changed, or the "
        f"webhook is too old. To fix it, {advice}."
    )
    headers = {"WWW-Authenticate": 'Signature realm="billing-sync"'}
    raise ProblemError(HTTPStatus.UNAUTHORIZED, "bad-signature", detail, headers=headers) from None


def _reject_malformed(provider: Provider, detail: str | None = None) -> NoReturn:
    log.warning("provider_webhook_refused", provider=provider, problem="malformed-webhook", detail=detail)
    name = PROVIDER_NAMES[provider]
    detail = detail or f"The signature is valid, but the body is not a webhook as {name} documents it."
    raise ProblemError(HTTPStatus.BAD_REQUEST, "malformed-webhook", detail) from None
