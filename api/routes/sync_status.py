"""Sync status: whether both providers have a change, and since when; otherwise the reason and what happens next.

Users get a plain sentence. The provider's own message is for services only: it may name ids of other organizations.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Final

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from api import problems
from api.auth.authorization import CallerRole, PrincipalDep, authorize_again
from api.context import ApiContext, ContextDep
from api.routing import WAIT_PATH, ApiRoute, request_limits, threads_of
from api.schemas.requests import OrgId
from api.sync_waits import SyncWaits
from core.db.models.billing_links import PAYMENT_BRAKE, PaymentStatus
from core.ports.spec import PROVIDER_NAMES, Provider
from core.reconcile.link_status import LinkReport, SyncStatus
from core.reporting import sync_status
from core.reporting.sync_status import LinkVersionStatus, OrganizationVersion, VersionStatus

router = APIRouter(tags=["sync"], route_class=ApiRoute)

MAX_SYNC_WAIT_SECONDS: Final = 30  # seconds
AUTHORITY_CHECK_SECONDS: Final = 15.0  # how often a waiting request is authorized again

VersionQuery = Annotated[
    int | None, Query(ge=1, le=2**63 - 1, description="`sync.version` of a change; default: the latest.")
]
WaitQuery = Annotated[
    str,
    Query(
        pattern=r"^([0-9]|[12][0-9]|30)s?$",
        examples=["5s"],
        description="Respond as soon as both providers are in sync, at the latest after this many seconds.",
    ),
]


class SyncErrorDetails(BaseModel):
    """``code`` is the provider's; ``message`` and ``request_id`` are for services only."""

    kind: str = Field(examples=["unavailable"])
    code: str | None
    message: str | None
    request_id: str | None
    at: datetime | None


class PaymentProblem(BaseModel):
    """``failed``: an invoice could not be charged and is unpaid. ``payer_rejected``: the payment provider rejects the
    customer. ``dispute_lost``: a bank took a payment back. ``overdue``: an invoice is past its due date and unpaid.
    ``manual``: the subscription in Lago is paid manually, so Lago charges nobody automatically. ``code`` is the
    provider's. The plan stays as it is.
    """

    status: PaymentStatus
    since: datetime | None
    code: str | None = Field(examples=["card_declined"])


class CustomerCredit(BaseModel):
    """Credit on the customer's balance at the provider, in minor units of ``currency``. ``is_left``: nothing is charged
    there any more, so no invoice will use it; an operator refunds or grants it.
    """

    amount: int = Field(examples=[3266])
    currency: str | None = Field(examples=["USD"])
    since: datetime | None
    is_left: bool


class ProviderSyncStatus(BaseModel):
    """``next_at``: when it is retried automatically; null: nothing to wait for, or an operator must act. ``payment``
    null: no payment problem is known. ``credit`` null: none is known. A member sees neither.
    """

    in_sync: bool
    since: datetime | None
    status: SyncStatus
    reason: str | None = Field(examples=["Stripe did not respond as expected."])
    next_step: str | None = Field(examples=["It is retried automatically at `next_at`."])
    next_at: datetime | None
    error: SyncErrorDetails | None
    payment: PaymentProblem | None
    credit: CustomerCredit | None


class SyncStatusResponse(BaseModel):
    """``latest_version``: the newest change; ``version``: the one asked about; ``in_sync``: both providers have it."""

    org_id: str
    latest_version: int
    version: int
    in_sync: bool
    providers: dict[Provider, ProviderSyncStatus]


@router.get(WAIT_PATH)
async def get_sync_status(  # noqa: PLR0913 - the request and its caller
    *,
    org_id: OrgId,
    request: Request,
    context: ContextDep,
    principal: PrincipalDep,
    version: VersionQuery = None,
    wait: WaitQuery = "0s",
) -> SyncStatusResponse:
    """Whether both providers have a change. With ``wait`` the response waits for it, unless it is only observed."""
    threads, seconds = threads_of(request), int(wait.removesuffix("s"))
    version_status = await run_sync(_read_version_status, context, org_id, version, limiter=threads)
    if version_status.is_final or seconds == 0:
        return _sync_status_response(org_id, version_status, role=principal.role)
    with request_limits(request).waiting.reserve(principal.name):
        return await _wait_until_in_sync(request, context, OrganizationVersion(org_id, version_status.version), seconds)


async def _wait_until_in_sync(
    request: Request, context: ApiContext, version: OrganizationVersion, seconds: float
) -> SyncStatusResponse:
    threads, deadline = threads_of(request), time.monotonic() + seconds
    while True:
        remaining = max(0.0, deadline - time.monotonic())
        is_in_sync = await _sync_waits(request).wait(version, min(remaining, AUTHORITY_CHECK_SECONDS), request.receive)
        # The caller may have lost the right to it meanwhile.
        principal = await run_sync(authorize_again, request, context, limiter=threads)
        is_over = time.monotonic() >= deadline or request.app.state.stopping.is_set()
        if is_in_sync or is_over:
            version_status = await run_sync(_read_version_status, context, *version, limiter=threads)
            if version_status.is_final or is_over:
                return _sync_status_response(version.org_id, version_status, role=principal.role)


def _sync_waits(request: Request) -> SyncWaits:
    waits = request.app.state.sync_waits
    if not isinstance(waits, SyncWaits):
        message = "the app must be created by api.app.build_app"
        raise TypeError(message)
    return waits


def _read_version_status(context: ApiContext, org_id: str, version: int | None) -> VersionStatus:
    with context.database.read() as session:
        version_status = sync_status.version_status(session, org_id, context.clock(), version)
    if version_status is None:
        raise problems.organization_not_found()
    if version_status.version > version_status.latest_version:
        raise problems.unprocessable("query.version", f"the latest version is {version_status.latest_version}")
    return version_status


