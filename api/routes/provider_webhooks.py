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
from api.context import Runtime, TheRuntime
from api.problems import MEDIA_TYPE, ProblemError
from core.db.models.inbox import HintState
from core.inbox import provider_webhooks
from core.inbox.provider_webhooks import NotGenuineError, Told, UnreadableError
from providers.lago import webhooks
from providers.stripe import webhooks as stripe_webhooks

router = APIRouter(tags=["webhooks"])

STRIPE: Final = "/webhooks/stripe"
LAGO: Final = "/webhooks/lago"
# Where the billers' dashboards still send them: the same handlers.
OLDER: Final[dict[str, tuple[str, ...]]] = {
    STRIPE: (
        "/api/v1/billing/webhooks/stripe",
        "/api/v1/billing/webhooks/stripe/checkout",
        "/api/v1/webhooks/stripe/checkout-completed",
        "/api/v1/webhooks/stripe/subscription-updated",
    ),
    LAGO: ("/api/v1/webhooks/lago",),
}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "As the biller sends it; its bytes are what is signed.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}


def _refused(description: str) -> dict[str, Any]:
    return {"description": description, "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}


_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    400: _refused("Signed, and not what the biller documents; nothing was stored."),
    401: _refused("Not signed by the biller, changed since, or signed too long ago; nothing was stored."),
    404: _refused("No webhooks of this biller are taken here: its secret is not set."),
}


class Taken(BaseModel):
    """``state``: stored, it is looked at soon; ignored or refused, ``reason`` says why. ``repeated``: it was there."""

    id: str = Field(examples=["evt_1PqRsT2eZvKYlo2C0aBcDeFg"])
    state: HintState
    reason: str | None
    repeated: bool


async def raw_body(request: Request) -> bytes:
    return await request.body()


Raw = Annotated[bytes, Depends(raw_body)]
StripeSignature = Annotated[str | None, Header(alias=stripe_webhooks.SIGNATURE)]
LagoSignature = Annotated[str | None, Header(alias=webhooks.SIGNATURE)]
LagoKey = Annotated[str | None, Header(alias=webhooks.UNIQUE_KEY, description="Names the event.")]


@router.post(STRIPE, responses=_ANSWERS, openapi_extra=_BODY)
def from_stripe(raw: Raw, runtime: TheRuntime, signature: StripeSignature = None) -> Taken:
    """An event of Stripe, signed with the endpoint's secret (STRIPE_WEBHOOK_SECRET)."""
    if runtime.stripe_webhooks is None:
        detail = "Webhooks of Stripe are not taken here: set STRIPE_WEBHOOK_SECRET."
        raise problems.not_found(detail)
    try:
        told = runtime.stripe_webhooks.read(raw, signature)
    except (NotGenuineError, UnreadableError) as error:
        _refuse(error, "Stripe", "compare STRIPE_WEBHOOK_SECRET with the signing secret of the endpoint in Stripe")
    return _keep(runtime, told)


@router.post(LAGO, responses=_ANSWERS, openapi_extra=_BODY)
def from_lago(raw: Raw, runtime: TheRuntime, signature: LagoSignature = None, unique_key: LagoKey = None) -> Taken:
    """A webhook of Lago, signed by the one algorithm that LAGO_WEBHOOK_ALGORITHM names."""
    if runtime.lago_webhooks is None:
        detail = "Webhooks of Lago are not taken here: set LAGO_WEBHOOK_SECRET."
        raise problems.not_found(detail)
    try:
        told = runtime.lago_webhooks.read(raw, signature, unique_key)
    except (NotGenuineError, UnreadableError) as error:
        _refuse(error, "Lago", "compare LAGO_WEBHOOK_ALGORITHM and its secret or key with the endpoint in Lago")
    return _keep(runtime, told)


for path, handler in ((STRIPE, from_stripe), (LAGO, from_lago)):
    for older in OLDER[path]:
        router.add_api_route(
            older, handler, methods=["POST"], responses=_ANSWERS, openapi_extra=_BODY, summary=f"As `POST {path}`"
        )


def _keep(runtime: Runtime, told: Told) -> Taken:
    with runtime.database.write() as session:
        kept = provider_webhooks.keep(session, told, runtime.clock())
    return Taken(id=told.id, state=kept.state, reason=kept.reason, repeated=kept.repeated)


def _refuse(error: Exception, biller: str, to_do: str) -> NoReturn:
    if isinstance(error, UnreadableError):
        detail = f"This is signed, but not what {biller} documents of its webhooks."
        raise ProblemError(HTTPStatus.BAD_REQUEST, "unreadable", detail) from None
    detail = f"This is not signed by {biller} as our settings say, was changed since, or is too old: {to_do}."
    headers = {"WWW-Authenticate": 'Signature realm="billing-sync"'}
    raise ProblemError(HTTPStatus.UNAUTHORIZED, "not-genuine", detail, headers=headers) from None
