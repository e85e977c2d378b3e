"""Receipts: do both billers hold a change, since when; and where one does not, why and what happens next.

A person reads plain words. The biller's own message goes to services alone: it may name ids of other organizations.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from api import problems
from api.auth.authorization import PrincipalDep
from api.context import ApiContext, ContextDep
from api.schemas.requests import OrgId
from core.db.models.billing_links import PaymentStatus
from core.ports.spec import Provider
from core.reconcile.link_status import LinkReport, SyncStatus
from core.reporting import sync_status
from core.reporting.sync_status import LinkVersionStatus, VersionStatus

router = APIRouter(tags=["sync"])

MAX_SYNC_WAIT_SECONDS: Final = 30  # seconds
MIN_SYNC_POLL_SECONDS: Final = 0.05  # seconds
MAX_SYNC_POLL_SECONDS: Final = 0.5  # seconds: how late an answer may be, and how often a waiting one asks the database

PROVIDER_DISPLAY_NAMES: Final[dict[Provider, str]] = {"stripe": "Stripe", "lago": "Lago"}

VersionQuery = Annotated[
    int | None, Query(ge=1, le=2**63 - 1, description="`sync.version` of a change; left out: the newest.")
]
WaitQuery = Annotated[
    str,
    Query(
        pattern=r"^([0-9]|[12][0-9]|30)s?$",
        examples=["5s"],
        description="Answer as soon as both hold it, at the latest after these seconds.",
    ),
]


class SyncErrorDetails(BaseModel):
    """``code`` is the biller's own word; ``message`` and ``request_id`` are for services alone."""

    kind: str = Field(examples=["unavailable"])
    code: str | None
    message: str | None
    request_id: str | None
    at: datetime | None


class PaymentProblem(BaseModel):
    """``failed``: an invoice could not be charged and is open. ``refused``: the payment provider does not take the
    customer. ``code`` is the biller's own word. The plan stays as it is.
    """

    state: PaymentStatus
    since: datetime | None
    code: str | None = Field(examples=["card_declined"])


class ProviderSyncStatus(BaseModel):
    """``next_at``: when it is tried by itself; null: nothing waits, or a person must act. ``payment`` null: nothing is
    known to be wrong with paying there.
    """

    in_sync: bool
    since: datetime | None
    status: SyncStatus
    reason: str | None = Field(examples=["Stripe does not answer."])
    next_step: str | None = Field(examples=["It is tried again by itself."])
    next_at: datetime | None
    error: SyncErrorDetails | None
    payment: PaymentProblem | None


class SyncStatusResponse(BaseModel):
    """``sequence`` is the newest change, ``through`` the one asked about; ``in_sync``: both billers hold that."""

    org_id: str
    latest_version: int
    version: int
    in_sync: bool
    providers: dict[Provider, ProviderSyncStatus]


@router.get("/api/organizations/{org_id}/sync")
async def get_sync_status(  # noqa: PLR0913 - what is asked, and who asks
    *,
    org_id: OrgId,
    request: Request,
    context: ContextDep,
    principal: PrincipalDep,
    version: VersionQuery = None,
    wait: WaitQuery = "0s",
) -> SyncStatusResponse:
    """Whether both billers hold a change; waits for it if asked to."""
    deadline = time.monotonic() + int(wait.removesuffix("s"))
    poll_seconds = MIN_SYNC_POLL_SECONDS
    while True:
        version_status = await run_in_threadpool(_read_version_status, context, org_id, version)
        remaining = deadline - time.monotonic()
        if version_status.in_sync or remaining <= 0 or request.app.state.stopping.is_set():
            return _sync_status_response(org_id, version_status, for_service=principal.role == "service")
        await asyncio.sleep(min(poll_seconds, remaining))
        poll_seconds = min(poll_seconds * 1.5, MAX_SYNC_POLL_SECONDS)


def _read_version_status(context: ApiContext, org_id: str, version: int | None) -> VersionStatus:
    with context.database.read() as session:
        version_status = sync_status.version_status(session, org_id, context.clock(), version)
    if version_status is None:
        raise problems.organization_not_found()
    if version_status.version > version_status.latest_version:
        raise problems.unprocessable("query.version", f"the newest change is {version_status.latest_version}")
    return version_status


def _sync_status_response(org_id: str, version_status: VersionStatus, *, for_service: bool) -> SyncStatusResponse:
    return SyncStatusResponse(
        org_id=org_id,
        latest_version=version_status.latest_version,
        version=version_status.version,
        in_sync=version_status.in_sync,
        providers={
            provider: _provider_sync_status(link_version, for_service=for_service)
            for provider, link_version in version_status.providers.items()
        },
    )


def _provider_sync_status(link_version: LinkVersionStatus, *, for_service: bool) -> ProviderSyncStatus:
    link = link_version.link
    if link_version.is_synced:
        return ProviderSyncStatus(
            in_sync=True,
            since=link.synced_at,
            status="in_sync",
            reason=None,
            next_step=None,
            next_at=None,
            error=None,
            payment=_payment_problem(link),
        )
    return ProviderSyncStatus(
        in_sync=False,
        since=None,
        status=link.status,
        reason=_reason(link),
        next_step=_next_step(link),
        next_at=link.next_at,
        error=_error_details(link, for_service=for_service),
        payment=_payment_problem(link),
    )


def _payment_problem(link: LinkReport) -> PaymentProblem | None:
    if link.payment_status is None:
        return None
    return PaymentProblem(state=link.payment_status, since=link.payment_since, code=link.payment_code)


def _reason(link: LinkReport) -> str:
    provider_name = PROVIDER_DISPLAY_NAMES[link.provider]
    match link.status:
        case "syncing":
            return "A worker is at it now."
        case "provider_down":
            return f"{provider_name} takes nothing from us now."
        case "waiting":
            return "Lago waits for the customer at Stripe, whom it is to charge."
        case "parked" | "on_hold":
            return f"{provider_name} cannot take it as it is."
        case "retrying":
            reasons = {
                "throttled": f"{provider_name} asks for a pause.",
                "misconfigured": f"Our access to {provider_name} is not right.",
            }
            return reasons.get(link.error_kind or "", f"{provider_name} did not answer as expected.")
        case "in_sync" | "queued":
            return "It has not had its turn yet."


def _next_step(link: LinkReport) -> str:
    match link.status:
        case "parked" | "on_hold":
            return "A person must look at it; a change of the organization has it tried again, too."
        case "provider_down":
            return f"It is taken up by itself once {PROVIDER_DISPLAY_NAMES[link.provider]} answers."
        case "waiting":
            return "It goes on as soon as that is there, without it at `next_at`."
        case "syncing":
            return "Nothing to do; should the worker die, another takes over at `next_at`."
        case "retrying":
            return "It is tried again by itself at `next_at`."
        case "in_sync" | "queued":
            return "It is taken up within moments; its message is sent again at `next_at`."


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