def _sync_status_response(org_id: str, version_status: VersionStatus, *, role: CallerRole) -> SyncStatusResponse:
    return SyncStatusResponse(
        org_id=org_id,
        latest_version=version_status.latest_version,
        version=version_status.version,
        in_sync=version_status.in_sync,
        providers={
            provider: _provider_sync_status(link_version, role=role)
            for provider, link_version in version_status.providers.items()
        },
    )


def _provider_sync_status(link_version: LinkVersionStatus, *, role: CallerRole) -> ProviderSyncStatus:
    link = link_version.link
    # As with the route /billing: a member sees no billing.
    payment, credit = (None, None) if role == "member" else (_payment_problem(link), _credit(link))
    if link_version.is_synced:
        return ProviderSyncStatus(
            in_sync=True,
            since=link.synced_at,
            status="in_sync",
            reason=None,
            next_step=None,
            next_at=None,
            error=None,
            payment=payment,
            credit=credit,
        )
    return ProviderSyncStatus(
        in_sync=False,
        since=None,
        status=link.status,
        reason=_reason(link),
        next_step=_next_step(link),
        next_at=link.next_at,
        error=_error_details(link, for_service=role == "service"),
        payment=payment,
        credit=credit,
    )


def _payment_problem(link: LinkReport) -> PaymentProblem | None:
    if link.payment_status is None:
        return None
    return PaymentProblem(status=link.payment_status, since=link.payment_since, code=link.payment_code)


def _credit(link: LinkReport) -> CustomerCredit | None:
    if link.credit_amount is None:
        return None
    return CustomerCredit(
        amount=link.credit_amount,
        currency=link.credit_currency,
        since=link.credit_since,
        is_left=link.credit_is_left,
    )


_WAIT_REASONS: Final[Mapping[Provider, str]] = {
    "stripe": "Stripe waits until Lago, which may have a customer that pays already, was read.",
    "lago": "Lago waits for the Stripe customer that it will charge.",
}
_STEPS_AFTER_WAIT: Final[Mapping[Provider, str]] = {
    "stripe": "It continues as soon as Lago was read, and not before. At `next_at` it asks again.",
    "lago": "It continues as soon as that customer exists, or at `next_at` without it.",
}


def _reason(link: LinkReport) -> str:
    provider_name = PROVIDER_NAMES[link.provider]
    match link.status:
        case "syncing":
            return "A worker is syncing it now."
        case "provider_down":
            return _breaker_cause(link)
        case "waiting":
            return _WAIT_REASONS[link.provider]
        case "parked" | "on_hold" | "observed":
            return _operator_reason(link)
        case "retrying":
            reasons = {
                "throttled": f"{provider_name} limits our request rate.",
                "misconfigured": f"Our access to {provider_name} is misconfigured.",
            }
            return reasons.get(link.error_kind or "", f"{provider_name} did not respond as expected.")
        case "in_sync" | "queued":
            return "It has not been synced yet."


def _next_step(link: LinkReport) -> str:
    match link.status:
        case "parked" | "on_hold" | "observed":
            return _operator_step(link)
        case "provider_down":
            return _step_while_breaker_is_open(link)
        case "waiting":
            return _STEPS_AFTER_WAIT[link.provider]
        case "syncing":
            return "Nothing to do. If the worker dies, another one takes over at `next_at`."
        case "retrying":
            return "It is retried automatically at `next_at`."
        case "in_sync" | "queued":
            return "It will be synced within moments; its sync request is sent again at `next_at`."


def _breaker_cause(link: LinkReport) -> str:
    provider_name = PROVIDER_NAMES[link.provider]
    match link.breaker_reason:
        case "misconfigured":
            return f"{provider_name} rejects our API key or settings."
        case "wrong_account":
            return f"Our API key belongs to another {provider_name} account."
        case "unavailable" | None:
            return f"{provider_name} does not respond."


def _step_while_breaker_is_open(link: LinkReport) -> str:
    match link.breaker_reason:
        case "misconfigured":
            return "An operator must correct the setting. Then it resumes automatically."
        case "wrong_account":
            return "An operator must set the right API key. Nothing is sent before."
        case "unavailable" | None:
            return f"It resumes automatically once {PROVIDER_NAMES[link.provider]} responds."


def _operator_reason(link: LinkReport) -> str:
    provider_name = PROVIDER_NAMES[link.provider]
    if link.status == "observed":
        return f"The organization is observed: nothing is written at {provider_name}."
    if link.is_conflict:
        return f"Somebody changed the billing of this organization in {provider_name}."
    if link.error_kind == PAYMENT_BRAKE:
        return f"Too many changes of what organizations pay came at once, so this one waits at {provider_name}."
    if link.status == "on_hold":
        return f"The imported data for {provider_name} is doubtful."
    return f"The sync with {provider_name} cannot continue automatically."


def _operator_step(link: LinkReport) -> str:
    if link.status == "observed":
        return "An operator decides from when on it is managed."
    if link.is_conflict:
        return "An operator must decide which one is right. Nothing is sent before."
    if link.error_kind == PAYMENT_BRAKE:
        return "An operator must let it go. Nothing is sent before."
    if link.status == "on_hold":
        return "An operator must check the data and retry. Nothing is sent before."
    return "An operator must resolve it. A new name, plan, billing email or currency also triggers a retry."


def _error_details(link: LinkReport, *, for_service: bool) -> SyncErrorDetails | None:
    if link.error_kind is None or link.status == "waiting":
        return None
    return SyncErrorDetails(
        kind=link.error_kind,
        code=link.error_code,
        message=link.error_message if for_service else None,
        request_id=link.error_request_id if for_service else None,
        at=link.error_at,
    )
